"""What the results of each kind are.

Shapes: P parameters, K minima or points, E epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any

from lowloss.errors import LowlossError
from lowloss.results.base import Made, NoAttributeError, OneResult, Results, left_out
from lowloss.study import Artifact, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from lowloss.points.path import Path


@dataclass(frozen=True)
class Collected:
    """Where a minimum was on its way: the epochs, and the points then, (E, P), which are read when asked for."""

    epochs: list[float]
    files: list[Folder]

    @property
    def theta_EP(self) -> Tensor:
        import torch

        from lowloss.files import load_tensors

        return torch.stack([load_tensors(file)[0]["theta"] for file in self.files])


class MinimumResult(OneResult):
    """A minimum; its frame is the learning curve: step, lr and the minibatches' train loss."""

    main, told = "metrics.csv", ("status", "train_loss", "train_error", "test_loss", "test_error")

    @cached_property
    def theta(self) -> Tensor:
        """The point (P,)."""
        return self.tensors["theta"]

    @classmethod
    def draw_all(cls, found: Sequence[MinimumResult], figure: Figure) -> None:
        from lowloss.report.minima import learning_figure

        learning_figure([one.source for one in found], figure)

    @property
    def trajectory(self) -> Any:
        """Its `epochs`, and `theta_EP`, where it was then. Raises LowlossError where none was collected."""
        known = self.source.known if isinstance(self.source, Made) else self.notes
        if "trajectory_epochs" not in known:
            raise NoAttributeError(f"{self.kind}/{self.name} has no trajectory: train with minima.collect=every")
        epochs = known["trajectory_epochs"]
        if isinstance(self.source, Made):
            return known["trajectory"]
        folder = self.source.folder / "trajectory"
        return Collected(epochs, [folder / f"{i:04d}.safetensors" for i in range(len(epochs))])


class PathResult(OneResult):
    """A path between two minima; its frame has a row a sampled point: t, arc and the exact metrics."""

    main, told = "along.csv", ("finder", "start", "end", "status", "barrier_train_loss", "saddle_train_loss")

    @cached_property
    def path(self) -> Path:
        """The curve itself: `path.points(t_K)` are its points (K, P)."""
        from lowloss.points.path import path_from_tensors

        return path_from_tensors(self.notes["kind"], self.tensors)

    @classmethod
    def draw_all(cls, found: Sequence[PathResult], figure: Figure) -> None:
        from lowloss.report.paths import paths_figure

        paths_figure([one.source for one in found], figure)


class ScanResult(OneResult):
    """Lines or a plane; its frame has a row a point: its coordinates and the exact metrics."""

    main, told = "scan.csv", ("scan",)

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The tensors as NumPy arrays: axis-0, axis-1, columns in the grid's shape, and what lies on it."""
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}

    def draw(self, figure: Figure) -> None:
        from lowloss.report.lines import lines_figure
        from lowloss.report.scans import plane_figure

        (lines_figure if self.notes["lines"] else plane_figure)(self.arrays, self.notes, figure)

    def surface(self) -> Any:
        """The plane's log10 train loss as an interactive plotly figure, with the minima, and the paths of its study or
        with which it was scanned. Raises LowlossError for lines."""
        import plotly.graph_objects as go

        from lowloss.report.planes import surface
        from lowloss.report.scans import way_of, ways_of

        if self.notes["lines"]:
            raise LowlossError(f"{self.name} is of lines and has no surface: call plot()")
        if isinstance(self.source, Artifact):
            study = Study(self.source.folder.parent.parent)
            ways, damaged = study.read(lambda study: ways_of(study, self.arrays, self.notes))
            left_out(damaged)
        else:
            path = self.source.known.get("_path")
            ways = [way_of(path, self.arrays["bends_projected"])] if path is not None else []
            ways += ways_of(None, self.arrays, self.notes)
        return go.Figure(surface(self.arrays, self.notes, ways))

    @property
    def trajectory(self) -> TrajectoryResult:
        """The trajectory that lies on it. Raises LowlossError where there is none."""
        if "trajectory_projected" not in self.tensors:
            raise NoAttributeError(f"no trajectory lies on {self.name}: scan one (scan=[trajectory])")
        return TrajectoryResult(self.kind, self.source)


