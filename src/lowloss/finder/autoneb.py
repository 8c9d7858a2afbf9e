"""AutoNEB: nudged elastic bands that grow pivots where the loss between them is high.

Reference: Draxler et al. 2018, Algorithm 2, sec. 4.1 and appendix A; after Kolsbjerg et al. 2016.

Shapes: N pivots (ends included), S = N - 1 segments, E evaluations between two pivots.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Le
from torch import Tensor

from lowloss.checking import TOLD, Count, Few, described
from lowloss.errors import LowlossError, is_number
from lowloss.finder.base import Phase, Profile
from lowloss.finder.neb import NEB, rises
from lowloss.points.path import Path, Polyline

DRAXLER_CYCLES = (*[Phase(1000, 0.1)] * 4, *[Phase(2000, 0.1)] * 2, *[Phase(1000, 0.01)] * 4, *[Phase(1000, 0.001)] * 4)


@described
class AutoNEB(NEB):
    """Cycles of NEB with pivots inserted in between (Algorithm 2); the defaults are the paper's schedule.

    Args:
        cycles: `Phase`s or mappings with steps, lr and optionally repeat, and climb: in such a cycle, of which there
            is none at first, the pivot that was highest before it climbs, see NEB.
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

    def refine(self, path: Path, profile: Profile, phase: Phase) -> Path:
        assert isinstance(path, Polyline)
        positions = insertions(*self._profile(path, profile), self.threshold)[: self.max_insertions]
        grown = path if path.climber is None else Polyline(path.bends_BP, path.knots_B)
        if positions:
            starts, ends = path.knots_B[:-1], path.knots_B[1:]
            t = torch.tensor([float(torch.lerp(starts[s], ends[s], a)) for s, a in positions], dtype=torch.float64)
            knots, order = torch.cat([path.knots_B, t]).sort()
            bends = torch.cat([path.bends_BP, path.points(t)])[order.to(path.bends_BP.device)]
            grown = Polyline(bends, knots)
        return self._climbing(grown, path, profile) if phase.climb else grown


def insertions(pivot_losses_N: Tensor, between_SE: Tensor, threshold: float) -> list[tuple[int, float]]:
    """Where to insert pivots: (segment, alpha), the highest rise first, at most one a segment.

    A position qualifies where the loss rises by more than `threshold` times the range of the pivots' losses (`rises`).
    (Eq. (4) of the paper is printed with the inequality reversed; its text and fig. A.1 say "rises too high".)
    """
    highest_S, alpha_S, scale = rises(pivot_losses_N, between_SE)
    # Compared as a product, so that a flat band (range 0) still gets a pivot on a bump.
    chosen = [s for s in range(len(highest_S)) if highest_S[s] > threshold * scale]
    chosen.sort(key=lambda s: -float(highest_S[s]))
    return [(s, float(alpha_S[s])) for s in chosen]


def _phases(cycles: Sequence[Phase | Mapping[str, Any]]) -> list[Phase]:
    listed = isinstance(cycles, (list, tuple)) and all(isinstance(cycle, (Phase, Mapping)) for cycle in cycles)
    if not listed or not cycles:
        raise LowlossError(
            f"cycles must be a list of {{steps: NUMBER, lr: RATE, repeat: TIMES}}, of at least one, got {cycles!r}"
        )
    phases: list[Phase] = []
    for one in cycles:
        cycle = vars(one) if isinstance(one, Phase) else one
        if not {"steps", "lr"} <= set(cycle) <= {"steps", "lr", "repeat", "climb"}:
            raise LowlossError(f"a cycle has the keys steps, lr and optionally repeat and climb, got {dict(cycle)}")
        steps, lr, repeat, climb = cycle["steps"], cycle["lr"], cycle.get("repeat", 1), cycle.get("climb", False)
        whole = is_number(steps, int) and steps < 2**31 and is_number(repeat, int) and 1 <= repeat <= 10_000
        if not whole or not is_number(lr, float) or not isinstance(climb, bool):
            raise LowlossError(
                "a cycle's steps and repeat must be whole numbers of at least 1, its lr a number and its climb true or "
                f"false, the steps at most 2^31 - 1 and repeat 10000, got {dict(cycle)}"
            )
        phases += [Phase(int(steps), float(lr), climb)] * int(repeat)
    if phases[0].climb:
        raise LowlossError("the highest pivot is not known before the first cycle: let only later ones climb")
    return phases
