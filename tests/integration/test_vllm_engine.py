"""Real vLLM on a random tiny model: sampling, log-probs, merged swaps, and swaps that must not be taken.

One engine serves the whole module (float32). Every test leaves it idle; tests of swaps say what is live.
"""

from __future__ import annotations

import dataclasses
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from rlpost.errors import RolloutError, SwapError
from rlpost.rollout.chat import Chat
from rlpost.rollout.engine.live_layer import LiveLayer, Probe, Questions
from rlpost.rollout.engine.protocol import Completion, Sampling
from rlpost.rollout.engine.settings import EngineSettings
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.types import Canary, Finish, ModelInput
from rlpost.weights.adapters import Adapter, merged_weight
from rlpost.weights.peft_merge import PeftLayers
from tests.peft_kinds import MERGED, save, trained

pytestmark = pytest.mark.integration

EOS = 3
TIGHT = 2e-5  # log-prob difference of two fp32 implementations
PROMPT = tuple(range(10, 60))


@pytest.fixture(scope="module")
def base(random_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def temp_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which this process, and so the module's engine, puts temporary files."""
    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def engine(random_model: Path, temp_folder: Path) -> Iterator[VllmEngine]:
    settings = EngineSettings(random_model, max_model_len=256, max_num_seqs=32, kv_cache_gib=0.1)
    engine = VllmEngine(settings)
    yield engine
    engine._engine.engine_core.shutdown()  # a run ends the process instead


@pytest.mark.usefixtures("engine")
def test_a_started_engine_has_no_temporary_file(temp_folder: Path) -> None:
    """Not one that it would remove at its end, either: an engine is often killed."""
    assert list(temp_folder.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a machine without a GPU")
def test_on_a_cpu_vllm_refuses_its_sleep_mode(random_model: Path) -> None:
    with pytest.raises(RolloutError, match="Sleep mode is not supported on current platform"):
        VllmEngine(EngineSettings(random_model, sleep=True))


def policy(folder: Path, version: int, **lora: Any) -> tuple[PeftModel, Adapter]:
    """A PEFT model that differs much from its base, and its adapter."""
    torch.manual_seed(version)
    settings: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"} | lora
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), LoraConfig(**settings)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)
        if "magnitude" in name:
            parameter.data.mul_(1 + 0.2 * torch.rand_like(parameter))
    config = model.peft_config["default"].to_dict()
    return model.eval(), Adapter.create(config, get_peft_model_state_dict(model), version)


@pytest.fixture(scope="module")
def policy_a(random_model: Path) -> tuple[PeftModel, Adapter]:
    return policy(random_model, 1)


@pytest.fixture(scope="module")
def policy_b(random_model: Path) -> tuple[PeftModel, Adapter]:
    return policy(random_model, 2, target_modules=["q_proj", "down_proj"])


