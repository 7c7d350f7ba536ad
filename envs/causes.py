"""What outcomes mean, in words that all environments share: an environment's class may declare `causes`.

    causes = {"SQUAWK": RULE_MISREAD, "SCREECH": "misspelt"}   # outcome: one of these words, or one of its own

RULE_MISREAD is a claim: the answer is what the trained rule makes right, where another rule was stated. Only where some
outcome has it can a comparison say how many failures are the trained rule applied (envs/base.py: Explained).
"""

from __future__ import annotations

SOLVED = "solved"
RULE_MISREAD = "rule misread"
ARITHMETIC = "arithmetic"
NUMBER_MISUSE = "number misuse"
WRONG_WAY = "wrong turn or step"
OBSERVATION = "observation error"
ILLEGAL_ACTION = "illegal action"
SYNTAX = "syntax"
TRUNCATION = "truncation"
UNFINISHED = "unfinished"
FAULT = "environment error"
ORDER = (
    SOLVED,
    RULE_MISREAD,
    ARITHMETIC,
    NUMBER_MISUSE,
    WRONG_WAY,
    OBSERVATION,
    ILLEGAL_ACTION,
    SYNTAX,
    TRUNCATION,
    UNFINISHED,
    FAULT,
)
"""As they are shown; an environment's own words come after them."""
