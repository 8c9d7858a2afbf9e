"""Curvature along directions: what a plane shows of it, beside what the Hessian tells.

Shapes: K points, D directions, S points that are evaluated for each, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowloss.landscape.base import Columns, Landscape
from lowloss.measure.curvature import Hessian
from lowloss.measure.exact import Exact, Statistics


@dataclass(frozen=True)
class Directional:
    """The measures `shown` and `hessian` (K, D): the curvature of the exact train loss along directions delta.

    `shown` is the second difference (L(theta + h delta) - 2 L(theta) + L(theta - h delta)) / h^2, which one sees in a
    plot of this spacing; `hessian` is delta^T H delta. The first leaves the second by O(h^2), and by what kinks of the
    loss between its points add.

    directions_DP: delta.  spacings: h of each.
    statistics: BatchNorm's of the points (K, P), which hold at all that is evaluated around each; None where a
    landscape has none.
    """

    directions_DP: Tensor
    spacings: Sequence[float]
    statistics: Statistics | None = None

    def __call__(self, landscape: Landscape, theta_KP: Tensor) -> Columns:
        product = Hessian(statistics=self.statistics or "held").product(landscape)
        held = None if self.statistics is None else 3 * list(self.statistics(theta_KP))
        exact = Exact(["train"], statistics=None if held is None else lambda _: held)
        rows: dict[str, list[Tensor]] = {"shown": [], "hessian": []}
        for delta_P, h in zip(self.directions_DP.to(theta_KP), self.spacings, strict=True):
            around_SP = torch.cat([theta_KP + s * h * delta_P for s in (-1, 0, 1)])
            low_K, here_K, high_K = exact(landscape, around_SP)["train_loss"].chunk(3)
            rows["shown"].append((low_K - 2 * here_K + high_K) / h**2)
            times_KP = product(theta_KP, delta_P.expand_as(theta_KP))
            rows["hessian"].append((times_KP.double() @ delta_P.double()).cpu())
        return {name: torch.stack(parts, 1) for name, parts in rows.items()}
