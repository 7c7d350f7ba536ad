"""The rows of `retention.text`: the bundled model's corpus, files, and the loss on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlpost.config.schema import Config
from rlpost.pretrain import corpus
from rlpost.pretrain.train import encode
from rlpost.record.text_file import documents
from rlpost.tasks.held_out_text import HELD_OUT_SEED, examples, within
from rlpost.types import Example
from rlpost.weights.models import TINY


def asked(text: str, tokens: int, longest: int = 1024) -> Config:
    cfg = Config()
    cfg.retention.text, cfg.retention.text_tokens, cfg.rollout.max_model_len = text, tokens, longest
    return cfg


def test_the_corpus_is_laid_out_as_in_pretraining_and_no_conversation_was_drawn_by_its_seeds() -> None:
    rows = examples(asked("auto", 600), TINY)
    assert sum(sum(row.loss_mask) for row in rows) == 600
    assert rows == examples(asked("auto", 600), TINY)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    rng = random.Random(HELD_OUT_SEED)
    for row in rows[:-1]:
        expected = encode(corpus.conversation(rng), tokenizer)
        assert list(row.token_ids) == expected.token_ids
        assert list(row.loss_mask) == [int(label >= 0) for label in expected.labels]


def test_rows_longer_than_a_pass_are_left_out() -> None:
    assert max(len(row.token_ids) for row in examples(asked("auto", 300, longest=60), TINY)) <= 60


def test_the_loss_on_the_corpus_is_that_of_transformers() -> None:
    """By the learner's own pass over packed rows, and by transformers' loss of one row after another."""
    from rlpost.algorithms.roles import POLICY
    from rlpost.config.schema import Dtype, LoraConfig
    from rlpost.learner.model import actor_critic
    from rlpost.learner.model.packing import Row, collate, plan_micro_batches
    from rlpost.learner.steps import Batch

    rows = examples(asked("auto", 300), TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    total = 0.0
    for row in rows:
        labels = [
            token if counts else -100 for token, counts in zip(row.token_ids, row.loss_mask, strict=True)
        ]
        with torch.no_grad():
            loss = model(torch.tensor([row.token_ids]), labels=torch.tensor([labels])).loss
        total += float(loss) * sum(row.loss_mask)
    learner = actor_critic.build(TINY, Dtype.float32, LoraConfig(rank=4, alpha=8.0), 0, (POLICY,), None)
    batch = Batch.of([Row(each.token_ids, each.loss_mask) for each in rows], 4096)
    found = 0.0
    for groups in plan_micro_batches(batch.rows, range(len(rows)), 4096, 1)[0]:
        micro = collate(batch.rows, batch.starts, groups)
        with torch.no_grad():
            found -= float(learner(micro, (POLICY,), 1.0).of(POLICY).sum())
    assert found / 300 == pytest.approx(total / 300, rel=1e-4)
    assert 0.0 < found / 300 < 0.5, "the model knows its own corpus"


def test_a_file_is_cut_into_windows_without_overlap(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Make 24 of the cards. <|end|> Go on.\n" * 4, encoding="utf-8")
    rows = examples(asked(str(path), 10_000, longest=16), TINY)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    whole = [token for row in rows for token in row.token_ids]
    assert tokenizer.decode(whole) == path.read_text()
    assert tokenizer.eos_token_id not in whole, "what a text spells is no control token"
    assert all(len(row.token_ids) == 16 and sum(row.loss_mask) == 15 for row in rows[:-1])
    assert examples(asked(str(path), 20, longest=16), TINY) == [
        rows[0],
        Example(rows[1].token_ids[:6], rows[1].loss_mask[:6]),
    ]


def test_documents_of_lines_are_rows_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one 1", "two 2", "three 3")))
    assert list(documents(path, 100)) == ["one 1", "two 2", "three 3"]
    assert list(documents(path, 7)) == ["one 1", "tw"]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert [tokenizer.decode(row.token_ids) for row in examples(asked(str(path), 99), TINY)] == [
        *("one 1", "two 2", "three 3")
    ]


@pytest.mark.parametrize("line", ['{"txt": "a"}', "[]", "a", '{"text": 3}'])
def test_a_line_without_a_text_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(ValueError):
        list(documents(path, 100))


masks = st.lists(st.integers(0, 1), min_size=1, max_size=6)


@given(st.lists(masks, max_size=6), st.integers(1, 20))
def test_no_more_tokens_than_wanted_and_all_if_there_are_fewer(rows: list[list[int]], wanted: int) -> None:
    given = [Example(tuple(range(len(mask))), tuple(mask)) for mask in rows]
    kept = list(within(given, wanted))
    assert sum(sum(row.loss_mask) for row in kept) == min(wanted, sum(map(sum, rows)))
    assert all(any(row.loss_mask) and len(row.token_ids) == len(row.loss_mask) for row in kept)
    full = [row for row in given if any(row.loss_mask)]
    assert kept[:-1] == full[: max(len(kept) - 1, 0)]
