from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.envs.generalpoints.outcomes import Outcome
from rlpost.envs.generalpoints.parsing import find_formula
from rlpost.envs.parsing import MAX_ANSWER

FOUND = [
    ('{"formula": "1+2"}', "1+2"),
    ('{"cards": ["A"], "number": [1], "steps": "x", "formula": "1+2=3"}', "1+2"),
    ('some words {"formula": "1"} and then {"formula": "2"} and more', "2"),
    ('{"formula": "1", "formula": "2"}', "2"),
    ('{"formula": "1"} {"other": 3}', "1"),
    ('{"formula": "1", "meta": {"formula": "2"}}', "1"),
    ('{"answer": {"formula": "7"}}', "7"),
    ('```json\n{"formula": "5*5-1"}\n```', "5*5-1"),
    ('{{{"formula": "3"}', "3"),
    ('{"formula": 24}', "24"),
    ('{"formula": -24}', "-24"),
    ('{"formula": 2.50}', "2.50"),
    ('{"formula": NaN}', "NaN"),
    ('{"formula": 1' + "0" * 150 + "}", "1" + "0" * 150),
    ('{"formula": ""}', ""),
    ('{"formula": "=24"}', ""),
    ('{"formula": "( 1 + 2 ) = 3 = 4"}', "( 1 + 2 ) "),
    ('\n{\n"cards": [\'A\', \'2\'],\n"number": [1, 2],\n"formula": "1+2=3",\n}', "1+2"),
    ("{'cards': ['A'], 'formula': '1+2', }", "1+2"),
    ("{'formula' : \"1+2\"}", "1+2"),
    ('{"formula": 4*3+2+10,\n}', "4*3+2+10"),
    ('"formula": "1" then "formula": "2"', "2"),
    ('{"formula":"1+2"', "1+2"),
]


@pytest.mark.parametrize(("answer", "formula"), FOUND)
def test_formula_is_found(answer: str, formula: str) -> None:
    assert find_formula(answer) == formula


NOT_FOUND = [
    "",
    "24",
    "1+2+3+4",
    '{"form": "1"}',
    '{"formula": null}',
    '{"formula": true}',
    '{"formula": ["1"]}',
    '{"formula": {"a": 1}}',
    '{"formula": "1+2',
    '{"formula": "1+2\n"',
    '"formula": 24.5,',
    '"formula": 1+2 because',
    "{" * 5000,
    '{"a":' * 3000,
    '{"formula":' * 1500,
    '["formula"]' * 1000,
]


@pytest.mark.parametrize("answer", NOT_FOUND, ids=lambda text: text[:20])
def test_no_formula(answer: str) -> None:
    assert find_formula(answer) is Outcome.NO_FORMULA


def test_limits() -> None:
    padding = MAX_ANSWER - len('{"formula": "1"}')
    assert find_formula(" " * padding + '{"formula": "1"}') == "1"
    assert find_formula(" " * (padding + 1) + '{"formula": "1"}') is Outcome.TOO_LONG
    assert find_formula(json.dumps({"formula": "1" * 200})) == "1" * 200
    assert find_formula(json.dumps({"formula": "1" * 201})) is Outcome.TOO_LONG
    assert find_formula(json.dumps({"formula": 10**200})) is Outcome.TOO_LONG


@settings(deadline=None)
@given(st.text(st.characters(codec=None), max_size=200))
def test_any_formula_survives_strict_json(formula: str) -> None:
    """Lone surrogates and NUL bytes included: what was written is found, up to its first `=`."""
    assert find_formula("thinking\n" + json.dumps({"formula": formula})) == formula.split("=")[0]
