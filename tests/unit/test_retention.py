"""What training costs elsewhere: what is played and scored, what the record has, and what the pages say of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlpost.config.compose import compose, to_yaml
from rlpost.config.schema import Config
from rlpost.errors import ConfigError, RolloutError
from rlpost.pages import retention_figures
from rlpost.pages.run_page import write_report
from rlpost.record import retention as record
from rlpost.record.metrics import Clock
from rlpost.record.retention import Measured
from rlpost.record.run_dir import RunDir, read_trajectories
from rlpost.rollout.chat import Chat
from rlpost.rollout.elsewhere import elsewhere
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.scripted import ScriptedEngine
from rlpost.rollout.worker import RolloutWorker
from rlpost.tasks import retention
from rlpost.tasks.session import Session
from rlpost.types import Ending, EpisodeSpec, Example, Trajectory
from rlpost.validate.checks import validate
from rlpost.weights.models import TINY
from tests.unit.episodes import episode, turn
from tests.unit.pages import Page, assert_inert

STREETS = "experiment=navigation_grpo"
CARDS = (
    *("retention.env=generalpoints", "retention.variants=[faces_10,faces_7]"),
    *("retention.env_args.verify_iter=1", "retention.episodes=8", "retention.max_new_tokens=104"),
)


def composed(*words: str) -> Config:
    return compose([STREETS, "tracking.backends=[]", *words])


class Pool:
    """Solves the first `solved` of each batch; notes what it is asked."""

    restarts = 0

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[EpisodeSpec], Sampling]] = []
        self.solved = 3
        self.sleeps = 0

    def sleep(self) -> None:
        self.sleeps += 1

    def collect(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> list[Trajectory]:
        self.asked.append((specs, sampling))
        return [
            episode(turn(), success=i < self.solved, index=spec.group, variant=spec.variant)
            for i, spec in enumerate(specs)
        ]


class Learner:
    """Its loss and distance are numbers of a script; notes what it is asked."""

    def __init__(self) -> None:
        self.kept = 0
        self.scored: list[tuple[list[Trajectory], list[Trajectory]]] = []
        self.texts: list[list[Example]] = []

    def keep_start(self) -> None:
        self.kept += 1

    def sft_loss(self, examples: list[Example]) -> dict[str, float]:
        self.texts.append(examples)
        return {"loss": 0.1 * len(self.texts), "tokens": float(sum(sum(e.loss_mask) for e in examples))}

    def distance(self, own: list[Trajectory], of_start: list[Trajectory]) -> dict[str, float]:
        self.scored.append((own, of_start))
        return {"reverse/k3_token": 0.02 * self.kept, "forward/k3_token": 0.03}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return opened(
        tmp_path,
        composed(*CARDS, "retention.text=auto", "retention.text_tokens=50", "retention.kl_episodes=5"),
    )


def opened(folder: Path, cfg: Config) -> Session:
    def silent(*_: object, **__: object) -> None: ...

    parts: dict[str, Any] = {
        "pool": Pool(),
        "chat": None,
        "console": None,
        "tracker": SimpleNamespace(log=silent),
        "progress": SimpleNamespace(stage=silent, note=silent),
        "learner_group": Learner(),
    }
    run_dir = RunDir.create(folder / "run", "name", 0, to_yaml(cfg))
    return Session(cfg=cfg, model_folder=TINY, run_dir=run_dir, clock=Clock(), started=0.0, **parts)


def test_the_other_environment_is_played_on_its_evaluation_instances(session: Session) -> None:
    retention.measure(session, "before", 0)
    pool: Any = session.pool
    (specs, sampling), (others, _) = pool.asked
    assert {(spec.variant, spec.split, spec.elsewhere) for spec in specs} == {("faces_10", "eval", True)}
    assert {spec.variant for spec in others} == {"faces_7"}
    assert len(specs) == 8
    assert (sampling.temperature, sampling.max_new_tokens) == (1.0, 104)
    [line] = session.run_dir.read_metrics()
    assert (line["stage"], line["retention/env/faces_10/success"]) == ("before", 3 / 8)
    assert line["retention/env/faces_7/n"] == 8
    assert line["retention/text/tokens"] == 50
    assert not any(key.startswith(record.KL) for key in line), "there is no start yet"
    assert len(read_trajectories(session.run_dir.trajectories_file("retention-before-faces_7"))) == 8
    retention.measure(session, "warm", 0)
    assert pool.asked[2][0] == specs, "every stage plays the same"


def test_the_start_is_kept_and_what_follows_is_measured_from_its_episodes(session: Session) -> None:
    learner, pool = session.learner, session.pool
    retention.begin(session, "warm")
    assert learner.kept == 1  # type: ignore[attr-defined]
    start = read_trajectories(session.run_dir.trajectories_file("retention-start"))
    assert {(t.variant, t.split) for t in start} == {("absolute", "eval")}
    assert len(start) == 5
    pool.solved = 0  # type: ignore[attr-defined]
    played = [episode(turn(), index=i, variant="absolute") for i in range(9)]
    session.run_dir.write_evaluation("iteration-000000", "absolute", "sampled", played)
    asked = len(pool.asked)  # type: ignore[attr-defined]
    retention.measure_once(session, "iteration-000000", 1)
    assert len(pool.asked) == asked + 2, "the stage's own evaluation is used"  # type: ignore[attr-defined]
    assert learner.scored == [(start, start), (played[:5], start)]  # type: ignore[attr-defined]
    retention.measure_once(session, "iteration-000000", 1)
    assert len(learner.scored) == 2, "a stage is measured once"  # type: ignore[attr-defined]


def test_the_engines_sleep_for_the_losses_and_the_kl(session: Session) -> None:
    pool: Any = session.pool
    retention.measure(session, "before", 0)
    assert pool.sleeps == 1, "for the loss on the text; there is no KL yet"
    retention.begin(session, "warm")
    assert pool.sleeps == 3


def test_what_is_off_costs_nothing(tmp_path: Path) -> None:
    session = opened(tmp_path, composed())
    retention.begin(session, "before")
    retention.measure(session, "after", 3)
    assert not session.run_dir.metrics.exists()
    assert session.learner.kept == 0  # type: ignore[attr-defined]
    assert session.pool.asked == []  # type: ignore[attr-defined]


def test_one_scorable_episode_an_instance() -> None:
    groups = (0, 0, 1, 1, 2, 3)
    twice = [episode(turn(tokens=1 + i), index=group) for i, group in enumerate(groups)]
    broken = episode(turn(), index=1, ending=Ending.ENV_ERROR)
    assert retention.scorable(twice, 3) == [twice[0], twice[2], twice[4]]
    assert retention.scorable([twice[0], broken, episode(index=2), twice[5]], 9) == [twice[0], twice[5]]


def test_an_environment_that_breaks_is_an_error(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [episode(ending=Ending.ENV_ERROR, index=i) for i in range(8)]
    monkeypatch.setattr(session.pool, "collect", lambda *_: broken)
    with pytest.raises(RolloutError, match=r"retention \(after\): faces_10 of generalpoints"):
        retention.measure(session, "after", 1)


def test_a_resumed_run_forgets_what_came_later(session: Session) -> None:
    retention.begin(session, "before")
    for number in (0, 1):
        retention.measure(session, f"iteration-00000{number}", number + 1)
    retention.measure(session, "after", 2)
    session.run_dir.truncate_metrics(0)
    kept = [each.stage for each in record.measured(session.run_dir.read_metrics())]
    assert kept == ["before", "iteration-000000"]
    names = {path.name.rpartition("-")[0] for path in session.run_dir.trajectories.iterdir()}
    assert names == {"retention", "retention-before", "retention-iteration-000000"}


def test_a_worker_plays_both_environments() -> None:
    cfg = composed(*CARDS)
    chat = Chat.load(TINY)
    worker = RolloutWorker(cfg, ScriptedEngine(lambda text, seed: "no answer", chat), chat)
    there = EpisodeSpec("faces_10", "eval", -1, 0, 0, 1, 2, elsewhere=True)
    here = EpisodeSpec("absolute", "eval", -1, 0, 0, 1, 2)
    sampling = Sampling(1.0, 8)
    [cards], [streets] = worker.collect([there], sampling), worker.collect([here], sampling)
    assert (cards.env, streets.env) == ("generalpoints", "navigation")
    assert "24" in cards.turns[0].observation
    assert worker.close() == []


def test_the_variant_is_the_first_not_held_out_unless_some_are_named() -> None:
    assert elsewhere(composed("retention.env=generalpoints")).eval_variants == ["faces_10"]
    there = elsewhere(composed(*CARDS))
    assert (there.eval_variants, there.env_args, there.eval.episodes) == (
        ["faces_10", "faces_7"],
        {"verify_iter": 1},
        8,
    )
    assert elsewhere(composed("retention.env=generalpoints")).rollout.max_new_tokens == 48


def line(
    stage: str, success: float, text: float, forward: float | None, reverse: float | None
) -> dict[str, Any]:
    kl = {f"{record.KL}forward/k3_token": forward, f"{record.KL}reverse/k3_token": reverse}
    return {
        "stage": stage,
        f"{record.ENV}faces_10/success": success,
        f"{record.ENV}faces_10/n": 8.0,
        f"{record.TEXT}loss": text,
        **{key: value for key, value in kl.items() if value is not None},
    }


SCRIPT: list[dict[str, Any]] = [
    line("before", 0.75, 0.08, None, None),
    line("warm", 0.50, 0.10, 0.0, 0.0),
    {"stage": "rl", "iteration": 0, "success": 0.5},
    line("iteration-000000", 0.25, 0.15, 0.02, 0.01),
    {"stage": "rl", "iteration": 1, "success": 0.5},
    line("after", 0.125, 0.30, 0.08, 0.04),
]


def test_a_scripted_record_by_hand() -> None:
    found = record.measured(SCRIPT)
    assert [each.stage for each in found] == ["before", "warm", "iteration-000000", "after"]
    assert record.start_of(found) == found[1]
    assert record.of_summary(json.loads(json.dumps(record.summary(found)))) == found
    assert record.told(found) == (
        "what was lost since the start: faces_10 50.0% to 12.5%, text 0.1000 to 0.3000 nats per token,"
        " KL(start ‖ policy) 0.0800 nats per token, KL(policy ‖ start) 0.0400 nats per token"
    )
    assert record.told(found[:2]) is None


def test_the_pictures_have_the_scripts_numbers() -> None:
    said = [each.alt for each in retention_figures.pictures(record.measured(SCRIPT), SCRIPT)]
    assert said == [
        "Success on what is not trained, against finished iterations or steps."
        " faces_10: 75.0% at 0, 50.0% at 0, 25.0% at 1, 12.5% at 2.",
        "Loss on the text, nats per token, against finished iterations or steps."
        " text: 0.0800 at 0, 0.1000 at 0, 0.1500 at 1, 0.3000 at 2.",
        "KL to the start, nats per token, against finished iterations or steps."
        " KL(start ‖ policy): 0.0000 at 0, 0.0200 at 1, 0.0800 at 2."
        " KL(policy ‖ start): 0.0000 at 0, 0.0100 at 1, 0.0400 at 2.",
        "Success lost on what is not trained, against KL(start ‖ policy), nats per token."
        " faces_10: 0.0% at 0, 25.0% at 0.02, 37.5% at 0.08.",
        "Lost on the text, nats per token, against KL(start ‖ policy), nats per token."
        " text: 0.0000 at 0, 0.0500 at 0.02, 0.2000 at 0.08.",
        "Success lost on what is not trained, against KL(policy ‖ start), nats per token."
        " faces_10: 0.0% at 0, 25.0% at 0.01, 37.5% at 0.04.",
        "Lost on the text, nats per token, against KL(policy ‖ start), nats per token."
        " text: 0.0000 at 0, 0.0500 at 0.01, 0.2000 at 0.04.",
    ]


def test_the_page_has_the_panel_with_the_runs_own_held_out_rules(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "run", "name", 0, "name: demo\ntrain_variant: absolute\n")
    for each in SCRIPT:
        run_dir.append_metrics(each)
    for stage, solved in (("warm", 3), ("after", 1)):
        for variant in ("absolute", "relative"):
            played = [episode(turn(), success=i < solved, index=i, variant=variant) for i in range(4)]
            run_dir.write_evaluation(stage, variant, "sampled", played)
    html = write_report(run_dir).read_text()
    page = Page(html)
    assert_inert(page, html)
    assert "What was lost" in page.text
    assert "faces_10 50.0% to 12.5%" in page.text
    assert "relative: 0.0% at 0, 50.0% at 0.08" in html
    assert "absolute: 0.0% at 0" not in html


def test_a_record_without_it_has_no_panel(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "run", "name", 0, "name: demo\ntrain_variant: faces_10\n")
    run_dir.append_metrics({"stage": "rl", "iteration": 0, "success": 0.5})
    assert "What was lost" not in write_report(run_dir).read_text()


def test_a_number_that_was_not_finite_is_absent() -> None:
    [found] = record.measured([{"stage": "after", f"{record.TEXT}loss": None, f"{record.TEXT}tokens": 3.0}])
    assert found == Measured("after", {}, None, {})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("retention.env=navigation",), "it is the environment of the run itself"),
        (("retention.env=generalpoint",), "retention.env=generalpoint\n  reason: unknown environment"),
        (("retention.env=generalpoints", "retention.env_args.decks=3"), "retention.env_args="),
        (("retention.env=generalpoints", "retention.variants=[faces_1]"), "has no such variant"),
        (("retention.env=generalpoints", "retention.variants=[faces_7,faces_7]"), "one stands twice"),
        (("retention.env=generalpoints", "retention.episodes=0"), "give a value at least 1"),
        (("retention.text=auto", "model=smollm2-135m"), "nothing here knows that of smollm2-135m"),
        (("retention.text=/no/such/file",), "retention.text=/no/such/file\n  reason: it cannot be read"),
        (("retention.text=auto", "retention.kl_episodes=-1"), "give a value at least 0"),
        (("retention.variants=[faces_7]",), "retention.env names no environment"),
        (("retention.text_tokens=9",), "retention.text names no text"),
        (("retention.kl_episodes=9",), "neither retention.env nor retention.text is given"),
        (("task=eval", "retention.text=auto"), "task=eval trains nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(composed(*words), {word.partition("=")[0] for word in words})
    assert told in str(caught.value)
    assert "remedy: " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"retention\.text="):
        validate(composed(f"retention.text={path}"))


def test_what_can_be_measured_is_accepted() -> None:
    validate(composed(*CARDS, "retention.text=auto"), {"retention.env", "retention.text"})


def test_a_record_that_names_code_elsewhere_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(composed("retention.env=no_such_module:Env")))
    resume = f"resume={tmp_path}"
    with pytest.raises(ConfigError, match=r"retention\.env=no_such_module:Env\n  reason: .* names this code"):
        compose([resume])
    assert compose([resume, "retention.env=no_such_module:Env"]).retention.env == "no_such_module:Env"
