"""The causes of failures, in words that all environments share. An environment's class may declare `causes`.

    causes = {"SQUAWK": RULE_MISREAD, "SCREECH": "misspelt"}   # outcome: one of these words, or its own

RULE_OBEYED is for fake rules: the answer applies the rule that the prompt states, but another one scores.

RULE_MISREAD is a claim: the trained rule makes the answer right, but another rule was stated. A comparison can say how
many failures apply the trained rule only if some outcome has this cause (envs/base.py: Explained).
"""

from __future__ import annotations

SOLVED = "solved"
RULE_MISREAD = "rule misread"
RULE_OBEYED = "stated rule obeyed"
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
    RULE_OBEYED,
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
