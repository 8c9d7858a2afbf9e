"""Finders of paths between points; pure tensor code."""

from lowloss.finder.autoneb import AutoNEB
from lowloss.finder.base import Finder, Phase
from lowloss.finder.curve import ArcLengthChain, BezierCurve, Line, PolygonalChain, Trivial
from lowloss.finder.neb import NEB
from lowloss.finder.tunnel import Tunnel
from lowloss.points.path import Bezier, Path, Polyline
