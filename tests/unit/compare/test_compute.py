from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlpost.errors import ComparisonError
from rlpost.record.compute import (
    EPISODES,
    EXAMPLES,
    PROMPT,
    SAMPLED,
    SCORED,
    SUCCESS,
    TAUGHT,
    TEACHER_SIZE,
    TRAINED,
    Compute,
    real_flops,
    spent,
)
from rlpost.record.metrics import rollout_metrics
from rlpost.weights import models
from tests.unit.episodes import episode, turn

TOKENS = 48


def test_spent_by_hand() -> None:
    lines = [
        {"step": 0, TRAINED: 100.0, "seconds/update": 4.0, "seconds/evaluation": 50.0},
        {
            PROMPT: 10.0,
            SAMPLED: 20.0,
            SCORED: 30.0,
            TRAINED: 5.0,
            "seconds/rollout": 2.0,
            "seconds/swap": 1.0,
        },
    ]
    first = Compute(6 * 7 * 100, 100, 4.0)  # records of earlier versions, without counts of rollouts
    assert spent(lines, parameters=7) == [first, Compute(4200 + 2 * 7 * 60 + 6 * 7 * 5, 165, 7.0)]
    assert spent([], 7) == []


def test_a_teacher_counts_as_inference_of_its_own_size() -> None:
    """7 parameters, 3 tokens trained and 2 scored; a teacher of 50 reads 4."""
    line = {TRAINED: 3.0, SCORED: 2.0, TAUGHT: 4.0, TEACHER_SIZE: 50.0}
    assert spent([line], 7) == [Compute(6 * 7 * 3 + 2 * 7 * 2 + 2 * 50 * 4, 9, 0.0)]
    assert real_flops(line, 7, trained=7, added=0) == 6 * 7 * 3 + 2 * 7 * 2 + 2 * 50 * 4


def test_rollouts_by_hand() -> None:
    """An expert's example is a correct rollout. Of 16 episodes with success 0.3125, 5 are correct; of 7 with 3/7, 3."""
    lines = [
        {TRAINED: 1, EXAMPLES: 64.0},
        {TRAINED: 1, EPISODES: 16.0, SUCCESS: 0.3125},
        {TRAINED: 1, EPISODES: 7.0, SUCCESS: 3 / 7},
        {TRAINED: 1, EPISODES: 8.0, SUCCESS: 0.0, EXAMPLES: 4.0},
    ]
    assert [(c.rollouts, c.correct_rollouts) for c in spent(lines, 1)] == [
        *((64, 64), (80, 69), (87, 72)),
        (99, 76),
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_share_gives_back_the_number_of_successes(solved: list[bool]) -> None:
    """A line has the share, not the number."""
    line = {TRAINED: 1.0, **rollout_metrics([episode(turn(), success=each) for each in solved])}
    (found,) = spent([line], 1)
    assert (found.rollouts, found.correct_rollouts) == (len(solved), sum(solved))


def test_from_a_line_without_counts_on_the_rollouts_are_unknown() -> None:
    found = spent([{TRAINED: 1, EXAMPLES: 2}, {TRAINED: 1}, {TRAINED: 1, EXAMPLES: 2}], 1)
    assert [each.rollouts for each in found] == [2, None, None]
    assert [each.correct_rollouts for each in found] == [2, None, None]


@pytest.mark.parametrize("line", [{"seconds/update": 1.0}, {TRAINED: -1.0}, {SAMPLED: 0.5}, {PROMPT: None}])
def test_lines_that_count_no_tokens_are_refused(line: dict[str, float]) -> None:
    with pytest.raises(ComparisonError, match="line 0"):
        spent([line], 7)


def _tiny() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        models.resolve("tiny"), dtype=torch.float32, attn_implementation="eager"
    )


def _size(model: torch.nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def _measured(model: torch.nn.Module, backward: bool) -> int:
    """FLOPs of the products with weights: attention's own are batched (bmm), these are not."""
    ids = torch.arange(TOKENS)[None] % 50
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = model(input_ids=ids, use_cache=False).logits
        if backward:
            logits.sum().backward()
    counts = Counter({str(op): n for op, n in counter.get_flop_counts()["Global"].items()})
    assert counts["aten.bmm"] > 0
    return counts["aten.mm"] + counts["aten.addmm"]


def test_the_profiler_counts_what_we_do_on_tiny() -> None:
    """2 N D and 6 N D but for the norms (under 0.1% of N), attention's products apart."""
    model = _tiny()
    size = models_parameters(model)
    assert _measured(model, backward=False) == pytest.approx(2 * size * TOKENS, rel=0.002)
    assert _measured(model, backward=True) == pytest.approx(6 * size * TOKENS, rel=0.002)
    assert spent([{TRAINED: TOKENS}], size)[0].flops == pytest.approx(
        _measured(model, backward=True), rel=0.002
    )


def models_parameters(model: PreTrainedModel) -> int:
    assert model.config.tie_word_embeddings  # the embedding is the head: counted, and multiplied with, once
    return _size(model)


def test_the_profiler_counts_what_a_frozen_base_costs() -> None:
    """But for the first layer's inputs, which need no gradient (2%)."""
    base = _tiny()
    size = _size(base)
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n))
    adapter = _size(model, trained=True)
    trained = real_flops({TRAINED: TOKENS}, size, adapter, adapter)
    assert _measured(model, backward=True) == pytest.approx(trained, rel=0.03)
    assert _measured(model, backward=False) == pytest.approx(
        real_flops({SAMPLED: TOKENS}, size, adapter, adapter), rel=0.002
    )
    assert trained < 0.75 * 6 * size * TOKENS


def test_real_flops_by_hand() -> None:
    """N = 10, 3 tokens trained and 5 sampled: an adapter of 2 adds its own products, whole weights of the model do not.

    Adapter: 5 x 2 x 12 + 3 x (4 x 10 + 6 x 2) = 276. All 10: 5 x 2 x 10 + 3 x 6 x 10 = 280. 4 of 10: 100 + 3 x 48.
    """
    line = {SAMPLED: 5, TRAINED: 3}
    assert real_flops(line, 10, trained=2, added=2) == 276
    assert real_flops(line, 10, trained=10, added=0) == 280 == spent([line], 10)[0].flops
    assert real_flops(line, 10, trained=4, added=0) == 244


def test_the_profiler_counts_what_full_fine_tuning_of_some_modules_costs() -> None:
    """The MLPs of all blocks. Below the first one nothing trains, so a part of the first block has no backward pass."""
    model = _tiny()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".mlp." in name)
    trained = _size(model, trained=True)
    assert 0 < trained < _size(model)
    expected = real_flops({TRAINED: TOKENS}, _size(model), trained, 0)
    assert _measured(model, backward=True) == pytest.approx(expected, rel=0.06)
