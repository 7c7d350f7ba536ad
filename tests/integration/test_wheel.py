"""rlpost as a package: sdist, then wheel, installed outside the checkout and used beside a user's own `envs`.

The wheel is built from the unpacked sdist, as `python -m build` does. The virtual environment has the wheel alone;
everything else comes from the environment that runs the tests, by a path that does not bring its editable rlpost.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("rlpost", "envs", "experiments", "pyproject.toml", "README.md", "LICENSE")
SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"

# An environment whose package is called `envs`, with a module `base`, as rlpost's own once was.
OWN = {
    "__init__.py": "",
    "base.py": "GREETING = 'Say yes.'\n",
    "agree.py": """
import gymnasium

from envs.base import GREETING


class Agree(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Text(1000)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return f"{GREETING} {self.np_random.integers(10**6)}", {}

    def step(self, action):
        return "", float("yes" in action), True, False, {}
""",
}


@dataclass(frozen=True)
class Installed:
    sdist: Path
    wheel: Path
    bin: Path  # of the virtual environment
    folder: Path  # a working directory with a user's own `envs`

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        program, *words = command
        return subprocess.run(
            [str(self.bin / program), *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.folder), "WANDB_MODE": "disabled"},
        )


def _call(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _copy_of_the_checkout(target: Path) -> Path:
    """Building leaves folders beside its sources, so it works on a copy; links stay links."""
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    scratch = tmp_path_factory.mktemp("wheel")
    _call(sys.executable, "-c", SDIST, scratch, cwd=_copy_of_the_checkout(scratch / "checkout"))
    (sdist,) = scratch.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(scratch / "unpacked", filter="data")
    (unpacked,) = (scratch / "unpacked").iterdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    _call(
        *pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", scratch, unpacked, cwd=scratch
    )
    (wheel,) = scratch.glob("*.whl")
    _call(sys.executable, "-m", "venv", "--without-pip", scratch / "venv", cwd=scratch)
    python = scratch / "venv" / "bin" / "python"
    _call(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=scratch)
    site_packages = next((scratch / "venv").glob("lib/python*/site-packages"))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = scratch / "work"
    (folder / "envs").mkdir(parents=True)
    for name, text in OWN.items():
        (folder / "envs" / name).write_text(text)
    return Installed(sdist, wheel, python.parent, folder)


def in_checkout() -> set[str]:
    """Every file of the package, through its links."""

    def below(folder: Path) -> Iterator[str]:
        for path in folder.iterdir():
            if path.is_dir() and path.name != "__pycache__":
                yield from (f"{folder.name}/{each}" for each in below(path))
            elif path.is_file():
                yield f"{folder.name}/{path.name}"

    return set(below(ROOT / "rlpost"))


def test_wheel_and_sdist_hold_every_file_of_the_package(installed: Installed) -> None:
    wanted = in_checkout()
    assert {"rlpost/envs/base.py", "rlpost/experiments/generalpoints_ppo.yaml"} < wanted
    with zipfile.ZipFile(installed.wheel) as wheel:
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == wanted
    with tarfile.open(installed.sdist) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
        assert not [member for member in sdist.getmembers() if member.issym()]
    assert {name for name in names if name.startswith("rlpost/")} == wanted


def test_what_runs_comes_from_the_wheel(installed: Installed) -> None:
    told = installed.run(
        "python", "-c", "import rlpost, rlpost.envs.base as b; print(rlpost.__file__, b.__file__)"
    )
    files = told.stdout.split()
    assert len(files) == 2, told.stderr
    assert all(Path(file).is_relative_to(installed.bin.parent) for file in files)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], "generalpoints_ppo"),
        (["list"], "faces_11_12_13"),
        (["settings", "algo.clip"], "clips the probability ratio"),
        (["completion", "bash"], "complete -o default -F _rlpost rlpost"),
        (["completion", "words", "experiment=tiny"], "experiment=tiny_base"),
    ],
)
def test_the_command_of_the_wheel(installed: Installed, words: list[str], expected: str) -> None:
    done = installed.run("rlpost", *words)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


@pytest.mark.parametrize("start", [["rlpost"], ["python", "-m", "rlpost.run"]], ids=" ".join)
def test_rlpost_plays_its_own_environments_beside_a_users_envs(
    installed: Installed, start: list[str]
) -> None:
    done = installed.run(*start, "experiment=generalpoints_ppo", "task=dry_run", "rollout.episodes=8")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("start", [["rlpost"], ["python", "-m", "rlpost.run"]], ids=" ".join)
def test_a_users_package_envs_is_theirs(installed: Installed, start: list[str]) -> None:
    own = ["experiment=own_ppo", "env=envs.agree:Agree", "task=dry_run", "rollout.episodes=8"]
    done = installed.run(*start, *own)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Say yes." in done.stdout


def test_a_module_of_the_working_directory_does_not_replace_an_installed_one(installed: Installed) -> None:
    (installed.folder / "omegaconf.py").write_text(
        "raise SystemExit('imported from the working directory')\n"
    )
    try:
        assert installed.run("rlpost", "--help").returncode == 0
    finally:
        (installed.folder / "omegaconf.py").unlink()


@pytest.mark.slow
def test_the_main_job_runs_from_the_wheel(installed: Installed) -> None:
    """Also in the workers: engine and learner are processes of their own, which import rlpost anew."""
    short = [
        "algo.iterations=2",
        "algo.critic_warmup=1",
        "rollout.episodes=16",
        "eval.episodes=16",
        "sft.steps=2",
    ]
    done = installed.run("rlpost", "generalpoints_ppo", *short, "output_dir=run", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (installed.folder / "run" / "adapter" / "adapter_model.safetensors").is_file()
