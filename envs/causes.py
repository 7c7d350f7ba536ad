"""The causes of failures, in words that all environments share. An environment's class may declare `causes`.

    causes = {"SQUAWK": RULE_MISREAD, "SCREECH": "misspelt"}   # outcome: one of these words, or its own

RULE_MISREAD is a claim: the trained rule makes the answer right, but another rule was stated. A comparison can say how
many failures apply the trained rule only if some outcome has this cause (envs/base.py: Explained).
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
"""The order in which causes are shown; an environment's own words come after them."""