@torch.no_grad()
def logprobs(model: Any, token_ids: tuple[int, ...], temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of tokens 1.. by transformers, the witness."""
    logits = model(torch.tensor([token_ids])).logits[0, :-1].double() / temperature
    return logits.log_softmax(-1)[torch.arange(len(token_ids) - 1), torch.tensor(token_ids[1:])].float()


def canary(model: Any) -> Canary:
    token_ids = tuple(torch.randint(4, 260, (48,), generator=torch.Generator().manual_seed(9)).tolist())
    return Canary(token_ids, tuple(logprobs(model, token_ids).tolist()))


def drain(engine: VllmEngine, count: int = 1) -> dict[str, Completion]:
    """Step until `count` requests are done, no more than any test needs."""
    done: dict[str, Completion] = {}
    for _ in range(300):
        done.update(engine.step())
        if len(done) == count:
            return done
    raise AssertionError(f"only {sorted(done)} of {count} requests finished")


def sample(engine: VllmEngine, sampling: Sampling, seeds: dict[str, int]) -> dict[str, Completion]:
    for key, seed in seeds.items():
        engine.submit(key, ModelInput((*PROMPT, 100 + seed % 7)), sampling, seed)
    return drain(engine, len(seeds))


def test_an_idle_engine_steps_to_nothing(engine: VllmEngine) -> None:
    assert engine.step() == []


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_logprobs_are_those_of_transformers(engine: VllmEngine, base: Any, temperature: float) -> None:
    done = sample(engine, Sampling(temperature, 12), {f"{7 * i}": 7 * i for i in range(3)})
    for completion in done.values():
        assert 0 < len(completion.token_ids) <= 12
        expected = logprobs(base, (*PROMPT, 100, *completion.token_ids), temperature or 1.0)[len(PROMPT) :]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=TIGHT)


def test_greedy_takes_the_most_likely_token(engine: VllmEngine, base: Any) -> None:
    done = sample(engine, Sampling(0.0, 8), {"a": 0})["a"]
    with torch.no_grad():
        best = base(torch.tensor([(*PROMPT, 100, *done.token_ids)])).logits[0, len(PROMPT) : -1].argmax(-1)
    assert tuple(best.tolist()) == done.token_ids


def test_a_seed_decides_its_tokens_whoever_else_is_there(engine: VllmEngine) -> None:
    sampling = Sampling(1.0, 16)
    alone = sample(engine, sampling, {"x": 11})["x"]
    crowd = sample(engine, sampling, {f"k{i}": i for i in range(20)} | {"x": 11})
    assert crowd["x"].token_ids == alone.token_ids
    assert len({done.token_ids for done in crowd.values()}) == 20  # k11 draws what x draws


def test_requests_may_join_while_others_run(engine: VllmEngine) -> None:
    sampling = Sampling(1.0, 16)
    alone = sample(engine, sampling, {"late": 5})["late"]
    engine.submit("early", ModelInput((*PROMPT, 101)), sampling, 1)
    for _ in range(4):
        assert engine.step() == []
    engine.submit("late", ModelInput((*PROMPT, 105)), sampling, 5)
    done = drain(engine, 2)
    assert set(done) == {"early", "late"}
    assert done["late"].token_ids == alone.token_ids


def test_scoring_meanwhile_loses_no_completion(engine: VllmEngine, base: Any) -> None:
    for i in range(3):
        engine.submit(f"r{i}", ModelInput(PROMPT), Sampling(1.0, 1), i)
    scores = engine.logprobs(PROMPT)
    torch.testing.assert_close(torch.tensor(scores), logprobs(base, PROMPT), rtol=0, atol=TIGHT)
    assert set(drain(engine, 3)) == {"r0", "r1", "r2"}


def test_scores_are_whole_when_the_prefix_is_cached(engine: VllmEngine, base: Any) -> None:
    token_ids = tuple(range(4, 204))
    for _ in range(2):
        scores = engine.logprobs(token_ids)
        torch.testing.assert_close(torch.tensor(scores), logprobs(base, token_ids), rtol=0, atol=TIGHT)


def test_an_answer_ends_by_its_end_token_or_by_length(engine: VllmEngine) -> None:
    finishes = {Finish.STOP: 0, Finish.LENGTH: 0}
    for done in sample(engine, Sampling(1.0, 64), {f"{i}": i for i in range(32)}).values():
        finishes[done.finish] += 1
        if done.finish is Finish.STOP:
            assert done.token_ids[-1] == EOS
            assert EOS not in done.token_ids[:-1]
        else:
            assert len(done.token_ids) == 64
            assert EOS not in done.token_ids
    assert min(finishes.values()) > 0  # a random model ends one answer in eight or so within 64 tokens


def test_an_answer_ends_with_a_stop_string_and_its_tokens_are_as_sampled(
    engine: VllmEngine, base: Any, random_model: Path
) -> None:
    """The witnesses: the same dice without the string, cut by our own look at the text; transformers' log-probs."""
    chat, seeds = Chat.load(random_model), {f"{i}": i for i in range(16)}
    whole = sample(engine, Sampling(1.0, 48), seeds)
    (stop, *_) = re.findall(r"[!-~]{2}", chat.text(whole["3"].token_ids)[8:])
    stopped = sample(engine, Sampling(1.0, 48, (stop,)), seeds)
    for key, done in stopped.items():
        ids = next(
            (whole[key].token_ids[:n] for n in range(49) if stop in chat.text(whole[key].token_ids[:n])),
            whole[key].token_ids,
        )
        assert done.token_ids == ids
        ended = stop in chat.text(ids)
        assert done.finish is (Finish.STOP_STRING if ended else whole[key].finish)
        assert chat.text(ids).endswith(stop) is ended
        context = (*PROMPT, 100 + int(key) % 7)
        expected = logprobs(base, (*context, *ids))[len(PROMPT) :]
        torch.testing.assert_close(torch.tensor(done.logprobs), expected, rtol=0, atol=TIGHT)
    assert stopped["3"].finish is Finish.STOP_STRING
    assert len(stopped["3"].token_ids) < len(whole["3"].token_ids)


def test_an_answer_stops_where_the_context_is_full(engine: VllmEngine) -> None:
    engine.submit("full", ModelInput(tuple([9] * 250)), Sampling(0.0, 64), 0)
    done = drain(engine)["full"]
    assert (len(done.token_ids), done.finish) == (6, Finish.LENGTH)


@pytest.mark.parametrize("length", [0, 256, 300])
def test_a_prompt_that_does_not_fit_is_refused(engine: VllmEngine, length: int) -> None:
    with pytest.raises(RolloutError, match=f"{length} tokens.*256"):
        engine.submit("long", ModelInput(tuple([9] * length)), Sampling(0.0, 4), 0)
    with pytest.raises(RolloutError, match=f"{length} tokens"):
        engine.logprobs(tuple([9] * length))
    assert engine.step() == []


def test_a_key_in_use_is_refused(engine: VllmEngine) -> None:
    engine.submit("twice", ModelInput(PROMPT), Sampling(0.0, 2), 0)
    with pytest.raises(RolloutError, match="twice"):
        engine.submit("twice", ModelInput(PROMPT), Sampling(0.0, 2), 0)
    drain(engine)


def test_aborted_requests_are_forgotten_and_their_keys_are_free(engine: VllmEngine) -> None:
    """One that decodes, one that is done and was not fetched, and one that nobody submitted; others go on."""
    sampling = Sampling(1.0, 12)
    alone = sample(engine, sampling, {"stays": 5})
    for key, seed, length in (("goes", 4, 200), ("done", 6, 1), ("stays", 5, 12)):
        engine.submit(key, ModelInput((*PROMPT, 100 + seed % 7)), Sampling(1.0, length), seed)
    while not engine._finished:
        engine._advance()
    engine.abort(["goes", "done", "unknown"])
    assert drain(engine) == alone
    assert sample(engine, sampling, {"goes": 5})["goes"] == alone["stays"]
    assert engine.step() == []


def test_more_prompts_than_one_step_takes(engine: VllmEngine) -> None:
    """vLLM 0.32 crashes on CPU when it cuts the prompt of a seeded request in two."""
    dice = random.Random(0)
    prompts = {f"p{i}": tuple(dice.randrange(4, 260) for _ in range(240)) for i in range(36)}
    for key, prompt in prompts.items():
        engine.submit(key, ModelInput(prompt), Sampling(1.0, 2), 1)
    assert set(drain(engine, len(prompts))) == set(prompts)


KINDS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True},
    {"use_dora": True},
    {"target_modules": ["k_proj", "up_proj"]},
]


