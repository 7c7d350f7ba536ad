"""Chooses a run's precision. `dtype=auto` measures products of the run's shapes and assumes nothing about the machine.

    model's config.json, settings ─▶ Shapes ─▶ products timed in float32 and bfloat16 ─▶ Choice (dtype, reason, warning)

Products are timed in every memory layout that the learner and the engine use, since some processors are slow in one
layout only: without a bfloat16 unit, the gradient with respect to the input ran at 0.5 GFLOP/s and the forward product
at 19. One thread is timed in processor time, not wall time: on a busy machine two threads wait for each other longer
than they compute, and the slower precision came out as the faster one.
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

from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import Config, Dtype, LoraConfig
from rlpost.config.yaml_files import read_mapping
from rlpost.errors import ClusterError, ConfigError

TORCH_DTYPES = {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16}
# bfloat16 rounds, so it must be this many times as fast; the margin also keeps noise from deciding.
WORTH = 1.5
SLOW = 5.0  # a warning is given if the chosen precision takes this many times as long as the other
SIDE = 1024  # matrices of larger models are measured with this many rows and columns
ROWS = 512  # longer micro-batches are measured with this many tokens
KEYS = 256  # keys per query of the attention product
ENOUGH_S = 0.004  # a product that takes this long has shown its rate


@dataclass(frozen=True)
class Choice:
    """The precision, the reason for it, and a warning if it is much slower than the other."""

    dtype: Dtype
    reason: str
    warning: str | None = None


@dataclass(frozen=True)
class Shapes:
    """The sizes of a run's products, limited to SIDE and ROWS."""

    tokens: int  # tokens of a micro-batch
    sequences: int  # sequences that decode together
    inputs: int
    outputs: int
    rank: int
    head: int  # features of an attention head

    @classmethod
    def of(cls, cfg: Config, model_folder: Path) -> Shapes:
        """The shapes of `cfg`. Sizes that the model's config.json does not contain are set to SIDE."""
        told = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
        told = told.get("text_config", told)
        width = int(told.get("hidden_size", SIDE))
        return cls(
            tokens=min(cfg.learner.micro_batch_tokens, ROWS),
            sequences=min(cfg.rollout.max_num_seqs, ROWS),
            inputs=min(width, SIDE),
            outputs=min(int(told.get("intermediate_size", SIDE)), SIDE),
            # A size that is no rank would stand for products that no layer computes.
            rank=cfg.lora.rank if TABLE[cfg.lora.kind].rank == "r" else LoraConfig().rank,
            head=int(told.get("head_dim") or width // int(told.get("num_attention_heads", 1))),
        )


@dataclass(frozen=True)
class Product:
    """One kind of product. `build(rows, dtype)` gives a call over that many rows, each of which costs `flops`."""

    name: str
    rows: int
    flops: int
    # How often an iteration computes it per token: in two scoring passes and one training pass.
    passes: int
    build: Callable[[int, torch.dtype], Callable[[], Tensor]]


def products(shapes: Shapes) -> tuple[Product, ...]:
    """The products of a layer: x (T, H) inputs, W (M, H) a weight, A (r, H) and B an adapter, G (T, M) a gradient."""
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
    """GFLOP/s of every product, and the seconds per token for one layer's products in one iteration, by dtype."""

    rates: Mapping[str, Mapping[Dtype, float]]
    seconds: Mapping[Dtype, float]

    @classmethod
    def of(cls, shapes: Shapes) -> Measurement:
        """Measure on this machine with torch's current threads. It takes well under a second if the machine is idle."""
        rates: dict[str, dict[Dtype, float]] = {}
        seconds = dict.fromkeys(TORCH_DTYPES, 0.0)
        for product in products(shapes):
            a_row = {dtype: _seconds_a_row(product, kind) for dtype, kind in TORCH_DTYPES.items()}
            rates[product.name] = {dtype: product.flops / taken / 1e9 for dtype, taken in a_row.items()}
            for dtype, taken in a_row.items():
                seconds[dtype] += product.passes * taken
        return cls(rates, seconds)

    def slowdown(self, dtype: Dtype) -> float:
        """How many times as long as the other precision `dtype` takes."""
        return self.seconds[dtype] / self.seconds[_other(dtype)]

    @property
    def best(self) -> Dtype:
        """float32, unless bfloat16 is clearly faster."""
        return Dtype.bfloat16 if self.slowdown(Dtype.float32) > WORTH else Dtype.float32

    def choice(self, asked: Dtype) -> Choice:
        """The choice for the setting `asked` on this machine."""
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
        """The ratio of all products, and the product whose two rates differ most."""
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
    """Seconds per row: time more and more rows until a call takes ENOUGH_S or has all rows, so that no call is long."""
    rows = min(8, product.rows)
    while True:
        call = product.build(rows, dtype)
        call()  # the first call also chooses a kernel
        taken = min(_timed(call) for _ in range(3))
        if taken >= ENOUGH_S or rows == product.rows:
            return taken / rows
        rows = min(4 * rows, product.rows)


def _timed(call: Callable[[], object]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started


def settled(cfg: Config, model_folder: Path, console: Console) -> Config:
    """`cfg` with the chosen precision; the choice and its reason are printed to the console. Raises like `settle`."""
    choice = settle(cfg, model_folder, lambda line: console.print(line, markup=False, soft_wrap=True))
    tell(choice, console)
    return replace(cfg, dtype=choice.dtype)


def tell(choice: Choice, console: Console) -> None:
    """Print the precision with its reason, and its warning."""
    console.print(
        f"precision: {choice.dtype.value} ({choice.reason})", emoji=False, markup=False, soft_wrap=True
    )
    if choice.warning is not None:
        told = f"warning: {choice.warning}"
        console.print(told, style="yellow", emoji=False, markup=False, soft_wrap=True)


def settle(cfg: Config, model_folder: Path, say: Callable[[str], None] = print) -> Choice:
    """The precision of a run, shared by its learner and engines and found on the machine that will compute.

    With `auto`, a resumed run keeps its precision, and an adapter keeps that of the run whose folder contains it.
    `say` is told, line by line, what a joined cluster lacks while the measurement waits for a rank's resources.

    Raises ClusterError if a GPU is requested but missing, or if the cluster of `ray.address` does not answer.
    """
    source = _earlier_run(cfg) if cfg.dtype is Dtype.auto else None
    kept = _kept(source) if source is not None else None
    on_gpu = cfg.learner.gpus > 0 and cfg.rollout.gpus > 0
    asked, shapes = kept or cfg.dtype, Shapes.of(cfg, model_folder)
    if cfg.ray.address is None:
        choice = choose(asked, shapes, on_gpu)
    else:
        choice = _chosen_by_the_cluster(cfg, asked, shapes, on_gpu, say)
    return choice if kept is None else replace(choice, reason=f"as in {source}")


def choose(asked: Dtype, shapes: Shapes, on_gpu: bool) -> Choice:
    """The choice for the setting `asked` on this machine. The processor is measured, unless all work is on a GPU.

    Raises ClusterError if a GPU is requested and PyTorch sees none.
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
    """The choice on a GPU: bfloat16 if the GPU supports it."""
    if asked is Dtype.auto:
        if has_bfloat16:
            return Choice(Dtype.bfloat16, "the GPU computes in it")
        return Choice(Dtype.float32, "the GPU does not compute in bfloat16")
    slow = asked is Dtype.bfloat16 and not has_bfloat16
    warning = "dtype=bfloat16: the GPU does not compute in it; dtype=auto takes float32" if slow else None
    return Choice(asked, "as set", warning)


def _chosen_by_the_cluster(
    cfg: Config, asked: Dtype, shapes: Shapes, on_gpu: bool, say: Callable[[str], None]
) -> Choice:
    """`choose`, run on a node with the resources of a learner rank, once there is one that has them free."""
    import ray

    from rlpost.cluster import actor_calls, ray_cluster
    from rlpost.cluster.placement import Plan, placed

    with (
        ray_cluster.connect(cfg.ray, ray_cluster.Needs.of(cfg)),
        placed(Plan.of_a_rank(cfg), cfg.ray, say) as placement,
    ):
        task = ray.remote(**placement.rank(0))(choose)
        asking = task.remote(asked, shapes, on_gpu)
        choice: Choice = actor_calls.get(asking, cfg.ray.timeout_s, "the node that measures its precisions")
    return choice


def _earlier_run(cfg: Config) -> Path | None:
    """The folder of the run that is resumed, or that contains the adapter."""
    if cfg.resume is not None:
        return Path(cfg.resume)
    return Path(cfg.adapter).parent if cfg.adapter is not None else None


def _kept(run_folder: Path) -> Dtype | None:
    """The precision in a run's config.yaml; None if the folder is not a run's."""
    try:
        kept = Dtype[str(read_mapping(run_folder / "config.yaml")["dtype"])]
    except (ConfigError, KeyError):
        return None
    return kept if kept in TORCH_DTYPES else None
