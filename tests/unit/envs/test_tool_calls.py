"""Tool calls of answers: each is read or has a name, and nothing raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.envs.parsing import MAX_ANSWER
from rlpost.envs.tool_calls import Malformed, ToolCall, tool_calls

TOOLS = ["add", "search"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"name": "add", "arguments": {"a": 1}}', ToolCall("add", {"a": 1})),
        ('\n{"name": "search"}\n', ToolCall("search", {})),
        ('{"name": "delete", "arguments": {}}', Malformed.UNKNOWN_TOOL),
        ('{"name": 3}', Malformed.NO_NAME),
        ('{"arguments": {}}', Malformed.NO_NAME),
        ('{"name": "add", "arguments": "{}"}', Malformed.NO_ARGUMENTS),
        ('["add"]', Malformed.NO_OBJECT),
        ("add(1, 2)", Malformed.NO_JSON),
        ('{"name": "add", "arguments": {"a": NaN}}', Malformed.NO_JSON),
        ("", Malformed.NO_JSON),
        ("[" * 9000, Malformed.NO_JSON),
        ('{"name": ' + "9" * 9000 + "}", Malformed.NO_JSON),
    ],
)
def test_a_call_is_read_or_named(body: str, expected: ToolCall | Malformed) -> None:
    assert tool_calls(f"I add.<tool_call>{body}</tool_call> Done.", TOOLS) == [expected]


def test_calls_stand_in_their_order_and_the_last_may_be_unclosed() -> None:
    one = '<tool_call>{"name": "add"}</tool_call>'
    assert tool_calls(f"{one}\n<tool_call>no</tool_call>{one}<tool_call>{{\n", TOOLS) == [
        ToolCall("add", {}),
        Malformed.NO_JSON,
        ToolCall("add", {}),
        Malformed.UNCLOSED,
    ]
    assert tool_calls("just text </tool_call>", TOOLS) == []
    assert tool_calls(one + " " * MAX_ANSWER, TOOLS) == [Malformed.TOO_LONG]


pieces = st.one_of(
    st.text(max_size=5),
    st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "add"}', "{", "}", "\ud800"]),
)


@given(st.lists(pieces, max_size=12).map("".join))
def test_no_answer_raises(answer: str) -> None:
    found = tool_calls(answer, TOOLS)
    assert len(found) <= answer.count("<tool_call>")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=4), st.booleans())
def test_calls_that_are_well_written_are_read_as_they_were(
    calls: list[dict[str, object]], spread: bool
) -> None:
    written = [json.dumps({"name": "add", "arguments": each}, indent=2 if spread else None) for each in calls]
    if any("tool_call>" in each for each in written):
        return
    answer = "".join(f"then <tool_call>\n{each}\n</tool_call>" for each in written)
    assert tool_calls(answer, TOOLS) == [ToolCall("add", each) for each in calls]