@pytest.mark.parametrize("lora", KINDS, ids=["lora", "rslora", "dora", "some modules"])
def test_a_swap_serves_what_peft_computes(
    engine: VllmEngine, base: Any, random_model: Path, lora: dict[str, Any]
) -> None:
    model, adapter = policy(random_model, 5, **lora)
    check = canary(model)
    moved = (torch.tensor(check.logprobs) - logprobs(base, check.token_ids)).abs().mean()
    assert moved > 0.02  # or agreement would prove nothing
    report = engine.swap(adapter, check, max_gap=TIGHT)
    assert report.fingerprint == adapter.fingerprint
    assert report.version == 5
    assert report.modules_bound == report.modules_expected == len(adapter.modules) > 0
    assert report.canary_gap < TIGHT
    assert report.rounding_loss == 0.0
    torch.testing.assert_close(
        torch.tensor(engine.logprobs(PROMPT)), logprobs(model, PROMPT), rtol=0, atol=TIGHT
    )
    done = sample(engine, Sampling(1.0, 12), {"a": 7})["a"]
    expected = logprobs(model, (*PROMPT, 100, *done.token_ids))[len(PROMPT) :]
    torch.testing.assert_close(torch.tensor(done.logprobs), expected, rtol=0, atol=TIGHT)


