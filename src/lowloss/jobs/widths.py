"""Widths: how far one moves from a minimum along random directions until the loss passes a threshold.

Shapes: K directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lowloss.jobs.base import Cost, Job
from lowloss.jobs.bench import Bench
from lowloss.jobs.minima import minimum, points
from lowloss.jobs.stage import Stage
from lowloss.seeding import derive
from lowloss.study import Config, Result

if TYPE_CHECKING:
    pass


CHUNK = 64
"""Directions that are searched at once."""


class WidthJob(Job):
    """The width of the valley of a minimum.

    Tensors, and directions.csv: distance, angle (radians) and crossed of every direction (K,).
    """

    kind, stage = "widths", "width"

    def __init__(self, bench: Bench, k: int) -> None:
        super().__init__(bench, f"{k:04d}")
        self.k = k

    def needs(self) -> Sequence[Job]:
        return (minimum(self.bench, self.k),)

    def own_settings(self) -> Config:
        keys = ("directions", "orthogonal", "threshold", "rise", "longest")
        return self.bench.describes("seed", *(f"width.{key}" for key in keys))

    def cost(self) -> Cost:
        # Ten doublings of the first step and ten halvings, as long as the first step is short enough.
        return Cost(0, 21 * self.bench.config["width"]["directions"], 0, "about")

    def make(self, work: Path) -> Result:
        import pandas as pd

        from lowloss.measure import Width
        from lowloss.points.directions import unit_directions
        from lowloss.training.tabulate import tabulate

        bench, settings = self.bench, self.bench.config["width"]
        theta_P, loss = points(bench, [self.k])[0], minimum(bench, self.k).artifact.notes()["train_loss"]
        threshold = loss + settings["rise"] if settings["threshold"] is None else settings["threshold"]
        radius, seed = float(theta_P.double().norm()), derive(bench.config["seed"], "width", self.k)
        measure = Width(theta_P, threshold, settings["longest"] * radius)
        at = partial(unit_directions, theta_P, seed, settings["orthogonal"])
        count, title = settings["directions"], f"width of minimum {self.k}"
        table = bench.everywhere(tabulate, at, count, [measure], folder=work, title=title, chunk=CHUNK)
        notes = {"minimum": self.k, "train_loss": loss, "threshold": threshold, "radius": radius, "directions": count}
        notes["crossed"] = float(table["crossed"].double().mean())
        degrees_K = table["angle"].rad2deg()
        for name, column_K in (("angle", degrees_K), ("distance", table["distance"])):
            notes |= {name: float(column_K.mean()), f"{name}_sd": float(column_K.std(correction=0))}
        return Result(table, notes, {"directions.csv": pd.DataFrame({**table, "crossed": table["crossed"].int()})})


class WidthStage(Stage):
    """Measures how wide the valleys of minima are."""

    name, kind, after = "width", "widths", ("minima",)

    def check(self, bench: Bench) -> None:
        for k in bench.config["width"]["minima"] or ():
            bench.check_minimum("width.minima", k)

    def jobs(self, bench: Bench) -> list[Job]:
        wanted = bench.config["width"]["minima"]
        return [WidthJob(bench, k) for k in dict.fromkeys(range(bench.count) if wanted is None else wanted)]


STAGE = WidthStage()
