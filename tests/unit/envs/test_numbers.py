"""Numbers in texts: whatever form they are written in, exactly, in linear time and without an exception."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.envs.dataset.numbers import is_number, number_in, number_of, whole_number
from rlpost.envs.dataset.scoring import ready
from rlpost.envs.dataset.settings import Settings

FINITE = st.floats(allow_nan=False, allow_infinity=False)
DECIMALS = st.decimals(
    allow_nan=False, allow_infinity=False, places=20, min_value=-(10**50), max_value=10**50
)
AROUND = st.sampled_from(
    ["{}", "so it is {}.", "= {}", "({})", "**{}**", r"\boxed{{{}}}", "${}$", "{}%", "x\n{}\n"]
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-3.50", Fraction(-7, 2)),
        ("x = .5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("+5", 5),
        ("5.", 5),
        # exponents
        ("1e-05", Fraction(1, 100_000)),
        ("1e+16", 10**16),
        ("-1.5E3", -1500),
        ("1.5 × 10^{3}", 1500),
        (r"-1.5 \times 10^{-3}", Fraction(-3, 2000)),
        ("2*10**3", 2000),
        ("3×10⁻²", Fraction(3, 100)),
        ("10^8", 10**8),
        ("3 eggs", 3),
        # thousands
        ("1,000,000", 10**6),
        ("1,234.5", Fraction(2469, 2)),
        ("1,00,000", 10**5),
        ("1{,}000", 1000),
        ("1{,}000{,}000", 10**6),
        (r"1\,000", 1000),
        (r"10,\!000", 10_000),
        ("1_000", 1000),
        ("1'000", 1000),
        ("1’000", 1000),
        ("1\u00a0000", 1000),
        ("1\u202f000", 1000),
        # fractions
        ("3/4", Fraction(3, 4)),
        ("3 / 4", Fraction(3, 4)),
        ("3⁄4", Fraction(3, 4)),
        ("1.5/2", Fraction(3, 4)),
        ("2 1/2", Fraction(5, 2)),
        ("-2 1/2.", Fraction(-5, 2)),
        ("2½", Fraction(5, 2)),
        ("½", Fraction(1, 2)),
        ("−¾", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{1}{2}", Fraction(-1, 2)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        (r"\frac{1}{-2}", Fraction(-1, 2)),
        (r"\tfrac 12", Fraction(1, 2)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"\frac{1{,}000}{3}", Fraction(1000, 3)),
        # other signs and digits
        ("−5", -5),
        ("－５", -5),
        ("１２．５", Fraction(25, 2)),
        ("٣", 3),
        ("-$5", -5),
        ("$-5", -5),
        (r"-\$1{,}234.50", Fraction(-2469, 2)),
        ("€5", 5),
        # units
        ("50%", 50),
        (r"50\%", 50),
        ("5 m²", 5),
        # no signs
        ("3-5", 5),
        ("3–5", 5),
        ("x-5", 5),
        ("(3)-5", 5),
        ("10%-20%", 20),
        ("$5-$10", 10),
        ("COVID-19", 19),
        # no thousands
        ("1,2", 2),
        ("(10,20)", 20),
    ],
)
def test_numbers_are_read_exactly(text: str, number: Fraction) -> None:
    assert number_in(text, last=True) == number


@pytest.mark.parametrize(
    "text", ["", "none", "inf", "-inf", "NaN", "∞", "1/0", "1e99999", "1e-99999", "9" * 5000, "²", "Ⅷ"]
)
def test_what_is_no_number(text: str) -> None:
    assert number_in(text, last=True) is None


def test_the_first_and_the_last() -> None:
    assert number_in("2 1/2 and −7", last=False) == Fraction(5, 2)
    assert number_in("2 1/2 and −7", last=True) == -7


def test_a_number_and_nothing_else() -> None:
    assert whole_number(" 1e3 ") == 1000
    assert whole_number("1e3 eggs") is None


@given(FINITE | st.integers() | DECIMALS | st.fractions(), AROUND)
def test_what_a_row_holds_is_read_as_itself(value: float | int | Decimal | Fraction, around: str) -> None:
    """Whichever way it is written: by str, by repr, by json."""
    written = (
        {str(value)}
        if isinstance(value, (Decimal, Fraction))
        else {str(value), repr(value), json.dumps(value)}
    )
    right = number_of(value)
    assert right is not None
    assert float(right) == float(value)
    for text in written:
        for sign in ("-", "−"):
            assert number_in(around.format(text.replace("-", sign)), last=True) == right
        assert number_in(f"-{text}", last=True) == -right or text.startswith("-")


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(-(10**12), 10**12))
def test_other_ways_of_writing(value: float, whole: int) -> None:
    assert number_in(f"{whole:,}", last=True) == number_in(f"{whole:_}", last=True) == whole
    assert number_in(f"{whole:,}".replace(",", "{,}"), last=True) == whole
    assert number_in(f"{value:.17e}", last=True) == Fraction(f"{value:.17e}")
    assert number_in(f"{value:.3f}", last=True) == Fraction(f"{value:.3f}")


@given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 99), st.sampled_from(["", "-", "−"]))
def test_mixed_numbers(whole: int, above: int, below: int, sign: str) -> None:
    right = (whole + Fraction(above, below)) * (-1 if sign else 1)
    for text in (f"{whole} {above}/{below}", rf"{whole}\frac{{{above}}}{{{below}}}"):
        assert number_in(sign + text, last=True) == right


@pytest.mark.parametrize(
    "value", [True, None, "1", float("nan"), float("inf"), Decimal("NaN"), Decimal("Infinity"), [1]]
)
def test_what_is_no_number_of_a_row(value: object) -> None:
    assert number_of(value) is None


@given(
    st.text(alphabet=st.sampled_from("0123456789.,/eE+-−^*{}\\!_'$ ½²×xfrac\u00a0"), max_size=60) | st.text()
)
def test_no_text_raises(text: str) -> None:
    for last in (True, False):
        number_in(text, last)
    whole_number(text)


PIECES = ["9", "1,", "1,000", ",000", "1,00,", "1 ", "1/", "1e", "1 1/", "$-", "-", ".", "½", "10^", "10⁵"]


@pytest.mark.parametrize("piece", [*PIECES, r"\frac{", r"\frac{1", r"\frac{1}{"])
def test_time_is_linear(piece: str) -> None:
    """Twenty thousand pieces: with quadratic time it is minutes, with linear time a fraction of a second."""
    began = time.process_time()
    number_in(piece * 20_000, last=True)
    whole_number(piece * 20_000)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    ("said", "held", "right"),
    [
        (
            Fraction("60110271293126312"),
            6.011027129312631e16,
            True,
        ),
        (Fraction("0.1000000000000000055"), 0.1, True),
        (Fraction("0.1001"), 0.1, False),
        (Fraction("1e-400"), 0.0, False),
        (Fraction(0), -0.0, True),
        (Fraction(10) ** 400, 1.7e308, False),
        (Fraction(10**17 + 1), 10**17, False),
        (Fraction(10**17 + 1), 1e17, True),
    ],
)
def test_a_float_is_what_rounds_to_it(said: Fraction, held: float, right: bool) -> None:
    assert is_number(said, held) is right


@given(FINITE | st.integers(-(10**30), 10**30), st.sampled_from(["number", "exact"]))
def test_a_rows_own_number_earns_all_and_its_negative_nothing(value: float | int, score: str) -> None:
    """Through a line of JSON, as a row is read, and from an answer written by repr, str or json."""
    row = json.loads(json.dumps({"answer": value}))
    asked = ready(score, Settings("rows.jsonl", (score,)))
    in_digits = [f"{Decimal(value):f}"] if value == int(value) else []
    for said in [repr(value), str(value), json.dumps(value), *in_digits]:
        assert asked(said, row) == (1.0, "CORRECT")
        if value:
            negative = said.removeprefix("-") if said.startswith("-") else f"-{said}"
            assert asked(negative, row) == (0.0, "WRONG")
