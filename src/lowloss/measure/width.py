"""How wide a valley is: the distance along a direction at which the loss passes a threshold.

Reference: Fort & Jastrzebski 2019, sec. 4.4 and fig. 5 (angular width of radial tunnels).

Shapes: K directions, A of them that are still searched, P parameters.
"""

import torch
from torch import Tensor

from lowloss.errors import LowlossError
from lowloss.landscape.base import Columns, Landscape

START = 1e-3
"""The first step, as a fraction of the longest."""


class Width:
    """A measure of directions: how far one moves from a point along each until the exact loss passes a threshold.

    All directions are searched at once. Steps are doubled until the threshold is passed, then the last one is halved
    again and again; so it is the first crossing but for those that lie within one doubling. A loss that is not finite
    has passed.

    Columns: `distance` (K,), `angle` (K,) in radians between the point and where the threshold is passed, as seen from
    the origin of parameter space, and `crossed` (K,), which is false where the longest distance was not enough.

    Args:
        origin_P: the point.
        threshold: of the split's loss.
        longest: the largest distance.
        tolerance: relative error of a distance.

    Raises LowlossError, when it is called, if the threshold is not above the point's own loss.
    """

    def __init__(
        self, origin_P: Tensor, threshold: float, longest: float, tolerance: float = 1e-3, split: str = "train"
    ) -> None:
        self.origin_P, self.threshold, self.longest = origin_P, threshold, longest
        self.tolerance, self.split = tolerance, split

    def __call__(self, landscape: Landscape, direction_KP: Tensor) -> Columns:
        own = float(landscape.evaluate(self.origin_P[None], self.split)["loss"][0])
        if not self.threshold > own:
            raise LowlossError(
                f"the threshold {self.threshold:.4g} is not above the point's own {self.split} loss, {own:.4g}: "
                "raise width.threshold, or set it to null, which takes width.rise above that loss"
            )
        low_K = torch.zeros(len(direction_KP), dtype=torch.float64)
        high_K = torch.full_like(low_K, START * self.longest)
        crossed_K = torch.zeros(len(low_K), dtype=torch.bool)
        while (active_A := (~crossed_K & (low_K < self.longest)).nonzero().flatten()).numel():
            passed_A = self._passed(landscape, direction_KP[active_A], high_K[active_A])
            crossed_K[active_A] = passed_A
            further_A = active_A[~passed_A]
            low_K[further_A] = high_K[further_A]
            high_K[further_A] = (2 * high_K[further_A]).clamp(max=self.longest)
        while (active_A := (crossed_K & (high_K - low_K > self.tolerance * high_K)).nonzero().flatten()).numel():
            middle_A = (low_K[active_A] + high_K[active_A]) / 2
            passed_A = self._passed(landscape, direction_KP[active_A], middle_A)
            high_K[active_A[passed_A]], low_K[active_A[~passed_A]] = middle_A[passed_A], middle_A[~passed_A]
        distance_K = torch.where(crossed_K, (low_K + high_K) / 2, self.longest)
        return {"distance": distance_K, "angle": self._angles(direction_KP, distance_K), "crossed": crossed_K}

    def _passed(self, landscape: Landscape, direction_AP: Tensor, distance_A: Tensor) -> Tensor:
        theta_AP = self.origin_P.to(direction_AP) + distance_A.to(direction_AP)[:, None] * direction_AP
        return ~(landscape.evaluate(theta_AP, self.split)["loss"].cpu() <= self.threshold)

    def _angles(self, direction_KP: Tensor, distance_K: Tensor) -> Tensor:
        origin_P, direction_KP = self.origin_P.double().cpu(), direction_KP.double().cpu()
        radius = origin_P.norm().clamp_min(torch.finfo(torch.float64).tiny)
        along_K = direction_KP @ (origin_P / radius)
        across_K = (direction_KP.square().sum(1) - along_K**2).clamp_min(0).sqrt()
        return torch.atan2(distance_K * across_K, radius + distance_K * along_K)
