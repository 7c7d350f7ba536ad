from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.envs.navigation import osm
from rlpost.envs.navigation.city import City, Landmark
from rlpost.envs.navigation.data_files import DataError
from rlpost.envs.navigation.env import Navigation
from rlpost.envs.navigation.geometry import Place, compass_word, distance
from rlpost.envs.navigation.importers import open_source
from rlpost.envs.navigation.osm import read_city

STEP = 0.001  # degrees: about 111 m north, 85 m east at 40 degrees


def _node(number: int, row: float, column: float, **tags: str) -> str:
    inner = "".join(f"<tag k={quoteattr(k)} v={quoteattr(v)}/>" for k, v in tags.items())
    return f'<node id="{number}" lat="{40 + STEP * row}" lon="{-74 + STEP * column}">{inner}</node>'


def _way(number: int, refs: list[int], **tags: str) -> str:
    inner = "".join(f'<nd ref="{ref}"/>' for ref in refs)
    inner += "".join(f"<tag k={quoteattr(k)} v={quoteattr(v)}/>" for k, v in tags.items())
    return f'<way id="{number}">{inner}</way>'


def _extract(*parts: str) -> str:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<osm version="0.6">{"".join(parts)}</osm>'


def _town(size: int = 4) -> str:
    """A square of streets with a shop at every second crossing, and things that are no streets."""
    nodes = [_node(10 * r + c, r, c) for r in range(size) for c in range(size)]
    shops = [
        _node(500 + 10 * r + c, r + 0.1, c, shop="yes", name=f"Shop {r}{c}")
        for r in range(size)
        for c in range(size)
        if (r + c) % 2 == 0
    ]
    rows = [
        _way(r, [10 * r + c for c in range(size)], highway="residential", name=f"{r} Row")
        for r in range(size)
    ]
    columns = [
        _way(90 + c, [10 * r + c for r in range(size)], highway="primary", name=f"C{c}") for c in range(size)
    ]
    others = [
        _way(200, [0, 11], highway="motorway", name="Fast"),
        _way(201, [0, 22], building="yes"),
        _node(900, 1, 1, name="no kind of place"),
        _node(901, 30, 30, shop="yes", name="Far away"),
        _node(902, 0.1, 0.1, amenity="bench"),
        "<relation id='1'><member type='way' ref='1' role=''/><tag k='name' v='R'/></relation>",
    ]
    return _extract(*nodes, *shops, *rows, *columns, *others)


def _write(folder: Path, text: str) -> Path:
    path = folder / "town.osm"
    path.write_text(text, encoding="utf-8")
    return path


def test_crossings_streets_and_points_of_interest(tmp_path: Path) -> None:
    city = read_city(_write(tmp_path, _town()))
    assert (len(city.nodes), len(city.streets)) == (16, 24)
    assert {street.name for street in city.streets} == {
        *(f"{r} Row" for r in range(4)),
        *(f"C{c}" for c in range(4)),
    }
    assert len(city.landmarks) == 8
    for landmark in city.landmarks:
        assert city.sighting(landmark.node, 0) == (landmark.name, "front")  # 11 m north of its crossing
    assert sorted(len(ways) for ways in city.ways) == [2] * 4 + [3] * 8 + [4] * 4


def test_shape_points_are_not_crossings_and_references_outside_are_left_out(tmp_path: Path) -> None:
    text = _extract(
        *(_node(n, 0, n) for n in range(5)), _node(7, 1, 2), _way(1, [0, 1, 2, 3, 4, 99], highway="road"),
        _way(2, [2, 7], highway="residential", name="Up"),
    )  # fmt: skip
    city = read_city(_write(tmp_path, text))
    assert (len(city.nodes), len(city.streets)) == (4, 3)  # 0, 2, 4 and 7
    assert {street.name for street in city.streets} == {"", "Up"}


def test_streets_that_no_word_tells_apart_are_thinned_out(tmp_path: Path) -> None:
    text = _extract(
        _node(0, 0, 0), _node(1, 2, 0.1), _node(2, 2, -0.1), _node(3, 0, 2),
        _way(1, [0, 1], highway="road"), _way(2, [0, 2], highway="road"), _way(3, [0, 3], highway="road"),
    )  # fmt: skip
    city = read_city(_write(tmp_path, text))
    for ways in city.ways:
        words = [compass_word(way.heading) for way in ways]
        assert len(words) == len(set(words))
    assert len(city.streets) == 2


