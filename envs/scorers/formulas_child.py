"""The process that compares formulas: reads [answer, right answer] as a line of JSON, and writes an outcome."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


def outcome(answer: str, right: str) -> str:
    from math_verify import parse, verify

    def formulas(text: str) -> list[Any]:
        """The formulas found, without texts in which no formula was found: `verify` would compare their letters."""
        return [found for found in parse(text, parsing_timeout=None) if not isinstance(found, str)]

    # LaTeX without delimiters, of which only a part would be found.
    bare = "\\" in right and "$" not in right and "\\boxed" not in right
    wanted = formulas(f"${right}$" if bare else right) or formulas(f"${right}$")
    if not wanted:
        return "NO_FORMULA"
    said = formulas(answer)
    if not said:
        return "NO_ANSWER"
    return "CORRECT" if verify(wanted, said, timeout_seconds=None) else "WRONG"


def main() -> None:
    # math-verify warns about each call without a time limit; the caller keeps the limit.
    logging.disable(logging.WARNING)
    import math_verify  # noqa: F401 - before it says that it is ready

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin.buffer:
        answer, right = json.loads(line)
        print(json.dumps(outcome(answer, right)), flush=True)


if __name__ == "__main__":
    main()
