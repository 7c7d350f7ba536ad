"""The shares of ranks in a checkpoint: a whole one has the files of every rank, wherever they were written."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.errors import CheckpointError
from rlpost.record import checkpoint
from rlpost.record.run_dir import RunDir
from rlpost.record.shares import Share, check_ranks, faults, names_in, needed_by, owner, share_of

ZERO = "learner/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
PARAMETERS = "learner/zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
MODEL = "learner/mp_rank_00_model_states.pt"


def written(stage: int, ranks: int, rank: int) -> list[str]:
    """The files that DeepSpeed and the learner write on `rank`."""
    own = [ZERO] * (stage > 0) + [PARAMETERS] * (stage == 3)
    shared = ["kl.json", "learner/latest"] + [MODEL] * (stage < 3) if rank == 0 else []
    return [*shared, *(name.format(rank=rank) for name in own)]


def put(folder: Path, rank: int, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} by {rank}")


def saved(folder: Path, stage: int, ranks: int, blind: set[int]) -> list[Share]:
    """What `ranks` ranks wrote, those that are `blind` into folders of their own; all of it is then in `folder`."""
    shares = []
    for rank in range(ranks):
        place = folder if rank not in blind else folder.parent / f"node-{rank}"
        place.mkdir(exist_ok=True)
        put(place, rank, written(stage, ranks, rank))
        shares.append(share_of(place, rank))
    for rank in blind:
        shutil.copytree(folder.parent / f"node-{rank}", folder, dirs_exist_ok=True)
    return shares


@pytest.mark.parametrize(
    ("name", "rank"),
    [(MODEL, None), (ZERO.format(rank=12), 12), ("bf16_" + ZERO.format(rank=0)[8:], 0), ("kl.json", None)],
)
def test_deepspeed_names_the_owner_of_a_file(name: str, rank: int | None) -> None:
    assert owner(name) == rank


layouts = st.integers(0, 3).flatmap(
    lambda stage: st.integers(1, 5).flatmap(
        lambda ranks: st.tuples(st.just(stage), st.just(ranks), st.sets(st.integers(0, ranks - 1)))
    )
)


@given(layout=layouts, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_checkpoint_that_lost_any_file_of_any_rank_is_not_whole(
    layout: tuple[int, int, set[int]], data: Any
) -> None:
    stage, ranks, blind = layout
    with tempfile.TemporaryDirectory() as temporary:
        run_dir = RunDir.create(Path(temporary) / "run", "name", 0, "")

        def write(folder: Path) -> list[Share]:
            shares = saved(folder, stage, ranks, blind)
            for rank in blind:
                shutil.rmtree(folder.parent / f"node-{rank}")
            return shares

        path = checkpoint.save(run_dir, 1, write, {}, {})
        assert checkpoint.latest(run_dir, {}).path == path
        check_ranks(path, ranks, stage > 0)
        rank = data.draw(st.integers(0, ranks - 1))
        mine = written(stage, ranks, rank)
        if mine:
            (path / data.draw(st.sampled_from(mine))).unlink()
            with pytest.raises(CheckpointError, match="none of 1 checkpoints is whole"):
                checkpoint.latest(run_dir, {})


@given(layout=layouts, data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_a_rank_wrote_and_the_driver_lacks_is_seen_before_the_mark(
    layout: tuple[int, int, set[int]], data: Any
) -> None:
    stage, ranks, blind = layout
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        folder.mkdir()
        shares = saved(folder, stage, ranks, blind)
        assert not faults(folder, shares)
        assert sorted(name for share in shares for name in share) == names_in(folder)
        rank = data.draw(st.integers(0, ranks - 1))
        if shares[rank]:
            name = data.draw(st.sampled_from(sorted(shares[rank])))
            spoiled = data.draw(st.sampled_from(["gone", "short", "changed"]))
            text = (folder / name).read_text()
            if spoiled == "gone":
                (folder / name).unlink()
            else:
                (folder / name).write_text(text[:-1] + ("" if spoiled == "short" else "?"))
            [fault] = faults(folder, shares)
            assert fault.startswith(f"{name} of learner rank {rank} ")


@given(layout=layouts)
@settings(max_examples=40, deadline=None)
def test_a_rank_whose_share_never_came_is_named(layout: tuple[int, int, set[int]]) -> None:
    stage, ranks, _ = layout
    with tempfile.TemporaryDirectory() as temporary:
        for lost in range(ranks if stage else 1):
            folder = Path(temporary) / f"without-{lost}"
            folder.mkdir()
            for rank in set(range(ranks)) - {lost}:
                put(folder, rank, written(stage, ranks, rank))
            with pytest.raises(CheckpointError, match=rf"of {ranks} learner ranks, .* of rank {lost}\n"):
                check_ranks(folder, ranks, stage > 0)


@given(layout=layouts)
@settings(max_examples=40, deadline=None)
def test_a_rank_gets_what_all_read_and_its_own(layout: tuple[int, int, set[int]]) -> None:
    stage, ranks, _ = layout
    everything = [name for rank in range(ranks) for name in written(stage, ranks, rank)]
    for rank in range(ranks):
        others = {name for other in set(range(ranks)) - {rank} for name in written(stage, ranks, other)}
        shared = {name for name in everything if owner(name) is None}
        assert set(needed_by(everything, rank)) == set(everything) - (others - shared)
