"""Widths: how far one moves from a minimum along random directions until the loss passes a threshold.

Shapes: K directions.
"""

from functools import partial
from pathlib import Path

from lowloss.imports import pd
from lowloss.jobs.base import Bench, Cost, Job, Result, Stage
from lowloss.jobs.minima import OfMinimum, points

CHUNK = 64
"""Directions that are searched at once."""


class WidthJob(OfMinimum):
    """The width of the valley of a minimum.

    Tensors, and directions.csv: distance, angle (radians) and crossed of every direction (K,).
    """

    kind, stage = "widths", "width"
    keys = ("seed", "width.directions", "width.orthogonal", "width.threshold", "width.rise", "width.longest")

    def cost(self) -> Cost:
        # Ten doublings of the first step and ten halvings, as long as the first step is short enough.
        return Cost(0, 21 * self.bench.config["width"]["directions"], 0, "about")

    def make(self, work: Path) -> Result:
        from lowloss.measure import Width
        from lowloss.points.directions import unit_directions

        bench, settings = self.bench, self.bench.config["width"]
        theta_P, loss = points(bench, [self.k])[0], self.minimum.artifact.notes()["train_loss"]
        threshold = loss + settings["rise"] if settings["threshold"] is None else settings["threshold"]
        radius, count = float(theta_P.double().norm()), settings["directions"]
        measure = Width(theta_P, threshold, settings["longest"] * radius)
        at = partial(unit_directions, theta_P, bench.seed("width", self.k), settings["orthogonal"])
        table = bench.tabulate(at, work, f"width of minimum {self.k}", [measure], count=count, chunk=CHUNK)
        notes = {"minimum": self.k, "train_loss": loss, "threshold": threshold, "radius": radius, "directions": count}
        notes["crossed"] = float(table["crossed"].double().mean())
        for name, column_K in (("angle", table["angle"].rad2deg()), ("distance", table["distance"])):
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
