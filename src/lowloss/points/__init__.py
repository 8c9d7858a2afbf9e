"""Where to look at the landscape: lines, planes and directions."""

from lowloss.points.directions import random_direction
from lowloss.points.grid import Grid, line, plane
from lowloss.points.planes import (
    InitialLine,
    MinimaLine,
    MinimaPlane,
    PathPlane,
    Plane,
    RandomLine,
    RandomPlane,
    TrajectoryPlane,
)
