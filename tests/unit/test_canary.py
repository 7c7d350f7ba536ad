"""The canary is fixed, fits the context, and carries an answer for the log-probs to speak of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import Module
from transformers import AutoModelForCausalLM

from rlpost.config.schema import Config
from rlpost.rollout.chat import Chat
from rlpost.tasks.canary import MAX_TOKENS, canary_ids, plain_peft_canary
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.update import weight_update
from tests.learner_data import write_small_model
from tests.peft_kinds import MERGED, save, trained


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


def test_the_canary_is_the_same_for_every_seed_and_fits(random_model: Path) -> None:
    chat = Chat.load(random_model)
    ids = canary_ids(Config(seed=1), chat)
    assert ids == canary_ids(Config(seed=2), chat)
    assert len(ids) == MAX_TOKENS
    small = Config()
    small.rollout.max_model_len = 16
    assert canary_ids(small, chat) == ids[:15]


def test_it_is_a_prompt_of_the_training_variant(random_model: Path) -> None:
    chat = Chat.load(random_model)
    assert chat.text(canary_ids(Config(), chat)).startswith("Make 24. Rule: J=10")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dora", [False, True])
def test_a_saved_adapter_is_scored_in_fp32_and_its_base_held_as_it_is_stored(
    random_model: Path, tmp_path: Path, stored: torch.dtype, dora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = AutoModelForCausalLM.from_pretrained(random_model, dtype=stored)
    base.save_pretrained(tmp_path / "model")
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", use_dora=dora, init_lora_weights=False
    )
    get_peft_model(base.float(), config).save_pretrained(tmp_path / "adapter")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = PeftModel.from_pretrained(whole, tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        table = expected(input_ids=ids).logits[0, :-1].log_softmax(-1)

    held: list[Module] = []
    original = PeftModel.from_pretrained

    def spied(model: Module, folder: Path) -> PeftModel:
        held.append(model)
        return original(model, folder)

    monkeypatch.setattr(PeftModel, "from_pretrained", spied)
    canary = plain_peft_canary(tmp_path / "model", tmp_path / "adapter", tuple(ids[0].tolist()))
    assert list(canary.logprobs) == table.gather(1, ids[0, 1:, None])[:, 0].tolist()
    kept = {name: each.dtype for name, each in held[0].named_parameters() if "lora_" not in name}
    assert set(kept.values()) == {stored}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", MERGED)
def test_the_canary_of_every_kind_is_that_of_the_merged_model(
    case: str, stored: torch.dtype, small: Path, tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_pretrained(small, dtype=stored).save_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    folder = save(trained(base, MERGED[case]), tmp_path / "adapter")
    ids = tuple(range(5, 45))
    canary = plain_peft_canary(tmp_path / "model", folder, ids)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    update = weight_update(Adapter.load(folder), BaseWeights(tmp_path / "model"))
    merged.load_state_dict(dict(update), strict=False)
    with torch.no_grad():
        table = merged(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(canary.logprobs), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_canary_of_whole_parameters_is_that_of_a_model_that_has_them(
    stored: torch.dtype, small: Path, tmp_path: Path
) -> None:
    """The head is tied, so it follows the embeddings; the parameters that are not trained stay as stored."""
    AutoModelForCausalLM.from_pretrained(small, dtype=stored).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    torch.manual_seed(0)
    trained = {name: p for name, p in model.named_parameters() if "embed" in name or "norm" in name}
    for parameter in trained.values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    config = {"peft_type": "FULL", "target_modules": "embed_tokens,norm"}
    Adapter.create(config, trained, 1).save(tmp_path / "adapter")
    ids = tuple(range(5, 45))
    canary = plain_peft_canary(tmp_path / "model", tmp_path / "adapter", ids)
    with torch.no_grad():
        table = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(canary.logprobs), expected, rtol=0, atol=1e-5)
