"""Weight updates of every kind of adapter, with PEFT's own merge of a whole model as the witness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.update import check_merges, weight_update
from tests.learner_data import write_small_model
from tests.peft_kinds import MERGED, save, trained


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.mark.parametrize("case", MERGED)
def test_an_update_is_what_peft_merges(case: str, small: Path, tmp_path: Path) -> None:
    model = trained(AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32), MERGED[case])
    adapter = Adapter.load(save(model, tmp_path))
    base = BaseWeights(small)
    update = weight_update(adapter, base)
    assert (update.version, update.fingerprint) == (0, adapter.fingerprint)
    check_merges(update)
    ours = dict(update)
    theirs = model.merge_and_unload().state_dict()
    assert ours.keys() < theirs.keys()
    for name, weight in theirs.items():
        change = (weight - base[name].float()).norm() if name in base else torch.tensor(0.0)
        if name in ours:
            assert change > 0, name
            assert (ours[name] - weight).norm() <= 1e-3 * change, name
        else:
            assert change == 0, name
