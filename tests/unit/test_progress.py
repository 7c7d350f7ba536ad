"""What a run shows: plain lines without a terminal, a bar with one, and the table of results."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from rlpost.pages.console import Progress, duration, results_table
from rlpost.record.summary import headlines, rows_of, verdict

METRICS = {
    "success": 0.125,
    "reward": -0.5,
    "kl_reference": 0.0123,
    "tokens/sampled": 9000.0,
    "seconds/rollout": 3.0,
    "seconds/total": 10.0,
}


def entry(success: float, low: float, high: float) -> dict[str, object]:
    return {"n": 256, "success": success, "low": low, "high": high}


def summary() -> dict[str, object]:
    trained = {"greedy": entry(0.2, 0.15, 0.25), "sampled": entry(0.1, 0.07, 0.14)}
    better = {"greedy": entry(0.4, 0.35, 0.46), "sampled": entry(0.05, 0.03, 0.06)}
    unseen = {"greedy": entry(0.1, 0.07, 0.14)}
    return {
        "eval": {
            "before": {"a_rule": unseen, "faces_10": trained},
            "after": {"a_rule": {"greedy": entry(0.12, 0.09, 0.17)}, "faces_10": better},
        },
        "variants": {
            "faces_10": {"held_out": False, "summary": ""},
            "a_rule": {"held_out": True, "summary": ""},
        },
        "train_variant": "faces_10",
    }


def plain() -> Console:
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_one_plain_line_an_iteration() -> None:
    console = plain()
    progress = Progress(console, 40)
    progress.stage("warm start [1/2]")
    progress.iteration(1, METRICS)
    progress.iteration(2, {})
    progress.close()
    progress.close()
    lines = printed(console).splitlines()
    assert lines[0] == "warm start [1/2]"
    first = "   1/40  success  12.5%  reward  -0.500  KL  0.0123  tokens/s  3,000  left 6:30"
    assert lines[1] == first
    assert lines[2] == "   2/40  success -  reward -  KL -  tokens/s -  left 6:20"
    assert "\x1b" not in printed(console)


def test_lines_lead_with_the_mean_reward_once_answers_are_graded() -> None:
    """From the first episode that was paid for without being solved on, or an evaluation's."""
    console = plain()
    progress = Progress(console, 40)
    for part in (0.0, 0.25, 0.0):
        progress.iteration(1, {**METRICS, "partly_right": part})
    starts = [line[7:39] for line in printed(console).splitlines()]
    plainly, graded = "  success  12.5%  reward  -0.500", "  reward  -0.500  success  12.5%"
    assert starts == [plainly, graded, graded]
    console = plain()
    progress = Progress(console, 40)
    progress.lead_with_reward()
    progress.iteration(1, METRICS)
    assert graded in printed(console)


def test_time_left_follows_the_last_iterations_and_what_closes_the_run() -> None:
    console = plain()
    progress = Progress(console, 100)
    for done in range(1, 9):
        progress.iteration(done, {"seconds/total": 1000.0})
    for done in range(9, 17):
        progress.iteration(done, {"seconds/total": 2.0})
    progress.closing(12.0)
    progress.iteration(17, {"seconds/total": 2.0})
    assert printed(console).splitlines()[-1].endswith("left 2:58")  # 83 iterations of 2 s, and 12 s


def test_a_terminal_shows_lines_above_a_bar_and_ends_clean() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    progress = Progress(console, 3)
    progress.stage("rollouts [of 3]")
    progress.iteration(1, METRICS)
    progress.close()
    progress.iteration(2, METRICS)
    shown = printed(console)
    assert "rollouts [of 3]" in shown
    assert "success  12.5%" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is given back


def test_where_nobody_knows_how_many_it_claims_no_end() -> None:
    console = plain()
    progress = Progress(console, None)
    progress.iteration(12, METRICS)
    assert printed(console) == "  12  success  12.5%  reward  -0.500  KL  0.0123  tokens/s  3,000\n"


def test_where_engines_play_ahead_tokens_count_over_the_whole_iteration() -> None:
    console = plain()
    Progress(console, None).iteration(12, {**METRICS, "streaming/in_flight": 3.0})
    assert "tokens/s    900" in printed(console)


@pytest.mark.parametrize(("total", "shown"), [(3, "2/3 left 10 s"), (None, " 2 ")])
def test_the_bar_follows_steps_that_have_no_line(total: int | None, shown: str) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    progress = Progress(console, total)
    progress.step(2, METRICS)
    progress.close()
    assert shown in printed(console)
    assert "success" not in printed(console)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_results_table_has_a_row_a_decoding_and_a_column_a_stage() -> None:
    console = plain()
    results_table(console, summary())
    lines = printed(console).splitlines()
    assert "before" in lines[1]
    assert "warm" not in lines[1]
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if "[" in line]
    assert len(rows) == 3
    assert all(
        word in rows[0] for word in ("faces_10", "trained", "greedy", "20.0% [15, 25]", "40.0% [35, 46]")
    )
    assert all(word in rows[2] for word in ("a_rule", "held out", "12.0% [9, 17]"))


