"""Composition, validation and the command line: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlpost import run
from rlpost.config.compose import RESUMED, compose, to_yaml
from rlpost.config.experiments import experiments
from rlpost.config.keys import SEPARATORS, refusal, schema, text_settings
from rlpost.config.overrides import override
from rlpost.config.presets import TABLE
from rlpost.config.schema import AlgoName, Config, KlEstimator, KlPlace, Task
from rlpost.config.trust import named_code
from rlpost.config.yaml_files import parse_mapping
from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.errors import ClusterError, ConfigError
from rlpost.record.run_dir import RunDir, evaluation_name, iteration_name
from rlpost.validate import checks, environment
from tests.learner_data import with_algorithm

GOLDEN = Path(__file__).parents[1] / "golden"
PPO = "experiment=generalpoints_ppo"
WAITING_AS_RAY_DOES = """
import sys, time
from rlpost import run

def wait(config):
    print("waiting", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None

run.dispatch = wait
sys.exit(run.main(sys.argv[1:]))
"""


def composed(*overrides: str) -> Config:
    return compose([PPO, *overrides])


def refused(*overrides: str) -> str:
    """The message with which composition or validation refuses the overrides."""
    with pytest.raises(ConfigError) as caught:
        run.prepare([PPO, *overrides])
    return str(caught.value)


def refuses_range(key: str, value: float) -> bool:
    """Whether validation refuses exactly this setting for its range."""
    config = Config()
    *groups, name = key.split(".")
    setattr(functools.reduce(getattr, groups, config), name, value)
    try:
        checks.validate(config)
    except ConfigError as error:
        return f"{key}={value}\n  reason: out of range" in str(error)
    return False


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set in a folder whose module `scored` can be imported."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}", "answer": "{n}"}}\n' for n in range(1, 40)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "scored", raising=False)
    return str(rows)


@pytest.fixture
def taught(tmp_path: Path) -> str:
    """A data set of conversations, with nothing to score by."""
    talks = [
        [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": str(n)}] for n in range(40)
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return str(path)


def refused_data_set(rows: str, *overrides: str, experiment: str = "own_ppo") -> str:
    """What validation has against a data set; empty where it has nothing."""
    named = [f"experiment={experiment}", "env=dataset", f"env_args.path={rows}", "env_args.score=exact"]
    config = compose([*named, *overrides])
    return "\n".join(text for check in checks.CHECKS for text in check(config) if "compare." not in text)


class TestExperiments:
    @pytest.mark.parametrize("name", sorted(experiments()))
    def test_resolves_to_its_golden_file(self, name: str) -> None:
        golden = GOLDEN / f"{name}.yaml"
        assert golden.is_file(), "run: python -m tests.golden.refresh"
        assert to_yaml(compose([f"experiment={name}"])) == golden.read_text(encoding="utf-8")

    @pytest.mark.parametrize("name", sorted(experiments()))
    def test_is_valid_and_named_after_its_file(self, name: str, scored: str, taught: str) -> None:
        named = {
            "own_ppo": ["env=generalpoints", "train_variant=faces_10", "eval_variants=[faces_7]"],
            "own_grpo": [f"env_args.path={scored}"],
            "own_sft": [f"env_args.path={taught}"],
            "paper_distillation": ["algo.teacher=tiny"],
        }
        if compose([f"experiment={name}"]).env.startswith("reasoning_gym:"):
            pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
        assert run.prepare([f"experiment={name}", *named.get(name, [])]).name == name

    @pytest.mark.parametrize("experiment", experiments().values(), ids=lambda e: e.name)
    def test_begins_with_one_sentence(self, experiment: object) -> None:
        assert re.fullmatch(r"[A-Z].{10,100}\.", experiment.summary)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("experiment", experiments().values(), ids=lambda e: e.name)
    def test_holds_only_differences_from_the_defaults(self, experiment: object) -> None:
        """From the experiment it builds on, or from the schema; under its own algorithm."""
        settings = yaml.safe_load(experiment.path.read_text())  # type: ignore[attr-defined]
        config = compose([f"experiment={experiment.name}"])  # type: ignore[attr-defined]
        resolved = dict(leaves(dataclasses.asdict(config)))
        below = with_algorithm(Config(), config.algo.name)
        for base in settings.pop("defaults", []):
            below = compose([f"experiment={base}", f"algo={config.algo.name.name}"])
        defaults = dict(leaves(dataclasses.asdict(below)))
        given = {key for key, _ in leaves(settings)} - {"task", "algo.name"}
        assert not {key for key in given & set(defaults) if resolved[key] == defaults[key]}

    def test_no_golden_file_without_an_experiment(self) -> None:
        assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(experiments())


def leaves(node: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, value in node.items():
        found += (
            leaves(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else [(f"{prefix}{key}", value)]
        )
    return found


class TestCompose:
    def test_command_line_beats_experiment_beats_schema(self) -> None:
        assert Config().name == "run"
        assert composed().name == "generalpoints_ppo"
        assert composed("name=mine").name == "mine"

    def test_the_settings_of_a_comparison_have_short_names(self) -> None:
        short = composed("arms=[sft,grpo]", "seeds=[4,5]", "quick=true").compare
        assert (
            short == composed("compare.arms=[sft,grpo]", "compare.seeds=[4,5]", "compare.quick=true").compare
        )
        assert (short.arms, short.seeds, short.quick) == (["sft", "grpo"], [4, 5], True)

    def test_a_file_of_ones_own_is_an_experiment_too(self, tmp_path: Path) -> None:
        config = composed("seed=7", "algo=grpo", "name=mine")
        path = tmp_path / "it's a \\ folder, [with] = signs" / "mine.yaml"
        path.parent.mkdir()
        path.write_text(to_yaml(config))
        assert compose([override("experiment", path)]) == config
        assert compose([override("experiment", path), "seed=8"]).seed == 8
        with pytest.raises(ConfigError, match="cannot be read"):
            compose([f"experiment={tmp_path}/other.yaml"])

    def test_values_have_the_schemas_types(self) -> None:
        config = composed("algo.gamma=0", "algo.kl=loss", "eval_variants=[faces_7]", "adapter=some/where")
        assert isinstance(config, Config)
        assert config.algo.gamma == 0.0
        assert isinstance(config.algo.gamma, float)
        assert config.algo.kl is KlPlace.loss
        assert config.eval_variants == ["faces_7"]
        assert config.adapter == "some/where"

    def test_environment_arguments_are_free_form(self) -> None:
        sft = "experiment=generalpoints_sft"
        arguments = compose([sft, "env_args.verify_iter=3", "env_args.prompt=short"]).env_args
        assert arguments.items() >= {"verify_iter": 3, "prompt": "short"}.items()
        assert compose([sft, "env_args={a: 1}"]).env_args["a"] == 1

    def test_two_compositions_do_not_mix(self) -> None:
        before = composed()
        composed("seed=7", "env_args.verify_iter=9")
        assert composed() == before
        assert compose(["experiment=generalpoints_sft"]).task is Task.sft

    @pytest.mark.parametrize("key", ["algo", "algo.name"])
    def test_an_algorithm_brings_its_defaults(self, key: str) -> None:
        """Above the schema's, below the experiment's and the command line's."""
        config = composed(f"{key}=grpo", "algo.learning_rate=7e-4")
        assert config.algo.name is AlgoName.grpo
        assert (config.algo.kl, config.algo.kl_estimator) == (KlPlace.loss, KlEstimator.k3)
        assert config.rollout.group_size == 8
        assert config.algo.kl_coef == composed().algo.kl_coef != Config().algo.kl_coef
        assert config.algo.learning_rate == 7e-4
        assert composed("algo=grpo", "rollout.group_size=4").rollout.group_size == 4
        assert composed("algo=dapo", "algo=ppo") == composed()

    @pytest.mark.parametrize("name", [name.name for name in AlgoName])
    def test_every_algorithm_is_valid_as_it_comes(self, name: str) -> None:
        words = [f"algo={name}", *(["algo.teacher=tiny"] if TABLE[AlgoName[name]].taught else [])]
        for experiment in (PPO, "experiment=generalpoints_dapo"):
            assert run.prepare([experiment, *words]).algo.name is AlgoName[name]

    def test_an_experiment_builds_on_another(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(
            "defaults: [generalpoints_ppo]\nalgo:\n  name: rloo\n  clip: 0.3\n"
        )
        found = compose([f"resume={tmp_path}"])
        expected = composed("algo=rloo", "algo.clip=0.3", f"resume={tmp_path}")
        assert found == expected

    def test_resume_alone_takes_the_earlier_runs_configuration(self, tmp_path: Path) -> None:
        earlier = composed("seed=5", "algo.gamma=0.5", "env_args.verify_iter=2")
        (tmp_path / "config.yaml").write_text(to_yaml(earlier))
        resumed = compose([f"resume={tmp_path}", "algo.iterations=99"])
        expected = dataclasses.replace(earlier, resume=str(tmp_path))
        expected.algo.iterations = 99
        assert resumed == expected
        assert RESUMED not in experiments()

    def test_written_configuration_reads_back_equal(self, tmp_path: Path) -> None:
        config = composed("learner.betas=[0.5,0.6]", "lora.kind=dora", "env_args.verify_iter=2")
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert compose([f"resume={tmp_path}", "resume=null"][:1]) == dataclasses.replace(
            config, resume=str(tmp_path)
        )


def setting(config: Config, key: str) -> Any:
    """A setting by its dotted key, those within env_args included."""
    return functools.reduce(
        lambda node, name: node[name] if isinstance(node, dict) else getattr(node, name),
        key.split("."),
        config,
    )


def resumed(config: Config) -> Config:
    """A configuration as its run's record gives it back."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        again = compose([f"experiment={folder}/config.yaml"])
    return again


class TestWords:
    """What each word of the command line says."""

    @pytest.mark.parametrize(
        ("key", "typed", "value"),
        [
            ("output_dir", "outputs/Läufer", "outputs/Läufer"),
            ("output_dir", "a b, (c) [d] {e}", "a b, (c) [d] {e}"),
            ("output_dir", "../x~y", "../x~y"),
            ("rollout.answer_marker", "####", "####"),
            ("rollout.answer_marker", "Answer: 'so'", "Answer: 'so'"),
            ("rollout.answer_marker", "#\\n", "#\\n"),
            ("rollout.answer_marker", " x ", " x "),
            ("rollout.answer_marker", '"null"', "null"),
            ("rollout.answer_marker", "''", ""),
            ("rollout.answer_marker", "'", "'"),
            ("rollout.answer_marker", "null", None),
            ("rollout.answer_marker", "none", "none"),
            ("train_variant", "1.10", "1.10"),
            ("train_variant", "true", "true"),
            ("train_variant", "010", "010"),
            ("name", "a=b", "a=b"),
            ("name", "", ""),
            ("lora.target_modules", "q_proj,v_proj", "q_proj,v_proj"),
            ("lora.target_modules", "'q_proj,v_proj'", "q_proj,v_proj"),
            ("ray.address", "[::1]:6379", "[::1]:6379"),
            ("eval_variants", "[faces_7,1.10, 'a, b' ,Läufer]", ["faces_7", "1.10", "a, b", "Läufer"]),
            ("eval_variants", "[]", []),
            ("learner.betas", "[0.9,1e-3]", [0.9, 1e-3]),
            ("compare.seeds", "[010,2]", [10, 2]),
            ("seed", "010", 10),
            ("seed", "'7'", 7),
            ("algo.gamma", "1e-3", 1e-3),
            ("algo.gamma", "1", 1.0),
            ("compare.quick", "yes", True),
            ("algo.kl", "none", KlPlace.none),
            ("env_args.x", "1e-3", 1e-3),
            ("env_args.x", "1_000", 1000),
            ("env_args.x", "true", True),
            ("env_args.x", "null", None),
            ("env_args.x", "'1.10'", "1.10"),
            ("env_args.x", "yes", "yes"),
            ("env_args.x", "010", "010"),
            ("env_args.x", "12:30", "12:30"),
            ("env_args.x", "2024-01-01", "2024-01-01"),
            ("env_args.x", "", ""),
            ("env_args.x", "=", "="),
            ("env_args.x", "####", "####"),
            ("env_args.x", "a: b", "a: b"),
            ("env_args.x", "~/rows.jsonl", "~/rows.jsonl"),
            ("env_args.x", "9" * 5000, "9" * 5000),
            ("env_args.x", "[1,1e-3,yes,12:30,{a: 'b'}]", [1, 1e-3, "yes", "12:30", {"a": "b"}]),
            ("env_args.x.y", "3", 3),
            ("env_args.x-y", "3", 3),
        ],
    )
    def test_a_value_is_what_was_typed_in_its_settings_type(
        self, key: str, typed: str, value: object
    ) -> None:
        config = composed(f"{key}={typed}")
        assert setting(config, key) == value
        assert type(setting(config, key)) is type(value)
        assert resumed(config) == config

    @settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from(sorted(text_settings())),
        st.booleans(),
        st.text(max_size=12) | st.text(alphabet="0123456789.eE+-_:~=,[]{}#'\"\\\n ", max_size=8),
    )
    def test_any_text_comes_back_as_it_was_typed(self, key: str, quoted: bool, text: str) -> None:
        """In quotes whatever it is; without, where it brings none of its own along and is not `null`."""
        assume("${" not in text and text != "???" and SEPARATORS.isdisjoint(text))
        assume(text.partition("/")[0] != "~")  # home
        wanted: object = text
        if schema()[key] is list:
            assume(text.isprintable())
            word, wanted = f"{key}={json.dumps([text, '1.10'], ensure_ascii=False)}", [text, "1.10"]
        elif quoted or text.lower() == "null" or re.fullmatch(r"(['\"]).*\1", text, re.DOTALL):
            word = override(key, text)
        else:
            word = f"{key}={text}"
        config = composed(word)
        assert setting(config, key) == wanted
        assert resumed(config) == config

    @settings(max_examples=100, deadline=None)
    @given(
        st.text(alphabet="0123456789_.eE+-:xinfaNtrulb~", max_size=7)
        | st.floats(allow_nan=False)
        | st.integers()
        | st.booleans()
        | st.none()
    )
    def test_a_record_keeps_the_type_of_what_is_free_form(self, value: object) -> None:
        config = Config(env_args={"x": value, "y": [value]})
        (kept, listed) = parse_mapping(to_yaml(config), "record")["env_args"].values()
        assert [kept] == listed == [value]
        assert type(kept) is type(value)

    @pytest.mark.parametrize("key", ["output_dir", "adapter", "tiny_base.start"])
    def test_a_path_may_begin_at_home(self, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/of/mine")
        assert setting(composed(f"{key}=~/runs"), key) == "/home/of/mine/runs"
        assert setting(composed(f"{key}=~"), key) == "/home/of/mine"
        assert setting(composed(f"{key}=~runs"), key) == "~runs"

    def test_so_may_the_files_that_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("adapter: ~/adapter\n")
        config = compose(["resume=~/run"])
        assert (config.resume, config.adapter) == (f"{tmp_path}/run", f"{tmp_path}/adapter")
        assert compose(["experiment=~/run/config.yaml"]).adapter == f"{tmp_path}/adapter"

    @pytest.mark.parametrize(
        ("word", "reason"),
        [
            ("eval_variants=[a", "not YAML (expected ',' or ']', but got '<stream end>')"),
            ("eval_variants=[a] b", "not YAML (expected '<document start>', but found '<scalar>')"),
            ("eval_variants=[a,[b]]", "['b'] is read as a list, not as a text"),
            ("eval_variants=a,b", "not a ListConfig, list or tuple"),
            ("compare.seeds=[a]", "could not be converted to Integer"),
            ("lora={target_modules: 1.10}", "1.1 is read as a float, not as a text"),
            ("rollout=null", "it is a group of settings"),
            ("env_args.x={a:1}", "a:1 has no value: after its colon stands a space"),
            ("env_args.x=[{a: 1, b}]", "b has no value"),
            ("env_args.x=[2024-01-01]", "no setting is a date"),
            ("env_args.x=[!!python/name:os.system x]", "could not determine a constructor"),
            ("env_args.x=[&a [1], *b]", "found undefined alias 'b'"),
            ("env_args.x=[&a [*a]]", "nested deeper than 50 levels"),
            ("env_args.x=" + "[" * 5000, "not YAML"),
            ("env_args.x=['\0']", "not YAML (unacceptable character"),
            ("env_args.x=a\u2028b", "'a\\u2028b' holds a separator of lines"),
            ("name=\x85", "'\\x85' holds a separator of lines"),
            ("env_args.=3", "not of the form key=value"),
            ("env_args..x=3", "not of the form key=value"),
            ("=3", "not of the form key=value"),
            ("++env_args.x=3", "not of the form key=value"),
        ],
    )
    def test_what_is_none_is_refused_in_one_line(self, word: str, reason: str) -> None:
        with pytest.raises(ConfigError) as caught:
            composed(word)
        said = str(caught.value).split("\n  ")
        assert said[0].partition("=")[0].startswith(word.partition("=")[0])
        assert said[1].startswith("reason: ")
        assert reason in said[1]
        assert said[2].startswith("remedy: ")
        assert len(said) == 3

    @pytest.mark.parametrize(
        "text", ["name: 3", "train_variant: 1.10", "eval_variants: [faces_7, 1.10]", "model: true"]
    )
    def test_a_file_says_texts_in_quotes(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text(f"defaults: [generalpoints_ppo]\n{text}\n")
        with pytest.raises(
            ConfigError, match=r"not as a text \(.*mine\.yaml\)\n  remedy: write each text in quotes"
        ):
            compose([f"experiment={file}"])

    def test_a_file_is_read_as_the_command_line_is(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text(
            "defaults: [generalpoints_ppo]\nenv_args: {a: 1e-3, b: yes, c: 12:30, d: 010}\n"
            "train_variant: no\nalgo: {gamma: 1e-3}\ncompare: {quick: yes}\n"
        )
        config = compose([f"experiment={file}"])
        assert config.env_args.items() >= {"a": 1e-3, "b": "yes", "c": "12:30", "d": "010"}.items()
        assert (config.train_variant, config.algo.gamma, config.compare.quick) == ("no", 1e-3, True)


class TestCodeThatARecordNames:
    """Nothing is imported for it; what the command line names is the user's own word."""

    @pytest.fixture
    def record(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "hostile_module.py").write_text("raise SystemExit('was imported')")
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    def written(self, record: Path, *settings: str) -> str:
        (record / "config.yaml").write_text(to_yaml(composed(*settings)))
        return f"resume={record}"

    def test_an_environment_is_refused_with_its_file_and_the_remedy_works(self, record: Path) -> None:
        resume = self.written(record, "env=hostile_module:Env")
        with pytest.raises(ConfigError, match="and to resume would run it") as caught:
            run.prepare([resume])
        assert str(record / "hostile_module.py") in str(caught.value)
        remedy = re.search(r"command line as well: (\S+)", str(caught.value))
        assert remedy is not None
        assert compose([resume, remedy[1]]).env == "hostile_module:Env"

    def test_a_scorer_is_refused_and_the_remedy_works(self, record: Path) -> None:
        score = "env_args.score=no_such_module:score"
        resume = self.written(record, "env=dataset", "env_args.path=x.jsonl", score)
        with pytest.raises(ConfigError, match="there is no module no_such_module here"):
            compose([resume])
        with pytest.raises(ConfigError, match=f"command line as well: {score}"):
            compose([resume, "env=dataset"])
        assert compose([resume, score]).env_args["score"] == "no_such_module:score"

    def test_a_reward_function_is_refused_with_its_file_and_the_remedy_works(self, record: Path) -> None:
        reward = "algo.reward_function=hostile_module:rewards"
        resume = self.written(record, reward)
        with pytest.raises(ConfigError, match=f"command line as well: {reward}") as caught:
            run.prepare([resume])
        assert str(record / "hostile_module.py") in str(caught.value)
        assert compose([resume, reward]).algo.reward_function == "hostile_module:rewards"
        assert compose([resume, "algo.reward_function=null"]).algo.reward_function is None

    def test_a_cluster_is_refused_and_the_remedy_works(self, record: Path) -> None:
        """What a cluster answers is unpickled in the driver."""
        resume, address = self.written(record, "ray.address=head:6379"), "ray.address=head:6379"
        with pytest.raises(ConfigError, match=f"command line as well: {address}"):
            compose([resume])
        assert compose([resume, "ray.address='head:6379'"]).ray.address == "head:6379"
        assert compose([resume, "ray.address=null"]).ray.address is None
        assert compose([self.written(record, "ray.address=auto")]).ray.address == "auto"

    def test_a_reference_to_another_setting_does_not_get_round_it(self, record: Path) -> None:
        (record / "config.yaml").write_text("name: 'hostile_module:Env'\nenv: ${name}\n")
        with pytest.raises(ConfigError, match="stand for another setting's value"):
            compose([f"resume={record}"])

    @pytest.mark.parametrize(
        "settings",
        [
            (),
            ("env=reasoning_gym:countdown",),
            ("env=dataset", "env_args.path=x.jsonl", "env_args.score=number"),
        ],
    )
    def test_what_is_bundled_is_asked_for_nothing(self, record: Path, settings: tuple[str, ...]) -> None:
        assert compose([self.written(record, *settings)]).resume == str(record)

    def test_a_file_that_the_command_line_names_is_the_users_word(self, record: Path) -> None:
        """So is each cell's of a comparison, which was asked for as a whole."""
        resume = self.written(record, "env=hostile_module:Env")
        assert compose([f"experiment={record}/config.yaml", resume]).env == "hostile_module:Env"


class TestRefusedCompositions:
    @pytest.mark.parametrize(
        ("override", "key", "hint"),
        [
            ("algo.gama=1", "algo.gama=1", "did you mean algo.gamma"),
            ("gamma=1", "gamma=1", "did you mean algo.gamma"),
            ("learner.episodes=1", "learner.episodes=1", "rollout.episodes"),
            ("xyzzy=1", "xyzzy=1", "rlpost settings: every setting"),
            ("algo.gamma=high", "algo.gamma=high", "give a number"),
            ("algo.gamma=null", "algo.gamma=null", "give a number"),
            ("seed=1.5", "seed=1.5", "give a whole number"),
            ("algo.whiten_advantages=3.5", "algo.whiten_advantages=3.5", "give true or false"),
            ("algo.kl=both", "algo.kl=both", "one of reward, loss, none"),
            ("task=PPO", "task=PPO", "one of rl, sft, dry_run, eval, compare, tiny_base"),
            ("algo=3", "algo=3", "choose one of ppo, ppo_turn, grpo"),
            ("algo=gpro", "algo=gpro", "did you mean "),
            ("algo.name=dappo", "algo.name=dappo", "did you mean dapo"),
            ("rollout=3", "rollout=3", "its settings one by one: workers, episodes"),
            ("learner.betas=3", "learner.betas=3", "give a list"),
            ("env_args=3", "env_args=3", "reason"),
            ("name=${nowhere.at_all}", "name=${nowhere.at_all}", "stand for another setting"),
            ("seed=1,2", "seed=1,2", "once for each value"),
            ("+seed=1", "+seed=1", "write key=value"),
            ("~seed", "~seed", "write key=value"),
            ("seed", "seed", "key=value"),
            ("a b", "a b", "key=value"),
            ("tiny_base", "tiny_base", "write experiment=tiny_base"),
        ],
    )
    def test_names_key_value_reason_and_remedy(self, override: str, key: str, hint: str) -> None:
        message = refused(override)
        assert message.startswith(key)
        assert "reason: " in message
        assert "remedy: " in message
        assert hint in message
        assert "Traceback" not in message

    def test_unknown_experiment_suggests_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="did you mean generalpoints_ppo"):
            compose(["experiment=generalpoints_pppo"])

    def test_no_experiment_lists_what_there_is(self) -> None:
        with pytest.raises(
            ConfigError, match=r"generalpoints_cispo, generalpoints_dapo, .*, generalpoints_sft"
        ):
            compose(["seed=1"])

    @pytest.mark.parametrize(
        "text",
        [
            "a: [",
            "- 1",
            "algo:\n  gama: 1",
            "algo:\n  gamma: high",
            "algo:\n  name: gpro",
            "defaults: [nobody]",
        ],
    )
    def test_broken_configuration_files(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match="reason"):
            compose([f"resume={tmp_path}"])

    def test_files_that_explode_when_they_are_read_are_refused_at_once(self, tmp_path: Path) -> None:
        bomb = "a0: &a0 [0, 1]\n" + "".join(
            f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
        )
        merged = "a0: &a0 {x: 0}\n" + "".join(
            f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)
        )
        own = tmp_path / "own.yaml"
        (tmp_path / "config.yaml").write_text(bomb)
        for text, reason in (
            (bomb, "more than 20000 things"),
            (merged, "more than 20000 things"),
            ("a: &a [*a]", "nested deeper than 50 levels"),
            ("a: " + "[" * 100 + "]" * 100, "nested deeper than 50 levels"),
            ("a: " + "[" * 100_000, "not YAML"),
            ("a: " + "x" * 300_000, "more than 262144 bytes"),
            ("a: 2001-99-99", "not YAML"),
        ):
            own.write_text(text)
            began = time.monotonic()
            with pytest.raises(ConfigError, match=reason):
                compose([f"experiment={own}"])
            assert time.monotonic() - began < 10
        with pytest.raises(ConfigError, match="more than 20000 things"):
            compose([f"resume={tmp_path}"])

    def test_a_few_aliases_are_what_they_stand_for(self, tmp_path: Path) -> None:
        own = tmp_path / "own.yaml"
        own.write_text("train_variant: &v faces_7\neval_variants: [*v, faces_10]\n")
        assert compose([f"experiment={own}"]).eval_variants == ["faces_7", "faces_10"]

    def test_missing_configuration_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"config\.yaml\n  reason: cannot be read"):
            compose([f"resume={tmp_path}"])


