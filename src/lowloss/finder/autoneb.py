"""AutoNEB: nudged elastic bands that grow pivots where the loss between them is high.

Reference: Draxler et al. 2018, Algorithm 2, sec. 4.1 and appendix A; after Kolsbjerg et al. 2016.

Shapes: N pivots (ends included), S = N - 1 segments, E evaluations between two pivots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Le
from torch import Tensor

from lowloss.checking import TOLD, Count, Few
from lowloss.errors import LowlossError, is_number
from lowloss.finder.base import Phase, Profile
from lowloss.finder.neb import NEB
from lowloss.points.path import Path, Polyline

DRAXLER_CYCLES = (*[Phase(1000, 0.1)] * 4, *[Phase(2000, 0.1)] * 2, *[Phase(1000, 0.01)] * 4, *[Phase(1000, 0.001)] * 4)


class AutoNEB(NEB):
    """Cycles of NEB with pivots inserted in between (Algorithm 2); the defaults are the paper's schedule.

    Args:
        cycles: `Phase`s or mappings with steps, lr and optionally repeat.
        pivots: inner pivots of the initial band.
        evaluations: E, losses evaluated between two neighbouring pivots after a cycle.
        threshold: insert where the residuum, normalised by the range of the pivots' losses, exceeds this.
        max_insertions: pivots inserted after one cycle at most, those of highest residuum first.
        momentum, weight_decay, batch_size, spring_constant, tangent: see NEB.

    Raises LowlossError if a setting makes no sense, say no cycle or a negative threshold.
    """

    def __init__(
        self,
        cycles: Annotated[Sequence[Phase | Mapping[str, Any]], TOLD] = DRAXLER_CYCLES,
        pivots: Few = 3,
        evaluations: Few = 9,
        threshold: float = 0.2,
        max_insertions: Annotated[int, Le(10_000)] = 3,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        batch_size: Count = 512,
        spring_constant: float | None = None,
        tangent: str = "higher",
    ) -> None:
        # The steps and rates are those of the cycles.
        super().__init__(pivots, 1, 1.0, momentum, weight_decay, batch_size, spring_constant, tangent)
        if evaluations < 1 or max_insertions < 0:
            raise LowlossError(
                f"evaluations must be at least 1 and max_insertions 0, got {evaluations}, {max_insertions}"
            )
        if not threshold >= 0:
            raise LowlossError(f"threshold must be at least 0, got {threshold}")
        self.evaluations, self.threshold, self.max_insertions = evaluations, threshold, max_insertions
        self.phases = _phases(cycles)

    def refine(self, path: Path, profile: Profile) -> Path:
        assert isinstance(path, Polyline)
        positions = self._insertions(path, profile)[: self.max_insertions]
        if not positions:
            return path
        starts, ends = path.knots_B[:-1], path.knots_B[1:]
        t = torch.tensor([float(torch.lerp(starts[s], ends[s], a)) for s, a in positions], dtype=torch.float64)
        knots, order = torch.cat([path.knots_B, t]).sort()
        bends = torch.cat([path.bends_BP, path.points(t)])[order.to(path.bends_BP.device)]
        return Polyline(bends, knots)

    def status(self, path: Path, profile: Profile) -> str:
        assert isinstance(path, Polyline)
        return "undersampled" if self._insertions(path, profile) else "converged"

    def _insertions(self, path: Polyline, profile: Profile) -> list[tuple[int, float]]:
        losses_T = profile(path, path.grid(points=0, between=self.evaluations)).double().cpu()
        losses_SE = losses_T[:-1].view(-1, self.evaluations + 1)
        return insertions(torch.cat([losses_SE[:, 0], losses_T[-1:]]), losses_SE[:, 1:], self.threshold)


def insertions(pivot_losses_N: Tensor, between_SE: Tensor, threshold: float) -> list[tuple[int, float]]:
    """Where to insert pivots: (segment, alpha), the highest residuum first, at most one a segment.

    between_SE: losses at alpha = 1/(E+1), …, E/(E+1) of each segment. A position qualifies where the loss lies
    above the linear interpolation of the pivots' losses by more than `threshold` times their range. (Eq. (4) of
    the paper is printed with the inequality reversed; its text and fig. A.1 say "rises too high".)
    """
    samples = between_SE.shape[1]
    alpha_E = torch.arange(1, samples + 1, dtype=pivot_losses_N.dtype) / (samples + 1)
    guess_SE = torch.lerp(pivot_losses_N[:-1, None], pivot_losses_N[1:, None], alpha_E)
    scale = pivot_losses_N.max() - pivot_losses_N.min()
    highest_S, where_S = (between_SE - guess_SE).max(dim=1)
    # Compared as a product, so that a flat band (range 0) still gets a pivot on a bump.
    chosen = [s for s in range(len(highest_S)) if highest_S[s] > threshold * scale]
    chosen.sort(key=lambda s: -float(highest_S[s]))
    return [(s, float(alpha_E[where_S[s]])) for s in chosen]


def _phases(cycles: Sequence[Phase | Mapping[str, Any]]) -> list[Phase]:
    listed = isinstance(cycles, (list, tuple)) and all(isinstance(cycle, (Phase, Mapping)) for cycle in cycles)
    if not listed or not cycles:
        raise LowlossError(
            f"cycles must be a list of {{steps: NUMBER, lr: RATE, repeat: TIMES}}, of at least one, got {cycles!r}"
        )
    phases = []
    for one in cycles:
        cycle = vars(one) if isinstance(one, Phase) else one
        if not {"steps", "lr"} <= set(cycle) <= {"steps", "lr", "repeat"}:
            raise LowlossError(f"a cycle has the keys steps, lr and optionally repeat, got {dict(cycle)}")
        steps, lr, repeat = cycle["steps"], cycle["lr"], cycle.get("repeat", 1)
        whole = is_number(steps, int) and steps < 2**31 and is_number(repeat, int) and 1 <= repeat <= 10_000
        if not whole or not is_number(lr, float):
            raise LowlossError(
                "a cycle's steps and repeat must be whole numbers of at least 1 and its lr a number, the steps at most "
                f"2^31 - 1 and repeat 10000, got {dict(cycle)}"
            )
        phases += [Phase(int(steps), float(lr))] * int(repeat)
    return phases
