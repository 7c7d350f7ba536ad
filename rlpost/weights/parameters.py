"""The parameters that transformers makes of a model's folder, by name, without its weights.

Not every tensor of a checkpoint is a parameter: some are buffers, and a tied head may be stored beside its embeddings.
"""

from __future__ import annotations

from pathlib import Path

from rlpost.errors import ModelError


def parameters_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, as the learner has them. transformers is imported here: its import takes seconds.

    Raises ModelError if transformers cannot build the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):  # no memory and no first values
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # each family raises its own
        text = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"transformers cannot build the model in {folder}: {text[:300]}") from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
