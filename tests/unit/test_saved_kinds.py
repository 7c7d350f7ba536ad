"""What PEFT saves of a kind is all that the adapter needs, with every setting that `lora.settings` may give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import AdapterKind
from rlpost.learner.model.peft_weights import peft_config
from tests.adapter_kinds import ADAPTERS, LORAS_FAMILY, small
from tests.learner_data import write_small_model

_PATTERN = {"v_proj": 2}
_LORAS: dict[str, Any] = {"rank_pattern": _PATTERN, "alpha_pattern": _PATTERN}
# By kind and setting, a value other than PEFT's default; another setting may be needed with it.
OTHERS: dict[str, dict[str, Any]] = {
    **{kind.name: _LORAS for kind in LORAS_FAMILY},
    "oft": {
        "coft": {"coft": True, "eps": 0.1},  # with PEFT's eps it hardly rotates
        "eps": {"coft": True, "eps": 0.1},
        "block_share": True,
        "use_cayley_neumann": False,
        "num_cayley_neumann_terms": 3,
    },
    "boft": {"boft_n_butterfly_factor": 2},
    "hra": {"apply_GS": True},
    "road": {"variant": "road_2", "group_size": 4},
    "vera": {"projection_prng_key": 7, "d_initial": 0.3},
    "pvera": {"projection_prng_key": 7, "d_initial": 0.3},
    "randlora": {"projection_prng_key": 7, "sparse": True, "very_sparse": True},
    "vblora": {
        "num_vectors": 24,
        "vector_length": 4,
        "topk": 3,
        "init_vector_bank_bound": 0.1,
        "init_logits_std": 0.5,
    },
    "tinylora": {"r": 3, "projection_seed": 7, "init_v_bound": 0.1},
    "unilora": {"r": 3, "proj_seed": 7, "init_theta_d_bound": 0.1},
    "loha": _LORAS,
    "lokr": {**_LORAS, "decompose_both": True, "decompose_factor": 4},
    "hira": {"rank_pattern": _PATTERN},
    "gralora": {"hybrid_r": 2, "gralora_k": 4},
    "delora": {"rank_pattern": _PATTERN, "lambda_pattern": {"v_proj": 7.0}},
    "glora": {"config_A_B": "vector", "config_C": "vector", "config_D_E": "none"},
    "deft": {"decomposition_method": "qr", "init_scale": 0.5, "alpha": 4, "para": True},
    "peanut": {"depth": 1, "act_fn": "gelu"},
    "miss": {"mini_r": 2},
    "c3a": {"block_size_pattern": {"v_proj": 4}},
    "fourierft": {"random_loc_seed": 7, "n_frequency_pattern": {"v_proj": 9}},
    "waveft": {
        "wavelet_family": "db2",
        "use_idwt": False,
        "random_loc_seed": 7,
        "n_frequency_pattern": {"v_proj": 9},
        "proportional_parameters": True,
    },
    "shira": {},
    "supertuning": {"sparsity": 0.8, "select_top": False, "r": 2},
    "ia3": {"feedforward_modules": ["up_proj"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


def cases() -> Iterator[tuple[AdapterKind, str | None]]:
    for kind in ADAPTERS:
        yield kind, None
        if kind is AdapterKind.lora or kind not in LORAS_FAMILY:
            yield from ((kind, name) for name in TABLE[kind].free)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_setting_that_may_be_given_has_a_case(kind: AdapterKind) -> None:
    assert set(OTHERS[kind.name]) == set(TABLE[kind].free)


@pytest.mark.parametrize(("kind", "name"), tuple(cases()))
def test_an_adapter_computes_the_same_where_it_is_loaded(
    kind: AdapterKind, name: str | None, folder: Path
) -> None:
    """The other model draws other random numbers, and puts its adapter on the base that a run loads."""
    lora = small(kind)
    if name is not None:
        other = OTHERS[kind.name][name]
        given = other if isinstance(other, dict) and name in other else {name: other}
        lora = replace(lora, settings={**lora.settings, **given})
    ids = torch.arange(5, 25)[None]
    answers = []
    saved: dict[str, Any] = {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), peft_config(lora))
        if saved:
            set_peft_model_state_dict(model, saved)
        else:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
            saved = get_peft_model_state_dict(model, save_embedding_layers=False)
        with torch.no_grad():
            answers.append(model.eval()(input_ids=ids).logits)
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-5)
    with torch.no_grad(), model.disable_adapter():
        assert float((model(input_ids=ids).logits - answers[0]).abs().max()) > 1e-3, "it does nothing"
