"""The tasks of reasoning-gym: their own scores and levels, and no answer that runs."""

from __future__ import annotations

import ast
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rlpost.envs import check, registry
from rlpost.envs.base import Expert
from rlpost.envs.errors import Refused, UnknownEnvironment
from rlpost.envs.reasoning_gym import guard
from rlpost.envs.reasoning_gym.env import tagged

CODE = "__import__('pathlib').Path('{path}').touch()"


@pytest.fixture(scope="module")
def package() -> Any:
    return pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")


class TestGuard:
    """Witness: what an answer evaluates to, and that nothing but numbers and lists ever gets there."""

    @pytest.mark.parametrize("answer", ["82 + 20 + 67 - 50", "(1+2)*3/4", "2**3 - -1", "1.5*4", "3**(1/2)"])
    def test_arithmetic_goes_on(self, answer: str) -> None:
        assert guard.is_arithmetic(answer)

    @pytest.mark.parametrize(
        "answer", ["x**3/3 + C", "-sin(2*x)/2 + C", "exp(x)*(x - 1)", "log(x)", "x**(-2)"]
    )
    def test_algebra_goes_on(self, answer: str) -> None:
        assert guard.is_algebra(answer)
        assert not guard.is_arithmetic(answer)

    @pytest.mark.parametrize(
        "answer", ["['A', 'B']", "[[0, 1], [-1, 2]]", "1 2 3", "_ Q _\nQ _ _", "ABCD", ""]
    )
    def test_lists_and_plain_text_go_on(self, answer: str) -> None:
        assert guard.is_literal(answer)

    @pytest.mark.parametrize(
        "answer",
        [
            CODE,
            f"  {CODE}",
            f"\t{CODE}",
            f"\n{CODE}",
            f"3! + {CODE}",
            "(lambda: 0)()",
            "[x for x in (1, 2)]",
            "().__class__",
            "x.__class__",
            "f'{exit()}'",
            "exit()",
            "factorial(10**9)",
            "(" * 100_000,
            "-" * 100_000 + "1",
        ],
    )
    def test_what_could_run_does_not_go_on(self, answer: str) -> None:
        assert not guard.is_arithmetic(answer)
        assert not guard.is_algebra(answer)
        assert not guard.is_literal(answer)

    def test_a_comment_is_no_code_for_eval_but_may_be_for_a_tokenizer(self) -> None:
        assert guard.is_literal(f"1 # {CODE}")
        assert not guard.is_algebra(f"1 # {CODE}")

    @pytest.mark.parametrize(
        "answer",
        ["9**9**9", "10**65", "((9**64)**64)**64", "1" * 5000, "1e999", "+".join(["1"] * 400), "x**(10*10)"],
    )
    def test_what_would_take_forever_does_not_go_on(self, answer: str) -> None:
        assert not guard.is_arithmetic(answer)
        assert not guard.is_algebra(answer)

    @pytest.mark.parametrize(
        "answer",
        [
            "(x+1)**64*(x+2)**64*(x+3)**64",  # 27 s
            "(x+1)**16*(x+2)**16",
            "1/(x+1)**16/(x+2)**16",
            "((x+1)**8)**8*(x+2)**8",
            "(x+y+z+1)**16",
            "(sin(x)+exp(x)+log(x))**8",
            "sin((x+1)**64)",  # 19 s
            "sin(sin((x+1)**8))",
            "((x**2)**31)**16",
            "sin(x)**16",
            "(x+1)*" * 9 + "x",
        ],
    )
    def test_what_would_be_multiplied_out_for_long_does_not_go_on(self, answer: str) -> None:
        assert not guard.is_algebra(answer)

    @pytest.mark.parametrize(
        "answer",
        [
            "(2*x + 3)**12/24 + C",
            "x**4*exp(x) - 4*x**3*exp(x) + 12*x**2*exp(x) - 24*x*exp(x) + 24*exp(x) + C",
            "2*(3*x + 1)**(3/2)/9 - sin(x)**5/5 + exp(sin(x)) + exp(x**2)/2 + C",
            "x**11/11 - 3*x**10/10 + x**9 - 2*x**8 + x**7/7 - 5*x + C",
            "exp(2*x)*(sin(3*x) - 2*cos(3*x))/13 + C",
        ],
    )
    def test_what_right_answers_look_like_goes_on(self, answer: str) -> None:
        assert guard.is_algebra(answer)

    def test_terms_bound_what_sympy_multiplies_out(self) -> None:
        sympy = pytest.importorskip("sympy")
        rng = random.Random(0)
        for _ in range(200):
            text = rng.choice(["x", "(x+1)", "(y-2)"])
            for _ in range(rng.randrange(1, 5)):
                text = rng.choice(
                    [f"({text})**{rng.randrange(2, 5)}", f"({text})*(x+y)", f"({text})+x*y", f"({text})-z"]
                )
            if guard.is_algebra(text):
                expanded = sympy.Poly(sympy.sympify(text), *sympy.symbols("x y z"))
                tree = ast.parse(text, mode="eval").body
                assert len(expanded.terms()) <= guard._terms(tree) <= 256
                assert expanded.total_degree() <= guard._degree(tree) <= 64

    def test_functions_within_functions_end(self) -> None:
        assert guard.is_algebra("sin(cos(x))")
        assert not guard.is_algebra("sin(" * 5 + "x" + ")" * 5)

    def test_sizes_bound_values(self) -> None:
        """Whatever goes on has a value of at most as many bits as the guard thinks."""
        rng = random.Random(0)
        for _ in range(300):
            text = str(rng.randrange(1, 100))
            for _ in range(rng.randrange(1, 8)):
                text = f"({text}){rng.choice(['+', '*', '-', '**'])}{rng.randrange(1, 9)}"
            if guard.is_arithmetic(text):
                value = eval(compile(ast.parse(text, mode="eval"), "", "eval"))  # noqa: S307
                assert value.bit_length() <= 4096


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 4 </answer>", "4"),
        ("<answer>3</answer> or <answer>4</answer>.", "4"),
        ("<answer>\n4\n5</answer>", "4\n5"),
        ("4", None),
        ("<answer>4", None),
        ("4</answer>", None),
    ],
)
def test_tags(text: str, answer: str | None) -> None:
    assert tagged(text) == answer


