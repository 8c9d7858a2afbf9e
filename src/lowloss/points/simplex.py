"""Simplices of minima, and the piecewise linear surfaces through points that were moved off them.

Reference: Fort & Jastrzebski 2019, sec. 4.3.

Shapes: C = m + 1 corners, V vertices of the surface (corners first), K points, P parameters. Weights w are barycentric.
"""

from math import comb

import torch
from torch import Tensor

from lowloss.errors import LowlossError, check_number

FLAT = 1e-6
"""Corners span no simplex if an edge lies in the span of those before it, but for this fraction of its length."""

WHOLE = 3
"""Up to so many dimensions the simplex is triangulated; beyond, its boundary is, and the surface is a cone."""

LARGEST, MOST = 30, 100_000
"""Dimensions of a simplex, and vertices of a surface, at most."""


class Simplex:
    """Which points of the simplex of m + 1 minima are moved, and the surface that connects them.

    The lattice of weights that are multiples of 1 / resolution is triangulated as Kuhn (1960) does; each of its points
    is a vertex. Beyond m = 3 the boundary alone is triangulated, at resolution 2 (the corners and the middles of the
    edges), and the surface is the cone of the boundary's over one vertex more, the centroid: to the point
    w = (1 - s) w' + s c, where w' lies on the boundary and c is the centroid, belongs (1 - s) times the surface's
    point at w' plus s times the moved centroid.

    Args:
        m: dimensions.
        resolution: cells along an edge; at least 2, so that there is a vertex to move.

    Raises LowlossError if there would be too many vertices.
    """

    def __init__(self, m: int, resolution: int) -> None:
        check_number("m", m, int, 1)
        check_number("resolution", resolution, int, 2)
        self.cone = m > WHOLE
        self.m, self.resolution = m, 2 if self.cone else resolution
        if m > LARGEST or comb(m + self.resolution, m) > MOST:
            raise LowlossError(f"m={m} at resolution {resolution} has too many points: lower connector.m or resolution")
        counts_VC = torch.tensor(_compositions(self.resolution, m + 1))
        if self.cone:
            counts_VC = counts_VC[(counts_VC == 0).any(1)]
        inner_V = (counts_VC != self.resolution).all(1)
        corners_CC = self.resolution * torch.eye(m + 1, dtype=torch.long)
        counts_VC = torch.cat([corners_CC, counts_VC[inner_V]])
        self._keys_V, self._order_V = self._key(counts_VC).sort()
        self.weights_VC = counts_VC.double() / self.resolution
        """The vertices' places on the linear simplex: the corners, the others, then the centroid of a cone."""
        if self.cone:
            self.weights_VC = torch.cat([self.weights_VC, torch.full((1, m + 1), 1 / (m + 1), dtype=torch.float64)])

    def coefficients(self, w_KC: Tensor) -> Tensor:
        """The weights (K, V) of the vertices in the point of the surface that belongs to w."""
        w_KC = w_KC.double()
        found_KV = torch.zeros(len(w_KC), len(self.weights_VC), dtype=torch.float64)
        s_K = torch.zeros(len(w_KC), dtype=torch.float64)
        if self.cone:
            s_K = (self.m + 1) * w_KC.min(1).values
            found_KV[:, -1] = s_K
            w_KC = w_KC - w_KC.min(1, keepdim=True).values
            total_K1 = w_KC.sum(1, keepdim=True)
            # At the centroid itself there is no w', and it has no weight.
            w_KC = torch.where(total_K1 > 0, w_KC / total_K1, torch.eye(1, self.m + 1, dtype=torch.float64))
        index_KC, part_KC = self._cell(w_KC)
        return found_KV.scatter_add(1, index_KC, (1 - s_K)[:, None] * part_KC)

    def grid(self, points: int) -> Tensor:
        """Weights (K, C) all over the simplex: the finest lattice of at most so many points that has the vertices."""
        cells = self.resolution
        while comb(self.m + cells + self.resolution, self.m) <= points:
            cells += self.resolution
        return torch.tensor(_compositions(cells, self.m + 1)).double() / cells

    def draw(self, points: int, seed: int) -> Tensor:
        """Weights (K, C) drawn uniformly from the simplex."""
        generator = torch.Generator().manual_seed(seed)
        waits_KC = -torch.log1p(-torch.rand(points, self.m + 1, generator=generator, dtype=torch.float64))
        return waits_KC / waits_KC.sum(1, keepdim=True)

    def _cell(self, w_KC: Tensor) -> tuple[Tensor, Tensor]:
        """The vertices of the cell in which w lies, and the weight of each, (K, C) both."""
        # In x_i = r (w_i + … + w_m), which falls with i, cells are those of Kuhn's triangulation of the cube.
        x_Km = self.resolution * w_KC.flip(1).cumsum(1).flip(1)[:, 1:]
        base_Km = x_Km.floor().clamp(0, self.resolution - 1)
        part_Km, order_Km = (x_Km - base_Km).clamp(0, 1).sort(dim=1, descending=True, stable=True)
        ones_K1 = torch.ones(len(w_KC), 1, dtype=torch.float64)
        weight_KC = torch.cat([ones_K1, part_Km], 1) - torch.cat([part_Km, 0 * ones_K1], 1)
        index = []
        for step in range(self.m + 1):
            if step:
                base_Km = base_Km.scatter_add(1, order_Km[:, step - 1 : step], ones_K1)
            full_KC = torch.cat([self.resolution * ones_K1, base_Km], 1)
            counts_KC = (full_KC - torch.cat([base_Km, 0 * ones_K1], 1)).long()
            place_K = torch.searchsorted(self._keys_V, self._key(counts_KC)).clamp(max=len(self._keys_V) - 1)
            index.append(self._order_V[place_K])
        return torch.stack(index, 1), weight_KC

    def _key(self, counts_KC: Tensor) -> Tensor:
        """A number for each lattice point; the last weight follows from the others."""
        base_M = (self.resolution + 1) ** torch.arange(self.m)
        return counts_KC[:, :-1] @ base_M


def _compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """All tuples of so many whole numbers from 0 that have the sum."""
    if parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _compositions(total - first, parts - 1)]


def edges(corners_CP: Tensor) -> Tensor:
    """The edges (m, P) of a simplex from its first corner.

    Raises LowlossError if the corners span no simplex of m dimensions.
    """
    edges_MP = (corners_CP[1:] - corners_CP[0]).double()
    m, parameters = edges_MP.shape
    flat_M = torch.ones(m, dtype=torch.bool)
    across_M = torch.linalg.qr(edges_MP.T, mode="r").R.diagonal().abs()
    flat_M[: len(across_M)] = ~(across_M > FLAT * edges_MP[: len(across_M)].norm(dim=1))
    if flat_M.any():
        corner = int(flat_M.nonzero()[0]) + 1
        raise LowlossError(
            f"the {m + 1} minima span no simplex of {m} dimensions among {parameters} parameters: corner {corner} lies "
            "in the span of those before it: take other minima, or a smaller m"
        )
    return edges_MP.to(corners_CP)
