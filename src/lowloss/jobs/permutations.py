"""Permutations: ways from a minimum to itself with two neurons of a layer exchanged (Brea et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain, combinations, takewhile
from math import comb, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss import progress
from lowloss.errors import LowlossError
from lowloss.imports import pd, torch
from lowloss.jobs.base import Bench, Cost, Job, Result, Stage
from lowloss.jobs.minima import OfMinimum, points
from lowloss.jobs.plans import are_pairs

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape
    from lowloss.symmetry.neurons import Neurons

ALIKE = 1e-6
"""Relative difference of losses up to which two permutation points are one."""

DESCENT = ("steps", "to", "iterations", "gradient_norm", "order")


class PermutationJob(OfMinimum):
    """All wanted pairs of a minimum, as rows beside those of other minima.

    Tensors: bends (R, B, P), from the minimum to the permutation points; t, loss and distance (R, B) there, and the
    train split's exact metrics of the study's own task; what `contract` tells of the points.
    along.csv: the losses along every whole way; the second half is the first, mirrored.  points.csv: a row a pair.
    orders.csv: a row a pair and order, where there are several.
    """

    kind, stage, keys, rows = "permutations", "permutation", ("permutation",), True

    def __init__(self, bench: Bench, k: int) -> None:
        super().__init__(bench, k)
        self.name += f"-{bench.config['permutation']['layer'] or 'last'}"

    def renamed(self, name: str) -> PermutationJob:
        return PermutationJob(self.bench, int(name.partition("-")[0]))

    @cached_property
    def neurons(self) -> Neurons:
        return _neurons(self.bench, self.bench.landscape)

    def pairs(self, theta_P: torch.Tensor) -> list[list[int]]:
        """The pairs of neurons that are wanted of the network at theta."""
        wanted: Any = self.bench.config["permutation"]["pairs"]
        if wanted == "similar":
            pair = self.neurons.similar(theta_P)
            if equal := [*takewhile(lambda other: other != pair, self.neurons.by_similarity(theta_P))]:
                told = ", ".join(f"{l} and {m}" for l, m in equal)  # noqa: E741
                progress.say(
                    f"permutation: of minimum {self.k} the neurons {told} of {self.neurons.layer} are equal: the most "
                    f"similar that are not are {pair[0]} and {pair[1]}"
                )
            return [pair]
        return [list(pair) for pair in combinations(range(len(self.neurons)), 2)] if wanted == "all" else wanted

    def cost(self) -> Cost:
        from lowloss.training.permutation import LAST

        settings, wanted = self.bench.config["permutation"], self.bench.config["permutation"]["pairs"]
        pairs = comb(len(self.neurons), 2) if wanted == "all" else 1 if wanted == "similar" else len(wanted)
        steps, points = settings["steps"] + LAST, pairs * (settings["steps"] + 1 + LAST)
        return Cost(settings["order"] * pairs * steps * settings["iterations"], points, 2 * points, "at most")

    @classmethod
    def make_all(cls, jobs: Sequence[Job], work: Path) -> list[Result]:
        from lowloss.training.permutation import Contraction, contract

        own = [job for job in jobs if isinstance(job, PermutationJob)]
        bench, neurons, settings = own[0].bench, own[0].neurons, own[0].bench.config["permutation"]
        minima_KP = points(bench, [job.k for job in own])
        pairs = [job.pairs(theta_P) for job, theta_P in zip(own, minima_KP, strict=True)]
        counts = [len(some) for some in pairs]
        contraction = Contraction(*(settings[name] for name in DESCENT))
        title = f"permutations of {neurons.layer}, {sum(counts)} of {len(own)} minima"
        theta_RP = minima_KP.repeat_interleave(torch.tensor(counts), dim=0)
        given = theta_RP, neurons, [*chain(*pairs)], contraction, settings["teacher"]
        found = bench.everywhere(contract, *given, folder=work, title=title)
        bends_RBP = found["bends"]
        table = bench.table(bends_RBP.flatten(0, 1).to(theta_RP.dtype), f"{title}, along", work / "along")
        found |= {n: c.view(bends_RBP.shape[:2]) for n, c in table.items() if c.dim() == 1}
        parts = {name: column.split(counts) for name, column in found.items()}
        names = [name for name, column in table.items() if column.dim() == 1]
        return [
            job._result(some, {name: parts[name][i] for name in found}, names)
            for i, (job, some) in enumerate(zip(own, pairs, strict=True))
        ]

    def _result(self, pairs: Sequence[Sequence[int]], found: dict[str, torch.Tensor], metrics: Sequence[str]) -> Result:
        """What is kept of its rows; `metrics` are the study's own task's."""
        from lowloss.symmetry.neurons import halfway
        from lowloss.symmetry.permutation import shape
        from lowloss.training.permutation import LAST

        settings = self.bench.config["permutation"]
        t_RB = halfway(found["distance"], LAST)
        loss_RB, along = found["loss"], []
        for r, (first, second) in enumerate(pairs):
            columns = {"distance": found["distance"][r], "loss": loss_RB[r], **{n: found[n][r] for n in metrics}}
            columns |= {n.removeprefix("along_"): c[r] for n, c in found.items() if n.startswith("along_")}
            whole = {name: torch.cat([column, column.flip(0)[1:]]).numpy() for name, column in columns.items()}
            t_T = torch.cat([t_RB[r], 1 - t_RB[r].flip(0)[1:]])
            along.append(pd.DataFrame({"l": first, "m": second, "t": t_T.numpy(), **whole}))
        highest_R, top_R = loss_RB.max(1)
        rows: dict[str, Any] = {"l": [pair[0] for pair in pairs], "m": [pair[1] for pair in pairs]}
        classes = [shape(losses, settings["gradient_norm"]) for losses in loss_RB.tolist()]
        rows |= {"class": classes, "loss": loss_RB[:, -1], "highest": highest_R}
        rows |= {"highest_t": t_RB.gather(1, top_R[:, None])[:, 0], "barrier": highest_R - loss_RB[:, 0]}
        rows["between"] = found["between"].amax(1)
        rows |= {"point": _alike(loss_RB[:, -1].tolist(), settings["gradient_norm"]), "gradient": found["gradient"]}
        rows["converged"] = (found["gradient_norm"] <= settings["gradient_norm"]).double().mean(1)
        names = ["flatness", "plateau_change", "gradient_in_proportion", "gradient_otherwise"]
        names += ["across_negative", "across_vanishing", "negative", "vanishing"]
        rows["parallel"] = found["along_parallel"].amin(1)
        if "along_negative" in found:
            rows["negative_most"] = found["along_negative"].nan_to_num(0).amax(1)
        table_R = pd.DataFrame(rows | {name: found[name] for name in names if name in found})
        shares = table_R["class"].value_counts(normalize=True).to_dict()
        notes = {"minimum": self.k, "layer": self.neurons.layer, "pairs": pairs, "teacher": settings["teacher"]}
        notes |= {"neurons": len(self.neurons), "steps": settings["steps"], "to": settings["to"]}
        notes |= {"shares": shares, "next_layer": self.neurons.next_layer, "highest": float(table_R["highest"].max())}
        notes["between"] = float(table_R["between"].max())
        # All of the Hessian's where the network is small, else those that the smaller network does not have.
        negative_R = table_R["negative" if "negative" in table_R else "across_negative"]
        notes["share_of_saddles"] = float((negative_R == 1).mean())
        tables = {"along.csv": pd.concat(along), "points.csv": table_R}
        if settings["order"] > 1:
            tables["orders.csv"] = self._orders(found)
        return Result({**found, "t": t_RB}, notes, tables)

    def _orders(self, found: dict[str, torch.Tensor]) -> pd.DataFrame:
        """Every pair's points of all orders; `wanted` are the K n_{k+1} dimensions of proposition 2."""
        columns = {n.removeprefix("order_"): c for n, c in found.items() if n.startswith("order_") and c.dim() == 2}
        rows = []
        for r, merged in enumerate(found["order_pair"].tolist()):
            for k, pair in enumerate(merged):
                row = {"l": merged[0][0], "m": merged[0][1], "order": k + 1, "merged_l": pair[0], "merged_m": pair[1]}
                row["wanted"] = (k + 1) * self.neurons.outgoing_NO.shape[1]
                rows.append(row | {name: column_RK[r, k].item() for name, column_RK in columns.items()})
        return pd.DataFrame(rows)


