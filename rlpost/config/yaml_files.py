"""Reads all YAML from users: an experiment's file, the config.yaml of a record, a list typed on the command line.

The size is checked before anything is built. An alias costs one node to write, but stands for everything it refers to:
ten lines of nested aliases would keep a reader busy for hours.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import yaml

from rlpost.errors import ConfigError

MAX_BYTES = 256 * 1024
# Keys, values and list entries; those behind an alias count each time it occurs.
MAX_NODES = 20_000
MAX_DEPTH = 50


def read_mapping(path: Path) -> dict[str, Any]:
    """The key: value pairs of a file; none if the file is empty.

    Raises ConfigError if it cannot be read, is not YAML, has no such pairs or exceeds the bounds above.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror})", "check the path") from None
    if len(content) > MAX_BYTES:
        raise _refused(path, f"more than {MAX_BYTES} bytes are no settings", "check the path")
    return parse_mapping(content, path)


def parse_mapping(content: str | bytes, where: Path | str) -> dict[str, Any]:
    """Like `read_mapping`, for text instead of a file; refusals name `where`."""
    try:
        settings = _load(content, _Loader)
    except yaml.YAMLError as error:
        raise _refused(where, f"not YAML ({error})", "mend the file") from None
    except _OutOfBoundsError as error:
        raise _refused(where, str(error), "write out what it says, without anchors and aliases") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise _refused(where, "it holds no key: value pairs", "mend the file")
    return settings


def parse_flow(text: str) -> Any:
    """The list or mapping in a text that starts with `[` or `{`. Raises ConfigError, with only the reason."""
    return _parse_flow(text, _Loader)


def parse_texts(text: str) -> Any:
    """Like `parse_flow`, but every scalar stays text, as typed."""
    return _parse_flow(text, yaml.BaseLoader)


def parse_scalar(text: str) -> Any:
    """The number, true or false in a text; otherwise the text itself."""
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))
    with contextlib.suppress(yaml.YAMLError):  # a number of 5000 digits
        return _load(text, _Loader) if tag.rpartition(":")[2] in _WORDS else text
    return text


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML brings no types
    """Reads numbers, true and false as in YAML 1.2. In PyYAML's 1.1 `yes` is true, 12:30 is 750, 1e-3 is text.

    Records quote the texts that 1.1 would read as something else, so both versions read them alike.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own attribute
        first: [
            (tag, pattern)
            for tag, pattern in pairs
            if tag.rpartition(":")[2] in ("null", "merge", "timestamp")
        ]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Raises ConstructorError for {a:1}, which YAML reads as a key `a:1` without a value."""
        for key, value in node.value if node.flow_style else []:
            if isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None:
                problem = f"{key.value} has no value: after its colon stands a space"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_timestamp(self, node: yaml.ScalarNode) -> None:
        """Raises ConstructorError, since no setting is a date."""
        problem = f"no setting is a date: a text stands in quotes, '{node.value}'"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_WHOLE = r"[-+]?(?:0|[1-9][0-9_]*)"
_WORDS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": _WHOLE,
    "float": rf"(?:{_WHOLE}(?:\.[0-9_]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_timestamp)
for _name, _pattern in _WORDS.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), list("tTfF-+.0123456789")
    )


def _parse_flow(text: str, kind: type[yaml.SafeLoader] | type[yaml.BaseLoader]) -> Any:
    try:
        return _load(text, kind)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(f"not YAML ({reason})") from None
    except _OutOfBoundsError as error:
        raise ConfigError(str(error)) from None


def _load(content: str | bytes, kind: type[yaml.SafeLoader] | type[yaml.BaseLoader]) -> Any:
    """Raises YAMLError and _OutOfBoundsError."""
    loader = None
    try:
        loader = kind(content)
        node = loader.get_single_node()
        if node is not None:
            _size(node, {}, 0)
        return None if node is None else loader.construct_document(node)
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8, a number of 5000 digits
        raise yaml.YAMLError(str(error)) from None
    finally:
        if loader is not None:
            loader.dispose()


class _OutOfBoundsError(Exception):
    """The document has more than MAX_NODES nodes or is deeper than MAX_DEPTH."""


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """The number of nodes at and below `node`, counting repeated ones each time. `known`: earlier counts, by id."""
    if depth > MAX_DEPTH:  # also stops an alias inside the node it refers to
        raise _OutOfBoundsError(f"it is nested deeper than {MAX_DEPTH} levels")
    if id(node) in known:
        return known[id(node)]
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    size = 1
    for each in below:
        size += _size(each, known, depth + 1)
        if size > MAX_NODES:
            raise _OutOfBoundsError(f"it says more than {MAX_NODES} things, its aliases written out")
    known[id(node)] = size
    return size


def _refused(where: Path | str, reason: str, remedy: str) -> ConfigError:
    return ConfigError(f"{where}\n  reason: {reason}\n  remedy: {remedy}")