class TrajectoryResult(ScanResult):
    """A trajectory on its plane; its frame has a row an epoch: the rate, where it lies, its real losses and those of
    its projection. `plot` draws these losses by epochs; the scan's own, the plane."""

    main = "trajectory.csv"

    def draw(self, figure: Figure) -> None:
        from lowloss.report.lines import trajectory_figure

        trajectory_figure(self.arrays, self.notes, figure)


class EnsembleResult(OneResult):
    """An ensemble on the test split; its frame has a row a member."""

    main, told = "members.csv", ("method",)

    @classmethod
    def draw_all(cls, found: Sequence[EnsembleResult], figure: Figure) -> None:
        from lowloss.report.ensembles import ensembles_figure
        from lowloss.report.ensembles_along import loaded_arrays, pairs_figure

        if shown := [one.source for one in found if "ways" not in one.notes]:
            ensembles_figure(shown, figure)
            return
        along = [loaded_arrays(one.source) for one in found]
        if len({frozenset((notes["start"], notes["end"])) for _, notes in along}) > 1:
            raise LowlossError(f"a figure shows the curves between two minima: plot {found[0].name} or another")
        pairs_figure(along, figure)


class SpectrumResult(OneResult):
    """The Hessian's eigenvalues at a minimum or along a path; its frame has a row a point."""

    main, told = "spectra.csv", ("finder", "start", "end")

    def draw(self, figure: Figure) -> None:
        from lowloss.report.spectra import spectrum_figure

        spectrum_figure(self.source, figure)


class ConnectorResult(OneResult):
    """A connector of several minima: losses over it and over the linear simplex."""

    told = ("m", "corners_train_loss", "barrier_surface_train_loss", "barrier_linear_train_loss")

    def draw(self, figure: Figure) -> None:
        from lowloss.report.connectors import connector_figure

        connector_figure(self.source, figure)


class PermutationResult(OneResult):
    """The ways on which neurons of a layer are exchanged; its frame has a row a point on them."""

    main = "along.csv"

    def draw(self, figure: Figure) -> None:
        from lowloss.report.permutations import permutations_figure

        permutations_figure(self.source, figure)


class WidthResult(OneResult):
    """How far a minimum reaches; its frame has a row a random direction: angle in radians, and distance."""

    main = "directions.csv"

    @classmethod
    def draw_all(cls, found: Sequence[WidthResult], figure: Figure) -> None:
        from lowloss.report.widths import widths_figure

        widths_figure([one.source for one in found], figure)


class DimensionResult(OneResult):
    """Random cuts through a place; its frame has a row a cut: its dimension, and what descent in it reached."""

    main = "runs.csv"

    @classmethod
    def draw_all(cls, found: Sequence[DimensionResult], figure: Figure) -> None:
        from lowloss.report.dimensions import dimensions_figure

        dimensions_figure([one.source for one in found], figure)


class Minima(Results[MinimumResult]):
    """Minima; `theta_KP` has one a row."""

    @cached_property
    def theta_KP(self) -> Tensor:
        import torch

        return torch.stack([one.theta for one in self])


KINDS: Mapping[str, type[OneResult]] = {
    "minima": MinimumResult,
    "paths": PathResult,
    "scans": ScanResult,
    "ensembles": EnsembleResult,
    "spectra": SpectrumResult,
    "connectors": ConnectorResult,
    "permutations": PermutationResult,
    "widths": WidthResult,
    "dimensions": DimensionResult,
}
"""What the results of a kind are; those of others have no more than every result has."""
