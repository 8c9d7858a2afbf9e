"""What the report shows of curvature: spectra at points, and maps of a plane.

Shapes: K points, N nodes of a density, T values of an axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lowloss.errors import LowlossError
from lowloss.report.looks import look, looks
from lowloss.report.pictures import Picture, Shown, Table, panels, save
from lowloss.report.tables import fractions, units
from lowloss.study import Artifact, Source, Study

MAIN = (
    *("finder", "start", "end", "t", "train_loss", "hessian_max", "hessian_min", "hessian_ratio", "hessian_trace"),
    *("hessian_index", "status"),
)

MOST = 6
"""Densities in one figure at most."""


def spectra(study: Study) -> pd.DataFrame:
    """A row a point whose curvature was measured, as in the spectra.csv of each artifact.

    The Hessian is that of the mean loss over so many samples of a split. index: how many of the lowest eigenvalues that
    were asked for are negative by more than the tolerance; unconverged: a residual is larger than the tolerance.
    """
    tables = [artifact.table("spectra.csv") for artifact in study.complete("spectra")]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def told(hessian: Mapping[str, Any]) -> str:
    """Which Hessian it is, as captions say it."""
    mode = {
        "held": "held at each point's own",
        "batch": "those of the samples",
        "given": "held at the plane's (see its caption)",
    }[hessian["statistics"]]
    samples = "all" if hessian["samples"] is None else f"{hessian['samples']:,}"
    which = f"{samples} samples of the {hessian['split']} split"
    return f"Hessian of the mean loss over {which}; BatchNorm's statistics: {mode}."


def draw_spectra(artifacts: list[Artifact], folder: Path) -> Iterator[Picture]:
    """The densities at some points, and the extreme eigenvalues along every path."""
    loaded = [(artifact, *artifact.load()) for artifact in artifacts]
    loaded.sort(key=lambda item: "t" in item[1])  # minima first
    densities = []
    for artifact, tensors, notes in loaded:
        if (density := _density(artifact.name, tensors, notes)) is not None:
            densities.append(density)
    if densities:
        figure, caption = _densities(densities[:MOST])
        yield save(figure, folder, "density", "Density of the Hessian's eigenvalues", caption)
    paths = [(artifact.name, tensors, notes) for artifact, tensors, notes in loaded if "t" in tensors]
    if paths:
        caption = "At the ends, the highest and some inner points of every path; a cross: not converged. "
        caption += told_of_all(notes for _, _, notes in paths)
        yield save(_along(paths), folder, "curvature", "Curvature along the paths", caption)


def spectrum_figure(artifact: Source, figure: Figure | None = None) -> Figure:
    """Of one artifact: the eigenvalues along a path, the density at a minimum.

    Raises LowlossError if no density was measured there.
    """
    found = tensors, notes = artifact.load()
    if "t" in tensors:
        return _along([(artifact.name, *found)], figure)
    if (density := _density(artifact.name, tensors, notes)) is None:
        raise LowlossError(f"no density was measured at {artifact.name}: set curvature.density")
    return _densities([density], figure)[0]


def told_of_all(notes: Iterable[Mapping[str, Any]]) -> str:
    """Which Hessians these are, each once."""
    return " ".join({told(one["hessian"]): None for one in notes})


def _density(name: str, tensors: Mapping[str, Any], notes: Mapping[str, Any]) -> Any:
    """Where it is, its nodes and weights, and the notes: of a minimum, or of a path at its highest point."""
    if "hessian_nodes" not in tensors:
        return None
    k = int(tensors["train_loss"].argmax())
    nodes_N, weights_N = (tensors[f"hessian_{of}"][k].numpy() for of in ("nodes", "weights"))
    at = f"highest point of {name}" if "t" in tensors else f"minimum {notes['start']}"
    return (at, nodes_N, weights_N, notes) if np.isfinite(nodes_N).all() else None


def smoothed(nodes_N: Any, weights_N: Any, at_T: Any, width: float) -> Any:
    """The density (T,) of a spectrum: its nodes as Gaussians of a standard deviation."""
    away_TN = (at_T[:, None] - nodes_N) / width
    return (weights_N * np.exp(-(away_TN**2) / 2)).sum(1) / (width * np.sqrt(2 * np.pi))


def _densities(densities: list[Any], figure: Figure | None = None) -> tuple[Figure, str]:
    """The figure and its caption."""
    figure, ((axis,),) = panels(7, 4, figure=figure)
    nodes_N = np.concatenate([nodes_N for _, nodes_N, _, _ in densities])
    width = max(0.01 * float(np.ptp(nodes_N)), 1e-12)
    at_T = np.linspace(nodes_N.min() - 5 * width, nodes_N.max() + 5 * width, 1000)
    own = looks(name for name, *_ in densities)
    for name, nodes_N, weights_N, _ in densities:
        density_T = smoothed(nodes_N, weights_N, at_T, width).clip(1e-12)
        axis.plot(at_T, density_T, label=name, linewidth=1.4, **own[name].line)
    axis.set(yscale="log", xlabel="eigenvalue of the Hessian", ylabel="density", ylim=(1e-7 / width, None))
    axis.legend(fontsize=8)
    caption = f"By stochastic Lanczos quadrature, smoothed by Gaussians of standard deviation {width:.2g}. "
    return figure, caption + told_of_all(notes for _, _, _, notes in densities)


def _along(paths: list[Any], figure: Figure | None = None) -> Figure:
    figure, (axes,) = panels(10, 3.6, 1, 2, figure)
    seen = set[str]()
    for _, tensors, notes in paths:
        finder, t_K = notes["finder"], tensors["t"]
        label = None if finder in seen else finder
        seen.add(finder)
        own = look(finder)
        for axis, name in zip(axes, ("hessian_max", "hessian_min"), strict=True):
            axis.plot(t_K, tensors[name], marker=own.marker, markersize=4, label=label, **own.line)
            open_K = ~tensors["hessian_converged"]
            axis.plot(t_K[open_K], tensors[name][open_K], "x", markersize=9, color="black")
    for axis, text in zip(axes, ("largest", "smallest"), strict=True):
        axis.set(xlabel="t along the path", ylabel=f"{text} eigenvalue", xlim=(-0.02, 1.02))
        axis.set_title(f"{text.capitalize()} eigenvalue of the Hessian")
    axes[0].legend()
    return figure


def draw_map(name: str, grid: Mapping[str, Any], notes: Mapping[str, Any], folder: Path) -> Picture:
    """The ratio |lambda_min / lambda_max| on a plane (Li et al. 2018, fig. 7), and lambda_min beside it."""
    figure, ((left, right),) = panels(11, 4.4, 1, 2)
    ratio, lowest, done = (grid[f"hessian_{column}"] for column in ("ratio", "min", "converged"))
    at = grid["axis-0"], grid["axis-1"]
    for axis, values, label, options in (
        (left, ratio, "|λmin / λmax|", {"vmin": 0, "cmap": "viridis"}),
        (right, lowest, "λmin", {"cmap": "viridis"}),
    ):
        drawn = axis.pcolormesh(*at, np.ma.masked_invalid(values).T, shading="nearest", **options)
        figure.colorbar(drawn, ax=axis, label=label)
        x, y = np.nonzero(~done)
        axis.plot(at[0][x], at[1][y], "x", color="white", markersize=4)
        axis.grid(False)
        axis.set_title(label)
    return save(figure, folder, f"curvature-{name}", f"Curvature on {name}", map_caption(grid, notes))


def map_caption(grid: Mapping[str, Any], notes: Mapping[str, Any]) -> str:
    """Which Hessian it is, and two numbers of how far from convex the plane is."""
    lowest, highest, loss = grid["hessian_min"], grid["hessian_max"], grid["train_loss"]
    negative = float(np.mean(lowest < -0.01 * np.abs(highest)))
    return (
        f"As fig. 7 of Li et al. 2018. {100 * negative:.1f} % of the points have λmin < -0.01 λmax, and "
        f"{pits(loss)} are lower in train loss than their eight neighbours; crosses: not converged. "
        f"{told(notes['hessian'])}"
    )


def pits(loss_RC: Any) -> int:
    """How many inner points of a plane are strictly lower than their eight neighbours."""
    rows, columns = (slice(i, i - 2 or None) for i in (0, 1, 2)), [slice(j, j - 2 or None) for j in (0, 1, 2)]
    around = [loss_RC[r, c] for r in rows for c in columns]
    centre = around.pop(4)
    return int(np.all([centre < other for other in around], axis=0).sum())


def found(study: Study) -> Iterator[str]:
    """The largest eigenvalues, and how many are negative where the paths are highest."""
    table = spectra(study)
    if table.empty:
        return
    at = table[table["finder"] == "minimum"] if (table["finder"] == "minimum").any() else table[table["t"] == 0]
    doubtful = int((at["status"] == "unconverged").sum())
    yield (
        f"The largest eigenvalue of the Hessian at the minima is {at['hessian_max'].mean():.2g} on average"
        f"{f', not converged at {doubtful} of {len(at)}' if doubtful else ''}."
    )
    counts = []
    for finder, paths in table[table["finder"] != "minimum"].groupby("finder", sort=False):
        tops = paths.loc[paths.groupby(["start", "end"])["train_loss"].idxmax().dropna()]
        counts.append(f"{int((tops['hessian_index'] > 0).sum())} of {len(tops)} of {finder}")
    if counts:
        yield f"Of the highest points of paths, those with a negative eigenvalue: {', '.join(counts)}."


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    return draw_spectra(study.complete("spectra"), folder)


def shown_tables(study: Study) -> Iterator[Table]:
    note = "Eigenvalues of the Hessian of the mean train loss; index: how many of the lowest ones are negative."
    share = tuple(f"{split}_{metric}" for split in ("train", "test") for metric in fractions(units(study)))
    yield Table("report/spectra.csv", spectra(study), "Spectra", note, MAIN, share)
    measured = [artifact for artifact in study.complete("spectra") if "layers.csv" in artifact.record()[0]]
    if measured:
        note = (
            "Extreme eigenvalues and trace of each layer's block of the Hessian, where all other parameters are held."
        )
        layers = pd.concat([artifact.table("layers.csv") for artifact in measured], ignore_index=True)
        main = ("finder", "start", "end", "t", "layer", "parameters", "hessian_min", "hessian_max", "hessian_trace",
                "status")  # fmt: skip
        yield Table("report/curvature_layers.csv", layers, "Curvature of the layers", note, main)


SHOWN = Shown("Curvature", found, draw, shown_tables)
