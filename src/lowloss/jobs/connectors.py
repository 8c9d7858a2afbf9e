"""Connectors: surfaces of low loss among m + 1 minima, exactly evaluated.

Shapes: C = m + 1 corners, V vertices, S sampled weights, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lowloss.errors import LowlossError
from lowloss.imports import pd, torch
from lowloss.jobs.base import Bench, Config, Cost, Job, Result, Stage
from lowloss.jobs.minima import minimum, points
from lowloss.seeding import derive

if TYPE_CHECKING:
    from lowloss.points.simplex import Simplex


class ConnectorJob(Job):
    """The connector of the first m + 1 minima.

    Tensors: vertices (V, P), their weights on the simplex, the middle of the surface (P,), of equal weights, the
    sampled weights (S, C), and the exact columns at the vertices, and at the sampled points of the surface and of the
    linear simplex. notes: the highest loss above the linear interpolation of the corners' losses, on the surface, at
    its vertices alone, and on the linear simplex; and the metrics of the corners and of all vertices as ensembles.
    """

    kind, stage = "connectors", "connector"
    own = ("resolution", "steps", "optimizer", "batch_size", "weight_decay", "samples")
    keys = ("seed", *(f"connector.{key}" for key in own))

    def __init__(self, bench: Bench, m: int) -> None:
        super().__init__(bench, f"m{m:02d}")
        self.m = m

    def needs(self) -> Sequence[Job]:
        return [minimum(self.bench, k) for k in range(self.m + 1)]

    def cost(self) -> Cost:
        settings, corners = self.bench.config["connector"], self.m + 1
        simplex, samples = _simplex(self.bench, self.m), settings["samples"]
        vertices, samples = len(simplex.weights_VC), len(simplex.grid(samples)) if self.m <= 2 else samples
        # On the surface, on the linear simplex, at the vertices and in the middle; then both ensembles.
        evaluated = 2 * samples + vertices + 1 + corners + vertices
        return Cost((vertices - corners) * settings["steps"], evaluated, vertices + 1, samples=settings["batch_size"])

    def make(self, work: Path) -> Result:
        from lowloss.ensemble import ensemble_metrics
        from lowloss.training.charts import find_connector

        bench, settings = self.bench, self.bench.config["connector"]
        corners_CP = points(bench, range(self.m + 1))
        simplex, seed = _simplex(bench, self.m), bench.seed("connector", self.m)
        optimizer = bench.build("connector.optimizer", partial=True)
        training = {name: settings[name] for name in ("steps", "batch_size", "weight_decay")}
        found = bench.everywhere(find_connector, corners_CP, simplex, optimizer, seed=seed, folder=work, **training)
        vertices_VP, samples = found.vertices_VP, settings["samples"]
        w_SC = simplex.grid(samples) if self.m <= 2 else simplex.draw(samples, derive(seed, "samples"))
        coefficients_SV = simplex.coefficients(w_SC)
        flat_SV = torch.zeros_like(coefficients_SV)
        flat_SV[:, : self.m + 1] = w_SC
        parts = {"surface": coefficients_SV, "linear": flat_SV, "vertex": torch.eye(len(vertices_VP)).double()}
        weights_KV = torch.cat(list(parts.values()))
        at = partial(_combined, weights_KV, vertices_VP)
        table = bench.tabulate(at, work, f"connector m={self.m}", count=len(weights_KV))
        tensors = {"vertices": vertices_VP, "vertex_weights": simplex.weights_VC, "weights": w_SC}
        notes: Config = {"m": self.m, "vertices": len(vertices_VP), "samples": len(w_SC), "cone": int(simplex.cone)}
        places = {"surface": w_SC, "linear": w_SC, "vertex": simplex.weights_VC}
        for name, column_K in table.items():
            split_K = dict(zip(parts, column_K.split([len(part) for part in parts.values()]), strict=True))
            tensors |= {f"{part}_{name}": one_K for part, one_K in split_K.items()}
            if name.endswith("_loss"):
                corner_C = split_K["vertex"][: self.m + 1]
                above = {part: float((one_K - places[part] @ corner_C).max()) for part, one_K in split_K.items()}
                # Vertices are of the surface, and corners of the linear simplex, wherever samples are drawn.
                above |= {"surface": max(above["surface"], above["vertex"]), "linear": max(above["linear"], 0.0)}
                notes |= {f"barrier_{part}_{name}": highest for part, highest in above.items()}
                notes[f"corners_{name}"] = float(corner_C.mean())
        middle_1V = simplex.coefficients(torch.full((1, self.m + 1), 1 / (self.m + 1)))
        tensors["middle"] = (middle_1V.to(vertices_VP) @ vertices_VP)[0]
        notes["middle_train_loss"] = float(bench.landscape.evaluate(tensors["middle"][None])["loss"][0])
        for name, members_MP in (("corners", corners_CP), ("connector", vertices_VP)):
            together, _ = ensemble_metrics(bench.landscape, members_MP)
            notes |= {f"{name}_together_test_{metric}": float(one[-1]) for metric, one in together.items()}
        entries = [[int(step), rate, sum(losses) / len(losses)] for step, rate, *losses in found.history]
        return Result(tensors, notes, {"metrics.csv": pd.DataFrame(entries, columns=["step", "lr", "mean_loss"])})


def _combined(weights_KV: torch.Tensor, vertices_VP: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return weights_KV[index].to(vertices_VP) @ vertices_VP


def _simplex(bench: Bench, m: int) -> Simplex:
    """The simplex, so finely divided that its middle, which cuts lead through, is a vertex."""
    from lowloss.points.simplex import Simplex

    return Simplex(m, -(-bench.config["connector"]["resolution"] // (m + 1)) * (m + 1))


class ConnectorStage(Stage):
    """Makes the connectors that are asked for, of the first minima."""

    name, kind, after = "connector", "connectors", ("minima",)

    def check(self, bench: Bench) -> None:
        for m in bench.config["connector"]["m"]:
            if not m < bench.count:
                raise LowlossError(
                    f"connector.m={m} connects {m + 1} minima, but there are {bench.count}: {bench.more_minima}"
                )

    def check_made(self, bench: Bench) -> None:
        bench.check_optimizer("connector.optimizer", "set it to 0, and connector.weight_decay")
        for m in bench.config["connector"]["m"]:
            _simplex(bench, m)

    def jobs(self, bench: Bench) -> list[Job]:
        return [ConnectorJob(bench, m) for m in dict.fromkeys(bench.config["connector"]["m"])]


STAGE = ConnectorStage()
