"""Real vLLM in two processes that share each layer: swaps proven on both shards, and nothing left when killed.

Two models: the bundled one (tied embeddings), and one like Qwen 2 with biases, one key-value head (which both ranks
hold) and a head of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlpost.errors import SwapError
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.engine.settings import EngineSettings
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.types import Canary, ModelInput
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.models import TINY
from tests.conftest import write_tokenizer

pytestmark = pytest.mark.integration

TIGHT = 1e-4  # log-prob difference of two fp32 implementations whose sums are in another order
IDS = (5, 6, 7, 8, 9, 77, 120, 11, 40, 41, 42)
ENDS_S = 30.0


def write_qwen(folder: Path) -> Path:
    write_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1}
    model = Qwen2ForCausalLM(
        Qwen2Config(**sizes, **heads, tie_word_embeddings=False, initializer_range=0.2, eos_token_id=3)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["qwen", "tiny"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY if request.param == "tiny" else write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(
        EngineSettings(folder, max_model_len=128, max_num_seqs=4, kv_cache_gib=0.05, tensor_parallel=2)
    )
    yield engine
    engine._engine.engine_core.shutdown()


def model_of(folder: Path, adapter: Adapter | None = None) -> Any:
    """transformers, with whole tensors loaded as they are."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        model.load_state_dict(dict(adapter.tensors), strict=False)
        model.tie_weights()
    return model


def lora(folder: Path) -> tuple[Any, Adapter]:
    torch.manual_seed(1)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True)
    model = get_peft_model(model_of(folder), settings).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    return model, Adapter.create(model.peft_config["default"].to_dict(), get_peft_model_state_dict(model), 1)


def whole(folder: Path) -> tuple[Any, Adapter]:
    """Every parameter of the checkpoint moves."""
    torch.manual_seed(2)
    tensors = {
        name: t.float() + 0.2 * t.float().std() * torch.randn(t.shape)
        for name, t in BaseWeights(folder).items()
    }
    adapter = Adapter.create({"peft_type": "FULL"}, tensors, 2)
    return model_of(folder, adapter), adapter


@torch.no_grad()
def logprobs(model: Any, ids: tuple[int, ...] = IDS) -> list[float]:
    table = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return table[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()


def gap(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def greedy(engine: VllmEngine, count: int = 12) -> tuple[int, ...]:
    engine.submit("greedy", ModelInput(IDS), Sampling(0.0, count), 0)
    for _ in range(200):
        for _, done in engine.step():
            return done.token_ids
    raise AssertionError("it did not end")


@torch.no_grad()
def argmaxes(model: Any, answer: tuple[int, ...]) -> tuple[int, ...]:
    logits = model(torch.tensor([(*IDS, *answer)])).logits[0, len(IDS) - 1 : -1]
    return tuple(logits.argmax(-1).tolist())


def test_every_swap_serves_what_transformers_computes_and_the_base_returns(
    engine: VllmEngine, folder: Path
) -> None:
    base = model_of(folder)
    before = engine.logprobs(IDS)
    assert gap(before, logprobs(base)) < TIGHT
    assert (answer := greedy(engine)) == argmaxes(base, answer)
    for model, adapter in (lora(folder), whole(folder)):
        expected = logprobs(model)
        assert gap(before, expected) > 100 * TIGHT  # or agreement would prove nothing
        report = engine.swap(adapter, Canary(IDS, tuple(expected)), TIGHT)
        count = len(adapter.tensors) if adapter.config["peft_type"] == "FULL" else len(adapter.modules)
        assert report.fingerprint == adapter.fingerprint
        assert report.modules_bound == report.modules_expected == count
        assert gap(engine.logprobs(IDS), expected) < TIGHT
        assert (answer := greedy(engine)) == argmaxes(model, answer)
    engine._write(None)
    assert engine.logprobs(IDS) == before


def lose_a_write(worker: Any) -> None:
    """In the second rank, the next write of a layer is lost."""
    from rlpost.rollout.engine.live_layer import LiveLayer

    write = LiveLayer.write

    def lossy(layer: LiveLayer, weight: torch.Tensor) -> None:
        if layer.name == "model.layers.1.mlp.down_proj":
            LiveLayer.write = write  # type: ignore[method-assign]
        else:
            write(layer, weight)

    if worker.rank == 1:
        LiveLayer.write = lossy  # type: ignore[method-assign]


def test_a_rank_that_does_not_hold_its_shard_is_named_and_the_old_version_lives(
    engine: VllmEngine, folder: Path
) -> None:
    model, adapter = lora(folder)
    engine.swap(adapter, Canary(IDS, tuple(logprobs(model))), TIGHT)
    before = engine.logprobs(IDS)
    _, other = whole(folder)
    engine._engine.collective_rpc(lose_a_write)
    with pytest.raises(
        SwapError, match=r"(?s)rank 1 of 2: 1 of .*layers\.1\.mlp\.down_proj.*Live is version 1"
    ):
        engine.swap(other, None, TIGHT)
    assert engine.logprobs(IDS) == before
    unknown = Adapter.create(
        {"peft_type": "FULL"}, {"lm_head.bias": torch.zeros(3)}, 3
    )  # neither model has it
    with pytest.raises(SwapError, match=r"(?s)rank 0 of 2: .*lm_head\.bias.*rank 1 of 2.*Live is version 1"):
        engine.swap(unknown, None, TIGHT)
    assert engine.logprobs(IDS) == before


STARTED = """
import sys
from rlpost.rollout.engine.settings import EngineSettings
from rlpost.rollout.engine.vllm_engine import VllmEngine
if __name__ == "__main__":
    settings = dict(max_model_len=128, max_num_seqs=4, kv_cache_gib=0.05, tensor_parallel=2)
    VllmEngine(EngineSettings(sys.argv[1], **settings))
    print("started", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A socket's path has at most 107 characters, and pytest's own folders have long ones."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def new_shared_memory(there: set[str]) -> set[str]:
    """Names that are new and stay. Python unlinks a semaphore right after it has made it, in any process here."""
    deadline = time.monotonic() + ENDS_S
    while (new := set(os.listdir("/dev/shm")) - there) and time.monotonic() < deadline:
        time.sleep(0.2)
    return new


@pytest.mark.parametrize("killed", ["engine", "rank"])
def test_an_engine_ends_with_its_ranks_and_leaves_no_file_and_no_shared_memory(
    killed: str, tmp_path: Path, short_folder: Path
) -> None:
    (tmp_path / "start.py").write_text(STARTED)
    there = set(os.listdir("/dev/shm"))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "TMPDIR": str(short_folder)}
    command = [sys.executable, str(tmp_path / "start.py"), str(write_qwen(tmp_path / "model"))]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert any("started" in line for line in process.stdout)
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            ranks = [each for each in family if "Worker_TP" in " ".join(each.cmdline())]
            assert len(ranks) == 2
            # Else a kill of the whole tree, as Ray's, would leave some.
            assert new_shared_memory(there) == set()
            os.kill(process.pid if killed == "engine" else ranks[0].pid, signal.SIGKILL)
            _, alive = psutil.wait_procs(family, ENDS_S)
        finally:
            process.kill()
    assert alive == []
    assert new_shared_memory(there) == set()
    assert list(short_folder.iterdir()) == []
