"""Where to look at the landscape: lines, planes and directions."""

from lowloss.points.directions import random_direction
from lowloss.points.grid import Grid, line, plane
from lowloss.points.lines import InitialLine, MinimaLine, RandomLine
from lowloss.points.planes import MinimaPlane, PathPlane, Plane, RandomPlane
from lowloss.points.trajectory import TrajectoryPlane

__all__ = [
    "Grid",
    "InitialLine",
    "MinimaLine",
    "MinimaPlane",
    "PathPlane",
    "Plane",
    "RandomLine",
    "RandomPlane",
    "TrajectoryPlane",
    "line",
    "plane",
    "random_direction",
]
