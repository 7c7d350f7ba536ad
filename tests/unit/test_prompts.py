"""What is said of a list of prompts before any is played."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlpost.config.schema import Config, Task
from rlpost.envs import registry
from rlpost.errors import ConfigError
from rlpost.rollout.chat import Chat
from rlpost.tasks.dry_run import run
from rlpost.tasks.prompts import remarks


@pytest.fixture(scope="module")
def chat(random_model: Path) -> Chat:
    """A token a byte, and three of the template."""
    return Chat.load(random_model)


def config(path: Path, rows: list[dict[str, Any]], **args: Any) -> Config:
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"path": str(path / "rows.jsonl"), "score": "exact", "eval_share": 0.4, **args}
    cfg = Config(env="dataset", env_args=given, train_variant="default", eval_variants=["default"])
    cfg.rollout.max_model_len, cfg.rollout.max_new_tokens = 100, 10
    return cfg


def rows(*lengths: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{n:03}".ljust(length, "x"), "answer": n} for n, length in enumerate(lengths)]


def counted(said: list[str], words: str) -> int:
    return sum(
        int(n)
        for line in said
        for n in re.findall(rf"^(\d+) of \d+ prompts of default \(\w+\) {words}", line)
    )


def test_prompts_that_do_not_fit_are_counted(tmp_path: Path, chat: Chat) -> None:
    """A prompt of 97 letters has 100 tokens: none is left; one of 87 leaves the ten of an answer."""
    said = remarks(config(tmp_path, rows(*[20] * 75, *[40_000] * 24, 97, 96, 88, 87)), chat)
    assert len(chat.prompt_ids("x" * 97)) == 100
    assert counted(said, "do not fit; the longest has 40003 tokens") == 25
    assert counted(said, "leave less room than rollout.max_new_tokens=10") == 2
    assert all(f"{tmp_path}/rows.jsonl:" in line for line in said if "do not fit" in line)


def test_only_what_is_played_is_looked_at(tmp_path: Path, chat: Chat) -> None:
    cfg = config(tmp_path, rows(*[20] * 75, *[40_000] * 25))
    assert len(remarks(cfg, chat)) == 2
    cfg.task = Task.eval
    (only,) = remarks(cfg, chat)
    assert "(eval)" in only


def test_a_list_of_which_nothing_fits_is_refused(tmp_path: Path, chat: Chat) -> None:
    with pytest.raises(
        ConfigError, match=r"rollout\.max_model_len=100\n  reason: .* do not fit; .*\n  remedy: raise it"
    ):
        remarks(config(tmp_path, rows(*[200] * 30)), chat)


def test_repeats_contradictions_and_gaps(tmp_path: Path, chat: Chat) -> None:
    given = rows(*[20] * 30)
    given += [{**given[2]}, {**given[3], "answer": "99"}, {**given[4], "answer": "4.0", "note": "x"}]
    where = f"{tmp_path}/rows.jsonl"
    again = f"3 of 33 rows repeat the prompt of an earlier one, such as {where}:3 and {where}:31"
    gaps = "32 of 33 rows have no 'note'"
    differ = f"of these have another answer than the earlier one, such as {where}:4 and {where}:32"
    assert remarks(config(tmp_path, given, score="number"), chat) == [again, f"1 {differ}", gaps]
    assert remarks(config(tmp_path, given, score="exact"), chat) == [again, f"2 {differ}", gaps]


def test_fields_that_other_trainers_give_to_the_template(tmp_path: Path, chat: Chat) -> None:
    given = [
        {**row, "tools": [{"type": "function"}] if n % 2 else []} for n, row in enumerate(rows(*[20] * 30))
    ]
    told = "15 of 30 rows have 'tools', which the chat template is not given"
    assert remarks(config(tmp_path, given), chat) == [told]


def test_rows_without_the_answer_that_others_have(
    tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scores_of_prompts.py").write_text("def any_answer(answer, row):\n    return bool(answer)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = rows(*[20] * 16)
    for row in given[9:]:
        del row["answer"]
    cfg = config(tmp_path, given, score="scores_of_prompts:any_answer")
    assert remarks(cfg, chat) == ["7 of 16 rows have no 'answer'"]


def test_nothing_is_said_of_good_rows_and_of_endless_instances(tmp_path: Path, chat: Chat) -> None:
    assert remarks(config(tmp_path, rows(*[20] * 30)), chat) == []
    assert remarks(Config(), chat) == []


def test_the_dry_run_says_it(tmp_path: Path, random_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config(tmp_path, rows(*[20] * 75, *[400] * 25))
    cfg.model, cfg.task = str(random_model), Task.dry_run
    cfg.rollout.episodes = cfg.eval.episodes = 8
    run(cfg)
    assert counted(capsys.readouterr().out.splitlines(), "do not fit") == 25


def test_half_a_surrogate_pair_is_refused_with_its_row(tmp_path: Path) -> None:
    cfg = config(tmp_path, [*rows(20, 20), {"prompt": "\ud800", "answer": "1"}])
    with pytest.raises(ValueError, match=r"rows.jsonl:3: its field 'prompt' holds half a surrogate pair"):
        registry.make("dataset", **cfg.env_args)
