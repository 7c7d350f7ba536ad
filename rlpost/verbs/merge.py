"""Writes a trained policy as a whole model: rlpost merge RUN FOLDER [--dtype D] [--model M].

    model's shards (memory-mapped) ─▶ one tensor after another, with the adapter in ─▶ FOLDER: shards of the same names,
    config, tokenizer, chat template, generation config                                index, and the small files

It needs memory for one shard of the result. The base is read in the precision that is written, and the sum is rounded
to it once, as in a run's engines (rlpost/rollout/engine/swap.py), so weights and log-probs are the same. An adapter
that was trained on a base in 4 bits (lora.base=nf4) is merged into that base's weights, all of them rounded to NF4.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost.config.schema import BaseKind
from rlpost.errors import AdapterError, ModelError, OutputError
from rlpost.record.files import publish_folder
from rlpost.verbs import policy
from rlpost.verbs.policy import Policy
from rlpost.weights import models
from rlpost.weights.stored_model import weight_files

if TYPE_CHECKING:
    from torch import Tensor

    from rlpost.weights.update import WeightUpdate

DTYPES = ("float32", "bfloat16", "float16")
INDEX = "model.safetensors.index.json"
# The files that a loader reads besides the weights. The README is left out, since it describes the base model.
SMALL_FILES = (
    *("generation_config.json", "tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model", "*.tiktoken", "LICENSE*"),
)
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_SHOWN = 3


def main(argv: Sequence[str]) -> int:
    """Write a run's policy as a model's folder that plain transformers and vLLM load; returns the exit code."""
    parser = argparse.ArgumentParser(prog="rlpost merge", description=main.__doc__)
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="run directory, or a folder with a PEFT adapter"
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="to be made; one that is there is refused"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights; left out: what the run computed in, for an adapter what its model is stored in",
    )
    parser.add_argument(
        "--model", help="the base, where the record's is not to be found: a folder, a hub id, tiny"
    )
    asked = parser.parse_args(argv)
    _merge(asked)
    return 0


def _merge(asked: argparse.Namespace) -> None:
    refuse_existing(asked.folder)  # before a model is fetched
    trained = policy.find(asked.run, asked.model)
    written = write_merged(trained, asked.folder, asked.dtype)
    base = base_of(trained)
    if base is not BaseKind.stored:
        print(
            f"The adapter was trained on lora.base={base.value}: it is merged into the base's rounded weights."
        )
    print(f"{asked.folder}: the merged model in {written}. To load it:")
    print(f'  transformers: AutoModelForCausalLM.from_pretrained("{asked.folder}", dtype="{written}")')
    print(f'  vLLM:         LLM("{asked.folder}", dtype="{written}")')


def base_of(trained: Policy) -> BaseKind:
    """The base that the adapter was trained on; the stored one if it does not say."""
    from rlpost.weights.adapters import Adapter

    return Adapter.load(trained.adapter_folder).base or BaseKind.stored


def refuse_existing(folder: Path) -> None:
    """Raise OutputError if the folder (or a file of that name) exists."""
    if folder.exists() or folder.is_symlink():
        raise OutputError(
            f"{folder}\n  reason: it is there already\n  remedy: name another folder, or remove it"
        )


def write_merged(trained: Policy, folder: Path, dtype: str | None = None) -> str:
    """Write `trained` as a whole model into `folder`, complete or not at all; return the weights' dtype.

    Args:
        dtype: one of DTYPES. None: the precision that the run computed in, which gives its log-probs again; if it is
            unknown, the one in which the base is stored.

    Raises:
        OutputError: the folder exists, or cannot be written.
        AdapterError: the adapter is broken, or belongs to another model.
        ModelError: the base is quantized, or a file of it cannot be read.
    """
    refuse_existing(folder)
    dtype, fill = merge_of(trained, dtype)
    publish_folder(folder, fill)
    return dtype


def merge_of(trained: Policy, dtype: str | None) -> tuple[str, Callable[[Path], None]]:
    """Check the merge; return the weights' dtype and what writes the model into an empty folder. See `write_merged`."""
    from rlpost.weights.adapters import Adapter
    from rlpost.weights.base_weights import base_weights
    from rlpost.weights.update import weight_update

    stored = _stored(trained.model_folder)
    dtype = dtype or trained.dtype or (stored.pop() if len(stored) == 1 else "float32")
    adapter = Adapter.load(trained.adapter_folder)
    update = weight_update(adapter, base_weights(trained.model_folder, adapter.base or BaseKind.stored))
    _check_fit(update, trained.model_folder)
    return str(dtype), lambda fresh: _fill(fresh, trained.model_folder, update, str(dtype))


