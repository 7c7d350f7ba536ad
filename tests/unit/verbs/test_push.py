"""The model card says what the record says; the hub is a fake at the boundary."""

from __future__ import annotations

import json
import re
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from safetensors import safe_open

from rlpost.command.main import main
from rlpost.config.compose import compose
from rlpost.record.run_dir import RunDir
from rlpost.verbs import model_card, policy
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import TINY
from tests.unit.verbs import recorded


class FakeHub:
    """Takes what HfApi takes; `files` are those that were sent."""

    def __init__(self, private: bool = False, error: Exception | None = None) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self._private, self._error = private, error

    def create_repo(self, repo: str, **options: Any) -> None:
        if self._error is not None:
            raise self._error
        self.made.append((repo, options))

    def repo_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=self._private)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = recorded.run(tmp_path / "run", "seed=3")
    recorded.adapter_for(TINY, str(TINY)).save(run_dir.adapter)
    return run_dir


def card_of(run_dir: RunDir) -> str:
    return model_card.card("me/mine", run_dir, policy.settings_of(run_dir)).decode()


def with_hub(monkeypatch: pytest.MonkeyPatch, hub: FakeHub, token: str | None = "hf_x") -> FakeHub:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    return hub


def test_a_dry_run_writes_what_would_be_sent_and_needs_no_token(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = with_hub(monkeypatch, FakeHub(), token=None)
    assert main(["push", str(run_dir.path), "me/mine", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "nothing was sent" in out
    assert hub.made == []
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "settings.yaml"]
    assert sorted(path.name for path in (run_dir.path / "push").iterdir()) == names
    assert all(name in out for name in names)


def test_what_is_sent_is_the_adapter_bit_for_bit_and_names_no_folder_of_this_machine(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = with_hub(monkeypatch, FakeHub())
    assert main(["push", str(run_dir.path), "me/mine"]) == 0
    assert hub.made == [("me/mine", {"private": False, "exist_ok": True})]
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "tiny"
    with safe_open(run_dir.path / "push" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["fingerprint"] == Adapter.load(run_dir.adapter).fingerprint
    assert not [name for name, data in hub.files.items() if str(run_dir.path.parent).encode() in data]
    assert not [name for name, data in hub.files.items() if str(TINY.parent).encode() in data]


def test_figures_are_those_of_the_record(run_dir: RunDir) -> None:
    card = card_of(run_dir)
    row = "| faces_10 | trained | sampled | 25.0% [14, 40], n = 40 | 62.5% [47, 76], n = 40 |"
    assert row in card
    summary = run_dir.read_summary()
    assert summary is not None
    gained = summary["gains"]["faces_10"]["sampled"]
    told = f"+37.5 points [{100 * gained['low']:+.1f}, {100 * gained['high']:+.1f}] on the same 40 instances"
    assert f"- faces_10, sampled: success rose, {told}" in card
    assert "warm" not in card, "no stage that was not evaluated"
    assert "| faces_11_12_13 | yes | J, Q, K count as 11, 12, 13 |" in card
    assert "trained by reinforcement learning by ppo after 16 supervised steps" in card
    shares = set(re.findall(r"\d+\.\d%", card))
    assert shares == {"25.0%", "62.5%"}, "no figure that was not measured"


def test_a_run_without_evaluations_has_no_figures(tmp_path: Path) -> None:
    run_dir = recorded.run(tmp_path / "run", stages={})
    card = card_of(run_dir)
    assert "The run made no evaluation." in card
    assert not re.findall(r"\d%", card)


def test_a_base_in_4_bits_is_a_limit_that_the_card_says(tmp_path: Path) -> None:
    assert "lora.base" not in card_of(recorded.run(tmp_path / "stored"))
    card = card_of(recorded.run(tmp_path / "nf4", "lora.base=nf4"))
    assert "rounded to 4 bits (lora.base=nf4" in card


@pytest.mark.parametrize(
    "words",
    [(), ("algo=grpo", "rollout.group_size=8", "seed=9"), ("task=sft", "rollout.answer_marker='```'")],
)
def test_the_settings_of_the_card_give_the_run_again(words: tuple[str, ...], tmp_path: Path) -> None:
    run_dir = recorded.run(tmp_path / "run", *words)
    config = policy.settings_of(run_dir)
    card = card_of(run_dir)
    fence = max(re.findall("^`{3,}(?=yaml$)", card, re.MULTILINE), key=len)
    shown = card.partition(f"{fence}yaml\n")[2].partition(f"\n{fence}\n")[0]
    file = tmp_path / "settings.yaml"
    file.write_text(shown + "\n", encoding="utf-8")
    again = compose([f"experiment={file}"])
    again.resume, again.output_dir = config.resume, config.output_dir
    assert again == config
    assert "python -m rlpost.run experiment=settings.yaml" in card


def test_local_paths_are_given_by_their_last_part_and_said(tmp_path: Path) -> None:
    run_dir = recorded.run(tmp_path / "run", "model=/home/me/models/mine", "adapter=/home/me/start")
    card = card_of(run_dir)
    assert "/home/me" not in card
    assert "named local files, of which only the last part of the path is given: model, adapter" in card
    assert "of mine, trained by" in card


@pytest.mark.parametrize(
    ("model", "base"),
    [("owner/name", "owner/name"), ("smollm2-135m", model_card.SMOLLM2_ON_THE_HUB), ("tiny", None)],
)
def test_the_hub_is_told_of_a_base_that_it_has(model: str, base: str | None, tmp_path: Path) -> None:
    run_dir = recorded.run(tmp_path / "run", f"model={model}")
    card = card_of(run_dir)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front.get("base_model") == base
    assert ("AutoPeftModelForCausalLM" in card) == (base is not None)
    assert ("unpacked from a 4-bit file" in card) == (model == "smollm2-135m")


def test_what_a_record_says_stays_text(run_dir: RunDir) -> None:
    summary = run_dir.read_summary()
    assert summary is not None
    summary["variants"]["faces_10"]["summary"] = "a | b <script>alert(1)</script>\n# heading"
    run_dir.write_summary(summary)
    card = card_of(run_dir)
    assert "<script>" not in card
    assert "\n# heading" not in card


def refused(capsys: pytest.CaptureFixture[str], code: int, *argv: str | Path) -> str:
    assert main(["push", *map(str, argv)]) == code
    return capsys.readouterr().err


def test_refusals(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = with_hub(monkeypatch, FakeHub(), token=None)
    assert "there is no token" in refused(capsys, 2, run_dir.path, "me/mine")
    assert "it is no owner/name" in refused(capsys, 2, run_dir.path, "mine", "--dry-run")
    assert "REPO=me/mi ne" in refused(capsys, 2, run_dir.path, "me/mi ne", "--dry-run")
    assert "it is no run" in refused(capsys, 1, tmp_path, "me/mine", "--dry-run")
    unfinished = recorded.run(tmp_path / "unfinished", finished=False)
    assert "has no adapter/" in refused(capsys, 1, unfinished.path, "me/mine", "--dry-run")
    recorded.adapter_for(TINY, str(TINY)).save(unfinished.adapter)
    assert "the run has not finished" in refused(capsys, 1, unfinished.path, "me/mine", "--dry-run")
    assert not (unfinished.path / "push").exists()
    assert hub.made == []


def test_a_private_push_goes_into_no_public_repository(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = with_hub(monkeypatch, FakeHub(private=False))
    assert "there and public" in refused(capsys, 1, run_dir.path, "me/mine", "--private")
    assert hub.files == {}
    hub = with_hub(monkeypatch, FakeHub(private=True))
    assert main(["push", str(run_dir.path), "me/mine", "--private"]) == 0
    assert hub.files


def test_a_hub_that_is_not_there_is_told_by_the_real_client(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        api = partial(huggingface_hub.HfApi, endpoint=endpoint, token="hf_x")
        monkeypatch.setattr(huggingface_hub, "HfApi", api)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        assert "the hub did not take it ([Errno 111]" in refused(capsys, 1, run_dir.path, "me/mine")


@pytest.mark.parametrize("error", [OSError("offline mode is on")])
def test_a_hub_that_refuses_is_told_in_a_sentence(
    error: Exception, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_hub(monkeypatch, FakeHub(error=error))
    err = refused(capsys, 1, run_dir.path, "me/mine")
    assert f"the hub did not take it ({error})" in err
