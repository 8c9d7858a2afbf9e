"""Finders of paths between points; pure tensor code."""

from lowloss.finder.autoneb import AutoNEB
from lowloss.finder.base import Finder, Outcome, Phase
from lowloss.finder.curve import BezierCurve, Line, PolygonalChain
from lowloss.finder.neb import NEB
from lowloss.finder.path import Bezier, Path, Polyline

__all__ = [
    "NEB",
    "AutoNEB",
    "Bezier",
    "BezierCurve",
    "Finder",
    "Line",
    "Outcome",
    "Path",
    "Phase",
    "PolygonalChain",
    "Polyline",
]
