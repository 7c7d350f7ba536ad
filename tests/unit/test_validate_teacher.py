"""Which teachers a run refuses, by the settings and by the files; and the record of the one that it has."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlpost import run
from rlpost.config.schema import AdapterKind, AlgoName, Config, Dtype, LoraConfig, Task
from rlpost.errors import AdapterError, CheckpointError, ConfigError, ModelError
from rlpost.learner.model import actor_critic
from rlpost.learner.named_adapters import NamedAdapters
from rlpost.record import teacher as record
from rlpost.record.run_dir import RunDir
from rlpost.tasks import session
from rlpost.tasks.portable import portable
from rlpost.tasks.session import training_settings
from rlpost.validate import teacher_fit
from rlpost.weights import teachers
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import TINY
from rlpost.weights.stored_model import StoredModel
from tests.adapter_kinds import small
from tests.learner_data import write_small_model

LORA = LoraConfig(rank=4, alpha=8.0)
OWN = ("env=tests.unit.calculator:Calculator", "train_variant=default", "eval_variants=[default]")


def check_teacher(cfg: Config, folder: Path) -> None:
    teacher_fit.check_teacher(cfg, folder, StoredModel.read(folder))


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run.prepare(["experiment=navigation_grpo", "algo=opd", *overrides])
    return str(caught.value)


def test_a_teacher_is_needed_and_must_be_there(tmp_path: Path) -> None:
    assert "algo.teacher=null\n  reason: algo=opd imitates a teacher" in refused()
    assert "no such folder" in refused(f"algo.teacher={tmp_path}/gone")
    assert "neither an adapter nor a model" in refused(f"algo.teacher={tmp_path}")
    (tmp_path / "adapter_config.json").touch()
    assert "no adapter_model.safetensors there" in refused(f"algo.teacher={tmp_path}")
    (tmp_path / "adapter_model.safetensors").touch()
    assert run.prepare(["experiment=navigation_grpo", "algo=opd", f"algo.teacher={tmp_path}"])


def test_settings_that_contradict_a_teacher_or_expert_answers() -> None:
    assert "algo.dynamic_sampling=True" in refused("algo.teacher=tiny", "algo.dynamic_sampling=true")
    shares = refused("algo.teacher=tiny", "algo.expert_coef=1", "algo.expert_examples=3", "algo.epochs=4")
    assert "algo.expert_examples=3\n  reason: an iteration has 4 optimizer steps" in shares
    assert "out of range" in refused("algo.teacher=tiny", "algo.expert_coef=-1")


def test_expert_answers_need_an_expert() -> None:
    told = refused("algo.teacher=tiny", "algo.expert_coef=0.1", *OWN)
    assert "algo.expert_coef=0.1\n  reason: the environment" in told


def test_a_dry_run_needs_no_teacher() -> None:
    assert run.prepare(["experiment=navigation_grpo", "algo=opd", "task=dry_run"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with tiny's tokenizer, of which only the vocabulary is compared."""
    model = write_small_model(tmp_path_factory.mktemp("small-model"))
    AutoTokenizer.from_pretrained(TINY).save_pretrained(model)
    return model


def test_a_name_is_an_adapter_if_its_folder_has_pefts_files(folder: Path, tmp_path: Path) -> None:
    assert isinstance(teachers.load(str(_saved(folder, LORA, tmp_path / "teacher"))), Adapter)
    assert teachers.load(str(folder)) == folder.resolve()
    assert teachers.load("tiny") == TINY


def _config(teacher: Path | str, lora: LoraConfig = LORA) -> Config:
    cfg = Config(task=Task.rl, model="small", lora=lora)
    cfg.algo.name, cfg.algo.teacher, cfg.rollout.max_model_len = AlgoName.opd, str(teacher), 128
    return cfg


def _saved(folder: Path, lora: LoraConfig, to: Path) -> Path:
    weights = actor_critic.build(folder, Dtype.float32, lora, 0, ("policy",), None).weights
    Adapter.create(*weights.export(), version=1).save(to)
    return to


@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.rslora, AdapterKind.dora])
def test_in_loras_family_any_form_is_taken(folder: Path, kind: AdapterKind, tmp_path: Path) -> None:
    teacher = _saved(folder, LoraConfig(kind=kind, rank=2, alpha=3.0), tmp_path / "teacher")
    check_teacher(_config(teacher), folder)
    check_teacher(replace(_config(tmp_path / "gone"), task=Task.sft), folder)  # which has no teacher


def test_other_kinds_must_be_the_runs_own(folder: Path, tmp_path: Path) -> None:
    mine = small(AdapterKind.ia3)
    teacher = _saved(folder, mine, tmp_path / "teacher")
    check_teacher(_config(teacher, mine), folder)
    with pytest.raises(
        ConfigError, match=r"kind IA3, and an adapter of lora.kind=lora takes no other.*\n.*merge"
    ):
        check_teacher(_config(teacher), folder)
    oft = _saved(folder, small(AdapterKind.oft), tmp_path / "oft")
    with pytest.raises(ConfigError, match="both have the same settings"):
        check_teacher(_config(oft, replace(small(AdapterKind.oft), rank=4)), folder)


