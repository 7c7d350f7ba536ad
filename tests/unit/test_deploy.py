"""The templates of deploy/: versions equal those of pyproject.toml and requirements/, and what they start is right.

docs/deploy.md and docs/clusters.md say what was tried with the real tools.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlpost.config.compose import compose

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))


def pins(name: str) -> dict[str, str]:
    """Package to version in a file of requirements/."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([\w.-]+)={2,3}(\S+)", text, re.MULTILINE))


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines() if line.strip()]


def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    return loaded


def pods() -> list[dict[str, Any]]:
    cluster = job()["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


class TestImages:
    def test_there_is_one_for_each_platform(self) -> None:
        assert [path.suffix for path in DOCKERFILES] == [".cpu", ".gpu"]

    @pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
    def test_python_is_one_that_rlpost_was_tried_on(self, path: Path) -> None:
        requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
        (image,) = (words for name, words in instructions(path) if name == "FROM")
        lowest = re.search(r">=(3\.\d+)", requires)
        assert lowest
        assert image.startswith(f"python:{lowest[1]}-")

    @pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
    def test_it_installs_the_pins_of_its_platform_and_nothing_unpinned(self, path: Path) -> None:
        installs = re.findall(r"pip install ([^&\n]*)", "\n".join(words for _, words in instructions(path)))
        packages, source = (words.split() for words in installs)
        files = [word for word in packages if word.startswith("requirements/")]
        assert files == [f"requirements/{path.suffix[1:]}.txt", "requirements/cluster.txt"]
        assert "--no-deps" in packages
        assert {"--no-deps", "--no-build-isolation", "."} <= set(source)

    @pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
    def test_what_it_copies_is_there_and_not_ignored(self, path: Path) -> None:
        kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
        copied = [word for name, words in instructions(path) if name == "COPY" for word in words.split()[:-1]]
        assert all((ROOT / word).exists() for word in copied)
        assert {word.partition("/")[0] for word in copied} == kept

    @pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
    def test_it_does_not_run_as_root(self, path: Path) -> None:
        after_user = [name for name, _ in instructions(path)[-4:]]
        assert after_user == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]
        assert ("USER", "1000") in instructions(path)

    @pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt"])
    def test_the_packages_for_clusters_are_none_that_a_platform_pins(self, name: str) -> None:
        normal = {re.sub(r"[-_.]+", "-", package).lower() for package in pins(name)}
        assert not normal & {re.sub(r"[-_.]+", "-", package).lower() for package in pins("cluster.txt")}


class TestKubeRay:
    def test_ray_is_the_pinned_one(self) -> None:
        assert (
            pins("cpu.txt")["ray"] == pins("gpu.txt")["ray"] == job()["spec"]["rayClusterSpec"]["rayVersion"]
        )

    def test_it_is_a_job_with_one_head_and_workers(self) -> None:
        assert (job()["apiVersion"], job()["kind"]) == ("ray.io/v1", "RayJob")
        assert len(pods()) == 2
        assert {pod["containers"][0]["image"] for pod in pods()} == {"rlpost:cpu"}

    def test_its_words_compose_and_join_the_cluster(self) -> None:
        program, experiment, *words = job()["spec"]["entrypoint"].split()
        assert program == "rlpost"
        config = compose([f"experiment={experiment}", *words])
        assert config.ray.address == "auto"
        cpus = sum(int(pod["containers"][0]["resources"]["limits"]["cpu"]) for pod in pods())
        rollout, learner = config.rollout, config.learner
        assert rollout.workers * rollout.cpus + learner.workers * learner.cpus <= cpus
        mounts = {mount["mountPath"] for mount in pods()[0]["containers"][0]["volumeMounts"]}
        assert any(str(config.output_dir).startswith(mount) for mount in mounts)

    def test_every_mount_has_its_volume(self) -> None:
        for pod in pods():
            mounted = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}

    def test_ray_asks_for_a_token(self) -> None:
        assert job()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


# Stand-ins for SLURM, Ray and the run: each notes its words and the token's length; Ray blocks, as it does.
STAND_INS = {
    "scontrol": 'printf "n1\\nn2\\nn3\\n"',
    "srun": 'while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node="${1#*=}"; shift; done\n'
    'echo "$node: $*" >> "$NOTES"; exec "$@"',
    "ray": 'trap "echo ray ended >> $NOTES; exit 0" TERM; echo up >> "$NOTES"; while true; do sleep 0.1; done',
    "python": "if [[ $1 == -c ]]; then [[ $2 == *address* ]] && echo 10.0.0.1 || echo secret; exit; fi\n"
    'cat > /dev/null; until [[ $(grep -cx up "$NOTES") == 3 ]]; do sleep 0.05; done\n'
    'echo "waits: $*" >> "$NOTES"; exit "$JOINED"',
    "rlpost": 'echo "run: $* token=$RAY_AUTH_TOKEN $RAY_AUTH_MODE" >> "$NOTES"\n'
    'trap "echo stopped >> $NOTES; exit 143" TERM; [[ $1 == long ]] && sleep 20 & wait $!; exit 3',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch job on three nodes."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {
        **{"PATH": "/usr/bin:/bin", "NOTES": str(tmp_path / "notes"), "JOINED": "0"},
        **{"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_SUBMIT_DIR": str(tmp_path)},
        **{"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "2"},
    }


def start(slurm: dict[str, str], *words: str) -> subprocess.Popen[str]:
    command = ["bash", str(DEPLOY / "slurm.sh"), *words]
    return subprocess.Popen(command, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def notes(slurm: dict[str, str]) -> list[str]:
    path = Path(slurm["NOTES"])
    return path.read_text().splitlines() if path.exists() else []


class TestSlurm:
    def test_it_starts_a_head_workers_and_the_run_and_ends_with_the_runs_code(
        self, slurm: dict[str, str]
    ) -> None:
        process = start(slurm, "generalpoints_ppo", "seed=1")
        assert process.wait(timeout=30) == 3
        told = notes(slurm)
        rays = sorted(line for line in told if " ray start " in line)
        assert [line.partition(":")[0] for line in rays] == ["n1", "n2", "n3"]
        assert all("--num-cpus=8 --num-gpus=2" in line for line in rays)
        assert "--head --node-ip-address=10.0.0.1 --port=20042" in rays[0]
        assert all("--address=10.0.0.1:20042" in line for line in rays[1:])
        assert "waits: - 10.0.0.1:20042 3 180" in told
        assert "run: generalpoints_ppo seed=1 ray.address=10.0.0.1:20042 token=secret token" in told
        assert told.count("ray ended") == 3

    def test_nodes_that_do_not_join_end_the_job(self, slurm: dict[str, str]) -> None:
        process = start({**slurm, "JOINED": "1"}, "generalpoints_ppo")
        assert process.wait(timeout=30) == 1
        assert not [line for line in notes(slurm) if line.startswith("run:")]
        assert notes(slurm).count("ray ended") == 3

    def test_sigterm_reaches_the_run_which_ends_before_ray_does(self, slurm: dict[str, str]) -> None:
        process = start(slurm, "long")
        deadline = time.monotonic() + 20
        while not any(line.startswith("run:") for line in notes(slurm)) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)  # the run sets its trap after its note
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=20) == 143
        assert [line for line in notes(slurm) if line in ("stopped", "ray ended")] == ["stopped"] + [
            "ray ended"
        ] * 3

    def test_without_words_it_says_how(self, slurm: dict[str, str]) -> None:
        process = start(slurm)
        assert process.wait(timeout=20) == 2
        assert process.stdout
        assert "usage: sbatch deploy/slurm.sh" in process.stdout.read()
