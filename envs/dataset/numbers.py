r"""Reads the numbers in a text exactly, in the forms in which people, programs and models write them.

    -3.50  .5  1e-05  1E+16  1,000,000  1,00,000  1_000  1{,}000  1\,000  10,\!000     digits, exponents, thousands
    3/4  2 1/2  2½  \frac{3}{4}  2\dfrac12                                             fractions, mixed numbers
    1.5 × 10^{3}  1.5 \times 10^3  2*10**-3                                            powers of ten
    −5 (U+2212)  -$5  $-5  ５  ٣                                                       other signs and digits

A sign belongs to the number that it touches, unless a letter, a digit, a closing bracket or a percent sign is right
before it: `3-5` and `x-5` contain no -5. A comma groups thousands or separates: `1,2` is two numbers, and so is a
decimal comma. Percent signs, currencies and units are not part of a number: `50%` is 50. Infinities and NaN are not
numbers. Expressions are not evaluated, except fractions: the last number of `2 + 3` is 3.

Every text is read in linear time, and no text raises.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from decimal import Decimal
from fractions import Fraction

_MAX_DIGITS = 4300  # of a number written out; Python does not convert longer ones to int
_MAX_EXPONENT = 4300

_MINUS = dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe58\ufe63\uff0d\u207b", "-")
_OTHER = {
    "\u2044": "/",
    "\u2215": "/",
    "\uff0f": "/",
    "\uff0b": "+",
    "\u207a": "+",
    "\u066b": ".",
    "\uff0e": ".",
}
_COMMAS = dict.fromkeys("\u066c\uff0c", ",")
_SAME = {**_MINUS, **_OTHER, **_COMMAS}
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
_RAISED_POWER = re.compile(rf"(?<![0-9.])10([\u207a\u207b]?[{_RAISED}]++)")

_CURRENCY = r"$\u20ac\u00a3\u00a5\u20b9"
_SPACE = r"[ \u00a0\u2009\u202f]"
_THOUSANDS = r"(?:,|\{,\}|,\\!|\\,|_|'|\u2019|\u00a0|\u2009|\u202f)"
_WHOLE = (  # 1,000 and India's 1,00,000, or digits alone
    rf"(?:[0-9]{{1,3}}(?:{_THOUSANDS}[0-9]{{3}})++(?![0-9])"
    r"|[0-9]{1,2}(?:,[0-9]{2}(?=,))++,[0-9]{3}(?![0-9])"
    r"|[0-9]++)"
)
_UNSIGNED = rf"(?:{_WHOLE}(?:\.[0-9]++)?|(?<![0-9.])\.[0-9]++)"
_TO_THE = r"(?:\^|\*\*)\{?"
_TIMES = rf"{_SPACE}?(?:\\times|\\cdot|[x*\u00d7\u00b7\u22c5]){_SPACE}?"
_NUMBER = re.compile(
    rf"(?:(?<![^\W_])(?<![)\]}}%])(?P<sign>[-+]))?(?:\\?[{_CURRENCY}])?(?P<inner>(?<=[{_CURRENCY}])[-+])?"
    rf"(?:(?P<whole>[0-9]++){_SPACE}(?P<above>[0-9]++)/(?P<below>[0-9]++)(?!\.?[0-9])"
    rf"|10{_TO_THE}(?P<ten>[+-]?[0-9]++)\}}?"
    rf"|(?P<number>{_UNSIGNED})"
    rf"(?:[eE](?P<exponent>[+-]?[0-9]++)(?![A-Za-z_])"
    rf"|{_TIMES}10{_TO_THE}(?P<times>[+-]?[0-9]++)\}}?"
    rf"|{_SPACE}?/{_SPACE}?(?P<divisor>{_UNSIGNED}))?)"
)
_BRACED = rf"\{{\s*+([-+]?)({_UNSIGNED})\s*+\}}"
_LATEX_FRACTION = re.compile(rf"\\[dt]?frac\s*+(?:{_BRACED}\s*+{_BRACED}|([0-9])\s*+([0-9]))")


def number_in(text: str, last: bool) -> Fraction | None:
    """The last number of a text, or the first. None if there is none, or it has no value: 1/0, or out of bounds."""
    found = _NUMBER.finditer(_plain(text))
    match = next(iter(deque(found, maxlen=1)) if last else found, None)
    return None if match is None else _value(match)


def whole_number(text: str) -> Fraction | None:
    """The number, if the text consists of one number and nothing else; else None."""
    match = _NUMBER.fullmatch(_plain(text).strip())
    return None if match is None else _value(match)


def number_of(value: object) -> Fraction | None:
    """The number in a row's field that is not a text. A float has the value that it is written as: 0.1 is 1/10.

    None if it is not a finite number. A bool is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, Fraction)):
        return None
    try:
        return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
    except (ValueError, OverflowError):  # NaN, infinities
        return None


def is_number(said: Fraction, held: float | int | Decimal | Fraction) -> bool:
    """Whether a number equals the one in a row. A float equals every number that rounds to it; 0 equals only 0."""
    if said == number_of(held):
        return True
    try:
        return isinstance(held, float) and held != 0 and float(said) == held
    except OverflowError:
        return False


def _plain(text: str) -> str:
    """Convert digits, signs and fractions of other scripts and of LaTeX to ASCII."""
    if not text.isascii():
        text = _RAISED_POWER.sub(lambda power: f"10^{''.join(map(_lowered, power[1]))}", text)
        text = _NOT_ASCII.sub(_ascii, text)
    return _LATEX_FRACTION.sub(_slashed, text) if "frac" in text else text


def _lowered(raised: str) -> str:
    return _SAME.get(raised) or str(_RAISED.index(raised))


def _ascii(match: re.Match[str]) -> str:
    character = match[0]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if unicodedata.name(character, "").startswith("VULGAR FRACTION"):
        return _joined(match, unicodedata.normalize("NFKC", character).replace("\u2044", "/"))
    return _SAME.get(character, character)


def _slashed(match: re.Match[str]) -> str:
    sign, above, other, below, digit, digit_below = match.groups(default="")
    minus = "-" if (sign == "-") != (other == "-") else ""
    return _joined(match, f"{minus}{above or digit}/{below or digit_below}")


def _joined(match: re.Match[str], fraction: str) -> str:
    """Replace another form of fraction by the plain one. After a digit it is the rest of a mixed number."""
    before = match.string[match.start() - 1 : match.start()]
    return f" {fraction}" if before.isdecimal() else fraction


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if "-" in (match["sign"], match["inner"]) else 1
    try:
        return sign * _unsigned(match)
    except (ValueError, ZeroDivisionError):
        return None


def _unsigned(match: re.Match[str]) -> Fraction:
    if match["whole"] is not None:
        return _read(match["whole"]) + _read(match["above"]) / _read(match["below"])
    if match["ten"] is not None:
        return _power(match["ten"])
    exponent = match["exponent"] or match["times"] or "0"
    return _read(match["number"]) * _power(exponent) / _read(match["divisor"] or "1")


def _read(digits: str) -> Fraction:
    """The value of the digits. Raises ValueError if there are too many."""
    bare = re.sub(r"[^0-9.]", "", digits)
    if len(bare) > _MAX_DIGITS:
        raise ValueError("too long")
    return Fraction(bare)


def _power(exponent: str) -> Fraction:
    """A power of ten. Raises ValueError if it would fill the memory."""
    if len(exponent) > _MAX_DIGITS or abs(int(exponent)) > _MAX_EXPONENT:
        raise ValueError("out of bounds")
    return Fraction(10) ** int(exponent)
