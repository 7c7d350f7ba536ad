"""Adapters of every kind that PEFT merges into linear layers, and of some that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

SOME = ["q_proj", "v_proj", "down_proj"]

# PEFT's settings by the name of a case. Sizes fit models whose widths are multiples of 16.
MERGED: dict[str, dict[str, Any]] = {
    "rank pattern": {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
    },
    "alpha pattern": {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 32}},
    "rank pattern, rsLoRA": {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"v_proj": 2},
    },
    "rank pattern, DoRA": {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "use_dora": True,
        "rank_pattern": {"v_proj": 2},
    },
    "AdaLoRA": {"peft_type": "ADALORA", "total_step": 10},
    "BOFT": {"peft_type": "BOFT", "boft_block_size": 4},
    "C3A": {"peft_type": "C3A", "block_size": 16},
    "DeLoRA": {"peft_type": "DELORA"},
    "FourierFT": {"peft_type": "FOURIERFT", "n_frequency": 50},
    "GraLoRA": {"peft_type": "GRALORA", "r": 8},
    "HiRA": {"peft_type": "HIRA"},
    "HRA": {"peft_type": "HRA"},
    "IA3": {
        "peft_type": "IA3",
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "LoHa": {"peft_type": "LOHA", "rank_pattern": {"v_proj": 2}},
    "LoKr": {"peft_type": "LOKR"},
    "MiSS": {"peft_type": "MISS", "r": 8},
    "OFT": {"peft_type": "OFT", "oft_block_size": 8, "r": 0},
    "OFT, Cayley": {"peft_type": "OFT", "oft_block_size": 8, "r": 0, "use_cayley_neumann": False},
    "PVeRA": {"peft_type": "PVERA"},
    "RandLora": {"peft_type": "RANDLORA"},
    "RoAd": {"peft_type": "ROAD", "group_size": 16},
    "SHiRA": {"peft_type": "SHIRA", "r": 2},
    "VBLoRA": {"peft_type": "VBLORA", "vector_length": 16, "num_vectors": 16},
    "VeRA": {"peft_type": "VERA"},
    "VeRA, projections drawn again": {"peft_type": "VERA", "save_projection": False},
    "WaveFT": {"peft_type": "WAVEFT", "n_frequency": 50},
}


def trained(base: nn.Module, case: dict[str, Any], seed: int = 0) -> PeftModel:
    """`base` under PEFT, its adapter moved at random in place of training."""
    torch.manual_seed(seed)
    model = get_peft_model(base, PeftConfig.from_peft_type(**{"target_modules": SOME, **case}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def save(model: PeftModel, folder: Path) -> Path:
    """PEFT's own files."""
    model.save_pretrained(folder)
    return folder