def test_without_the_package_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    for use in (registry.make, registry.variants):
        with pytest.raises(
            UnknownEnvironment, match=r"reasoning-gym cannot be .*pip install 'rlpost\[reasoning-gym\]'"
        ):
            use("reasoning_gym:no_such_thing")


@pytest.mark.usefixtures("package")
class TestTasks:
    def test_scores_are_the_tasks_own(self, package: Any) -> None:
        env = registry.make("reasoning_gym:countdown", max_value=20)
        observation, info = env.reset(seed=1)
        assert isinstance(env, Expert)
        [(shown, answer, _)] = env.expert(False, random.Random(0))
        assert shown == observation
        assert env.step(answer)[1:] == (1.0, True, False, {"outcome": "CORRECT", "success": True})
        for said, reward, outcome in (
            ("<answer>1+2</answer>", 0.05, "PARTIAL"),
            ("no tag", 0.0, "NO_ANSWER"),
            ("<answer>exit()</answer>", 0.0, "REFUSED"),
        ):
            assert env.reset(seed=1) == (observation, info)
            assert env.step(said)[1:] == (reward, True, False, {"outcome": outcome, "success": False})

    def test_no_answer_runs(self, tmp_path: Path) -> None:
        """The package's scorer alone does run it; should this fail, the guard may go."""
        proof = tmp_path / "it_ran"
        env: Any = registry.make("reasoning_gym:countdown", answer_tag=False)
        env.reset(seed=0)
        env.step(CODE.format(path=proof))
        assert not proof.exists()
        level = env._task.levels["default"]
        level.dataset.score_answer(CODE.format(path=proof), level.entry(0))
        assert proof.exists()

    def test_every_scorer_that_evaluates_answers_is_guarded(self, package: Any) -> None:
        from reasoning_gym.factory import DATASETS

        from rlpost.envs.reasoning_gym.tasks import names

        found = {name for name in names() if guard.evaluates(DATASETS[name][0])}
        assert found == guard.GUARDS.keys() | guard.OF_THE_QUESTION

    @pytest.mark.parametrize("name", sorted(guard.GUARDS))
    def test_right_answers_pass_the_guard(self, name: str) -> None:
        env: Any = registry.make(f"reasoning_gym:{name}")
        for seed in range(3):
            env.reset(seed=seed, options={"variant": "level_0", "split": "all"})
            [(_, answer, _)] = env.expert(False, random.Random(0))
            assert env.step(answer)[4] == {"outcome": "CORRECT", "success": True}

    def test_levels_are_variants(self) -> None:
        listed = registry.variants("reasoning_gym:countdown", operators=["+", "-"])
        assert [(each.name, each.held_out) for each in listed[:3]] == [
            ("default", False),
            ("level_0", False),
            ("level_1", True),
        ]
        assert "operators=['+', '-']" in listed[0].summary
        assert listed[2].summary.startswith("level 1 of 0 to 4: min_numbers=6, max_numbers=9")

    def test_variants_of_ones_own_are_held_out(self) -> None:
        args = {"min_terms": 2, "max_terms": 2, "held_out": {"three_small": {"max_terms": 3, "min_terms": 3}}}
        [own] = [
            each
            for each in registry.variants("reasoning_gym:chain_sum", **args)
            if each.name == "three_small"
        ]
        assert (own.held_out, own.summary) == (True, "held out: min_terms=3, max_terms=3")
        env = registry.make("reasoning_gym:chain_sum", **args)
        for variant, terms in (("three_small", 3), ("default", 2)):
            asked, _ = env.reset(seed=1, options={"variant": variant, "split": "eval"})
            assert len(re.findall(r"\d+", asked)) == terms

    def test_a_task_without_answers_has_no_expert(self) -> None:
        env = registry.make("reasoning_gym:propositional_logic")
        assert not isinstance(env, Expert)
        assert env.reset(seed=0)[1]["instance"]

    @pytest.mark.parametrize(
        ("name", "args", "kind", "told"),
        [
            ("coutdown", {}, UnknownEnvironment, "did you mean countdown"),
            ("composite", {}, UnknownEnvironment, "it mixes other tasks"),
            ("knight_swap", {}, UnknownEnvironment, "different questions in different processes"),
            ("countdown", {"max_vlue": 3}, Refused, "unknown setting max_vlue; there are: min_numbers"),
            ("countdown", {"seed": 3}, Refused, "unknown setting seed"),
            ("countdown", {"min_numbers": 0}, Refused, "min_numbers must be greater than 1"),
            ("countdown", {"operators": {"+"}}, Refused, "settings must be plain data"),
            ("countdown", {"answer_tag": "yes"}, Refused, "give true or false"),
            ("countdown", {"held_out": ["harder"]}, Refused, "not names with settings"),
            ("countdown", {"held_out": {"harder": 6}}, Refused, "not names with settings"),
            ("countdown", {"held_out": {"../harder": {}}}, Refused, "is no name of a variant"),
            ("countdown", {"held_out": {"level_1": {}}}, Refused, "no name of a variant of one's own"),
            ("countdown", {"held_out": {"same": {}}}, Refused, "held_out.same: has the settings of training"),
            (
                "countdown",
                {"held_out": {"harder": {"max_vlue": 3}}},
                Refused,
                "held_out.harder: unknown setting",
            ),
            (
                "countdown",
                {"held_out": {"harder": {"min_numbers": 0}}},
                Refused,
                "held_out.harder: AssertionError: min_numbers",
            ),
        ],
    )
    def test_refusals(self, name: str, args: dict[str, Any], kind: type[Exception], told: str) -> None:
        with pytest.raises(kind, match=told):
            registry.make(f"reasoning_gym:{name}", **args)

    def test_the_authors_check_takes_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert check.main(["reasoning_gym:basic_arithmetic", "--instances", "4"]) == 0
        assert "level_1" in capsys.readouterr().out
