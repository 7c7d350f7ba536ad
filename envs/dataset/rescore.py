"""Scores answers that were written elsewhere: python -m rlpost.envs.dataset.rescore FILE --score NAME [...].

    python -m rlpost.envs.dataset.rescore answers.jsonl --score rewards:right --score rewards:short --out scores.jsonl

FILE is a data set as `env=dataset` reads it, whose rows also contain a model's answer in the field `response` (a text,
or a list of several). No model is started. Each answer becomes one line: the place of its row, its number within the
row, reward, outcome, success and parts, or the error with which scoring failed. The means at the end leave out
failures, and give their number and first cause. Exit codes: 0, 1 if every answer failed, 2 for refused input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlpost.envs.command_line import env_arguments
from rlpost.envs.dataset.rewards import Scorer
from rlpost.envs.dataset.settings import Settings
from rlpost.envs.dataset.table import Item, load
from rlpost.envs.errors import Refused
from rlpost.envs.own import told

Line = dict[str, Any]


def rescored(settings: Settings, response: str) -> Iterator[Line]:
    """One line per answer. Raises Refused for rows that cannot be read, or have no answer in the field `response`."""
    table = load(settings)
    answers = [(item, _answers(item, response)) for item in table.items]
    score = Scorer(settings, table.fields)
    try:
        for item, said in answers:
            for number, answer in enumerate(said):
                yield {"row": item.where, "answer": number, **_scored(score, item, answer)}
    finally:
        score.close()


def _answers(item: Item, response: str) -> Sequence[str]:
    found = item.question.data.get(response)
    answers = [found] if isinstance(found, str) else found
    if isinstance(answers, list) and answers and all(isinstance(each, str) for each in answers):
        return answers
    raise Refused(
        f"{item.where}: its field {response!r} is {repr(found)[:40]}, but must be a text or a list of texts",
        "name the field that holds the model's answer: --response FIELD",
    )


def _scored(score: Scorer, item: Item, answer: str) -> Line:
    try:
        verdict = score(answer, item.question)
    except (Exception, SystemExit) as error:  # raised by the user's function
        return {"error": told(error)}
    found: Line = {"reward": verdict.reward, "outcome": verdict.outcome, "success": verdict.success}
    return found | ({"parts": dict(verdict.parts)} if verdict.parts else {})


def sentences(lines: Sequence[Line]) -> list[str]:
    """A summary of all lines, in sentences."""
    whole = [line for line in lines if "error" not in line]
    failed = [line for line in lines if "error" in line]
    said = []
    if whole:
        reward, success = (fmean(line[key] for line in whole) for key in ("reward", "success"))
        said.append(f"{len(whole)} answers: reward {reward:.4f}, success {success:.1%}")
        outcomes = Counter(line["outcome"] for line in whole)
        said.append("outcomes: " + ", ".join(f"{name} {count}" for name, count in outcomes.most_common()))
        said += [f"{name}: {mean:.4f} on {count} answers" for name, (mean, count) in _parts(whole).items()]
    if failed:
        first = failed[0]
        said.append(
            f"{len(failed)} of {len(lines)} could not be scored; the first, {first['row']}: {first['error']}"
        )
    return said


def _parts(lines: Sequence[Line]) -> Mapping[str, tuple[float, int]]:
    values: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.get("parts", {}).items():
            values.setdefault(name, []).append(value)
    return {name: (fmean(each), len(each)) for name, each in sorted(values.items())}


def _written(lines: Sequence[Line], path: Path) -> None:
    """Write all lines, or no file."""
    half = path.with_name(f".{path.name}.half")
    half.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8", "backslashreplace"
    )
    os.replace(half, path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rlpost.envs.dataset.rescore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file")
    parser.add_argument("--score", action="append", required=True, help="as env_args.score; several add up")
    parser.add_argument("--weights", nargs="+", type=float, help="a factor for each --score")
    parser.add_argument("--response", default="response", help="the field with the model's answer")
    parser.add_argument(
        "--arg", action="append", default=[], metavar="KEY=VALUE", help="another argument of env=dataset"
    )
    parser.add_argument("--out", type=Path, help="write a JSON line for each answer to this file")
    asked = parser.parse_args(argv)
    if asked.out is not None and (asked.out.is_dir() or not asked.out.parent.is_dir()):
        print(f"--out {asked.out}: refused: it is a folder, or its folder does not exist", file=sys.stderr)
        return 2
    sys.path.insert(0, os.getcwd())  # the functions may be there, as for `python -m`
    weights = {"weights": asked.weights} if asked.weights else {}
    try:
        args = {
            "path": asked.file,
            "score": asked.score,
            "eval_share": 0,
            **weights,
            **env_arguments(asked.arg),
        }
        lines = list(rescored(Settings.checked(args), asked.response))
    except ValueError as error:
        print(f"{asked.file}: refused: {error}", file=sys.stderr)
        return 2
    if asked.out is not None:
        _written(lines, asked.out)
    print(*sentences(lines), sep="\n")
    return int(all("error" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
