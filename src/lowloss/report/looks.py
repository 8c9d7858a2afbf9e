"""How a finder, a method, a class or a study is drawn: in one colour, dash and marker, wherever it is shown.

A look follows from the name, not from what else is shown. Two colours of the palette differ by at least 20 in CIELAB
(CIE 1976) for readers without red-green blindness and under deuteranopia (Machado et al. 2009); looks of one colour
differ in dash and marker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

GREY = "#8a8f98"
"""Of what the others are compared with, and of marks."""

PALETTE = ("#2f7de1", "#e67a1c", "#1b7f3b", "#aa33aa", "#7d5a00")

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (7, 2, 1, 2, 1, 2)))
MARKERS = "osD^v"
_PLOTLY = (
    ("solid", "dash", "dot", "dashdot", "longdashdot"),
    ("circle", "square", "diamond", "triangle-up", "triangle-down"),
)

NAMED = (
    *("autoneb", "bezier", "polychain", "tunnel", "neb", "polychain_arc", "trivial"),
    *("fge", "independent", "swa", "snapshot", "curve"),
)
"""Names that have the looks in their order."""

BASELINES = ("line", "single", "linear")


@dataclass(frozen=True)
class Look:
    """A colour, and the place of a dash and a marker."""

    colour: str
    style: int = 0

    @property
    def line(self) -> dict[str, Any]:
        """For matplotlib's plot."""
        return {"color": self.colour, "linestyle": DASHES[self.style]}

    @property
    def marker(self) -> str:
        return MARKERS[self.style]

    @property
    def plotly(self) -> tuple[str, str, str]:
        """Colour, dash and marker in plotly's words."""
        return self.colour, _PLOTLY[0][self.style], _PLOTLY[1][self.style]


LOOKS = [Look(colour, style) for style in range(len(DASHES)) for colour in PALETTE]


def look(name: Any) -> Look:
    """That of a name: of a class, which is a number, the look in its place."""
    if name in BASELINES:
        return Look(GREY, 1)
    if isinstance(name, int):
        return LOOKS[name % len(LOOKS)]
    if name in NAMED:
        return LOOKS[NAMED.index(name)]
    return LOOKS[hashlib.sha256(str(name).encode(errors="replace")).digest()[0] % len(LOOKS)]


def looks(names: Iterable[Any]) -> dict[Any, Look]:
    """Those of all names of a page: where two would share one, the later takes the next that is free."""
    given, taken = dict[Any, Look](), set[Look]()
    for name in sorted({*names}, key=lambda name: (name not in NAMED, str(name))):
        own = look(name)
        if own in taken and own in LOOKS:
            first = LOOKS.index(own)
            own = next((one for one in LOOKS[first:] + LOOKS[:first] if one not in taken), own)
        given[name] = own
        taken.add(own)
    return given
