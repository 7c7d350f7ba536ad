"""What `make setup` refuses, and with which words. pip's words are as pip 23.2 prints them."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "requirements" / "check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", [(3, 6), (3, 10), (3, 14), (4, 0)])
def test_a_python_that_was_not_tried_is_refused_by_name(check: ModuleType, version: tuple[int, int]) -> None:
    with pytest.raises(
        SystemExit, match=r"(?s)PYTHON=.*it is Python {}\.{}; .*tried on 3\.11, 3\.12".format(*version)
    ) as no:
        check.refuse_python(version, ">=3.11,<3.13")
    assert str(no.value).endswith("remedy: make PYTHON=python3.11")


def test_a_python_that_was_tried_is_taken(check: ModuleType) -> None:
    for version in ((3, 11), (3, 12)):
        check.refuse_python(version, ">=3.11,<3.13")
    subprocess.run([sys.executable, str(SCRIPT), "python"], check=True, timeout=60)


def test_the_script_loads_in_the_pythons_that_it_refuses() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


FOUND = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.13.0\n"
PYPI_ONLY = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0\n"
EXPERIMENTAL = "WARNING: pip index is currently an experimental command. It may be removed/changed.\n"
RETRYING = "WARNING: Retrying (Retry(total=0)) after connection broken by 'refused': /simple/torch/\n"
NOTHING = "ERROR: No matching distribution found for torch\n"


@pytest.mark.parametrize("complaints", [EXPERIMENTAL, EXPERIMENTAL + RETRYING])
def test_a_build_that_pip_finds_is_taken(check: ModuleType, complaints: str) -> None:
    check.refuse_build("torch", "2.13.0+cpu", FOUND, complaints)


def test_a_build_that_no_index_has_is_refused_with_the_variable(check: ModuleType) -> None:
    with pytest.raises(
        SystemExit, match=r"(?s)^torch==2\.13\.0\+cpu\n.*no such build.*set PIP_EXTRA_INDEX_URL"
    ):
        check.refuse_build("torch", "2.13.0+cpu", PYPI_ONLY, EXPERIMENTAL)


@pytest.mark.parametrize(
    ("found", "complaints"), [("", RETRYING + NOTHING), ("", NOTHING), (PYPI_ONLY, RETRYING)]
)
def test_an_index_that_was_not_reached_is_another_matter(
    check: ModuleType, found: str, complaints: str
) -> None:
    with pytest.raises(SystemExit, match=r"(?s)not ask its package index.*check the network") as no:
        check.refuse_build("torch", "2.13.0+cpu", found, EXPERIMENTAL + complaints)
    assert "PIP_EXTRA_INDEX_URL" not in str(no.value)
    assert "experimental" not in str(no.value)
    assert complaints.splitlines()[-1] in str(no.value)


def test_what_is_installed_is_not_asked_for(check: ModuleType, tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("# torch==0.0+none\npytest==0.0\ntorch==2.13.0+cpu\n")
    asked = []

    def installed(name: str, version: str) -> bool:
        asked.append((name, version))
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "installed", installed)
        patch.setattr(check.subprocess, "run", None)
        check.refuse_missing_builds(pins)
    assert asked == [("torch", "2.13.0+cpu")]


def test_installed_means_this_very_version(check: ModuleType) -> None:
    assert check.installed("pytest", pytest.__version__)
    assert not check.installed("pytest", f"{pytest.__version__}+cpu")
    assert not check.installed("no-such-package-of-rlpost", "1")