def test_whole_weights_must_be_among_those_that_train(folder: Path, tmp_path: Path) -> None:
    full, part = (LoraConfig(kind=AdapterKind.full, target_modules=m) for m in ("all-linear", "o_proj"))
    check_teacher(_config(_saved(folder, part, tmp_path / "part"), full), folder)
    whole = _saved(folder, full, tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"it changes .*, which the run does not train"):
        check_teacher(_config(whole, part), folder)


def test_an_adapter_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    teacher = _saved(folder, LORA, tmp_path / "teacher")
    with pytest.raises(AdapterError, match=r"algo.teacher=.* is of another model than model=small"):
        check_teacher(_config(teacher), TINY)


def _model(folder: Path, to: Path, **config: int) -> Path:
    shutil.copytree(folder, to)
    file = to / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return to


def test_another_model_must_have_the_vocabulary_and_the_context(folder: Path, tmp_path: Path) -> None:
    check_teacher(_config(_model(folder, tmp_path / "same")), folder)
    with pytest.raises(ConfigError, match=r"reads at most 100 tokens, fewer than rollout.max_model_len=128"):
        check_teacher(_config(_model(folder, tmp_path / "short", max_position_embeddings=100)), folder)
    with pytest.raises(ConfigError, match="its head has 10 rows, and model=small may sample 64 ids"):
        check_teacher(_config(_model(folder, tmp_path / "few", vocab_size=10)), folder)
    with pytest.raises(ModelError, match="scales the logits"):
        check_teacher(_config(_model(folder, tmp_path / "scaled", logit_scale=2)), folder)
    with pytest.raises(ModelError, match=r"algo.teacher=nothing-of-that-name: "):
        check_teacher(_config("nothing-of-that-name"), folder)


def test_another_vocabulary_is_refused_by_its_first_token(folder: Path, tmp_path: Path) -> None:
    other = _model(folder, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ConfigError, match=r"1 tokens have other ids .* first '<extra>'"):
        check_teacher(_config(other), folder)


def test_the_fingerprint_is_that_of_settings_and_weights(folder: Path, tmp_path: Path) -> None:
    teacher = _saved(folder, LORA, tmp_path / "teacher")
    first = teachers.fingerprint(str(teacher))
    assert teachers.fingerprint(str(shutil.copytree(teacher, tmp_path / "moved"))) == first
    config = tmp_path / "moved" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8.0', '"lora_alpha": 9.0'))
    assert teachers.fingerprint(str(tmp_path / "moved")) != first
    model = teachers.fingerprint(str(folder))
    copy = _model(folder, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert teachers.fingerprint(str(copy)) != model


def test_a_resumed_run_may_have_its_teacher_elsewhere_but_no_other(tmp_path: Path) -> None:
    record.keep(tmp_path, "a", "0123456789abcdef")
    record.keep(tmp_path, "b", "0123456789abcdef")
    assert json.loads((tmp_path / record.FILE).read_text())["teacher"] == "b"
    with pytest.raises(
        CheckpointError, match=r"algo.teacher=c\n  reason: the run learnt from another teacher"
    ):
        record.keep(tmp_path, "c", "fedcba9876543210")
    (tmp_path / record.FILE).write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read"):
        record.keep(tmp_path, "a", "0123456789abcdef")
    assert "teacher" not in training_settings(_config("a"))["algo"]


def test_a_run_keeps_its_teachers_fingerprint_and_no_other_task_does(folder: Path, tmp_path: Path) -> None:
    teacher, run_dir = _saved(folder, LORA, tmp_path / "teacher"), RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    cfg = _config(teacher)
    session._keep_teacher(replace(cfg, task=Task.sft), run_dir)
    session._keep_teacher(replace(cfg, algo=replace(cfg.algo, name=AlgoName.grpo)), run_dir)
    assert not (run_dir.path / record.FILE).exists()
    session._keep_teacher(cfg, run_dir)
    kept = json.loads((run_dir.path / record.FILE).read_text())
    assert kept == {"teacher": str(teacher), "fingerprint": teachers.fingerprint(str(teacher))}
    session._keep_teacher(cfg, run_dir)
    other = _saved(folder, LoraConfig(rank=2, alpha=8.0), tmp_path / "other")
    with pytest.raises(CheckpointError, match="another teacher"):
        session._keep_teacher(_config(other), run_dir)


def test_a_teacher_comes_to_ranks_wherever_they_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter is read beside the driver and sent; a model is named so that each node finds it."""
    teacher = _saved(folder, LORA, tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    sent = NamedAdapters.of(replace(_config("teacher"), adapter="teacher"))
    assert sent.teacher is not None
    assert sent.start is not None
    assert {sent.teacher.fingerprint, sent.start.fingerprint} == {Adapter.load(teacher).fingerprint}
    assert NamedAdapters.of(_config("tiny")) == NamedAdapters()
    assert NamedAdapters.of(replace(_config("teacher"), task=Task.sft)).teacher is None
    assert portable(_config(folder.name), TINY).algo.teacher == folder.name, "no folder of this name is here"
    monkeypatch.chdir(folder.parent)
    assert portable(_config(folder.name), TINY).algo.teacher == str(folder)
    assert portable(_config("tiny"), TINY).algo.teacher == "tiny", "a name stays a name"