def test_right_steps_have_a_row_where_episodes_have_several() -> None:
    console, walked = plain(), summary()
    walked["eval"]["before"]["faces_10"]["sampled"]["step_accuracy"] = 0.0
    walked["eval"]["after"]["faces_10"]["sampled"]["step_accuracy"] = 0.625
    results_table(console, walked)
    rows = [line.split() for line in printed(console).splitlines() if "right steps" in line]
    assert rows == [["right", "steps", *shares] for shares in (["-", "-"], ["0.0%", "62.5%"], ["-", "-"])]


def test_samples_have_rows_of_the_greatest_k() -> None:
    console, sampled = plain(), summary()
    by_k = {str(k): {"value": k / 10, "low": 0.05, "high": 0.9} for k in range(1, 5)}
    sampled["eval"]["after"]["faces_10"]["sampled"] |= {"pass_at": by_k, "majority_at": by_k}
    results_table(console, sampled)
    rows = [line.split() for line in printed(console).splitlines() if "@" in line]
    assert rows == [["pass@4", "-", "40.0%", "[5,", "90]"], ["majority@4", "-", "40.0%", "[5,", "90]"]]


def test_a_stage_without_some_variant_shows_a_dash() -> None:
    console, partial = plain(), summary()
    partial["eval"]["warm"] = {"faces_10": {"greedy": entry(0.01, 0.0, 0.02)}}
    results_table(console, partial)
    assert rows_of(partial)[0] == ("faces_10", "greedy")
    rows = [line for line in printed(console).splitlines() if "a_rule" in line]
    assert re.fullmatch(r"a_rule +held out greedy +\d+\S+ \[\d+, \d+\] +- +\d.*", rows[0])


def test_only_intervals_apart_are_a_change() -> None:
    assert verdict(entry(0.2, 0.15, 0.25), entry(0.3, 0.26, 0.36)) == "rose"
    assert verdict(entry(0.2, 0.15, 0.25), entry(0.3, 0.25, 0.36)) == "did not clearly change"
    assert verdict(entry(0.3, 0.26, 0.36), entry(0.2, 0.15, 0.25)) == "fell"


def test_headlines_tell_gains_losses_and_chance() -> None:
    said = headlines(summary())
    assert said == [
        "faces_10 (trained), greedy: success rose, from 20.0% [15, 25] to 40.0% [35, 46];"
        " the intervals do not overlap.",
        "faces_10 (trained), sampled: success fell, from 10.0% [7, 14] to 5.0% [3, 6];"
        " the intervals do not overlap.",
        "a_rule (held out), greedy: success did not clearly change, from 10.0% [7, 14] to 12.0% [9, 17];"
        " the intervals overlap.",
    ]


def test_a_single_stage_claims_no_change() -> None:
    only = summary()
    del only["eval"]["after"]
    assert headlines(only)[0] == (
        "faces_10 (trained), greedy: success 20.0% [15, 25] (before); there is nothing to compare it with."
    )


def graded_entry(reward: float) -> dict[str, object]:
    low, high = reward - 0.05, reward + 0.05
    return {**entry(0.0, 0.0, 0.02), "reward": reward, "reward_low": low, "reward_high": high, "graded": True}


def test_where_the_environment_grades_the_mean_reward_leads() -> None:
    """A run that rose from 0.25 to 0.5 without solving anything says so; 0% is below."""
    runs = {
        "before": {"all": {"sampled": graded_entry(0.25)}},
        "after": {"all": {"sampled": graded_entry(0.5)}},
    }
    found = {"eval": runs, "variants": {}, "train_variant": "all"}
    assert headlines(found) == [
        "all (trained), sampled: mean reward rose, from 0.250 [0.200, 0.300] to 0.500 [0.450, 0.550];"
        " the intervals do not overlap."
    ]
    console = plain()
    results_table(console, found)
    lines = printed(console).splitlines()
    assert lines[0].strip() == "Mean reward, with 95% intervals"
    assert lines[2].split() == [
        "all",
        "trained",
        "sampled",
        "0.250",
        "[0.200,",
        "0.300]",
        "0.500",
        "[0.450,",
        "0.550]",
    ]
    assert lines[3].split() == ["success", "0.0%", "[0,", "2]", "0.0%", "[0,", "2]"]
