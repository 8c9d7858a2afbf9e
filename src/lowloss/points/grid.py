"""Grids of points on lines and planes in weight space.

Shapes: D directions, G grid points of all axes together, T of them, P parameters, A anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Points origin_P + coordinates @ directions_DP on a regular, not necessarily square grid.

    axes: D tensors of coordinates in units of the directions; they may start or end anywhere.
    anchors_AD: coordinates of marked points (minima, say); anchor_names names them.
    """

    origin_P: Tensor
    directions_DP: Tensor
    axes: tuple[Tensor, ...]
    anchors_AD: Tensor
    anchor_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    @property
    def is_lines(self) -> bool:
        """Whether it is lines, not a plane."""
        return len(self.axes) == 1

    @property
    def coordinates_GD(self) -> Tensor:
        """All grid points' coordinates, the last axis running fastest."""
        return torch.stack(torch.meshgrid(*self.axes, indexing="ij"), dim=-1).reshape(-1, len(self.axes))

    def points(self, indices_T: Tensor) -> Tensor:
        """The points (T, P) of these grid indices."""
        coordinates_TD = self.coordinates_GD[indices_T].to(self.directions_DP)
        return self.origin_P + coordinates_TD @ self.directions_DP

    def project(self, theta_KP: Tensor) -> Tensor:
        """Coordinates (K, D) of points projected orthogonally onto the plane, in float64.

        The directions need not be orthonormal: the normal equations use their Gram matrix.
        """
        directions_DP = self.directions_DP.double()
        products_DK = directions_DP @ (theta_KP.double() - self.origin_P.double()).T
        return torch.linalg.solve(directions_DP @ directions_DP.T, products_DK).T


class Rays(Grid):
    """Lines through one point: the first axis numbers the directions, the second is the coordinate along each."""

    @property
    def is_lines(self) -> bool:
        return True

    @property
    def coordinates_GD(self) -> Tensor:
        at_T, count = self.axes[1], len(self.directions_DP)
        return (torch.eye(count, dtype=at_T.dtype)[:, None] * at_T[None, :, None]).reshape(-1, count)


def rays(origin_P: Tensor, directions_DP: Tensor, axis: Tensor, names: tuple[str, ...]) -> Rays:
    """The lines through a point in some directions, at the same coordinates along each."""
    anchors_1D = torch.zeros(1, len(directions_DP), dtype=torch.float64)
    return Rays(origin_P, directions_DP, (torch.arange(len(directions_DP)), axis), anchors_1D, names)


def line(a_P: Tensor, b_P: Tensor, resolution: int, margin: float = 0.0, names: tuple[str, ...] = ("a", "b")) -> Grid:
    """The line through a (coordinate 0) and b (1), reaching `margin` beyond both.

    Raises ValueError if they are the same point.
    """
    if torch.equal(a_P, b_P):
        raise ValueError(f"{names[0]} and {names[1]} are the same point, so the direction has zero norm: choose others")
    axis = torch.linspace(-margin, 1 + margin, resolution, dtype=torch.float64)
    anchors = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    return Grid(a_P, (b_P - a_P)[None], (axis,), anchors, names)


def plane(
    corners_3P: Tensor,
    names: Sequence[str],
    resolution: Sequence[int] = (25, 25),
    margin: float = 0.25,
    cover_KP: Tensor | None = None,
) -> Grid:
    """The plane through three points, with orthonormal directions (Garipov et al. 2018, fig. 1).

    The origin is the first point, the first axis runs towards the second. Coordinates are distances in weight
    space. The grid covers the three points, the projections of `cover_KP`, and `margin` times their extent beyond.

    Raises ValueError if the three points lie on one line.
    """
    origin_P, to_b_P, to_c_P = corners_3P[0], *(corners_3P[1:] - corners_3P[0])
    u_P = to_b_P / to_b_P.norm()
    across_P = to_c_P - (to_c_P @ u_P) * u_P
    across_P = across_P - (across_P @ u_P) * u_P  # once more: float32 leaves a remainder
    if not across_P.norm() > 1e-5 * to_b_P.norm():  # NaN where two points are the same
        raise ValueError("the three points lie on one line and span no plane")
    directions_2P = torch.stack([u_P, across_P / across_P.norm()])
    anchors_32 = ((corners_3P - origin_P) @ directions_2P.T).double()
    cover_KP = corners_3P[:0] if cover_KP is None else cover_KP
    covered_K2 = torch.cat([anchors_32, ((cover_KP - origin_P) @ directions_2P.T).double()])
    return Grid(origin_P, directions_2P, axes_over(covered_K2, resolution, margin), anchors_32, tuple(names))


def axes_over(covered_KD: Tensor, resolution: Sequence[int], margin: float) -> tuple[Tensor, ...]:
    """Axes of so many points each that reach over some coordinates (K, D), and `margin` times their extent beyond."""
    low_D, high_D = covered_KD.min(0).values, covered_KD.max(0).values
    extent_D = margin * (high_D - low_D)
    ends = zip((low_D - extent_D).tolist(), (high_D + extent_D).tolist(), resolution, strict=True)
    return tuple(torch.linspace(low, high, points, dtype=torch.float64) for low, high, points in ends)


def axes_around(extent: float, resolution: Sequence[int]) -> tuple[Tensor, ...]:
    """Axes of so many points each from -extent to extent."""
    return tuple(torch.linspace(-extent, extent, points, dtype=torch.float64) for points in resolution)
