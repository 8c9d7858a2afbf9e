"""Permutation paths of many pairs at once, as a measure that keeps every step.

Shapes: R pairs, B points up to the permutation point, P parameters, U points of a plateau, M numbers of a neuron.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lowloss.data.base import Data
from lowloss.data.task import Regression
from lowloss.files import load_tensors, save_tensors
from lowloss.landscape.base import Columns, Landscape
from lowloss.landscape.engine import Engine
from lowloss.landscape.layout import Layout
from lowloss.landscape.network import NetworkLandscape
from lowloss.landscape.students import Students
from lowloss.landscape.wrappers import Charted
from lowloss.progress import bar
from lowloss.symmetry.neurons import Neurons
from lowloss.symmetry.permutation import (
    across,
    at_distance,
    between,
    descend,
    gradients,
    hessian,
    merged,
    plateau,
    shifts,
    signs,
)
from lowloss.training.descent import default_trainer
from lowloss.training.devices import TrainerFactory
from lowloss.training.tabulate import tabulate

LAST = 10
"""Steps, at the smallest distance, in which the outgoing weights become equal."""

DENSE = 500
"""Parameters up to which the Hessian at a permutation point is computed whole."""

BETWEEN = 4
"""Parts of the way from one descent's end to the next, at whose bounds the loss is evaluated."""

PRODUCTS = 5000
"""With the Hessians of all points of a way, at most: of longer ways every second, third … point has one."""

SPLITS = 5
"""Ways of each kind to split outgoing weights on the plateau."""


@dataclass(frozen=True)
class Contraction:
    """How the distance of two neurons is decreased: in logarithmic steps to a fraction `to`, at each a descent.

    steps: of the distance.  iterations: of a descent, at most.  gradient_norm: at which a descent has converged.
    order: K, of the permutation points in the end: K - 1 more pairs are merged, each the most similar of what is left.
    """

    steps: int
    to: float
    iterations: int
    gradient_norm: float
    order: int = 1


def taught(landscape: NetworkLandscape, theta_P: Tensor) -> NetworkLandscape:
    """The landscape, in float64, of students whose targets are the outputs of the network at theta (its teacher).

    The loss is that of Brea et al. 2019, sec. 5: the squared error, summed over the outputs of a sample, over the mean
    square of the targets. Theta is a global minimum of it.
    """
    splits = {}
    exact = landscape if landscape.layout.dtype == torch.float64 else _wide(landscape, landscape.data)
    for split in ("train", "test"):
        y = torch.cat([outputs for outputs, _ in exact.outputs(theta_P.double(), split)])
        splits[split] = exact.data.split(split)[0], y
    (x_train, y_train), (x_test, y_test) = splits["train"], splits["test"]
    task = Regression(scale=float(y_train.square().mean()) / y_train[0].numel())
    return _wide(exact, Data(x_train, y_train, x_test, y_test, exact.data.num_classes, task=task))


def _wide(landscape: NetworkLandscape, data: Data) -> NetworkLandscape:
    return NetworkLandscape(lambda: landscape.copy().double(), data, landscape.evaluation_batch, Engine("loop"))


