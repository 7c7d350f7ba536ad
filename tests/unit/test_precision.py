"""`dtype=auto`: what is measured, what is chosen of it, and who keeps a choice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rlpost.cluster import precision
from rlpost.cluster.precision import Measurement, Product, Shapes
from rlpost.config.compose import to_yaml
from rlpost.config.schema import Config, Dtype
from rlpost.errors import ClusterError
from rlpost.weights.models import TINY

SHAPES = Shapes(tokens=64, sequences=16, inputs=96, outputs=160, rank=4, head=32)


def measured(float32: float, bfloat16: float) -> Measurement:
    """As if a token took so many seconds."""
    rates = {"x W'": {Dtype.float32: 1 / float32, Dtype.bfloat16: 1 / bfloat16}}
    return Measurement(rates, {Dtype.float32: float32, Dtype.bfloat16: bfloat16})


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [
        (1.0, 30.0, "float32"),
        (1.0, 1.0, "float32"),
        (1.4, 1.0, "float32"),
        (1.6, 1.0, "bfloat16"),
        (9.0, 1.0, "bfloat16"),
    ],
)
def test_bfloat16_must_be_clearly_faster(float32: float, bfloat16: float, chosen: str) -> None:
    choice = measured(float32, bfloat16).choice(Dtype.auto)
    assert (choice.dtype.value, choice.warning) == (chosen, None)
    assert choice.reason.startswith("measured: ")


def test_a_setting_by_hand_stays_and_is_warned_of_where_it_is_five_times_slower() -> None:
    slow = measured(1.0, 30.0).choice(Dtype.bfloat16)
    assert (slow.dtype, slow.reason) == (Dtype.bfloat16, "as set")
    assert slow.warning is not None
    assert "dtype=bfloat16 takes 30 times as long here as float32" in slow.warning
    assert measured(1.0, 4.9).choice(Dtype.bfloat16).warning is None
    assert measured(6.0, 1.0).choice(Dtype.float32).warning is not None
    assert measured(1.0, 30.0).choice(Dtype.float32).warning is None


def test_products_compute_what_their_flops_say() -> None:
    """Counted by torch itself, at all rows."""
    from torch.utils.flop_counter import FlopCounterMode

    for product in precision.products(SHAPES):
        call = product.build(product.rows, torch.float32)
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == product.rows * product.flops, product.name


def test_a_slow_layout_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layout that is slow in bfloat16 outweighs five that are twice as fast, as was seen without AMX."""

    def seconds(product: Product, dtype: torch.dtype) -> float:
        if dtype is torch.float32:
            return product.flops / 100e9
        return product.flops / (0.5e9 if product.name == "G W" else 200e9)

    monkeypatch.setattr(precision, "_seconds_a_row", seconds)
    found = Measurement.of(SHAPES)
    assert found.best is Dtype.float32
    assert found.rates["G W"][Dtype.bfloat16] == pytest.approx(0.5)
    assert "G W: 100 and 0.5 GFLOP/s" in found.choice(Dtype.auto).reason


def test_shapes_are_the_models_cut_to_what_is_measured_quickly() -> None:
    cfg = Config()
    cfg.learner.micro_batch_tokens, cfg.rollout.max_num_seqs, cfg.lora.rank = 4096, 48, 8
    assert Shapes.of(cfg, TINY) == Shapes(tokens=512, sequences=48, inputs=256, outputs=768, rank=8, head=64)


def test_one_thread_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine two threads told of their waiting, not of the processor."""
    threads = []

    def of(shapes: Shapes) -> Measurement:
        threads.append(torch.get_num_threads())
        return measured(1.0, 30.0)

    monkeypatch.setattr(Measurement, "of", of)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        precision.choose(Dtype.auto, SHAPES, on_gpu=False)
        assert (threads, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_waiting_is_not_measured() -> None:
    """A thread that others keep from its core has not computed slowly."""
    assert precision._timed(lambda: time.sleep(0.1)) < 0.05


RESTRICTED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
PROGRAM = """
import time
from rlpost.config.schema import Dtype
from rlpost.cluster.precision import Shapes, choose
started = time.perf_counter()
print(choose(Dtype.auto, Shapes(512, 128, 256, 768, 32, 64), on_gpu=False).dtype.value)
print(time.perf_counter() - started)
"""


def test_a_processor_without_a_bfloat16_unit_computes_in_float32() -> None:
    """Instruction sets as restricted as they can be from outside; what this leaves out: docs/results/machines.md."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **RESTRICTED},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "float32"


@pytest.mark.parametrize(("has_it", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_computes_in_bfloat16_where_it_can(has_it: bool, chosen: str) -> None:
    assert precision.of_gpu(Dtype.auto, has_it).dtype.value == chosen
    assert precision.of_gpu(Dtype.float32, has_it).warning is None
    assert (precision.of_gpu(Dtype.bfloat16, has_it).warning is None) is has_it


def test_a_gpu_that_is_not_there_is_no_gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = Config()
    cfg.learner.gpus = cfg.rollout.gpus = 0.5
    with pytest.raises(ClusterError, match=r"sees none here.*PLATFORM=gpu"):
        precision.settle(cfg, TINY)
    cfg.rollout.gpus = 0.0
    assert precision.settle(cfg, TINY).reason.startswith("measured: ")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that computed in bfloat16, whatever this machine would choose."""
    (tmp_path / "config.yaml").write_text(to_yaml(Config(dtype=Dtype.bfloat16)), encoding="utf-8")
    return tmp_path


def test_a_resumed_run_keeps_its_precision(run_folder: Path) -> None:
    choice = precision.settle(Config(resume=str(run_folder)), TINY)
    assert (choice.dtype, choice.reason) == (Dtype.bfloat16, f"as in {run_folder}")


def test_an_adapter_keeps_the_precision_of_its_run(run_folder: Path, tmp_path: Path) -> None:
    cfg = Config(adapter=str(run_folder / "adapter"))
    assert precision.settle(cfg, TINY).dtype is Dtype.bfloat16
    assert precision.settle(replace(cfg, dtype=Dtype.float32), TINY).dtype is Dtype.float32


@pytest.fixture(scope="module")
def real() -> Measurement:
    """This machine's, taken once."""
    return Measurement.of(SHAPES)


@pytest.mark.parametrize("text", [None, "dtype: auto", "dtype: float7", "- a list", "{", "adapter: x"])
def test_a_folder_that_tells_no_precision_leaves_it_to_the_measurement(
    text: str | None, real: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Measurement, "of", lambda shapes: real)
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    choice = precision.settle(Config(adapter=str(tmp_path / "adapter")), TINY)
    assert choice.dtype in precision.TORCH_DTYPES
    assert choice.reason.startswith("measured: ")


def test_the_first_lines_say_which_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Measurement, "of", lambda shapes: measured(1e-6, 30e-6))
    assert precision.settled(Config(), TINY, Console()).dtype is Dtype.float32
    assert capsys.readouterr().out.startswith(
        "precision: float32 (measured: a token's products take 1 us a layer"
    )
    settled = precision.settled(Config(dtype=Dtype.bfloat16), TINY, Console())
    assert settled.dtype is Dtype.bfloat16
    printed = capsys.readouterr().out
    assert printed.startswith("precision: bfloat16 (as set)\nwarning: dtype=bfloat16 takes 30 times as long")