def test_whole_parameters_are_swapped_in_and_the_base_returns(
    engine: VllmEngine, base: Any, random_model: Path, policy_a: tuple[PeftModel, Adapter]
) -> None:
    """Weights, norms and embeddings, which the tied head follows; then the bare base, and LoRA."""
    engine._write(None)
    before = engine.logprobs(PROMPT)
    model = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).eval()
    torch.manual_seed(11)
    for parameter in model.parameters():
        parameter.data += 0.2 * parameter.data.std().clamp_min(0.1) * torch.randn_like(parameter)
    tensors = dict(model.named_parameters())
    assert "model.norm.weight" in tensors
    assert "lm_head.weight" not in tensors
    adapter = Adapter.create({"peft_type": "FULL", "target_modules": "all-linear"}, tensors, 11)
    check = canary(model)
    assert (torch.tensor(check.logprobs) - logprobs(base, check.token_ids)).abs().mean() > 0.02
    report = engine.swap(adapter, check, max_gap=TIGHT)
    assert (report.fingerprint, report.rounding_loss) == (adapter.fingerprint, 0.0)
    assert report.modules_bound == report.modules_expected == len(tensors)
    torch.testing.assert_close(
        torch.tensor(engine.logprobs(PROMPT)), logprobs(model, PROMPT), rtol=0, atol=TIGHT
    )
    engine._write(None)
    assert engine.logprobs(PROMPT) == before
    engine.swap(adapter, check, TIGHT)
    engine.swap(policy_a[1], canary(policy_a[0]), TIGHT)


OF_PEFT = ["rank pattern", "rank pattern, DoRA", "OFT", "VeRA", "LoHa", "IA3"]


def of_peft(folder: Path, case: str, saved: Path, version: int) -> tuple[PeftModel, Adapter]:
    """A PEFT model of a kind that rlpost has no line for, and its adapter as PEFT saves it."""
    model = trained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), MERGED[case], version)
    return model, dataclasses.replace(Adapter.load(save(model, saved)), version=version)


@pytest.mark.parametrize("case", OF_PEFT)
def test_a_kind_that_only_peft_knows_is_swapped_in_and_proven(
    engine: VllmEngine, base: Any, random_model: Path, tmp_path: Path, case: str
) -> None:
    model, adapter = of_peft(random_model, case, tmp_path, 7)
    check = canary(model)
    moved = (torch.tensor(check.logprobs) - logprobs(base, check.token_ids)).abs().mean()
    assert moved > 10 * TIGHT
    report = engine.swap(adapter, check, max_gap=TIGHT)
    assert (report.version, report.fingerprint) == (7, adapter.fingerprint)
    assert report.modules_bound == report.modules_expected == 18  # three modules in each of six blocks
    assert report.canary_gap < TIGHT
    torch.testing.assert_close(
        torch.tensor(engine.logprobs(PROMPT)), logprobs(model, PROMPT), rtol=0, atol=TIGHT
    )


@pytest.mark.parametrize("case", ["rank pattern", "OFT", "VeRA"])
def test_a_wrong_tensor_of_such_a_kind_is_refused_and_the_old_version_lives(
    engine: VllmEngine, policy_a: tuple[PeftModel, Adapter], random_model: Path, tmp_path: Path, case: str
) -> None:
    engine.swap(policy_a[1], canary(policy_a[0]), TIGHT)
    before = engine.logprobs(PROMPT)
    model, adapter = of_peft(random_model, case, tmp_path, 8)
    module = "layers.2.self_attn.q_proj"
    name = next(name for name in sorted(adapter.tensors) if module in name)

    def refused(tensors: dict[str, torch.Tensor], reason: str) -> None:
        with pytest.raises(SwapError, match=f"(?s)Version 8 was not taken.*{reason}.*Live is version 1"):
            engine.swap(Adapter.create(adapter.config, tensors, 8), canary(model), TIGHT)
        assert engine.logprobs(PROMPT) == before

    refused({**adapter.tensors, name: 3 * adapter.tensors[name] + 0.5}, "On the canary")
    refused({key: value for key, value in adapter.tensors.items() if module not in key}, module)
    refused({**adapter.tensors, name: adapter.tensors[name][..., :-1].contiguous()}, module)
    flipped = adapter.tensors[name].clone()
    flipped.view(torch.int32).view(-1)[0] ^= 1
    with pytest.raises(SwapError, match=r"(?s)Version 8.*did not arrive whole.*Live is version 1"):
        engine.swap(dataclasses.replace(adapter, tensors={**adapter.tensors, name: flipped}), None, TIGHT)
    assert engine.logprobs(PROMPT) == before


