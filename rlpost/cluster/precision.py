"""Which precision a run computes in: `dtype=auto` measures products of the run's shapes; no machine is assumed.

    model's config.json, settings ─▶ Shapes ─▶ products timed in float32 and bfloat16 ─▶ Choice (dtype, reason, warning)

Products are timed in every memory layout that learner and engine use, since on some processors one layout alone is
slow: without a bfloat16 unit, the gradient by the input ran at 0.5 GFLOP/s where the forward product ran at 19.
One thread measures, in time of the processor and not of the clock: on a busy machine two threads wait for one another
longer than they compute, and the slower precision was found to be the faster one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from rlpost.config.schema import Config, Dtype
from rlpost.config.yaml_files import read_mapping
from rlpost.errors import ClusterError, ConfigError

TORCH_DTYPES = {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16}
WORTH = 1.5  # bfloat16 rounds, so it must be so many times as fast; this also keeps noise from deciding
SLOW = 5.0  # a warning is given where the setting takes so many times as long as the other precision
SIDE = 1024  # a larger model's matrices are measured with this many rows and columns,
ROWS = 512  # and longer micro-batches with this many tokens
KEYS = 256  # that a query of the attention product sees
ENOUGH_S = 0.004  # a product that takes so long has shown its rate


@dataclass(frozen=True)
class Choice:
    """The precision, why it was taken, and a warning where it is far from the best."""

    dtype: Dtype
    reason: str
    warning: str | None = None


@dataclass(frozen=True)
class Shapes:
    """Sizes of a run's products, cut to SIDE and ROWS."""

    tokens: int  # of a micro-batch
    sequences: int  # that decode together
    inputs: int
    outputs: int
    rank: int
    head: int  # features of an attention head

    @classmethod
    def of(cls, cfg: Config, model_folder: Path) -> Shapes:
        """Those of `cfg`; what the model's config.json does not tell is taken for SIDE."""
        told = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
        told = told.get("text_config", told)
        width = int(told.get("hidden_size", SIDE))
        return cls(
            tokens=min(cfg.learner.micro_batch_tokens, ROWS),
            sequences=min(cfg.rollout.max_num_seqs, ROWS),
            inputs=min(width, SIDE),
            outputs=min(int(told.get("intermediate_size", SIDE)), SIDE),
            rank=cfg.lora.rank,
            head=int(told.get("head_dim") or width // int(told.get("num_attention_heads", 1))),
        )


@dataclass(frozen=True)
class Product:
    """One kind of product: `build(rows, dtype)` gives a call of so many rows, each of which costs `flops`."""

    name: str
    rows: int
    flops: int
    passes: int  # times that an iteration computes it for a token: two scoring passes and a training pass
    build: Callable[[int, torch.dtype], Callable[[], Tensor]]


def products(shapes: Shapes) -> tuple[Product, ...]:
    """What a layer computes: x (T, H) inputs, W (M, H) a weight, A (r, H) and B an adapter, G (T, M) a gradient."""
    H, M, r, D = shapes.inputs, shapes.outputs, shapes.rank, shapes.head

    def linear(rows: int, dtype: torch.dtype) -> Callable[[], Tensor]:
        x_TH, weight_MH = torch.ones(rows, H, dtype=dtype), torch.ones(M, H, dtype=dtype)
        return lambda: F.linear(x_TH, weight_MH)

    def input_gradient(rows: int, dtype: torch.dtype) -> Callable[[], Tensor]:
        grad_TM, weight_MH = torch.ones(rows, M, dtype=dtype), torch.ones(M, H, dtype=dtype)
        return lambda: grad_TM @ weight_MH

    def adapter(rows: int, dtype: torch.dtype) -> Callable[[], Tensor]:
        x_TH, A_rH = torch.ones(rows, H, dtype=dtype), torch.ones(r, H, dtype=dtype)
        return lambda: x_TH @ A_rH.t()

    def adapter_gradient(rows: int, dtype: torch.dtype) -> Callable[[], Tensor]:
        low_grad_Tr, x_TH = torch.ones(rows, r, dtype=dtype), torch.ones(rows, H, dtype=dtype)
        return lambda: low_grad_Tr.t() @ x_TH

    def attention(rows: int, dtype: torch.dtype) -> Callable[[], Tensor]:
        q_1TD, k_1KD = torch.ones(1, rows, D, dtype=dtype), torch.ones(1, KEYS, D, dtype=dtype)
        return lambda: torch.bmm(q_1TD, k_1KD.transpose(1, 2))

    return (
        Product("x W'", shapes.tokens, 2 * H * M, 3, linear),
        Product("G W", shapes.tokens, 2 * H * M, 1, input_gradient),
        Product("x A'", shapes.tokens, 2 * H * r, 3, adapter),
        Product("(G B)' x", shapes.tokens, 2 * H * r, 1, adapter_gradient),
        Product("q k'", shapes.tokens, 2 * D * KEYS, 3, attention),
        Product("x W' of decoding", shapes.sequences, 2 * H * M, 1, linear),
    )


@dataclass(frozen=True)
class Measurement:
    """GFLOP/s of every product, and the seconds of a token's products in one layer and iteration, by dtype."""

    rates: Mapping[str, Mapping[Dtype, float]]
    seconds: Mapping[Dtype, float]

    @classmethod
    def of(cls, shapes: Shapes) -> Measurement:
        """Measure on this machine, with the threads that torch has now; takes well under a second where it is idle."""
        rates: dict[str, dict[Dtype, float]] = {}
        seconds = dict.fromkeys(TORCH_DTYPES, 0.0)
        for product in products(shapes):
            a_row = {dtype: _seconds_a_row(product, kind) for dtype, kind in TORCH_DTYPES.items()}
            rates[product.name] = {dtype: product.flops / taken / 1e9 for dtype, taken in a_row.items()}
            for dtype, taken in a_row.items():
                seconds[dtype] += product.passes * taken
        return cls(rates, seconds)

    def slowdown(self, dtype: Dtype) -> float:
        """How many times as long `dtype` takes as the other precision."""
        return self.seconds[dtype] / self.seconds[_other(dtype)]

    @property
    def best(self) -> Dtype:
        """float32, unless bfloat16 is clearly faster."""
        return Dtype.bfloat16 if self.slowdown(Dtype.float32) > WORTH else Dtype.float32

    def choice(self, asked: Dtype) -> Choice:
        """What `asked` comes to on this machine."""
        if asked is Dtype.auto:
            return Choice(self.best, f"measured: {self._told(self.best)}")
        slowdown, warning = self.slowdown(asked), None
        if slowdown >= SLOW:
            warning = (
                f"dtype={asked.value} takes {slowdown:.0f} times as long here as {_other(asked).value}:"
                f" {self._told(asked)}. dtype=auto takes the faster one"
            )
        return Choice(asked, "as set", warning)

    def _told(self, dtype: Dtype) -> str:
        """The whole ratio, and the product whose rates are furthest apart."""
        other, name = _other(dtype), max(self.rates, key=self._apart)
        mine, its = self.rates[name][dtype], self.rates[name][other]
        return (
            f"a token's products take {self.seconds[dtype] * 1e6:.2g} us a layer, {self.seconds[other] * 1e6:.2g} us in"
            f" {other.value} ({name}: {mine:.3g} and {its:.3g} GFLOP/s)"
        )

    def _apart(self, name: str) -> float:
        wide, narrow = (self.rates[name][dtype] for dtype in TORCH_DTYPES)
        return max(wide / narrow, narrow / wide)


def _other(dtype: Dtype) -> Dtype:
    return next(choice for choice in TORCH_DTYPES if choice is not dtype)


@torch.no_grad()
def _seconds_a_row(product: Product, dtype: torch.dtype) -> float:
    """Time ever more rows, until a call takes ENOUGH_S or has all of them: so that no call takes long."""
    rows = min(8, product.rows)
    while True:
        call = product.build(rows, dtype)
        call()  # the first one pays for the choice of a kernel
        taken = min(_timed(call) for _ in range(3))
        if taken >= ENOUGH_S or rows == product.rows:
            return taken / rows
        rows = min(4 * rows, product.rows)


def _timed(call: Callable[[], object]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started


def settled(cfg: Config, model_folder: Path, console: Console) -> Config:
    """`cfg` with the precision that is used; the console is told which, and why. Raises like `settle`."""
    choice = settle(cfg, model_folder)
    console.print(
        f"precision: {choice.dtype.value} ({choice.reason})", emoji=False, markup=False, soft_wrap=True
    )
    if choice.warning is not None:
        told = f"warning: {choice.warning}"
        console.print(told, style="yellow", emoji=False, markup=False, soft_wrap=True)
    return replace(cfg, dtype=choice.dtype)


def settle(cfg: Config, model_folder: Path) -> Choice:
    """The precision of a run, which its learner and its engines share, found on the machine that will compute.

    With `auto`, a run that is resumed keeps its precision, and an adapter that of the run in whose folder it lies.

    Raises ClusterError where a GPU is asked for and there is none, or `ray.address` names a cluster that cannot be
    asked.
    """
    source = _earlier_run(cfg) if cfg.dtype is Dtype.auto else None
    kept = _kept(source) if source is not None else None
    on_gpu = cfg.learner.gpus > 0 and cfg.rollout.gpus > 0
    asked, shapes = kept or cfg.dtype, Shapes.of(cfg, model_folder)
    if cfg.ray.address is None:
        choice = choose(asked, shapes, on_gpu)
    else:
        choice = _chosen_by_the_cluster(cfg, asked, shapes, on_gpu)
    return choice if kept is None else replace(choice, reason=f"as in {source}")


def choose(asked: Dtype, shapes: Shapes, on_gpu: bool) -> Choice:
    """What `asked` comes to on this machine: its processor is measured, unless all is computed on a GPU.

    Raises ClusterError where that is asked for and PyTorch sees no GPU.
    """
    if on_gpu:
        if not torch.cuda.is_available():
            raise ClusterError(
                f"learner.gpus and rollout.gpus ask for a GPU, but PyTorch {torch.__version__} sees none here. Set up"
                " with `make clean setup PLATFORM=gpu` where there is one, or leave both settings at 0."
            )
        return of_gpu(asked, torch.cuda.is_bf16_supported(including_emulation=False))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Measurement.of(shapes).choice(asked)
    finally:
        torch.set_num_threads(before)


def of_gpu(asked: Dtype, has_bfloat16: bool) -> Choice:
    """On a GPU, bfloat16 where it has it."""
    if asked is Dtype.auto:
        if has_bfloat16:
            return Choice(Dtype.bfloat16, "the GPU computes in it")
        return Choice(Dtype.float32, "the GPU does not compute in bfloat16")
    slow = asked is Dtype.bfloat16 and not has_bfloat16
    warning = "dtype=bfloat16: the GPU does not compute in it; dtype=auto takes float32" if slow else None
    return Choice(asked, "as set", warning)


def _chosen_by_the_cluster(cfg: Config, asked: Dtype, shapes: Shapes, on_gpu: bool) -> Choice:
    """`choose` on a node that has what a learner rank is given."""
    import ray

    from rlpost.cluster import actor_calls, ray_cluster

    with ray_cluster.connect(cfg.ray, ray_cluster.Needs.of(cfg)):
        task = ray.remote(num_cpus=cfg.learner.cpus, num_gpus=cfg.learner.gpus)(choose)
        asking = task.remote(asked, shapes, on_gpu)
        choice: Choice = actor_calls.get(asking, cfg.ray.timeout_s, "the node that measures its precisions")
    return choice


def _earlier_run(cfg: Config) -> Path | None:
    """The folder of the run that is gone on with, or in which the adapter lies."""
    if cfg.resume is not None:
        return Path(cfg.resume)
    return Path(cfg.adapter).parent if cfg.adapter is not None else None


def _kept(run_folder: Path) -> Dtype | None:
    """The precision in a run's config.yaml; None for a folder that is no run's."""
    try:
        kept = Dtype[str(read_mapping(run_folder / "config.yaml")["dtype"])]
    except (ConfigError, KeyError):
        return None
    return kept if kept in TORCH_DTYPES else None