def _stored(model_folder: Path) -> set[str]:
    """The dtypes of the stored floating-point weights. Raises ModelError for a quantized model."""
    kinds = models.stored_dtypes(model_folder)
    if others := sorted(kinds - _STORED.keys()):
        raise ModelError(
            f"{model_folder}: its weights are stored in {', '.join(others)}, and an adapter cannot be merged into"
            " those. Merge into a model in float32, bfloat16 or float16."
        )
    return {_STORED[kind] for kind in kinds}


def _check_fit(update: WeightUpdate, model_folder: Path) -> None:
    """Check names and shapes of the changed parameters before anything is written. Raises AdapterError."""
    stored = models.parameter_shapes(model_folder)
    wrong = [
        f"{name} is {its} there and {stored.get(name, 'absent')} here"
        for name, its in update.shapes.items()
        if stored.get(name) != its
    ]
    if wrong:
        raise AdapterError(
            f"The adapter is of another model than {model_folder}: {len(wrong)} of its {len(update.shapes)} parameters"
            f" do not fit ({'; '.join(wrong[:_SHOWN])}). Give the one that it was trained on: --model MODEL"
        )


def _fill(fresh: Path, model_folder: Path, update: WeightUpdate, dtype: str) -> None:
    config = _read_json(model_folder / "config.json")
    config.pop("torch_dtype", None)  # the former name of dtype
    _write_json(fresh / "config.json", config | {"dtype": dtype})
    for path in sorted({path for pattern in SMALL_FILES for path in model_folder.glob(pattern)}):
        if path.is_file():
            shutil.copyfile(path, fresh / path.name)
    shards = weight_files(model_folder)
    written = [(shard.name, _write_shard(shard, fresh / shard.name, update, dtype)) for shard in shards]
    for shard in shards:
        # safetensors writes files that only their owner can read.
        shutil.copymode(fresh / "config.json", fresh / shard.name)
    if (model_folder / INDEX).is_file():
        _write_json(fresh / INDEX, _index(written))


def _write_shard(shard: Path, target: Path, update: WeightUpdate, dtype: str) -> dict[str, int]:
    """Write one shard; return the bytes of every tensor written, by its name."""
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                base = update.base[name]
                base = base.to(kind) if base.is_floating_point() else base
                tensors[name] = merged_tensor(update, name, base).to(base.dtype).contiguous()
        save_file(tensors, target, {"format": "pt", "adapter": update.fingerprint})
    except SafetensorError as error:  # includes a full disk, which safetensors does not report as OSError
        raise OutputError(
            f"{target}\n  reason: {shard} could not be read or this not be written ({error})\n"
            "  remedy: free space on the disk, or restore the model's files"
        ) from error
    return {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}


def merged_tensor(update: WeightUpdate, name: str, base: Tensor) -> Tensor:
    """A tensor of the checkpoint with the adapter merged in: fp32 for those that it changes, others as they are."""
    return update.merged(name, base) if name in update.shapes else base


def _index(written: Iterable[tuple[str, dict[str, int]]]) -> dict[str, Any]:
    """The index of shards, which says which file holds which tensor, as transformers writes it."""
    files = {name: shard for shard, sizes in written for name in sizes}
    total = sum(size for _, sizes in written for size in sizes.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return found


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
