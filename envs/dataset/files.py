"""Rows of a file, a folder or the hub, each with its place, so a bad row can be found."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rlpost.envs.dataset import hub
from rlpost.envs.errors import Refused

Located = tuple[str, dict[str, Any]]  # "file:line" or "file, row n", and the row

# The types of less than 64 bits, by Arrow's names.
_NARROW: dict[str, type[np.floating[Any]]] = {"float": np.float32, "halffloat": np.float16}
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FORMS = (
    "name a .jsonl file (an object a line), a .parquet, .arrow or .feather file, a folder of save_to_disk, or a data"
    " set of the hub: hf:OWNER/NAME"
)


def read(source: str) -> Iterator[Located]:
    """The rows of a data set. Raises Refused for what cannot be read, with file and line."""
    path = Path(source)
    if source.startswith(hub.PREFIX):
        yield from hub.read(source)
    elif not path.exists():
        raise Refused(f"{path}: there is no such file or folder, seen from {Path.cwd()}", _FORMS)
    elif path.is_dir():
        yield from _read_folder(path)
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from _read_jsonl(path)
    elif path.suffix in (".parquet", ".arrow", ".feather"):
        yield from _read_columns([path])
    else:
        raise Refused(f"{path}: is of no kind that can be read", _FORMS)


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. ValueError where a name stands twice in it, of which one value would be lost."""
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice!r} stands twice in an object")
    return record


def _read_jsonl(path: Path) -> Iterator[Located]:
    """Rows of a JSONL file. Blank lines are skipped; a line that is not a JSON object is refused."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", _object(line, f"{path}:{number}")


def _object(line: bytes, where: str) -> dict[str, Any]:
    if line.startswith(_MARKS):
        raise Refused(f"{where}: begins with a byte order mark", "save the file as UTF-8 without one")
    try:
        loaded = json.loads(line.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_once)
    except json.JSONDecodeError as error:  # its own line numbers are those within this line
        raise Refused(
            f"{where}: is not JSON: {error.msg}, at character {error.pos + 1} of the line",
            "mend the line; a row stands whole on one line",
        ) from error
    except (ValueError, RecursionError) as error:  # includes bad UTF-8
        raise Refused(f"{where}: is not JSON: {error}", "mend the line") from error
    if not isinstance(loaded, dict):
        raise Refused(f"{where}: is no object but {type(loaded).__name__}", "write {...} on every line")
    return loaded


def _read_folder(folder: Path) -> Iterator[Located]:
    """Rows of a folder written by `datasets.Dataset.save_to_disk`: its state.json names the Arrow files, in order."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = ", ".join(str(folder / name) for name in json.loads(splits.read_text("utf-8"))["splits"])
        raise Refused(f"{folder}: holds several splits", f"name one: {names}")
    state = folder / "state.json"
    if not state.is_file():
        raise Refused(f"{folder}: has no state.json, so save_to_disk did not write it", _FORMS)
    files = json.loads(state.read_text("utf-8"))["_data_files"]
    yield from _read_columns([folder / each["filename"] for each in files])


def _read_columns(paths: list[Path]) -> Iterator[Located]:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise Refused(
            f"{paths[0]}: the package pyarrow, which reads it, is not installed",
            "pip install 'rlpost[datasets]', or write the rows as a .jsonl file",
        ) from error

    def table(path: Path) -> Any:
        if path.suffix == ".parquet":
            return parquet.read_table(path)
        with pyarrow.memory_map(str(path)) as source:
            try:
                return ipc.open_stream(source).read_all()
            # A file with a footer, instead of the stream that save_to_disk writes.
            except pyarrow.ArrowInvalid:
                return ipc.open_file(source).read_all()

    for path in paths:
        try:
            loaded = table(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise Refused(f"{path}: cannot be read: {error}", "write it again") from error
        narrow = {
            field.name: _NARROW[name] for field in loaded.schema if (name := str(field.type)) in _NARROW
        }
        for batch in loaded.to_batches():
            for index, row in enumerate(batch.to_pylist()):
                yield f"{path}, row {index}", {**row, **_as_written(row, narrow)}


def _as_written(row: dict[str, Any], narrow: dict[str, type[np.floating[Any]]]) -> dict[str, Any]:
    """Convert fields below 64 bits by their shortest digits: a float32 of 0.1 is 0.1, not 0.10000000149011612."""
    return {key: float(str(kind(row[key]))) for key, kind in narrow.items() if row[key] is not None}