class TestValidate:
    def test_every_number_of_the_schema_has_a_range(self) -> None:
        assert {key for key, _ in checks.numbers(Config())} == set(checks.RANGES)
        assert {key for key, kind in schema().items() if kind in (int, float)} == set(checks.RANGES)

    def test_every_number_that_may_be_null_has_a_range(self) -> None:
        groups = {f"{key}.": kind for key, kind in schema().items() if dataclasses.is_dataclass(kind)}
        found = {
            f"{prefix}{name}"
            for prefix, group in {"": Config, **groups}.items()
            for name, kind in get_type_hints(group).items()
            if kind in (int | None, float | None)
        }
        assert found == set(checks.OPTIONAL_RANGES)

    @pytest.mark.parametrize("key", sorted({**checks.RANGES, **checks.OPTIONAL_RANGES}))
    def test_every_range_has_both_its_ends(self, key: str) -> None:
        allowed = {**checks.RANGES, **checks.OPTIONAL_RANGES}[key]
        below = allowed.low if allowed.low_open else allowed.low - 1
        assert refuses_range(key, below)
        assert refuses_range(key, allowed.high + 1) or allowed.high == float("inf")
        assert not refuses_range(key, allowed.low + 1)

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["algo.gamma=nan"], "algo.gamma=nan"),
            (["rollout.episodes=10", "rollout.group_size=4"], "not a multiple of rollout.group_size=4"),
            (["rollout.episodes=4", "algo.minibatches=8"], "need at least 8 episodes"),
            (["rollout.episodes=4", "algo.minibatches=2", "learner.workers=4"], "need at least 8 episodes"),
            (["rollout.workers=300"], "episodes to share"),
            (["rollout.max_workers=300", "ray.address=auto"], "rollout.max_workers=300\n  reason: only"),
            (
                ["rollout.workers=3", "rollout.max_workers=2", "ray.address=auto"],
                "rollout.max_workers=2\n  reason: a run starts with rollout.workers=3",
            ),
            (["rollout.max_workers=2"], "a run without ray.address has this machine alone"),
            (
                ["rollout.max_workers=2", "ray.address=auto", "task=sft"],
                "workers are added between iterations of",
            ),
            (["rollout.max_new_tokens=1024"], "no room for a prompt"),
            (
                ["learner.micro_batch_tokens=511"],
                "no pass could take an episode as long as rollout.max_model_len=512",
            ),
            (["task=sft", "learner.micro_batch_tokens=511"], "learner.micro_batch_tokens=511"),
            (["task=compare", "learner.micro_batch_tokens=511"], "learner.micro_batch_tokens=511"),
            (["rollout.env_timeout_s=inf"], "rollout.timeout_s=600, would end the run first"),
            (["rollout.env_timeout_s=600"], "rollout.timeout_s=600, would end the run first"),
            (["algo.critic_warmup=40"], "the policy would learn in none"),
            (["rollout.group_size=64", "algo.minibatches=8"], "groups stay whole"),
            (["algo=grpo", "rollout.group_size=1"], "rollout.group_size=1\n  reason: algo=grpo compares"),
            (["algo.dynamic_sampling=true"], "no group has variance"),
            (["algo=grpo", "algo.critic_warmup=2"], "algo=grpo has no critic"),
            (["algo=rloo", "algo.critic_epochs=2"], "algo=rloo has no critic"),
            (["algo.ratio_ceiling=1.1"], "within the clip, which ends at 1.2"),
            (["algo.thought_weight=0.5"], "does not take its ratio over a turn"),
            (["algo=ppo_turn", "algo.thought_weight=0.5"], "nothing tells thought from answer"),
            (["rollout.answer_marker=''"], "every answer begins with it"),
            (["rollout.system_prompt=' '"], "it says nothing"),
            (["rollout.stop=['']"], "one is empty, or stands twice"),
            (["rollout.stop=[a,a]"], "one is empty, or stands twice"),
            (["rollout.template_args={a b: 1}"], "rollout.template_args=a b\n  reason: no template can read"),
            (["algo.kl=loss"], "noise and no penalty"),
            (["algo=dapo", "algo.kl_target=0.01"], "nothing to steer"),
            (["algo.kl_target=0.01", "algo.kl_coef=0"], "0 stays 0"),
            (["algo=rloo", "algo.rewards=turn"], "compares whole episodes"),
            (["algo=gspo", "algo.rewards=turn"], "compares whole episodes"),
            (["algo=grpo", "algo.normalize_rewards=true"], "a common factor changes nothing"),
            (["algo=dapo", "algo.overlong_buffer=200"], "longer than rollout.max_new_tokens=104"),
            (["task=sft", "sft.steps=0"], "would do nothing"),
            (["eval.greedy=false", "eval.sampled=false"], "nothing to evaluate"),
            (["env=generalpoint"], "env=generalpoint"),
            (
                ["env=no_such_module:Env"],
                "env=no_such_module:Env\n  reason: no_such_module:Env cannot be imp",
            ),
            (["env=dataset"], "env_args={'verify_iter': 1}\n  reason: dataset: unknown argument verify_iter"),
            (["env_args.mode=compat", "eval_variants=[five_cards]"], "eval_variants=five_cards\n  reason: "),
            (["eval_variants=[faces_10,faces_99]"], "eval_variants=faces_99"),
            (["eval_variants=[]"], "eval_variants=[]"),
            (["eval_variants=[faces_10,faces_10]"], "one stands twice"),
            (["train_variant=faces_99"], "no such variant"),
            (["train_variant=faces_11_12_13"], "held out"),
            (["task=sft", "train_variant=faces_11_12_13"], "held out"),
            (["env_args.no_such=1"], "no_such"),
            (["learner.betas=[0.9]"], "learner.betas=[0.9]"),
            (["learner.gpus=2"], "learner.gpus=2"),
            (["rollout.gpus=1.5"], "rollout.gpus=1.5"),
            (["learner.workers=2", "learner.gpus=0.5"], "which NCCL refuses"),
            (["lora.kind=full", "learner.zero_stage=3"], "the roles' parameters take turns in a module"),
            (["learner.betas=[0.9,1.0]"], "AdamW takes two"),
            (
                ["learner.optimizer=muon", "learner.zero_stage=1"],
                "learner.optimizer=muon\n  reason: learner.zero_stage=1",
            ),
            (["learner.optimizer=lora_pro", "learner.zero_stage=3"], "lora_pro needs matrices"),
            (["learner.lora_plus_ratio=16", "learner.zero_stage=2"], "clips A and B apart"),
            (["learner.optimizer=lora_pro", "learner.lora_plus_ratio=16"], "for one learning rate"),
            (["learner.lora_plus_ratio=0"], "learner.lora_plus_ratio=0.0\n  reason: out of range"),
            (["learner.optimizer=adamw_8bit"], "on a GPU alone, and learner.gpus=0"),
            (["learner.optimizer=adamw_8bit", "learner.gpus=1", "learner.zero_stage=1"], "is not known"),
            (
                ["algo.schedule=cosine", "budget.amounts=[1]"],
                "algo.schedule=cosine\n  reason: a budget of compute",
            ),
            (["task=compare", "sft.schedule=linear"], "sft.schedule=linear\n  reason: a budget of compute"),
            (
                ["task=sft", "sft.schedule=linear", "budget.amounts=[1]"],
                "sft.schedule=linear\n  reason: a bud",
            ),
            (
                ["algo.schedule=linear", "algo.warmup_steps=999"],
                "algo.warmup_steps=999\n  reason: the warm-up lasts for all",
            ),
            (
                ["sft.schedule=cosine", "sft.warmup_steps=30"],
                "sft.warmup_steps=30\n  reason: the warm-up lasts for",
            ),
            (["sft.schedule=cosine", "sft.final_share=2"], "sft.final_share=2.0\n  reason: out of range"),
            (["adapter=/nowhere"], "no adapter_config.json"),
            (["resume=/nowhere"], "no checkpoints/ there"),
            (["name=../up"], "it names a folder"),
            (["tracking.wandb=on"], "auto, online, offline, disabled"),
            (["tracking.backends=[comet]"], "unknown: comet"),
            (["eval.samples=0"], "at least 1 and at most 256"),
            (["eval.instances=some"], "drawn, all"),
            (
                [
                    *("env=navigation", "train_variant=absolute", "eval_variants=[relative]"),
                    "eval.instances=all",
                ],
                "eval.instances=all\n  reason: the environment navigation does not list the instances of relative",
            ),
            (["env_args.mode=compat", "train_variant=faces_10_mixed"], "plays with 4 cards"),
            (["task=compare", "eval.samples=2"], "plays each instance once a seed"),
            (["ray.address=here"], "ray.address=here"),
            (["ray.address='host:port'"], "not an address"),
            (["lora.target_modules=q-proj"], "not a list of module names"),
            (
                ["lora.base=nf4", "lora.kind=full"],
                "lora.base=nf4\n  reason: lora.kind=full trains the model's own",
            ),
            (
                ["lora.base=nf4", "lora.kind=glora"],
                "lora.base=nf4\n  reason: PEFT's layers of lora.kind=glora",
            ),
            (["tiny_base.heads=7"], "does not divide"),
            (["budget.amounts=[2,1]"], "above 0 and rise"),
            (["task=eval", "budget.amounts=[1]"], "task=eval has no budget"),
            (["task=compare", "arms=[sft,pp]"], "compare.arms=pp\n  reason: there is no such arm"),
            (["task=compare", "arms=[ppo,ppo]"], "one stands twice"),
            (["task=compare", "arms=[sft]"], "no algorithm among them"),
            (["task=compare", "seeds=[]"], "compare.seeds=[]"),
            (
                ["task=compare", "sft.steps=0", "compare.settings={a: {seed: 1}}"],
                "compare.settings.a: seed=1\n  reason: arms may differ in how they learn",
            ),
            (
                ["task=compare", "sft.steps=0", "compare.settings={a: {algo.iterations: 1}}"],
                "compare.settings.a: algo.iterations=1\n  reason: arms may differ",
            ),
            (
                ["task=compare", "sft.steps=4", "compare.settings={a: {lora.rank: 1}}"],
                "sft.steps=4\n  reason: all arms start from one adapter, and compare.settings.a gives",
            ),
            (
                ["task=compare", "sft.steps=0", "compare.settings={a: {lora.ranks: 1}}"],
                "compare.settings.a: lora.ranks=1\n  reason: there is no such setting",
            ),
            (
                ["task=compare", "sft.steps=0", "compare.settings={a: {lora.rank: many}}"],
                "compare.settings.a: lora.rank=many\n  reason:",
            ),
            (
                ["task=compare", "sft.steps=0", "compare.settings={a: {lora.rank: 0}}"],
                "compare.settings.a: lora.rank=0\n  reason:",
            ),
            (
                ["task=compare", "sft.steps=0", "compare.settings={a/b: {lora.rank: 1}}"],
                "compare.settings=a/b\n  reason: a name becomes part of a folder's",
            ),
            (
                ["task=compare", "compare.settings={a: {sft.steps: -1}}"],
                "compare.settings.a: sft.steps=-1\n  reason: a warm start has no such length",
            ),
            (
                ["task=compare", "compare.contrasts=[ppo over sft]"],
                "compare.contrasts=ppo over sft\n  reason: it is no difference of two arms",
            ),
            (
                ["task=compare", "arms=[sft,ppo]", "compare.contrasts=[grpo - ppo]"],
                "compare.contrasts=grpo - ppo\n  reason: grpo is no arm of this comparison",
            ),
            (
                ["task=compare", "arms=[sft,ppo]", "compare.contrasts=[ppo - ppo]"],
                "compare.contrasts=ppo - ppo\n  reason: an arm does not differ from itself",
            ),
            (
                ["task=compare", "arms=[sft,ppo]", "sft.loss=dft"],
                "sft.loss=dft\n  reason: the arm sft would be trained with it, under its plain name",
            ),
            (
                ["task=compare", "arms=[rft,rft_offline,ppo]", "rollout.policy=start", "algo.kl=none"],
                "compare.arms=['rft', 'rft_offline']\n  reason: with the settings of this comparison they are the same",
            ),
            (
                ["task=compare", "arms=[grpo,grpo_no_kl]", "algo.kl=none"],
                "compare.arms=['grpo', 'grpo_no_kl']\n  reason: with the settings",
            ),
            (
                ["task=compare", "arms=[grpo,sft_mixed]", "algo.expert_coef=1"],
                "compare.arms=['grpo', 'sft_mixed']\n  reason: with the settings",
            ),
            (["task=compare", "seeds=[1,1]"], "one twice"),
            (
                ["task=compare", "compare.match_on=device_seconds", "compare.concurrency=2"],
                "compare.match_on=device_seconds\n  reason: cells that run beside",
            ),
            (
                ["task=compare", "compare.match_on=device_seconds", "ray.address=auto"],
                "compare.match_on=device_seconds\n  reason: cells that run beside",
            ),
            (["task=compare", "algo.iterations=10"], "algo.iterations=10 does not divide"),
            (
                ["task=compare", "quick=true", "compare.points=5"],
                "compare.quick_iterations=16 does not divide",
            ),
            (["task=compare", "eval_variants=[faces_5]"], "faces_10 is not scored"),
            (["task=compare", "eval_variants=[faces_10]"], "none of them is a held-out rule"),
            (["task=compare", "compare.named=[seed]"], "compare.named=seed"),
            (
                [
                    "task=compare",
                    "env=navigation",
                    "train_variant=absolute",
                    "eval_variants=[absolute,old_town]",
                ],
                "none of them is a held-out rule",
            ),
            (["task=compare", "arms=[ppo,grpo]", "rollout.episodes=60"], "arm grpo: rollout.episodes"),
            (["task=compare", "resume=/nowhere"], "no cells/ there"),
        ],
    )
    def test_impossible_combinations(self, overrides: list[str], words: str) -> None:
        message = refused(*overrides)
        assert words in message
        assert "remedy: " in message

    @pytest.mark.parametrize(("where", "key"), [("make", "env=generalpoints"), ("reset", "eval_variants=")])
    def test_an_environment_that_hangs_is_refused_in_time(
        self, where: str, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waiting = threading.Event()

        class Hangs:
            def __init__(self, **_: object) -> None:
                assert where != "make" or waiting.wait(60)

            def reset(self, **_: object) -> None:
                waiting.wait(60)

        environment.registry.variants("generalpoints")  # imported, so that they are told at once
        config = Config()
        config.rollout.env_timeout_s = 0.5
        monkeypatch.setattr(environment.registry, "make", lambda name, **args: Hangs(**args))
        (message,) = environment.environment(config)
        waiting.set()
        assert message.startswith(key)
        assert "gave no answer within rollout.env_timeout_s=0.5" in message
        assert "remedy: mend it, or give more" in message

    def test_an_environment_of_ones_own_must_be_named(self) -> None:
        with pytest.raises(
            ConfigError, match=r"env=\n  reason: no environment is named\n  remedy: env=my_module:MyEnv"
        ) as e:
            run.prepare(["experiment=own_ppo"])
        assert "faces" not in str(e.value)
        assert "generalpoints" not in str(e.value)

    @pytest.mark.parametrize("task", ["rl", "eval", "dry_run"])
    def test_to_play_episodes_a_data_set_needs_a_scorer(self, task: str, taught: str) -> None:
        with pytest.raises(
            ConfigError, match=r"env_args.score=null\n  reason: task=.* nothing scores their answers"
        ):
            run.prepare(["experiment=own_sft", f"env_args.path={taught}", f"task={task}"])
        assert run.prepare(["experiment=own_sft", f"env_args.path={taught}"]).task is Task.sft

    def test_more_examples_than_a_data_set_has_are_refused(self, taught: str) -> None:
        named = ["experiment=own_sft", f"env_args.path={taught}", "env_args.eval_share=0.5"]
        with pytest.raises(
            ConfigError, match=r"sft.examples=41\n  reason: default has \d+ answers to learn from"
        ):
            run.prepare([*named, "sft.examples=41"])
        assert run.prepare([*named, "sft.examples=3"]).sft.examples == 3

    def test_scoring_functions_of_a_record_are_trusted_by_name_alone(self, scored: str) -> None:
        args = {"path": scored, "score": ["scored:right", "exact", "scored:short"]}
        assert named_code("dataset", args) == {"env_args.score": "[scored:right,exact,scored:short]"}
        assert named_code("dataset", {"path": scored, "score": ["exact", "math"]}) == {}

    @pytest.mark.parametrize("task", ["rl", "sft", "compare"])
    def test_supervised_steps_without_an_expert_are_refused(self, task: str, scored: str) -> None:
        told = refused_data_set(scored, f"task={task}", "sft.steps=3")
        assert "sft.steps=3\n  reason: the environment dataset has no expert answers to learn from" in told
        assert ("remedy: sft.steps=0, or give it some" in told) == (task == "rl")
        assert "env_args.expert=FIELD" in told
        assert not refused_data_set(scored, "sft.steps=0")
        assert not refused_data_set(scored, "sft.steps=3", "env_args.expert=answer")
        assert not refused_data_set(scored, "sft.steps=3", "task=dry_run")

    def test_a_held_out_file_that_nothing_evaluates_on_is_refused(self, scored: str) -> None:
        other = Path(scored).with_name("other.jsonl")
        other.write_text('{"prompt": "of another file", "answer": "1"}\n')
        named = ("sft.steps=0", f"env_args.held_out_path={other}")
        told = refused_data_set(scored, *named)
        assert f"env_args.held_out_path={other}\n  reason: nothing evaluates on it" in told
        assert "remedy: eval_variants=[held_out]" in told
        assert not refused_data_set(scored, *named, "eval_variants=[held_out]")

    def test_a_data_set_without_variants_is_told_of_none_that_nobody_wrote(self, scored: str) -> None:
        assert not refused_data_set(scored, "sft.steps=0")
        plain = Path(scored).with_name("plain.yaml")
        plain.write_text("task: rl\n")
        told = refused_data_set(scored, experiment=str(plain))
        assert "dataset has no such variant; faces_10 is the default, of generalpoints\n" in told
        assert "choose from default" in told
        told = refused_data_set(scored, "train_variant=hard", experiment=str(plain))
        assert "train_variant=hard\n  reason: dataset has no such variant\n" in told
        assert "is not scored" not in refused_data_set(scored, "task=compare", experiment=str(plain))

    @pytest.mark.parametrize(
        ("body", "cause"),
        [
            ("return int(answer)", "to {rows}:1: ValueError: invalid literal for int() with base 10: '' (scored.py:2)"),
            ("return None", "to {rows}:1: ValueError: score=scored:score: applies to no part"),
            ("return answer == row['answr']", "to {rows}:1: KeyError: 'answr' (scored.py:2)"),
            ("return float('nan') if answer else 0", "of the answer '1' to {rows}:1: ValueError: "),
            ("import signal as s; s.signal(s.SIGALRM, s.SIG_DFL)", "signals such as signal.alarm do not work"),
            ("raise SystemExit(3)", "to {rows}:1) called sys.exit(3)"),
            ("import time; time.sleep(60)", "to {rows}:1) gave no answer within rollout.env_timeout_s=0.5"),
        ],
    )  # fmt: skip
    def test_a_scorer_that_fails_is_refused_with_row_and_cause(
        self, scored: str, body: str, cause: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(scored).with_name("scored.py").write_text(f"def score(answer, row):\n    {body}\n")
        told = refused_data_set(
            scored, "sft.steps=0", "env_args.score=scored:score", "rollout.env_timeout_s=0.5"
        )
        assert cause.format(rows=scored) in told
        assert "env=dataset\n  reason: " in told
        assert "remedy: mend" in told
        assert told.count("reason: ") == 1

    def test_environments_are_made_asked_and_closed_in_one_thread(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        class Watched(GeneralPoints):
            def __init__(self) -> None:
                super().__init__()
                seen.append(threading.get_ident())

            def reset(self, **given: Any) -> Any:
                seen.append(threading.get_ident())
                return super().reset(**given)

            def close(self) -> None:
                seen.append(threading.get_ident())

        monkeypatch.setattr(environment.registry, "make", lambda name, **args: Watched())
        assert list(environment.environment(Config())) == []
        assert len(seen) == 5
        assert len(set(seen)) == 1
        assert threading.get_ident() not in seen

    def test_all_refusals_come_at_once(self) -> None:
        message = refused("algo.gamma=2", "lora.rank=0", "train_variant=faces_7")
        assert message.count("reason: ") == 3

    def test_a_held_out_variant_may_be_evaluated(self) -> None:
        run.prepare([PPO, "task=eval", "train_variant=faces_11_12_13"])

    def test_a_pass_may_be_as_long_as_an_episode_and_does_not_matter_without_training(self) -> None:
        run.prepare([PPO, "learner.micro_batch_tokens=512"])
        run.prepare([PPO, "learner.micro_batch_tokens=511", "task=eval"])

    def test_ranks_may_have_a_gpu_each_or_one_rank_a_part_of_one(self) -> None:
        run.prepare([PPO, "learner.workers=2", "learner.gpus=1"])
        run.prepare([PPO, "learner.gpus=0.5", "rollout.gpus=0.5"])

    def test_folder_with_files_is_refused_as_output(self, tmp_path: Path) -> None:
        run.prepare([PPO, f"output_dir={tmp_path}"])
        run.prepare([PPO, f"output_dir={tmp_path}/new"])
        (tmp_path / "file").touch()
        assert "holds files already" in refused(f"output_dir={tmp_path}")
        assert "it is a file" in refused(f"output_dir={tmp_path}/file")

    def test_an_ipv6_address_is_one(self) -> None:
        assert run.prepare([PPO, "ray.address='[::1]:6379'"]).ray.address == "[::1]:6379"

    def test_resume(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        run.prepare([PPO, f"resume={tmp_path}", f"output_dir={tmp_path}"])
        assert "nothing to go on with" in refused(f"resume={tmp_path}", "task=eval")

    def test_an_adapter_of_older_peft_gets_a_remedy_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        (tmp_path / "adapter_model.bin").touch()
        assert "save_pretrained() again" in refused(f"adapter={tmp_path}")

    def test_a_whole_adapter_is_accepted(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        assert "no adapter_model.safetensors" in refused(f"adapter={tmp_path}")
        (tmp_path / "adapter_model.safetensors").touch()
        run.prepare([PPO, f"adapter={tmp_path}"])

    def test_wandb_online_needs_a_key(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert "no key" in refused("tracking.wandb=online")
        monkeypatch.setenv("WANDB_API_KEY", "x")
        run.prepare([PPO, "tracking.wandb=online"])


def test_refusals_survive_the_way_between_processes() -> None:
    error = ConfigError(refusal("a.b", 3, "too many", "give fewer"))
    assert str(pickle.loads(pickle.dumps(error))) == "a.b=3\n  reason: too many\n  remedy: give fewer"  # noqa: S301


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlpost.run", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class TestCommandLine:
    def test_without_arguments_it_lists_the_experiments(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert run.main([]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert all(name in err for name in experiments())
        assert "Traceback" not in err

    @pytest.mark.parametrize("flag", ["--help", "-h", "list"])
    def test_help_is_no_failure(self, flag: str, capfd: pytest.CaptureFixture[str]) -> None:
        assert run.main([PPO, flag]) == 0
        out, _ = capfd.readouterr()
        assert all(name in out for name in experiments())

    def test_refused_settings_exit_with_two_and_a_panel(self) -> None:
        done = command(PPO, "algo.gama=1")
        assert done.returncode == 2
        assert "did you mean algo.gamma" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""

    @pytest.mark.parametrize(
        ("raised", "code", "words"),
        [
            (ClusterError("no [cores] left"), 1, "no [cores] left"),
            (KeyboardInterrupt(), 130, "Stopped"),
        ],
    )
    def test_exit_codes(
        self,
        raised: BaseException,
        code: int,
        words: str,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        def fail(config: Config) -> None:
            raise raised

        monkeypatch.setattr(run, "dispatch", fail)
        assert run.main([PPO]) == code
        assert words in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("number", "code", "words"),
        [(signal.SIGTERM, 143, "Stopped by SIGTERM."), (signal.SIGINT, 130, "Stopped.")],
    )
    def test_signals_keep_their_exit_code_where_interrupts_become_plain_ones(
        self, number: signal.Signals, code: int, words: str
    ) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING_AS_RAY_DOES, PPO], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == code
        assert words in said.decode()

    def test_bugs_keep_their_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(config: Config) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(run, "dispatch", fail)
        with pytest.raises(ZeroDivisionError):
            run.main([PPO])

    @pytest.mark.parametrize("task", list(Task))
    def test_every_task_has_a_module_to_run(self, task: Task) -> None:
        module, _, function = run.ENTRY_POINTS[task].partition(":")
        path = Path(run.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
        assert re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), re.MULTILINE)

    def test_dispatch_imports_the_tasks_module_only_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        called = []
        module = type(sys)("stand_in")
        module.go = called.append  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "stand_in", module)
        monkeypatch.setitem(run.ENTRY_POINTS, Task.rl, "stand_in:go")
        config = composed()
        run.dispatch(config)
        assert called == [config]


MARKED = {
    "env_args.x": "${HOME}",
    "env_args.y": "${oc.env:HOME}",
    "env_args.z": "a\\${seed}",
    "model": "models/${name}",
    "name": "???",
    "adapter": "${",
    "output_dir": "${seed}",
    "tracking.project": "???",
    "lora.target_modules": "${model}",
}


@pytest.mark.parametrize("key", MARKED)
def test_what_omegaconf_would_not_read_as_text_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}=.*\n.*command line\)\n.*remedy"):
        compose(["experiment=generalpoints_ppo", f"{key}='{MARKED[key]}'"])


@pytest.mark.parametrize("text", ["[1,'${q}']", "{a:'???'}", "{b:[{c:'x${q}'}]}", "a${seed}b"])
def test_so_is_what_lies_deeper(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^env_args\.x="):
        compose(["experiment=generalpoints_ppo", f"env_args.x={text}"])


@pytest.mark.parametrize(
    "text", ["name: ???", "model: '${name}'", "env_args: {x: ['a${b}']}", "eval_variants: ['???']"]
)
def test_and_what_a_file_says(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"defaults: [generalpoints_ppo]\n{text}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml\)\n"):
        compose([f"experiment={file}"])


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=12) | st.text(alphabet="${}?\\'\"a :#\n", max_size=8))
def test_any_other_text_is_carried_to_a_resumed_run(text: str) -> None:
    """Whatever is not refused at the start reads back as it was."""
    try:
        config = compose(["experiment=generalpoints_ppo", override("env_args.x", text)])
    except ConfigError:
        return
    assert config.env_args["x"] == text
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        again = compose([override("resume", folder)])
    again.resume = None
    assert again == config


def test_a_variant_whose_name_is_too_long_for_a_files_is_refused(tmp_path: Path) -> None:
    """Each of these letters takes six bytes in a file's name."""
    fits, long = "é" * 30, "é" * 40
    rows = [
        json.dumps({"prompt": f"{v} {i}", "answer": "1", "variant": v})
        for v in (fits, long)
        for i in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    data = [f"env_args.path={tmp_path / 'rows.jsonl'}", "env_args.score=exact", "env_args.variant=variant"]
    arguments = [
        "experiment=own_ppo",
        "env=dataset",
        *data,
        "sft.steps=0",
        "task=eval",
        f"train_variant='{fits}'",
    ]
    with pytest.raises(ConfigError, match="too long for the name") as caught:
        run.prepare([*arguments, f"eval_variants=['{fits}','{long}']"])
    assert f"eval_variants={fits}\n" not in str(caught.value)
    RunDir.create(tmp_path / "run", "x", 0, "").write_trajectories(
        evaluation_name(iteration_name(0), fits, "sampled"), []
    )
