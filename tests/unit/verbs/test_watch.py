"""The live page: what it says of a run that goes on, who may ask for it, and what a browser does with it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from omegaconf import OmegaConf

from rlpost.command.main import main
from rlpost.errors import OutputError
from rlpost.pages import live_page
from rlpost.pages.live_page import LiveRun
from rlpost.record import locks, run_error
from rlpost.record.run_dir import RunDir, iteration_name
from rlpost.types import Ending
from rlpost.verbs.watch_server import serving
from tests.unit.browser import chromium, opened
from tests.unit.episodes import episode, turn
from tests.unit.pages import Page, assert_told
from tests.unit.verbs import recorded

DEADLINE_S = 60.0
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)></details></section>{{ 7*7 }} \ud83d"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a page that is served in a thread."""
    with serving(folder, 0, 1) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join(DEADLINE_S)


def get(url: str, path: str = "", method: str = "GET", **headers: str) -> tuple[int, str]:
    """Status and text. `path` is sent as it is, not made shorter as a browser would."""
    place = urlsplit(url)
    assert place.hostname
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=DEADLINE_S)
    try:
        connection.request(method, path or place.path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def fragments(url: str, seen: str = "") -> dict[str, dict[str, str]]:
    status, text = get(url, f"{urlsplit(url).path}fragments?seen={seen}")
    assert status == 200
    found: dict[str, dict[str, str]] = json.loads(text)
    return found


def text_of(html: str) -> str:
    return " ".join(Page(html).text.split())


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """Of a run that is at work: this process holds its folder."""
    run_dir = recorded.run(tmp_path / "run", "algo.iterations=16", finished=False)
    run_dir.write_trajectories(
        iteration_name(2),
        [
            episode(ending=Ending.ENV_ERROR, error="raised"),
            episode(turn("WRONG_VALUE", answer=HOSTILE), index=4),
            episode(turn("CORRECT", 5.0), success=True, index=5),
            episode(turn("CORRECT", 5.0), success=True, index=6),
        ],
    )
    return run_dir


@pytest.fixture
def held(run_dir: RunDir) -> Iterator[RunDir]:
    with locks.held(run_dir.path):
        yield run_dir


def add_iteration(run_dir: RunDir, i: int, **more: Any) -> None:
    line = {"stage": "rl", "iteration": i, "success": 0.5, "reward": 1.5, "kl_reference": 0.02, "episodes": 8}
    run_dir.append_metrics(line | {"seconds/rollout": 2.0, "seconds/total": 3.0} | more)


def said(live: LiveRun, name: str) -> str:
    return text_of(live.fragments()[name].decode())


def test_the_page_of_a_run_at_work(held: RunDir) -> None:
    with served(held.path) as url:
        status, html = get(url)
    page = Page(html)
    assert_told(page)
    text = " ".join(page.text.split())
    assert status == 200
    assert "running: iteration 3 of 16, about 39 s left; last line" in text  # 13 iterations of 3 s
    assert "success 20.0%, reward 2.000, KL 0.0200" in text
    assert "faces_10, sampled: 25.0% at 0, 62.5% at 3." in " ".join(
        image["alt"] or "" for image in page.all("img")
    )
    assert "Not solved: deal 4" in text
    assert "Solved: deal 5" in text
    assert "rollout6 s100%2.00 s2.00 s" in text.replace(" | ", "")
    assert "algo.iterations16" in text
    assert not page.all("link")


@pytest.mark.parametrize(
    ("kind", "size"), [("lora", True), ("oft", True), ("road", False), ("full", False), ("bitfit", False)]
)
def test_the_size_is_shown_of_kinds_that_have_one(held: RunDir, kind: str, size: bool) -> None:
    config = OmegaConf.load(held.config)
    OmegaConf.update(config, "lora.kind", kind)
    OmegaConf.save(config, held.config)
    text = said(LiveRun(held.path), "settings").partition("config.yaml")[0]
    assert f"lora.kind{kind}" in text.replace(" ", "").replace("|", "")
    assert ("lora.rank" in text) is size


def test_what_a_model_wrote_stays_text(held: RunDir) -> None:
    with served(held.path) as url:
        page = Page(get(url)[1])
    assert len(page.all("script")) == 1
    assert HOSTILE[:-1] in page.text
    (policy,) = (
        meta["content"] or ""
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert f"script-src 'nonce-{page.all('script')[0]['nonce']}'" in policy
    assert policy.startswith("default-src 'none'")


def test_a_run_that_goes_on_while_it_is_watched(held: RunDir) -> None:
    with served(held.path) as url:
        first = fragments(url)
        assert set(first) == {"status", "warnings", "curves", "time", "episodes", "settings"}
        seen = ",".join(f"{name}:{each['version']}" for name, each in first.items())
        assert set(fragments(url, seen)) <= {"status"}  # whose seconds go on
        with held.metrics.open("ab") as file:
            file.write(b'{"stage": "rl", "iteration": 3, "succ')
            file.flush()
            assert "iteration 3 of 16" in text_of(fragments(url)["status"]["html"])
            file.write(b'ess": 0.75, "seconds/total": 3.0}\n')
        held.write_trajectories(iteration_name(3), [episode(turn("CORRECT", 5.0), success=True, index=9)])
        then = fragments(url, seen)
    assert "iteration 4 of 16" in text_of(then["status"]["html"])
    assert "success 75.0%" in text_of(then["status"]["html"])
    assert "Solved: deal 9" in text_of(then["episodes"]["html"])
    assert "settings" not in then


def test_many_ask_at_once(held: RunDir) -> None:
    found: list[int] = []
    with served(held.path) as url:
        threads = [threading.Thread(target=lambda: found.append(get(url)[0])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for i in range(3, 8):
            add_iteration(held, i)
        for thread in threads:
            thread.join(DEADLINE_S)
    assert found == [200] * 8


def test_another_host_is_refused(tmp_path: Path) -> None:
    others = ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", ""]
    (tmp_path / "config.yaml").write_text("task: compare\n")
    with served(tmp_path) as url:
        assert [get(url, Host=host)[0] for host in others] == [403] * len(others)
        assert get(url, Host=f"localhost:{urlsplit(url).port}")[0] == 200


def test_nothing_is_told_without_the_token(held: RunDir) -> None:
    with served(held.path) as url:
        token = urlsplit(url).path.strip("/")
        wrong = ["/", "/fragments", f"/{token[:-1]}/", f"/{token}x/", "/%00/", f"/x/../{token}/"]
        assert [get(url, path) for path in wrong] == [(404, "404 Not Found\n")] * len(wrong)
        assert [get(url, method=method)[0] for method in ("POST", "PUT", "HEAD", "DELETE")] == [501] * 4
    assert len(token) >= 32


PATHS = (
    *("../", "..%2f", "../../../etc/passwd", "//etc/passwd", "config.yaml", "metrics.jsonl"),
    *(
        "cells/../",
        "cells/a/../../config.yaml",
        "cells/..%2f..%2f/",
        "cells/%2e%2e/",
        "cells//",
        "cells/a%00/",
    ),
    *("cells/secret/", "cells/a/x/"),
)


def test_no_path_leads_to_a_file(tmp_path: Path) -> None:
    """Neither below the folder nor outside; and a cell that was not planned is none, though its folder is there."""
    recorded.run(tmp_path / "cells" / "secret", finished=False)
    recorded.run(tmp_path / "cells" / "a", finished=False)
    (tmp_path / "cells" / "a.yaml").write_text("name: a\n")
    with served(tmp_path) as url:
        base = urlsplit(url).path
        assert [get(url, base + path)[0] for path in PATHS] == [404] * len(PATHS)
        assert get(url, f"{base}cells/a/")[0] == 200


def comparison(folder: Path) -> None:
    """Of PPO and SFT with two seeds: a start that is done, one cell at work, one that failed, three that wait."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("task: compare\ncompare: {seeds: [0, 1], arms: [sft, ppo]}\n")
    ended = {"init-0": ("done", None), "sft-0": ("failed", "OutputError: <b>full</b>")}
    for name in ("init-0", "ppo-0", "sft-0"):
        recorded.run(folder / "cells" / name, "algo.iterations=4", finished=False)
        (folder / "cells" / f"{name}.yaml").write_text("name: x\n")
    for name, (status, error) in ended.items():
        record = {"status": status, "error": error, "seconds": 1.0}
        (folder / "cells" / f"{name}.json").write_text(json.dumps(record))


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    comparison(tmp_path)
    with locks.held(tmp_path), locks.held(tmp_path / "cells" / "ppo-0"), served(tmp_path) as url:
        page = Page(get(url)[1])
        links = [a["href"] or "" for a in page.all("a")]
        cell = Page(get(url, urlsplit(url).path + links[2])[1])
        assert get(url, f"{urlsplit(url).path}cells/init-1/")[0] == 404
    rows = [" ".join(row.split()) for row in page.text.partition("cellstate")[2].split("\n") if row.strip()]
    assert "running: 2 of 6 cells have ended." in page.text
    assert [row.partition("last line")[0] for row in rows[1:7]] == [
        "init-0doneiteration 3 of 420.0%",
        "sft-0failedOutputError: <b>full</b>iteration 3 of 420.0%",
        "ppo-0runningiteration 3 of 420.0%",
        *("init-1waiting--", "sft-1waiting--", "ppo-1waiting--"),
    ]
    assert links == ["cells/init-0/", "cells/sft-0/", "cells/ppo-0/"]
    assert "running: iteration 3 of 4" in " ".join(cell.text.split())
    assert [a["href"] for a in cell.all("a")] == ["../../"]


def test_a_comparison_that_has_ended_or_failed(tmp_path: Path) -> None:
    comparison(tmp_path)
    (tmp_path / "config.yaml").write_text("task: compare\n")
    with served(tmp_path) as url:
        assert "running or stopped: 2 of 3 cells have ended." in Page(get(url)[1]).text
        (tmp_path / "cells" / "ppo-0.json").write_text(
            json.dumps({"status": "done", "error": None, "seconds": 1.0})
        )
        assert "finished: 3 of 3 cells have ended." in Page(get(url)[1]).text
        with pytest.raises(OutputError), run_error.kept(tmp_path):
            raise OutputError("x")
        text = Page(get(url)[1]).text
    assert "failed: 3 of 3" in text
    assert "The comparison ended with OutputError: x" in text


def test_a_failed_run_says_with_what(run_dir: RunDir) -> None:
    with pytest.raises(OutputError), run_error.kept(run_dir.path):
        raise OutputError("x\n  reason: <b>full</b>\n  remedy: clear it")
    found = LiveRun(run_dir.path)
    assert "The run failed with OutputError: x; reason: <b>full</b>; remedy: clear it" in said(
        found, "warnings"
    )
    assert said(found, "status").startswith("failed: iteration 3 of 16; last line")


def test_a_run_that_was_killed(run_dir: RunDir) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(DEADLINE_S)
    (run_dir.path / locks.FILE).write_text(f"pid {process.pid} on {socket.gethostname()}")
    assert "stopped or killed" in said(LiveRun(run_dir.path), "warnings")


def test_a_run_that_says_nothing_for_long_is_late(held: RunDir) -> None:
    """Late after 60 s or three times the longest lap: with a lap of 40 s, after 120 s."""
    add_iteration(held, 3, **{"seconds/total": 40.0})
    now = held.metrics.stat().st_mtime
    assert "No line" not in said(LiveRun(held.path, lambda: now + 119), "warnings")
    assert "No line for 2:01: the longest of the last took 40 s." in said(
        LiveRun(held.path, lambda: now + 121), "warnings"
    )


def test_failed_episodes_and_lost_values_are_told(held: RunDir) -> None:
    add_iteration(held, 3, broken=4, first_failure="ValueError: <i>x</i>", entropy=float("nan"))
    with held.metrics.open("ab") as file:
        file.write(b"no JSON\n")
    found = said(LiveRun(held.path), "warnings")
    assert (
        "4 of 8 episodes (50%) broken by the environment; the first, in iteration 4: ValueError: <i>x</i>"
        in found
    )
    assert "1 values were not finite." in found
    assert "1 lines of metrics.jsonl cannot be read." in found


def test_a_broken_part_is_told_and_the_others_are_shown(held: RunDir) -> None:
    held.trajectories_file(iteration_name(2)).write_bytes(b"{}\n")
    found = LiveRun(held.path)
    assert "This cannot be shown: ValueError" in said(found, "episodes")
    assert "iteration 3 of 16" in said(found, "status")


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "run", "demo", 0, "name: demo\n")
    found = LiveRun(run_dir.path)
    assert said(found, "status") == "running or stopped: starting: no line yet; no line yet."
    assert "No episode is on record." in said(found, "episodes")
    run_dir.append_metrics({"stage": "start", "seconds/total": 3.0})
    assert "start of engines and learner done, no iteration yet" in said(found, "status")


def test_figures_are_drawn_seldom(held: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """New lines wait until drawing again takes a twentieth of the time; a run that has ended does not wait."""
    now, drawn, cpu = [1000.0], [], [0.0]
    live = LiveRun(held.path, lambda: now[0])

    def draw(lines: list[Any]) -> bytes:
        drawn.append(len(lines))
        cpu[0] += 0.5
        return b""

    monkeypatch.setattr(live, "_draw_curves", draw)
    monkeypatch.setattr(live_page.time, "thread_time", lambda: cpu[0])
    live.fragments()
    live.fragments()
    assert drawn == [3]
    add_iteration(held, 3)
    now[0] += 9.9
    live.fragments()
    assert drawn == [3]
    now[0] += 0.2
    live.fragments()
    assert drawn == [3, 4]
    add_iteration(held, 4)
    monkeypatch.setattr(live_page, "state_of", lambda run_dir: live_page.State.FINISHED)
    live.fragments()
    assert drawn == [3, 4, 5]


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["--every", "0"], 2, "--every 0"),
        (["--port", "70000"], 2, "--port 70000"),
        (["--wait", "inf"], 2, "--wait inf"),
        (["--wait", "0.3"], 1, "after 0.3 s it holds no run"),
    ],
)
def test_what_is_refused(
    argv: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(tmp_path / "none"), *argv]) == code
    assert told in capsys.readouterr().err


def test_a_port_that_is_taken(held: RunDir) -> None:
    with served(held.path) as url:
        port = urlsplit(url).port or 0
        with pytest.raises(OutputError, match="it cannot be had"), serving(held.path, port, 5):
            pass


def test_the_command_waits_for_its_run_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "rlpost", "watch", str(folder), "--wait", str(DEADLINE_S)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    guard = threading.Timer(DEADLINE_S, process.kill)
    guard.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"Waiting up to 60 s for {folder}")
        recorded.run(folder)
        url = process.stdout.readline().strip()
        assert get(url)[0] == 200
        process.send_signal(2)
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, errors) == (0, "")
    finally:
        guard.cancel()
        process.kill()
        process.wait()


@pytest.mark.parametrize("width", [400, 1280])
def test_a_comparison_in_a_browser(tmp_path: Path, width: int) -> None:
    """Its table may scroll in its own box; the page does not."""
    comparison(tmp_path / "comparison")
    chromium()
    with served(tmp_path / "comparison") as url:
        asyncio.run(_fits(url, tmp_path, width))


async def _fits(url: str, folder: Path, width: int) -> None:
    async with opened(folder) as tab:
        await tab.open(url, width)
        assert await tab.eval("document.documentElement.scrollWidth <= innerWidth")
        assert await tab.eval("document.querySelectorAll('tbody tr').length") == 6
        assert tab.said == []


@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser(held: RunDir, tmp_path: Path, width: int) -> None:
    """No overflow to the side; a change arrives, and what is opened, the focus and the place in view stay."""
    chromium()
    with served(held.path) as url:
        asyncio.run(_looked_at(url, held, tmp_path, width))


async def _looked_at(url: str, run_dir: RunDir, folder: Path, width: int) -> None:
    async with opened(folder) as tab:
        await tab.open(url, width)
        assert await tab.eval("document.documentElement.scrollWidth <= innerWidth")
        assert await tab.eval("document.body.getBoundingClientRect().height > 1000")
        outside = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        assert await tab.eval(f"{outside}.length") == 0
        assert await tab.eval("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
        # Without the browser's own anchoring, which not every browser has.
        await tab.eval("document.documentElement.style.overflowAnchor = 'none'")
        await tab.eval("document.getElementById('config').open = true")
        await tab.eval("document.getElementById('episode-1').open = false")
        await tab.eval("document.querySelector('#episode-2 summary').focus()")
        await tab.eval("document.querySelector('#settings dl').scrollIntoView()")
        place = await tab.eval("document.querySelector('#settings dl').getBoundingClientRect().top")
        run_dir.write_trajectories(
            iteration_name(3),
            [
                episode(turn("WRONG_VALUE", answer=f"{HOSTILE}\n" * 30), index=7),
                episode(turn("CORRECT", 5.0), success=True, index=8),
            ],
        )
        add_iteration(run_dir, 3)
        await tab.until("document.body.innerText.includes('iteration 4 of 16')")
        await tab.until("document.body.innerText.includes('Solved: deal 8')")
        assert await tab.eval("document.getElementById('config').open")
        assert await tab.eval("document.getElementById('episode-1').open") is False
        assert await tab.eval("document.activeElement.closest('details').id") == "episode-2"
        after = await tab.eval("document.querySelector('#settings dl').getBoundingClientRect().top")
        assert abs(after - place) <= 1
        await tab.eval("document.getElementById('pause').click()")
        add_iteration(run_dir, 4)
        await asyncio.sleep(2.5)  # two looks that it does not take
        assert "iteration 4 of 16" in await tab.eval("document.body.innerText")
        await tab.eval("document.getElementById('pause').click()")
        await tab.until("document.body.innerText.includes('iteration 5 of 16')")
        assert await tab.eval("document.documentElement.scrollWidth <= innerWidth")
        assert tab.said == []