def contract(
    landscape: NetworkLandscape,
    theta_RP: Tensor,
    neurons: Neurons,
    pairs: Sequence[Sequence[int]],
    contraction: Contraction,
    teacher: bool = True,
    trainer: TrainerFactory = default_trainer,
    folder: Path | None = None,
    title: str = "permutations",
) -> Columns:
    """Lead pairs of neurons of minima to their permutation points, all as rows at once.

    Args:
        theta_RP: the minimum of each pair (R, P), or one for all (P,).
        teacher: whether a row's loss is that of students of the network at its minimum, else the data's own.
        folder: where every step is kept, and where it continues.

    Returns:
        Columns with R first. bends (R, B, P): from the minimum to the permutation point; distance and loss (R, B), and
        gradient_norm (R, B - 1) of the descents, in their coordinates; between (R, B - 1), the highest loss found on
        the way from one to the next, see `between`; along_gradient (R, B), the norm of the whole gradient, and
        along_parallel (R, B), its cosine with the way, 1 where there is none; up to DENSE parameters along_negative (R,
        B), the negative eigenvalues of the Hessian, NaN where it is not computed. At the points (R,): gradient,
        flatness of the six moves (the largest change of the loss), plateau_change of the loss, and the largest
        gradients on the plateau where outgoing weights are split in proportion and otherwise; the eigenvalues across
        (R, M), which move the two neurons apart, and of them across_negative and across_vanishing (R,), see `across`;
        and up to DENSE parameters all eigenvalues (R, P), negative and vanishing (R,). For orders above 1 also those of
        the points of every order (R, K): order_pair (R, K, 2), the last that was merged, order_loss, order_gradient,
        order_change and order_dimensions, the largest change of the loss along random directions of proposition 2 and
        how many of these are independent, and order_negative and order_vanishing.

    Raises LowlossError: two neurons are equal already.
    """
    points, wide = theta_RP.double().expand(len(pairs), -1), _wide(landscape, landscape.data)
    minima_KP, of_R = points.unique(dim=0, return_inverse=True)
    losses = [taught(wide, theta_P) if teacher else wide for theta_P in minima_KP]
    students = Students([losses[k] for k in of_R.tolist()])
    measure = _Contracted(wide.layout, neurons, pairs, contraction, folder, title)
    return tabulate(students, points, measures=[measure], trainer=trainer, title=f"{title}, points", chunk=len(pairs))


