"""What may be imported where: composing and validating, and `envs`, stay light; each heavy library has one door."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = [
    *("torch", "vllm", "ray", "deepspeed", "transformers", "peft", "triton"),
    *("wandb", "tensorboard", "mlflow", "aiohttp", "openai"),
]
DOORS = {
    "vllm": {"rlpost/rollout/engine/vllm_start.py"},
    "deepspeed": {"rlpost/learner/deepspeed_backend.py"},
    "wandb": {"rlpost/record/trackers/wandb_backend.py"},
    "tensorboard": {"rlpost/record/trackers/tensorboard_backend.py"},
    "torch.utils.tensorboard": {"rlpost/record/trackers/tensorboard_backend.py"},
    "mlflow": {"rlpost/record/trackers/mlflow_backend.py"},
    "triton": {"rlpost/kernels/linear_logprob_triton.py"},
    "aiohttp": {"envs/agent/server.py"},
    "openai": {"rlpost/rollout/endpoint/client.py"},
}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after a fresh interpreter has run `code`."""
    program = (
        f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "from rlpost.run import prepare; prepare(['experiment=generalpoints_ppo'])",
        "import rlpost.weights.models, rlpost.record.tracking, rlpost.types, rlpost.errors",
        "import rlpost.envs; from rlpost.envs import registry; registry.make('generalpoints').reset(seed=0)",
        "import rlpost.envs.agent.env, rlpost.envs.agent.settings",
    ],
)
def test_light_paths_import_nothing_heavy(code: str) -> None:
    loaded = loaded_by(code)
    assert "json" in loaded
    assert not loaded & set(HEAVY)


def test_the_check_itself_can_fail() -> None:
    assert "ray" in loaded_by("import rlpost.cluster.ray_cluster")


def sources(package: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of what a module imports, at any depth of its code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_of(name: str, library: str) -> bool:
    """Whether `name` is the package or module `library`, or within it."""
    return f"{name}.".startswith(f"{library}.")


# Which folders of rlpost a folder may import, beside itself. `envs`, `types`, `errors` and `seeds` are everybody's.
MAY_IMPORT = {
    "config": set(),
    "kernels": set(),
    "algorithms": {"config"},
    "cluster": {"config"},
    "record": {"config"},
    "weights": {"algorithms", "config", "kernels", "record"},
    "pretrain": {"cluster", "config", "record"},
    "learner.model": {"algorithms", "cluster", "config", "kernels", "weights"},
    "learner": {"algorithms", "cluster", "config", "learner.model", "record", "weights"},
    "rollout.engine": {"config", "weights"},
    "rollout": {"algorithms", "cluster", "config", "rollout.engine", "weights"},
    "memory": {"algorithms", "cluster", "config", "rollout.engine", "weights"},
    "pages": {"config", "record", "rollout"},
    "compare.design": {"config", "record"},
    "validate": {"cluster", "compare.design", "config", "memory", "record", "rollout", "weights"},
    "doctor": {"cluster", "config", "memory", "record", "validate", "weights"},
    "compare.statistics": {"compare.design"},
    "compare.report": {"compare.design", "compare.statistics", "pages", "record"},
    "tasks": {
        *("cluster", "config", "learner", "pages", "pretrain", "record"),
        *("rollout", "rollout.engine", "validate", "weights"),
    },
    "verbs": {
        *("compare", "compare.design", "config", "doctor", "pages", "record"),
        *("rollout", "rollout.engine", "tasks", "weights"),
    },
    "compare": {
        *("cluster", "compare.design", "compare.report", "compare.statistics"),
        *("config", "pages", "record", "tasks", "validate", "weights", "rlpost.run"),
    },
    "api": {"cluster", "config", "record", "validate", "rlpost.run"},
    "command": {"config", "validate", "rlpost.run"},  # verbs are imported by name, when chosen
}
EVERYBODYS = {"rlpost.envs", "rlpost.types", "rlpost.errors", "rlpost.seeds"}


def folder_of(module: str) -> str:
    """`rollout.engine` of `rlpost.rollout.engine.swap`; the longest that MAY_IMPORT has."""
    inside = module.removeprefix("rlpost.")
    return max((f for f in MAY_IMPORT if f"{inside}.".startswith(f"{f}.")), key=len, default="")


def modules_imported(tree: ast.Module) -> Iterator[str]:
    """Full names of the modules of rlpost that a module imports, at any depth of its code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rlpost"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("rlpost"))


def test_folders_import_what_the_table_says_and_no_more() -> None:
    used: dict[str, set[str]] = {folder: set() for folder in MAY_IMPORT}
    for path, tree in sources("rlpost"):
        module = path.removesuffix(".py").replace("/", ".")
        if folder := folder_of(module):
            others = {m for m in modules_imported(tree) if not any(m.startswith(e) for e in EVERYBODYS)}
            used[folder] |= {folder_of(other) or ".".join(other.split(".")[:2]) for other in others} - {
                folder
            }
    assert used == MAY_IMPORT


def test_the_table_has_no_circle() -> None:
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()


def test_environments_import_nothing_of_rlpost() -> None:
    found = dict(sources("envs"))
    assert found
    others = {
        path: [m for m in modules_imported(tree) if not m.startswith("rlpost.envs")]
        for path, tree in found.items()
    }
    assert not {path: modules for path, modules in others.items() if modules}


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_heavy_library_has_one_door(library: str) -> None:
    everything = (*sources("rlpost"), *sources("envs"))
    users = {path for path, tree in everything if any(is_of(name, library) for name in imports(tree))}
    assert users <= DOORS[library]


def test_only_the_cluster_starts_ray() -> None:
    users = {
        path
        for path, tree in sources("rlpost")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "init" and ast.unparse(node.value) == "ray"
    }
    assert users == {"rlpost/cluster/ray_cluster.py"}


# Runs pytest as if these packages were not installed, without the tests that compile Triton kernels: they take most of
# the time.
WITHOUT = """
import sys

import pytest


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "peft", "ray", "vllm", "deepspeed", "trl"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuse())
slow = "--deselect=tests/numerics/test_triton_compiles.py"
sys.exit(pytest.main(["-q", "-n0", "-pno:cacheprovider", slow, *sys.argv[1:]]))
"""


def without_heavy_packages(*paths: str) -> subprocess.CompletedProcess[str]:
    """pytest over `paths`, in a process that cannot import those packages."""
    command = [sys.executable, "-c", WITHOUT, *paths]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, cwd=ROOT)


def test_the_mathematics_is_tested_without_the_libraries_that_run_models() -> None:
    done = without_heavy_packages("tests/numerics")
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = {line for line in done.stdout.splitlines() if line.startswith("SKIPPED")}
    optional = ("test_trl", "triton", "bitsandbytes")
    assert all(any(name in line for name in optional) for line in skipped), skipped


def test_a_test_of_the_mathematics_that_needs_transformers_is_seen(tmp_path: Path) -> None:
    test = tmp_path / "test_needs.py"
    test.write_text("def test_it():\n    import transformers\n", encoding="utf-8")
    assert without_heavy_packages(str(test)).returncode == 1