def test_a_merge_that_fails_midway_leaves_the_old_version(
    engine: VllmEngine,
    policy_a: tuple[PeftModel, Adapter],
    random_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.swap(policy_a[1], canary(policy_a[0]), TIGHT)
    before = engine.logprobs(PROMPT)
    model, adapter = of_peft(random_model, "OFT", tmp_path, 10)
    merged = PeftLayers.merged

    def spoiled(layers: PeftLayers, parameter: str, base: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if parameter == "model.layers.3.mlp.down_proj.weight":
            base = base[:-1]
        return merged(layers, parameter, base, out)

    monkeypatch.setattr(PeftLayers, "merged", spoiled)
    with pytest.raises(SwapError, match=r"(?s)Version 10 .*layers\.3\.mlp\.down_proj.*Live is version 1"):
        engine.swap(adapter, canary(model), TIGHT)
    assert engine.logprobs(PROMPT) == before


def test_kinds_follow_each_other_and_each_leaves_the_base(
    engine: VllmEngine, policy_b: tuple[PeftModel, Adapter], random_model: Path, tmp_path: Path
) -> None:
    """OFT, a LoRA on other modules, OFT: the same to the bit."""
    model, adapter = of_peft(random_model, "OFT", tmp_path, 9)
    scores = []
    for one, its in ((model, adapter), policy_b, (model, adapter)):
        engine.swap(its, canary(one), TIGHT)
        scores.append(engine.logprobs(PROMPT))
    assert scores[0] == scores[2] != scores[1]


def test_a_b_a_is_a_to_the_bit(
    engine: VllmEngine, policy_a: tuple[PeftModel, Adapter], policy_b: tuple[PeftModel, Adapter]
) -> None:
    scores, tokens = [], []
    for model, adapter in (policy_a, policy_b, policy_a):
        engine.swap(adapter, canary(model), TIGHT)
        scores.append(engine.logprobs(PROMPT))
        tokens.append(sample(engine, Sampling(1.0, 16), {"s": 3})["s"])
    assert scores[0] == scores[2] != scores[1]
    assert tokens[0] == tokens[2] != tokens[1]


def test_cached_prompts_of_the_old_version_are_forgotten(
    engine: VllmEngine, policy_a: tuple[PeftModel, Adapter], policy_b: tuple[PeftModel, Adapter]
) -> None:
    prompt = tuple(range(4, 204))
    for model, adapter in (policy_a, policy_b):
        engine.swap(adapter, None, TIGHT)
        engine.submit("cached", ModelInput(prompt), Sampling(0.0, 1), 0)
        done = drain(engine)["cached"]
        expected = logprobs(model, (*prompt, *done.token_ids))[-1:]
        torch.testing.assert_close(torch.tensor(done.logprobs), expected, rtol=0, atol=TIGHT)


def test_a_reset_engine_is_as_started(
    engine: VllmEngine, base: Any, policy_a: tuple[PeftModel, Adapter], policy_b: tuple[PeftModel, Adapter]
) -> None:
    """Its answers after other adapters and requests are those of before, to the bit."""
    answers, seeds = [], {"a": 3, "b": 4, "c": 5}
    engine.reset()
    for model, adapter in (policy_a, policy_b):
        answers.append((engine.logprobs(PROMPT), sample(engine, Sampling(1.0, 16), seeds)))
        engine.swap(adapter, canary(model), TIGHT)
        assert engine.logprobs(PROMPT) != answers[0][0]
        sample(engine, Sampling(0.7, 9), {"d": 6, "e": 7})
        engine.reset()
    assert answers[0] == answers[1]
    torch.testing.assert_close(
        torch.tensor(engine.logprobs(PROMPT)), logprobs(base, PROMPT), rtol=0, atol=TIGHT
    )


def test_a_base_that_comes_back_changed_is_refused(
    engine: VllmEngine, policy_a: tuple[PeftModel, Adapter]
) -> None:
    """A weight that no swap writes: the probes of written layers cannot see it."""
    engine.swap(policy_a[1], None, TIGHT)
    norm = engine._engine.apply_model(lambda model: model.model.norm.weight)[0]
    before = norm.detach().clone()
    with torch.no_grad():
        norm[0] += 0.5
    with pytest.raises(SwapError, match="The bare base came back changed"):
        engine.reset()
    with torch.no_grad():
        norm.copy_(before)
    engine.reset()


def test_a_reset_waits_for_no_request(engine: VllmEngine) -> None:
    engine.submit("live", ModelInput(PROMPT), Sampling(0.0, 4), 0)
    with pytest.raises(SwapError, match="Requests are live"):
        engine.reset()
    drain(engine)
    engine.reset()


def flip_a_bit(adapter: Adapter) -> Adapter:
    name = "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight"
    flipped = adapter.tensors[name].clone()
    flipped.view(torch.int32)[2, 2] ^= 1
    return dataclasses.replace(adapter, tensors={**adapter.tensors, name: flipped})


def of_another_shape(adapter: Adapter) -> Adapter:
    name = "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight"
    narrow = adapter.tensors[name][:, :-1]
    return Adapter.create(adapter.config, {**adapter.tensors, name: narrow}, adapter.version)


def of_another_model(adapter: Adapter) -> Adapter:
    tensors = {name.replace("layers.3.", "layers.33."): tensor for name, tensor in adapter.tensors.items()}
    return Adapter.create(adapter.config, tensors, adapter.version)


def on_the_head(adapter: Adapter) -> Adapter:
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.zeros(8, 256),
        "base_model.model.lm_head.lora_B.weight": torch.zeros(512, 8),
    }
    return Adapter.create(adapter.config, {**adapter.tensors, **head}, adapter.version)


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (flip_a_bit, "did not arrive whole"),
        (of_another_shape, r"layers\.3\.mlp\.up_proj.*do not fit"),
        (of_another_model, r"7 of 42 changed parameters.*layers\.33\."),
        (on_the_head, r"1 of 43 changed parameters.*lm_head"),
    ],
)
def test_a_corrupted_adapter_is_refused_and_the_old_one_lives(
    engine: VllmEngine,
    policy_a: tuple[PeftModel, Adapter],
    random_model: Path,
    corrupt: Any,
    message: str,
) -> None:
    engine.swap(policy_a[1], canary(policy_a[0]), TIGHT)
    before = engine.logprobs(PROMPT)
    model, adapter = policy(random_model, 6)
    with pytest.raises(SwapError, match=f"(?s)Version 6 was not taken.*{message}.*Live is version 1"):
        engine.swap(corrupt(adapter), canary(model), TIGHT)
    assert engine.logprobs(PROMPT) == before