@dataclass(frozen=True)
class _Contracted:
    """The measure: what each pair of neurons comes to, a row a pair."""

    layout: Layout
    neurons: Neurons
    pairs: Sequence[Sequence[int]]
    contraction: Contraction
    folder: Path | None
    title: str

    def __call__(self, landscape: Landscape, theta_RP: Tensor) -> Columns:
        assert isinstance(landscape, Students)
        label_RN = torch.arange(len(self.neurons)).repeat(len(self.pairs), 1)
        bends, norms = self._merge(landscape, theta_RP.cpu(), label_RN, self.pairs, "distance")
        bends_RBP = torch.stack(bends, dim=1)
        own = [*zip(landscape.rows, bends_RBP, self.pairs, strict=True)]
        found = [row.evaluate(theta_BP)["loss"] for row, theta_BP, _ in own]
        distance_RB = torch.stack([self._distance(theta_RP) for theta_RP in bends], dim=1)
        columns = {"bends": bends_RBP, "loss": torch.stack(found), "distance": distance_RB}
        columns["gradient_norm"] = torch.stack(norms, dim=1)
        columns["between"] = self._between(landscape, bends, distance_RB)
        along = [_third(row, theta_BP) for row, theta_BP, _ in own]
        columns |= {name: torch.stack([row[name] for row in along]) for name in along[0]}
        rows = [self._point(row, theta_BP[-1], *pair) for row, theta_BP, pair in own]
        columns |= {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return columns | (self._higher(landscape, bends[-1], label_RN) if self.contraction.order > 1 else {})

    def _between(self, students: Students, bends: Sequence[Tensor], distance_RB: Tensor) -> Tensor:
        """The highest loss (R, B - 1) found between two bends."""
        given = self.layout, self.neurons, self.pairs
        fractions = [part / BETWEEN for part in range(1, BETWEEN)]
        steps = [between(*given, *ends, distance_RB[:, i : i + 2], fractions) for i, ends in enumerate(pairwise(bends))]
        points_RKP = torch.cat(steps, dim=1)
        found = [row.evaluate(theta_KP)["loss"] for row, theta_KP in zip(students.rows, points_RKP, strict=True)]
        return torch.stack(found).unflatten(1, (-1, len(fractions))).amax(2)

    def _higher(self, students: Students, theta_RP: Tensor, label_RN: Tensor) -> Columns:
        """The points of every order: see `contract`."""
        orders, pairs = [], self.pairs
        for order in range(1, self.contraction.order + 1):
            if order > 1:
                pairs = [
                    self.neurons.similar(theta_P, label_N.unique().tolist())
                    for theta_P, label_N in zip(theta_RP, label_RN, strict=True)
                ]
                theta_RP = self._merge(students, theta_RP, label_RN, pairs, f"order-{order}")[0][-1]
            rows = [
                {"order_pair": torch.tensor(pair), **self._plateau(row, theta_P, label_N)}
                for row, theta_P, label_N, pair in zip(students.rows, theta_RP, label_RN, pairs, strict=True)
            ]
            orders.append({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
        return {name: torch.stack([found[name] for found in orders], dim=1) for name in orders[0]}

    def _plateau(self, landscape: Landscape, theta_P: Tensor, label_N: Tensor) -> Columns:
        loss, equal = float(landscape.evaluate(theta_P[None])["loss"]), len(label_N) - len(label_N.unique())
        count = equal * self.neurons.outgoing_NO.shape[1] + 1  # one more than there can be
        shift_UNO, changes = shifts(theta_P, self.neurons, label_N, count, seed=0), list[Tensor]()
        for some_KNO in shift_UNO.split(16):
            moved_KP = theta_P.repeat(len(some_KNO), 1)
            moved_KP[:, self.neurons.outgoing_NO] += some_KNO
            changes.append((landscape.evaluate(moved_KP)["loss"] - loss).abs().max())
        batch = landscape.batches(None, [0], shared=True)[0]
        columns = {
            "order_loss": torch.tensor(loss, dtype=torch.float64),
            "order_gradient": gradients(landscape, theta_P[None], batch)[1].norm().cpu(),
            "order_change": torch.stack(changes).max(),
            "order_dimensions": torch.linalg.matrix_rank(shift_UNO.flatten(1), rtol=1e-9),
        }
        if len(theta_P) <= DENSE:
            eigenvalues = torch.linalg.eigvalsh(hessian(landscape, theta_P))
            columns["order_negative"], columns["order_vanishing"] = signs(eigenvalues)
        return columns

    def _merge(
        self, students: Students, theta_RP: Tensor, label_RN: Tensor, pairs: Sequence[Sequence[int]], name: str
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The points (R, P) from these to those where a pair more is one, and the gradient norms (R,) of the descents.

        Args:
            label_RN: which neurons are one already; what is one in the end is written there.
            name: of the files.
        """
        settings, steps = self.contraction, self.contraction.steps
        start_R = torch.cat(
            [self.neurons.distances(theta_P, [pair]) for theta_P, pair in zip(theta_RP, pairs, strict=True)]
        )
        batch = students.whole()
        device = batch.y.device
        bends, norms, before = [theta_RP], list[Tensor](), merged(students, self.neurons, label_RN)
        for label_N, (l, m) in zip(label_RN, pairs, strict=True):  # noqa: E741
            label_N[label_N == m] = l
        after = merged(students, self.neurons, label_RN)
        delta_RS = start_R[:, None] * settings.to ** (torch.arange(steps + 1.0, dtype=torch.float64) / steps)
        z_RP, spread_R = before.chart.coordinates(theta_RP).to(device), None
        with bar(self.title, steps + LAST) as advance:
            for step in range(steps + LAST):
                left = min(1, 1 - (step + 1 - steps) / LAST)
                apart = delta_RS[:, min(step + 1, steps)], start_R, spread_R if spread_R is None else left * spread_R
                chart = at_distance(self.layout, self.neurons, pairs, *apart)
                charts = [before, Charted(before, chart)] if left else [after]
                for charted in charts:
                    charted.chart.to(device)
                file = self.folder / f"{name}-{step:04d}.safetensors" if self.folder else None
                if file and file.exists():
                    kept, _ = load_tensors(file)
                    theta_RP, norm_R = kept["theta"], kept["gradient_norm"]
                else:
                    z_RP = z_RP if left else _into(charts, theta_RP.to(device))
                    z_RP, _, norm_R = descend(charts[-1], z_RP, batch, settings.iterations, settings.gradient_norm)
                    theta_RP = z_RP
                    for charted in reversed(charts):
                        theta_RP = charted.chart.points(theta_RP)
                    theta_RP, norm_R = theta_RP.cpu(), norm_R.cpu()
                    if file:
                        save_tensors(file, {"theta": theta_RP, "gradient_norm": norm_R}, {})
                # Lengths that do not matter drift in a descent; and what goes on from a file goes on from the same.
                z_RP = _into(charts, theta_RP.to(device))
                if step + 1 == steps:
                    spread_R = chart.spreads(z_RP).cpu()
                bends.append(theta_RP)
                norms.append(norm_R)
                advance(step + 1, f"gradient {float(norm_R.max()):.1e}")
        return bends, norms

    def _distance(self, theta_RP: Tensor) -> Tensor:
        """The distance of each row's pair (R,)."""
        rows = zip(theta_RP, self.pairs, strict=True)
        return torch.stack([theta_P[self.neurons.incoming_NS[pair]].diff(dim=0).norm() for theta_P, pair in rows])

    def _point(self, landscape: Landscape, theta_P: Tensor, l: int, m: int) -> Columns:  # noqa: E741
        """What is said of a permutation point: see `contract`."""
        neurons, loss = self.neurons, float(landscape.evaluate(theta_P[None])["loss"])
        others = [i for i in range(len(neurons)) if i not in (l, m)]
        way = torch.cat([_along(neurons.exchange(theta_P, l, m, i)) for i in others or [l]])
        split = plateau(theta_P, neurons, l, m, SPLITS, seed=0)
        batch = landscape.batches(None, [0], shared=True)[0]
        slopes = gradients(landscape, torch.cat([theta_P[None], split]), batch)[1].norm(dim=1).cpu()
        point = {
            "gradient": slopes[0],
            "flatness": (landscape.evaluate(way)["loss"] - loss).abs().max(),
            "plateau_change": (landscape.evaluate(split)["loss"] - loss).abs().max(),
            "gradient_in_proportion": slopes[1 : 1 + SPLITS].max(),
            "gradient_otherwise": slopes[1 + SPLITS :].max(),
            "across": across(landscape, theta_P, neurons, l, m),
        }
        point["across_negative"], point["across_vanishing"] = signs(point["across"])
        if len(theta_P) <= DENSE:
            point["eigenvalues"] = torch.linalg.eigvalsh(hessian(landscape, theta_P))
            point["negative"], point["vanishing"] = signs(point["eigenvalues"])
        return point


def _third(landscape: NetworkLandscape, theta_BP: Tensor) -> Columns:
    """What the third property of a way is about (Brea et al. 2019, sec. 4.1), at each of its points: see `contract`."""
    batch = landscape.batches(None, [0], shared=True)[0]
    gradient_BP = gradients(landscape, theta_BP, batch)[1].cpu()
    beside_BP = torch.cat([theta_BP[:1], theta_BP, theta_BP[-1:]])
    cosine_B = torch.nn.functional.cosine_similarity(gradient_BP, beside_BP[2:] - beside_BP[:-2], eps=0)
    # Where there is no gradient, as at a minimum, it is parallel to any way.
    found = {"along_gradient": gradient_BP.norm(dim=1), "along_parallel": cosine_B.abs().nan_to_num(1)}
    if theta_BP.shape[1] <= DENSE:
        found["along_negative"] = torch.full_like(cosine_B, torch.nan)
        for place in range(0, len(theta_BP), -(-theta_BP.numel() // PRODUCTS)):
            eigenvalues = torch.linalg.eigvalsh(hessian(landscape, theta_BP[place]))
            found["along_negative"][place] = float(signs(eigenvalues)[0])
    return found


def _into(charts: Sequence[Charted], theta_RP: Tensor) -> Tensor:
    """The coordinates in the last of charts, each of the coordinates of the one before."""
    for charted in charts:
        theta_RP = charted.chart.coordinates(theta_RP)
    return theta_RP


def _along(way_KP: Tensor, between: int = 4) -> Tensor:
    """Points on the straight lines between consecutive points, the ends included."""
    fractions_K1 = torch.arange(between)[:, None].to(way_KP) / between
    return torch.cat([*(a.lerp(b, fractions_K1) for a, b in pairwise(way_KP)), way_KP[-1:]])
