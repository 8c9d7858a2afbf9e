"""Directions in weight space: random ones, and those along which a trajectory varies most.

Reference: Li et al. 2018, sec. 4 and appendix B.

Shapes: P parameters, F filters of a weight, K or D directions, E epochs.
"""

import torch
from torch import Tensor

from lowloss.errors import LowlossError
from lowloss.landscape.layout import Layout
from lowloss.seeding import derive

NORMALIZATIONS = ("filter", "layer", "none")
NO_FILTERS = (
    "normalization={} gives directions of zero norm, since all filters are zero or none is there: set it to none"
)
"""What is wrong where there is nothing to normalise to."""


def check_normalization(normalization: str) -> None:
    """Raise LowlossError for an unknown normalization."""
    if normalization not in NORMALIZATIONS:
        raise LowlossError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")


def random_directions(theta_P: Tensor, layout: Layout, seed: int, count: int, normalization: str) -> Tensor:
    """Independent directions (K, P) by `random_direction`; each follows from the seed and its index.

    Raises ValueError for a direction of zero norm, as a point without weights that are not zero gives.
    """
    directions = [random_direction(theta_P, layout, derive(seed, k), normalization) for k in range(count)]
    if not all(bool(direction_P.any()) for direction_P in directions):
        raise ValueError(NO_FILTERS.format(normalization))
    return torch.stack(directions)


def random_direction(theta_P: Tensor, layout: Layout, seed: int, normalization: str = "filter") -> Tensor:
    """A Gaussian direction (P,) scaled to the point.

    "filter": each filter gets the Frobenius norm of the point's filter, d_ij <- d_ij / |d_ij| |theta_ij|.
    "layer": each weight tensor gets the norm of the point's. "none": plain Gaussian.
    Biases and BatchNorm parameters get a zero direction with "filter" and "layer" (Li et al. 2018, footnote 2).

    Raises LowlossError for an unknown normalization.
    """
    check_normalization(normalization)
    generator = torch.Generator().manual_seed(seed)
    direction_P = torch.randn(layout.dim, generator=generator, dtype=theta_P.dtype)
    if normalization == "none":
        return direction_P
    groups = layout.filters if normalization == "filter" else layout.layers
    scaled_P = torch.zeros_like(direction_P)
    drawn, wanted, result = groups(direction_P), groups(theta_P.cpu()), groups(scaled_P)
    for name, drawn_FW in drawn.items():
        norm_F1 = drawn_FW.norm(dim=1, keepdim=True).clamp_min(torch.finfo(theta_P.dtype).tiny)
        result[name].copy_(drawn_FW / norm_F1 * wanted[name].norm(dim=1, keepdim=True))
    return scaled_P


def unit_directions(theta_P: Tensor, seed: int, orthogonal: bool, index_K: Tensor) -> Tensor:
    """Directions (K, P) of uniform orientation and unit length; each follows from the seed and its index alone.

    Args:
        orthogonal: whether they are orthogonal to the point.
    """
    rows = []
    for index in index_K.tolist():
        generator = torch.Generator().manual_seed(derive(seed, "direction", index))
        row_P = torch.randn(len(theta_P), generator=generator, dtype=torch.float64)
        if orthogonal:
            unit_P = theta_P.double() / theta_P.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
            row_P = row_P - (row_P @ unit_P) * unit_P
        rows.append((row_P / row_P.norm()).to(theta_P))
    return torch.stack(rows)


COLUMNS = 1 << 16
"""Parameters that are in float64 at once."""


def principal_components(rows_EP: Tensor, count: int, centred: bool = False) -> tuple[Tensor, Tensor]:
    """The orthonormal leading directions (D, P) of rows, and the share of variance of every component (E,), descending.

    By the rows' Gram matrix, so that nothing is of P × P. Without `centred` the variance is about zero, the point from
    which the rows are counted. A direction points to where the first row lies.

    Raises ValueError if the rows do not span so many directions, as where training stood still.
    """
    rows_EP = rows_EP - rows_EP.mean(0) if centred else rows_EP
    gram_EE = torch.zeros(len(rows_EP), len(rows_EP), dtype=torch.float64)
    for part in rows_EP.split(COLUMNS, dim=1):
        gram_EE += part.double() @ part.double().T
    value_E, vector_EE = torch.linalg.eigh(gram_EE)
    value_E, vector_EE = value_E.flip(0).clamp_min(0), vector_EE.flip(1)
    if len(value_E) < count or not value_E[count - 1] > 1e-12 * value_E[0]:
        raise ValueError(f"the trajectory spans no {count} directions: collect more epochs of it (minima.collect)")
    weights_DE = (vector_EE[:, :count] / value_E[:count].sqrt()).T
    weights_DE = weights_DE * torch.where(vector_EE[0, :count] < 0, -1.0, 1.0)[:, None]
    parts = [weights_DE @ part.double() for part in rows_EP.split(COLUMNS, dim=1)]
    return torch.cat(parts, 1).to(rows_EP), value_E / value_E.sum()
