"""The pages keep their promises: links lead somewhere, what they name exists, figures are right, lines wrapped."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from rlpost.algorithms import rewards
from rlpost.algorithms.estimators import with_critic, without_critic
from rlpost.algorithms.layout import TokenLayout
from rlpost.command.verbs import VERBS
from rlpost.config.compose import compose
from rlpost.config.presets import Estimator
from rlpost.config.schema import Config, Rewards
from rlpost.envs import registry
from rlpost.rollout.chat import Chat
from rlpost.run import prepare
from rlpost.types import Finish

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "rlpost").rglob("*.md")])
WRAPPED = [page for page in PAGES if page.name != "CHANGELOG.md" and "assets" not in page.parts]
WIDTH = 120
LIVING = [page for page in PAGES if page.name != "CHANGELOG.md" and "results" not in page.as_posix()]

# A folder that stands in the root, or in rlpost/: architecture.md leaves that out.
_FILE = re.compile(
    r"`((?:rlpost|envs|tests|experiments|benchmarks|requirements|docs|\.ci)/[\w./]*|\w[\w./]*/\w+\.py)`"
)
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The names by which headings are linked to, as GitHub makes them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose(page)))
    return {heading.strip().replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in _LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        whole = linked.exists() and (not anchor or anchor in anchors(linked))
        if not target.startswith("https://") and not whole:
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, here\n[a](page.md#a-heading-here) [b](gone.md) [c](#no-heading)\n```\n[d](x)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "#no-heading"]


def test_the_site_has_every_page_once_and_links_stay_in_it() -> None:
    """`mkdocs build --strict` says so too, but is not installed for the tests."""
    shown = re.findall(
        r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    )
    docs = ROOT / "docs"
    pages = [page for page in PAGES if page.is_relative_to(docs)]
    assert sorted(shown) == sorted(page.relative_to(docs).as_posix() for page in pages)
    for page in pages:
        paths = [link.partition("#")[0] for link in _LINK.findall(prose(page)) if "://" not in link]
        outside = [path for path in paths if not (page.parent / path).resolve().is_relative_to(docs)]
        assert outside == [], page


@pytest.mark.parametrize("page", WRAPPED, ids=named)
def test_lines_are_wrapped(page: Path) -> None:
    """All but a table's rows and a picture, which are one line each in Markdown."""
    lines = [line for line in prose(page).splitlines() if not line.lstrip().startswith(("|", "!["))]
    assert [line for line in lines if len(line) > WIDTH] == []


def readme_commands() -> list[str]:
    """The commands in the second cells of the table of uses, `...` written out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## You want to ...")[2].partition("\n## ")[0]
    cells = [row.split("|")[2] for row in table.splitlines() if row.startswith("|")]
    spans = [span for cell in cells for span in re.findall("`([^`]+)`", cell)]
    written = [re.sub(r"^\.\.\.", "rlpost generalpoints_ppo", span) for span in spans]
    return [command for command in written if command.startswith("rlpost ")]


@pytest.mark.parametrize("page", LIVING, ids=named)
def test_files_that_are_named_exist(page: Path) -> None:
    named_files = _FILE.findall(prose(page))
    gone = [n for n in named_files if not (ROOT / n).exists() and not (ROOT / "rlpost" / n).exists()]
    assert [name for name in gone if "NAME" not in name] == []


def test_the_readme_has_a_dozen_uses() -> None:
    assert len(readme_commands()) >= 12


@pytest.mark.parametrize("command", readme_commands())
def test_a_command_of_the_readme_names_what_there_is(command: str) -> None:
    """Verbs, experiments and settings; composing refuses the others."""
    _, first, *others = shlex.split(command)
    if first in VERBS:
        assert callable(VERBS[first].load())
    elif first.startswith("resume="):
        assert first.partition("=")[0] in {field.name for field in dataclasses.fields(Config)}
    else:
        compose([f"experiment={first}", *others])


def test_the_worked_episode_of_the_concepts_is_as_computed() -> None:
    """Its lengths in tokens, and the advantages of its two turns beside an episode that fails twice."""
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    env = registry.make("generalpoints", verify_iter=2)
    observation, _ = env.reset(seed=3, options={"variant": "faces_10", "split": "train"})
    chat = Chat.load(ROOT / "rlpost" / "assets" / "tiny")
    (_, wrong, _), (feedback, right, _) = env.unwrapped.expert(True, random.Random(0))
    texts = [chat.prompt_ids(observation), chat.answer_ids(wrong)]
    texts += [chat.feedback_ids(feedback, Finish.STOP), chat.answer_ids(right)]
    prompt, first, between, second = map(len, texts)
    assert [int(n) for n in re.findall(r"(\d+) (?:context|sampled) tokens$", page, re.MULTILINE)] == [
        *(prompt, first, between, second)
    ]
    assert f"has {prompt + first + between + second} tokens. {first + second} of them" in page

    layout = TokenLayout.of([[first, second], [first, second]], [0, 0], [[0, 0], [0, 0]])
    earned_U = 0.2 * torch.tensor([-1.0, 5.0, -1.0, -1.0])
    by_turn_N = rewards.placed(earned_U, layout, Rewards.turn)
    gae_N = with_critic(Estimator.gae, by_turn_N, torch.zeros_like(by_turn_N), layout, 1.0, 0.95).advantages_N
    shown = [f"{gae_N[n].item():.3f}" for n in (0, first - 1, first)]
    assert "{} for the first token, {} for the last | {} for the first, 1.0".format(*shown) in page
    whole_N = rewards.placed(earned_U, layout, Rewards.outcome)
    for name in ("group_normalized", "group_centred", "leave_one_out"):
        ours = without_critic(Estimator[name], whole_N, layout, 1.0, False).advantages_N[0].item()
        assert re.search(rf"`{name}` .*\| {ours:.3g} \| -{ours:.3g} \|", page), name


def test_the_readmes_first_recipe_is_accepted_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRPO on one's own questions: the function, the rows and the command as the first screen has them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    command = re.search(r"```\nrlpost (own_grpo .*)\n```", text)
    assert code
    assert command
    (tmp_path / "rewards.py").write_text(code[1])
    rows = [{"question": f"{n} and {n}?", "answer": f"twice {n}. #### {2 * n}"} for n in range(60)]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rewards", raising=False)
    name, *settings = shlex.split(command[1])
    for more in ([], ["env_args.score=rewards:correct"]):
        config = prepare([f"experiment={name}", *settings, *more])
        env = registry.make(config.env, **config.env_args)
        question, _ = env.reset(seed=0, options={"split": "train"})
        assert "End with ####" in question
        number = int(question.split()[0])
        assert env.step(f"I add them. #### {2 * number}")[1] == 1.0
        env.reset(seed=0, options={"split": "train"})
        assert env.step(f"I add them. #### {2 * number + 1}")[1] == 0.0
