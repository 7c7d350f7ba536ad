"""A growing file of JSON lines: every whole line once, whatever the pieces in which it is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.record.files import write_atomic
from rlpost.record.following import Following

records = st.lists(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3), max_size=6
)


@given(records, st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_any_pieces_give_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[dict[str, object]], sizes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("following") / "lines.jsonl"
    written = b"".join(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n" for record in wanted)
    following, done = Following(path), 0
    for size in [*sizes, len(written)]:
        with path.open("ab") as file:
            file.write(written[done : done + size])
        done += size
        whole = written[:done].count(b"\n")
        assert following.read() == wanted[:whole]
    assert following.unreadable == 0


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    """Bytes that were read before may change; nobody looks at them again."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    following = Following(path)
    assert following.read() == [{"a": 1}]
    with path.open("r+b") as file:
        file.write(b'{"a": 9}\n{"b": 2}\n{"half')
    assert following.read() == [{"a": 1}, {"b": 2}]


def test_a_file_that_is_replaced_or_cut_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    following = Following(path)
    following.read()
    before = following.version
    write_atomic(path, b'{"a": 7}\n{"a": 8}\n')  # as a resumed run does; as long as before
    assert following.read() == [{"a": 7}, {"a": 8}]
    assert following.version != before
    path.write_bytes(b'{"a": 3}\n')
    assert following.read() == [{"a": 3}]
    path.unlink()
    assert following.read() == []


def test_lines_that_hold_no_object_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n[]\n\xff\n{"a"\n{"a": 2}\n')
    following = Following(path)
    assert following.read() == [{"a": 1}, {"a": 2}]
    assert following.unreadable == 3
