"""Draws a city and a walked route as an SVG document: a pure function without a drawing library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape

from rlpost.envs.navigation.city import City, Sighting
from rlpost.envs.navigation.geometry import Place
from rlpost.envs.navigation.trips import Trip

_MARGIN = 80.0  # m of margin, into which names at the edge may extend
_BELOW = 16.0  # m from a place down to its mark, away from landmarks' names
_STYLE = (
    "text{font:11px sans-serif}.street{stroke:#c8c8c8;stroke-width:7;stroke-linecap:round}"
    ".way{stroke:#7aa6da;stroke-width:7;fill:none}"
    ".walked{stroke:#8f1414;stroke-width:2.5;stroke-dasharray:6 3;fill:none}"
    ".landmark{fill:#555}.name{fill:#888;font-size:8px}.mark{font-weight:bold}"
)


class _Sheet:
    """Converts metres to the sheet's units; north is up."""

    def __init__(self, places: Iterable[Place]) -> None:
        easts, norths = zip(*places, strict=True)
        self.left, self.top = min(easts) - _MARGIN, max(norths) + _MARGIN
        self.width = max(easts) + _MARGIN - self.left
        self.height = self.top - min(norths) + _MARGIN

    def at(self, place: Place) -> tuple[float, float]:
        return round(place.east - self.left, 1), round(self.top - place.north, 1)

    def line(self, kind: str, places: Iterable[Place]) -> str:
        points = " ".join("{},{}".format(*self.at(place)) for place in places)
        return f'<polyline class="{kind}" points="{points}"/>'

    def dot(self, kind: str, place: Place, radius: float, colour: str = "") -> str:
        x, y = self.at(place)
        fill = f' fill="{colour}"' if colour else ""
        return f'<circle class="{kind}" cx="{x}" cy="{y}" r="{radius}"{fill}/>'

    def text(self, kind: str, place: Place, words: str) -> str:
        x, y = self.at(place)
        return f'<text class="{kind}" x="{round(x + 4, 1)}" y="{round(y - 4, 1)}">{escape(words)}</text>'


def _places(trip: Trip) -> tuple[Place, ...]:
    """The places of the instructed route."""
    if trip.city is not None:
        return tuple(trip.city.nodes[node] for node in trip.nodes)
    return (trip.start.place, *(leg.end.place for leg in trip.legs))


def _city(sheet: _Sheet, city: City) -> Iterator[str]:
    named = set()
    for a, b, name in city.streets:
        yield sheet.line("street", (city.nodes[a], city.nodes[b]))
        if name not in named:
            named.add(name)
            middle = Place(*((x + y) / 2 for x, y in zip(city.nodes[a], city.nodes[b], strict=True)))
            yield sheet.text("name", middle, name)
    for landmark in city.landmarks:
        yield sheet.dot("landmark", landmark.place, 3)
        yield sheet.text("landmark", landmark.place, landmark.name)


def _sightings(sheet: _Sheet, trip: Trip) -> Iterator[str]:
    """The landmarks at the ends of the legs, if no city draws them."""
    for leg in trip.legs:
        if isinstance(leg.end.sighting, Sighting):
            yield sheet.text("landmark", leg.end.place, leg.end.sighting.landmark)


def svg(trip: Trip, walked: tuple[Place, ...]) -> str:
    """An SVG document: streets and landmarks, instructed route (broad, blue), way walked so far (dashed, red)."""
    way = _places(trip)
    sheet = _Sheet((*way, *walked, *(trip.city.nodes if trip.city is not None else ())))
    ground = _city(sheet, trip.city) if trip.city is not None else _sightings(sheet, trip)
    parts = [
        *ground,
        sheet.line("way", way),
        sheet.line("walked", walked),
        sheet.dot("start", way[0], 5, "#2f9e44"),
        sheet.dot("end", way[-1], 5, "#c43d3d"),
        sheet.text("mark", Place(way[0].east, way[0].north - _BELOW), "start"),
        sheet.text("mark", Place(way[-1].east, way[-1].north - _BELOW), "end"),
    ]
    size = f"0 0 {sheet.width:.1f} {sheet.height:.1f}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}">',
            f"<style>{_STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )
