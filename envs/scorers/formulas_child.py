"""The process that compares formulas: [answer, right answer] a line of JSON, and an outcome a line back."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


def outcome(answer: str, right: str) -> str:
    from math_verify import parse, verify

    def formulas(text: str) -> list[Any]:
        """Without the texts in which no formula was found, by which `verify` would compare letters."""
        return [found for found in parse(text, parsing_timeout=None) if not isinstance(found, str)]

    bare = (
        "\\" in right and "$" not in right and "\\boxed" not in right
    )  # LaTeX, of which a part would be found
    wanted = formulas(f"${right}$" if bare else right) or formulas(f"${right}$")
    if not wanted:
        return "NO_FORMULA"
    said = formulas(answer)
    if not said:
        return "NO_ANSWER"
    return "CORRECT" if verify(wanted, said, timeout_seconds=None) else "WRONG"


def main() -> None:
    logging.disable(logging.WARNING)  # it warns of each call without a time limit, which its asker keeps
    import math_verify  # noqa: F401 - before it says that it is ready

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin.buffer:
        answer, right = json.loads(line)
        print(json.dumps(outcome(answer, right)), flush=True)


if __name__ == "__main__":
    main()