def _alike(losses: Sequence[float], accuracy: float) -> list[int]:
    """Which permutation point each is, from the cheapest on: those are one whose losses agree to a millionth, or are
    next to none."""
    numbers, number, before = dict[float, int](), -1, -inf
    for loss in sorted({*losses}):
        number += number < 0 or loss > max(before * (1 + ALIKE), accuracy)
        numbers[loss] = number
        before = loss
    return [numbers[loss] for loss in losses]


def _neurons(bench: Bench, landscape: NetworkLandscape) -> Neurons:
    from lowloss.symmetry.derive import symmetries_of
    from lowloss.symmetry.neurons import Neurons

    return Neurons.of(symmetries_of(landscape), bench.config["permutation"]["layer"])


class PermutationStage(Stage):
    """Leads every minimum to itself with two neurons exchanged."""

    name, kind, after = "permutation", "permutations", ("minima",)

    def check(self, bench: Bench) -> None:
        wanted = bench.config["permutation"]["pairs"]
        if wanted not in ("all", "similar") and not (wanted and are_pairs(wanted)):
            raise LowlossError(f"permutation.pairs must be similar, all or a list like [[0,1],[0,2]], got {wanted!r}")
        if isinstance(wanted, list):
            unordered = [sorted(pair) for pair in wanted]
            for pair in unordered:
                if unordered.count(pair) > 1:
                    raise LowlossError(f"permutation.pairs names {pair[0]} and {pair[1]} twice: name each pair once")

    def check_network(self, bench: Bench, landscape: NetworkLandscape) -> None:
        wanted, neurons = bench.config["permutation"]["pairs"], _neurons(bench, landscape)
        if isinstance(wanted, list):
            neurons.check(wanted)
        if (order := bench.config["permutation"]["order"]) >= len(neurons):
            raise LowlossError(
                f"permutation.order={order}, but {neurons.layer} has {len(neurons)} neurons, of which one is left: "
                f"take at most {len(neurons) - 1}"
            )

    def jobs(self, bench: Bench) -> list[Job]:
        return [PermutationJob(bench, k) for k in range(bench.count)]


STAGE = PermutationStage()
