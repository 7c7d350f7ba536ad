"""Sends a run's adapter to the Hugging Face hub: rlpost push RUN REPO [--private] [--dry-run].

    RUN ─▶ RUN/push/: adapter, model card, settings.yaml ─▶ create_repo, upload_folder (huggingface_hub, its retries)

After full fine-tuning or BitFit the whole model is sent, since PEFT does not load whole weights as an adapter.
With --dry-run the folder is written for inspection and nothing is sent. Names of this machine are not sent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from rlpost.config.adapter_kinds import TABLE
from rlpost.config.keys import refusal
from rlpost.errors import ConfigError, OutputError
from rlpost.record.files import publish_folder
from rlpost.record.run_dir import RunDir
from rlpost.verbs import model_card, policy
from rlpost.verbs.merge import merge_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from rlpost.config.schema import Config

FOLDER = "push"
CARD = "README.md"


def main(argv: Sequence[str]) -> int:
    """Send a finished run's adapter, with a model card made from its record, to the hub; returns the exit code."""
    parser = argparse.ArgumentParser(prog="rlpost push", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("repo", metavar="REPO", help="owner/name on the hub; made if it is not there")
    parser.add_argument("--private", action="store_true", help="only into a repository that is private")
    parser.add_argument("--dry-run", action="store_true", help="write RUN/push/ to look at, and send nothing")
    asked = parser.parse_args(argv)
    _push(asked)
    return 0


def _push(asked: argparse.Namespace) -> None:
    _refuse_name(asked.repo)
    api = None if asked.dry_run else _api()
    run_dir = policy.run_at(asked.run)
    folder = written(asked.repo, run_dir)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        print(f"  {path.name:<28} {path.stat().st_size:>12,} bytes")
    if api is None:
        kind = "a private" if asked.private else "a public"
        print(f"{folder}: would be sent to {asked.repo}, {kind} repository if it is new; nothing was sent")
        return
    print(f"sent: {send(api, asked.repo, folder, asked.private)}")


def _refuse_name(repo: str) -> None:
    """Raise ConfigError if `repo` does not have the form owner/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is documented

    reason = None if repo.count("/") == 1 else "it is no owner/name"
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = str(error)
    if reason is not None:
        raise ConfigError(refusal("REPO", repo, reason, "give a name such as my-account/my-adapter"))


def _api() -> HfApi:
    """The hub's client. Raises ConfigError if there is no token with which to write."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        reason = "there is no token, and the hub takes nothing without one"
        remedy = "log in (hf auth login) or set HF_TOKEN; --dry-run shows what would be sent"
        raise ConfigError(refusal("HF_TOKEN", None, reason, remedy))
    return HfApi()


def written(repo: str, run_dir: RunDir) -> Path:
    """Write RUN/push/ anew: adapter or whole model, card and settings.

    Raises OutputError, AdapterError, ConfigError, ModelError.
    """
    from rlpost.weights.adapters import Adapter

    config = policy.settings_of(run_dir)
    trained = policy.adapter_of(run_dir, config)
    card = model_card.card(repo, run_dir, config)
    if TABLE[config.lora.kind].whole:
        _, write = merge_of(policy.find(run_dir.path), None)
    else:
        adapter = Adapter.load(trained)
        base = {"base_model_name_or_path": model_card.base_of(config).name}
        public = Adapter.create({**adapter.config, **base}, adapter.tensors, adapter.version, adapter.base)
        write = public.write
    folder = run_dir.path / FOLDER
    publish_folder(folder, partial(_fill, write, card, config))
    return folder


def _fill(write: Callable[[Path], None], card: bytes, config: Config, folder: Path) -> None:
    write(folder)
    (folder / CARD).write_bytes(card)
    settings, _ = model_card.public_settings(config)
    (folder / model_card.SETTINGS).write_text(OmegaConf.to_yaml(OmegaConf.create(settings)), encoding="utf-8")


def send(api: HfApi, repo: str, folder: Path, private: bool) -> str:
    """Upload the folder and return its address. Raises OutputError if the hub refuses it or cannot be reached."""
    # Errors of the hub's HTTP client, whichever it is: a refused connection is not one of the hub's own errors.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise OutputError(
                f"{repo}\n  reason: the repository is there and public, and --private was asked for; nothing was sent\n"
                "  remedy: make it private on the hub, name another, or leave --private out"
            )
        sent = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Weights and card, by rlpost"
        )
    except (HTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OutputError(
            f"{repo}\n  reason: the hub did not take it ({reason})\n"
            f"  remedy: check the name, the token's rights and the network; {folder} holds what was to be sent"
        ) from error
    return str(sent.commit_url)
