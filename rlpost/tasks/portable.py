"""The settings of a run as its workers get them: on another node they work in another folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlpost.cluster.data_files import with_absolute_paths
from rlpost.config.schema import Config
from rlpost.weights import models


def portable(cfg: Config, model_folder: Path) -> Config:
    """`cfg` with absolute paths. `model_folder`: where `models.resolve` found the model.

    The driver keeps `cfg` itself, since checkpoints compare settings as they were given. On a Ray of this machine the
    data's paths stay too: workers there have the driver's folder.
    """
    teacher = cfg.algo.teacher
    if teacher is not None and Path(teacher).is_dir():
        cfg = replace(cfg, algo=replace(cfg.algo, teacher=str(Path(teacher).absolute())))
    cfg = replace(cfg, model=models.name_elsewhere(cfg.model, model_folder))
    return cfg if cfg.ray.address is None else with_absolute_paths(cfg)
