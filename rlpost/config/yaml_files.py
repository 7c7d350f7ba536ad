"""The one reader of YAML that a user gives: an experiment's file, the config.yaml of a record.

What a file says is bounded before it is built: an alias costs one node to write and all that it stands for to walk
through, so ten lines of aliases of aliases would keep whoever reads them busy for hours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rlpost.errors import ConfigError

MAX_BYTES = 256 * 1024
MAX_NODES = 20_000  # keys, values and list entries, those that aliases stand for counted wherever they stand
MAX_DEPTH = 50


def read_mapping(path: Path) -> dict[str, Any]:
    """The key: value pairs of a file; none for an empty one.

    Raises ConfigError where it cannot be read, is no YAML, holds no such pairs or more than the bounds above.
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
    """As `read_mapping`, of text that is at hand; `where` is named in refusals."""
    loader = None
    try:
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        if node is not None:
            _size(node, {}, 0)
        settings = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: bad UTF-8, a date of 40 days
        raise _refused(where, f"not YAML ({error})", "mend the file") from None
    except _OutOfBoundsError as error:
        raise _refused(where, str(error), "write out what it says, without anchors and aliases") from None
    finally:
        if loader is not None:
            loader.dispose()
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise _refused(where, "it holds no key: value pairs", "mend the file")
    return settings


class _OutOfBoundsError(Exception):
    """More than MAX_NODES or MAX_DEPTH."""


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """The nodes at and below `node`, as many times as they stand there. `known`: of those that were counted, by id."""
    if depth > MAX_DEPTH:  # also where an alias stands within what it stands for
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
