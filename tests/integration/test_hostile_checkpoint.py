"""A checkpoint of somebody else's is data: no code of it runs, and what DeepSpeed wrote itself still loads."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from rlpost.algorithms import roles
from rlpost.config.schema import Dtype
from rlpost.errors import CheckpointError
from rlpost.learner import update
from rlpost.learner.deepspeed_backend import DeepSpeedBackend
from rlpost.learner.model import actor_critic
from rlpost.learner.rendezvous import Rendezvous, bound_socket, port_of
from tests.learner_data import examples_of, random_episodes, small_config, write_small_model

pytestmark = pytest.mark.integration


class Hostile:
    """What it stands for is made by calling `open` for writing."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.marker), "w")


def attack(zero_stage: int, folder: Path) -> None:
    """In a process of its own, since DeepSpeed's process group is the process's: one rank, after a step."""
    cfg = small_config()
    cfg.learner.zero_stage = zero_stage
    model = actor_critic.build(
        write_small_model(folder / "model"), Dtype.float32, cfg.lora, 0, roles.ROLES, None
    )
    held = bound_socket()
    rendezvous = Rendezvous("127.0.0.1", port_of(held), 0, 1, held.detach())
    backend = DeepSpeedBackend(model, cfg.learner, rendezvous)
    update.sft_step(backend, examples_of(random_episodes(4)), cfg, 0)
    checkpoint, marker = folder / "checkpoint", folder / "run by the checkpoint"
    checkpoint.mkdir()
    backend.save(checkpoint)
    backend.load(checkpoint)
    files = sorted(checkpoint.rglob("*.pt"))
    assert files
    for path in files:
        whole = path.read_bytes()
        torch.save({"module": Hostile(marker)}, path)
        with pytest.raises(CheckpointError, match="was not loaded"):
            backend.load(checkpoint)
        assert not marker.exists(), path.name
        path.write_bytes(whole)
    backend.load(checkpoint)


@pytest.mark.parametrize(
    "zero_stage", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(3, marks=pytest.mark.slow)]
)
def test_nothing_that_a_checkpoint_names_is_run(zero_stage: int, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(attack, zero_stage, tmp_path).result(timeout=300)


def test_the_hostile_file_is_one(tmp_path: Path) -> None:
    """Loaded as DeepSpeed loads by itself, it does run."""
    path, marker = tmp_path / "file.pt", tmp_path / "run by the checkpoint"
    torch.save({"module": Hostile(marker)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()
