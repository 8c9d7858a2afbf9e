"""Where to look at the landscape: lines, planes and directions."""

from lowloss.points.directions import random_direction
from lowloss.points.grid import Grid, line, plane
from lowloss.points.planes import MinimaPlane, PathPlane, Plane, RandomPlane

__all__ = ["Grid", "MinimaPlane", "PathPlane", "Plane", "RandomPlane", "line", "plane", "random_direction"]