def test_a_wrong_canary_restores_the_old_version(
    engine: VllmEngine, policy_a: tuple[PeftModel, Adapter], policy_b: tuple[PeftModel, Adapter]
) -> None:
    engine.swap(policy_a[1], canary(policy_a[0]), TIGHT)
    before = engine.logprobs(PROMPT)
    with pytest.raises(SwapError, match=r"(?s)canary.*Live is version 1"):
        engine.swap(policy_b[1], canary(policy_a[0]), 0.01)
    assert engine.logprobs(PROMPT) == before
    not_finite = dataclasses.replace(canary(policy_b[0]), logprobs=(float("nan"),) * 47)
    with pytest.raises(SwapError, match="canary"):
        engine.swap(policy_b[1], not_finite, 0.01)
    assert engine.logprobs(PROMPT) == before


def test_a_layer_that_was_not_written_is_named(
    engine: VllmEngine,
    policy_a: tuple[PeftModel, Adapter],
    policy_b: tuple[PeftModel, Adapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.swap(policy_a[1], canary(policy_a[0]), TIGHT)
    before = engine.logprobs(PROMPT)
    write, lost = LiveLayer.write, ["model.layers.4.self_attn.qkv_proj"]

    def lossy(layer: LiveLayer, weight: torch.Tensor) -> None:
        if layer.name in lost:
            lost.remove(layer.name)
        else:
            write(layer, weight)

    monkeypatch.setattr(LiveLayer, "write", lossy)
    with pytest.raises(
        SwapError, match=r"(?s)1 of 24 layers.*layers\.4\.self_attn\.qkv_proj.*Live is version 1"
    ):
        engine.swap(policy_b[1], None, TIGHT)
    assert engine.logprobs(PROMPT) == before


def test_one_wrong_weight_in_a_layer_is_seen(
    engine: VllmEngine, policy_a: tuple[PeftModel, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, spoiled = LiveLayer.write, []

    def spoil_once(layer: LiveLayer, weight: torch.Tensor) -> None:
        if layer.name == "model.layers.0.mlp.down_proj" and not spoiled:
            spoiled.append(layer.name)
            weight = weight.clone()
            weight[3, 5] += 0.01
        write(layer, weight)

    monkeypatch.setattr(LiveLayer, "write", spoil_once)
    with pytest.raises(SwapError, match=r"layers\.0\.mlp\.down_proj"):
        engine.swap(policy_a[1], None, TIGHT)


def test_a_restore_that_fails_says_so(
    engine: VllmEngine, policy_a: tuple[PeftModel, Adapter], policy_b: tuple[PeftModel, Adapter]
) -> None:
    engine.swap(policy_a[1], canary(policy_a[0]), TIGHT)
    write = LiveLayer.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveLayer, "write", lambda layer, weight: write(layer, torch.zeros_like(weight)))
        with pytest.raises(SwapError, match=r"(?s)layers do not compute.*version 1 could not be restored"):
            engine.swap(policy_b[1], None, TIGHT)
    engine.swap(policy_a[1], canary(policy_a[0]), TIGHT)


def test_live_requests_go_on_under_the_new_weights(
    engine: VllmEngine, policy_a: tuple[PeftModel, Adapter], policy_b: tuple[PeftModel, Adapter]
) -> None:
    """Tokens before the swap are the old policy's; the new one reads the whole context itself and goes on."""
    engine.swap(policy_a[1], canary(policy_a[0]), TIGHT)
    for seed in range(3):
        engine.submit(f"{seed}", ModelInput((*PROMPT, 100 + seed)), Sampling(1.0, 24), seed)
    done = dict(pair for _ in range(6) for pair in engine.step())
    engine.swap(policy_b[1], canary(policy_b[0]), TIGHT)
    done |= drain(engine, 3 - len(done))
    spanning = 0
    for seed in range(3):
        ids = (*PROMPT, 100 + seed, *done[f"{seed}"].token_ids)
        old, new = (logprobs(each[0], ids)[len(PROMPT) :] for each in (policy_a, policy_b))
        told = torch.tensor(done[f"{seed}"].logprobs)
        cut = next(n for n in range(len(told) + 1) if n == len(told) or abs(told[n] - old[n]) > TIGHT)
        torch.testing.assert_close(told[cut:], new[cut:], rtol=0, atol=TIGHT)
        spanning += 0 < cut < len(told)
    assert spanning, "no answer spans the swap"


def test_every_row_of_the_merge_is_live(
    engine: VllmEngine, base: Any, policy_a: tuple[PeftModel, Adapter]
) -> None:
    """Read a whole fused layer back through its own kernel, one-hot by one-hot."""
    adapter = policy_a[1]
    engine.swap(adapter, None, TIGHT)
    names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
    weights = [merged_weight(adapter, name, base.get_submodule(name).weight.detach()) for name in names]

    def read(model: Any) -> torch.Tensor:
        layer = model.get_submodule("model.layers.1.self_attn.qkv_proj")
        return layer.quant_method.apply(layer, torch.eye(256), None).T

    (live,) = engine._engine.apply_model(read)
    assert torch.equal(live, torch.cat(weights))


@pytest.mark.parametrize("rows", [64, 4096], ids=["small (AMX, where the CPU has it)", "large (oneDNN)"])
def test_packed_bfloat16_layers_are_rewritten_and_probed(engine: VllmEngine, rows: int) -> None:
    """Layers as vLLM packs them for a bfloat16 engine on CPU, which this module's engine is not."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    torch.manual_seed(0)
    layer = torch.nn.Linear(256, rows, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer.output_size_per_partition, layer.input_size_per_partition = rows, 256
    layer.params_dtype = torch.bfloat16
    layer.quant_method = SimpleNamespace(apply=lambda layer, x, bias: layer.cpu_linear(x, layer.weight, bias))
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    live, first, second = LiveLayer("layer", layer), *torch.randn(2, rows, 256).unbind()
    questions = Questions.random(256, 16, torch.Generator().manual_seed(0), torch.device("cpu"))
    for exact in (first, second):
        weight = exact.bfloat16()
        probe = Probe.of(live, weight, weight.float(), questions)
        assert not probe.holds()
        live.write(weight)
        weight_copy = weight.clone()
        weight.zero_()  # packed means copied
        assert probe.holds()
        assert torch.equal(live.forward(torch.eye(256, dtype=torch.bfloat16)).T, weight_copy)