@pytest.mark.parametrize(
    "args", [{}, {"movement": "free"}, {"mode": "compat", "prompt": "published"}], ids=str
)
def test_routes_through_a_real_map(tmp_path: Path, args: dict[str, str]) -> None:
    env = Navigation(data=str(_write(tmp_path, _town())), **args)  # type: ignore[arg-type]
    instances = {}
    for split in ("train", "eval"):
        for seed in range(6):
            variant = ("absolute", "relative")[seed % 2]
            observation, info = env.reset(seed=seed, options={"variant": variant, "split": split})
            instances.setdefault(split, set()).add(info["instance"])
            for shown, answer, _ in env.expert(False, random.Random(0)):
                assert shown == observation
                observation, reward, terminated, _, step = env.step(answer)
                assert reward == 1.0
            assert terminated
            assert step["success"]
    assert not instances["train"] & instances["eval"]


def test_what_the_map_cannot_serve(tmp_path: Path) -> None:
    env = Navigation(data=str(_write(tmp_path, _town())))
    with pytest.raises(ValueError, match="only for generated cities"):
        env.reset(options={"variant": "relative_long_routes"})
    lonely = _extract(_node(0, 0, 0), _node(1, 1, 0), _way(1, [0, 1], highway="road"))
    with pytest.raises(RuntimeError, match="no route of"):
        Navigation(data=str(_write(tmp_path, lonely))).reset()


LAUGHS = '<!DOCTYPE osm [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><osm>&b;</osm>'
BROKEN = [
    ("", "not XML"),
    ("<osm>", "not XML"),
    ("no", "not XML"),
    (_extract(), "it has no streets"),
    (_extract(_node(0, 0, 0), _way(1, [0], highway="road")), "it has no streets"),
    (_extract('<node id="1" lat="north" lon="0"/>'), "could not convert"),
    (_extract('<node id="1" lat="nan" lon="0"/>'), "a node lies at nan"),
    (_extract('<node id="1" lat="95" lon="0"/>'), "a node lies at 95"),
    (_extract('<node lat="1" lon="0"/>'), "line 2: an element lacks the attribute 'id'"),
    (_extract('<way id="1"><nd/></way>'), "lacks the attribute 'ref'"),
    (LAUGHS, "it declares a document type"),
    ('<!DOCTYPE osm SYSTEM "file:///etc/passwd"><osm/>', "it declares a document type"),
]


@pytest.mark.parametrize(("text", "told"), BROKEN)
def test_broken_and_hostile_extracts_are_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_city(_write(tmp_path, text))


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    rng, whole, path = random.Random(0), _town(3).encode(), tmp_path / "town.osm"
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            city = read_city(path)
        except DataError:
            continue
        assert city.nodes


def test_an_extract_is_read_once_in_a_process_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    original = osm.read_city

    def read_slowly(path: Path) -> City:
        reads.append(path)
        time.sleep(0.05)
        return original(path)

    monkeypatch.setattr(osm, "read_city", read_slowly)
    path = _write(tmp_path, _town())
    with ThreadPoolExecutor(8) as threads:
        sources = list(threads.map(lambda _: open_source(str(path)), range(16)))
    assert len(reads) == 1
    assert len({id(source) for source in sources}) == 1
    _write(tmp_path, _town(5))
    assert len(open_source(str(path)).city.nodes) == 25  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    here = open_source("town.osm")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(DataError, match="No such file"):
        open_source("town.osm")
    assert here is not sources[0]
    assert len(reads) == 4


def _by_looking_at_every_node(
    nodes: tuple[Place, ...], points: list[tuple[str, Place]]
) -> tuple[Landmark, ...]:
    taken: dict[int, Landmark] = {}
    named: set[str] = set()
    for name, place in sorted(points):
        near = [n for n in range(len(nodes)) if n not in taken and distance(nodes[n], place) <= osm._REACH]
        if near and name not in named:
            node = min(near, key=lambda each: (distance(nodes[each], place), each))
            taken[node] = Landmark(name, node, place)
            named.add(name)
    return tuple(taken[node] for node in sorted(taken))


_PLACES = st.builds(Place, *[st.integers(-1200, 1200).map(lambda tenth: tenth / 10)] * 2)


@given(
    st.lists(_PLACES, max_size=30), st.lists(st.tuples(st.sampled_from("abcdefghij"), _PLACES), max_size=30)
)
def test_landmarks_are_those_that_a_look_at_every_node_finds(
    nodes: list[Place], points: list[tuple[str, Place]]
) -> None:
    assert osm._landmarks(tuple(nodes), points) == _by_looking_at_every_node(tuple(nodes), points)


def test_a_large_extract_takes_time_by_its_size_alone() -> None:
    """300 million distances, where every landmark is compared with every node."""
    rng = random.Random(0)
    nodes = tuple(Place(rng.uniform(0, 20_000), rng.uniform(0, 20_000)) for _ in range(30_000))
    points = [(f"Shop {n}", Place(rng.uniform(0, 20_000), rng.uniform(0, 20_000))) for n in range(10_000)]
    began = time.process_time()
    osm._landmarks(nodes, points)
    assert time.process_time() - began < 10
