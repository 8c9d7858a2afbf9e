"""Where to look at the landscape: lines, planes and directions."""

from lowloss.scans.directions import random_direction
from lowloss.scans.grid import Grid, line, plane
from lowloss.scans.planes import PathPlane, Plane, RandomPlane

__all__ = ["Grid", "PathPlane", "Plane", "RandomPlane", "line", "plane", "random_direction"]
