"""A study's results in other programs' formats: `lowloss export STUDY --to FORMAT …`.

Shapes: R × C a plane's grid (axis-0 is x, axis-1 is y), N its points, E epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np

from lowloss import files
from lowloss.errors import LowlossError, nearest
from lowloss.results.kinds import ScanResult
from lowloss.results.loaded import StudyResults, load

FRAMES = 120
"""Of an animation at most."""

LASTING = 8.0
"""Seconds that an animation takes."""

HEIGHT = 0.7
"""Of a printed surface, as a fraction of its longer side; the report's has the same."""

Drawn = Iterator[Path]
"""The files that are written."""


def export(study: str | Path, formats: Sequence[str], folder: str | Path | None = None) -> list[Path]:
    """Write a study's results as files of these formats: h5, vtp, stl, pdf, svg, gif.

    Args:
        study: its folder.
        folder: where to write; by default `export` in the study.

    Raises LowlossError: a format is unknown, needs a package that is not there, or the study holds nothing for it.
    """
    for form in formats:
        if form not in FORMATS:
            raise LowlossError(f"there is no format {form}{nearest(form, FORMATS)}: choose of {', '.join(FORMATS)}")
    if "h5" in formats and find_spec("h5py") is None:
        raise LowlossError("h5 needs h5py: pip install 'lowloss[export]'")
    loaded, made = load(study), list[Path]()
    folder = loaded.root / "export" if folder is None else Path(folder).expanduser()
    for form in formats:
        write, source = FORMATS[form]
        written = list(write(loaded, folder))
        if not written:
            raise LowlossError(f"{loaded.root} has nothing to export as {form}: {source}")
        made += written
    return made


def _planes(study: StudyResults) -> list[ScanResult]:
    return [scan for scan in study.scans.readable() if not scan.notes["lines"]]


def _to_h5(study: StudyResults, folder: Path) -> Drawn:
    """A file a scan, with the keys of Li et al. 2018's code (tomgoldstein/loss-landscape) as its plotting reads them.

    Values of a plane are (C, R), as numpy.meshgrid(xcoordinates, ycoordinates) has them; accuracies are in per cent. Of
    lines in several directions the files are numbered from 1.
    """
    import h5py

    for scan in study.scans.readable():
        grid, several = scan.arrays, scan.notes["lines"] and "axis-1" in scan.arrays
        for d in range(len(grid["axis-0"]) if several else 1):
            keys: dict[str, Any] = {"xcoordinates": grid["axis-1" if several else "axis-0"]}
            if not scan.notes["lines"]:
                keys["ycoordinates"] = grid["axis-1"]
            for name, column in _columns(scan).items():
                keys[name] = column[d] if several else column.T
            if "trajectory_projected" in grid:
                keys["proj_xcoord"], keys["proj_ycoord"] = grid["trajectory_projected"].T
                keys["explained_variance_ratio_"] = np.array(scan.notes["variance"])
            file = folder / f"{scan.name}{f'_{d + 1}' if several else ''}.h5"
            with files.replacing(file) as temporary, h5py.File(temporary, "w") as archive:
                for name, values in keys.items():
                    archive[name] = np.asarray(values, dtype=np.float64)
            yield file


def _columns(scan: ScanResult) -> dict[str, Any]:
    """The columns of a scan by the authors' names; what they have no name for is left out."""
    columns = {}
    for name, values in scan.arrays.items():
        split, _, metric = name.partition("_")
        if split in ("train", "test") and metric == "loss":
            columns[name] = values
        elif split in ("train", "test") and metric == "error" and scan.notes["units"].get("error") == "fraction":
            columns[f"{split}_acc"] = 100 * (1 - values)
        elif name in ("hessian_min", "hessian_max"):
            columns[f"{metric}_eig"] = values
    return columns


def _surface(scan: ScanResult) -> tuple[Any, Any]:
    """The points (N, 3) of a plane, z the log10 of the train loss, and its cells (·, 4), without those that have a
    corner where there is none, which are put as high as the highest."""
    from lowloss.report.planes import heights

    grid = scan.arrays
    x_RC, y_RC = np.meshgrid(grid["axis-0"], grid["axis-1"], indexing="ij")
    z_RC = heights(grid["train_loss"])[0]
    there_RC = np.isfinite(z_RC)
    if not there_RC.any():
        raise LowlossError(f"{scan.name} has no finite train loss, so no surface")
    place_RC = np.arange(z_RC.size).reshape(z_RC.shape)
    corners = [(slice(None, -1), slice(None, -1)), (slice(1, None), slice(None, -1))]
    corners += [(slice(1, None), slice(1, None)), (slice(None, -1), slice(1, None))]
    cells = np.stack([place_RC[corner].ravel() for corner in corners], 1)
    whole = np.all([there_RC[corner].ravel() for corner in corners], 0)
    z_RC = np.where(there_RC, z_RC, z_RC[there_RC].max())
    return np.stack([x_RC.ravel(), y_RC.ravel(), z_RC.ravel()], 1), cells[whole]


def _to_vtp(study: StudyResults, folder: Path) -> Drawn:
    """A surface a plane for ParaView (VTK's XML PolyData), with all exact columns at its points."""
    for scan in _planes(study):
        points_N3, cells = _surface(scan)
        root = Xml.Element("VTKFile", type="PolyData", version="1.0", byte_order="LittleEndian")
        counts = {"NumberOfPoints": str(len(points_N3)), "NumberOfPolys": str(len(cells))}
        piece = Xml.SubElement(Xml.SubElement(root, "PolyData"), "Piece", counts)
        data = Xml.SubElement(piece, "PointData", Scalars="train_loss")
        for name in scan.frame.columns.drop(["x", "y"]):
            _array(data, name, scan.frame[name].to_numpy(dtype=float))
        _array(Xml.SubElement(piece, "Points"), "Points", points_N3)
        polys = Xml.SubElement(piece, "Polys")
        _array(polys, "connectivity", cells)
        _array(polys, "offsets", 4 * np.arange(1, len(cells) + 1))
        files.write_text(folder / f"{scan.name}.vtp", Xml.tostring(root, encoding="unicode", xml_declaration=True))
        yield folder / f"{scan.name}.vtp"


def _array(parent: Any, name: str, values: Any) -> None:
    kind = "Float64" if np.issubdtype(values.dtype, np.floating) else "Int64"
    about = {"type": kind, "Name": name, "format": "ascii"}
    if values.ndim > 1 and kind == "Float64":
        about["NumberOfComponents"] = str(values.shape[1])
    element = Xml.SubElement(parent, "DataArray", about)
    element.text = " ".join(map(repr, values.ravel().tolist()))


def _to_stl(study: StudyResults, folder: Path) -> Drawn:
    """A surface a plane as binary STL, in units of its longer side; each cell is two triangles."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    for scan in _planes(study):
        points_N3, cells = _surface(scan)
        low_3, extent_3 = points_N3.min(0), np.ptp(points_N3, axis=0)
        side = extent_3[:2].max()
        points_N3 = (points_N3 - low_3) / np.array([side, side, max(extent_3[2], 1e-12) / HEIGHT])
        corners = points_N3[np.concatenate([cells[:, [0, 1, 2]], cells[:, [0, 2, 3]]])]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        triangles = np.zeros(len(corners), record)
        triangles["corners"], triangles["normal"] = corners, normals / np.linalg.norm(normals, axis=1, keepdims=True)
        head = scan.name.encode()[:80].ljust(80)
        with files.replacing(folder / f"{scan.name}.stl") as temporary:
            temporary.write_bytes(head + np.uint32(len(triangles)).astype("<u4").tobytes() + triangles.tobytes())
        yield folder / f"{scan.name}.stl"


def _figures(form: str) -> Callable[[StudyResults, Path], Drawn]:
    """Copies every figure of the report in a vector format."""

    def write(study: StudyResults, folder: Path) -> Drawn:
        for file in sorted((study.root / "report" / "figures").glob(f"*.{form}")):
            with files.replacing(folder / file.name) as temporary:
                temporary.write_bytes(file.read_bytes())
            yield folder / file.name

    return write


def _to_gif(study: StudyResults, folder: Path) -> Drawn:
    """Each trajectory on its plane, growing by epochs."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    from lowloss.report.paths import shown_metrics
    from lowloss.report.pictures import STYLE, panels
    from lowloss.report.scans import contours

    for scan in _planes(study):
        grid = scan.arrays
        if "trajectory_projected" not in grid:
            continue
        at_E2, epochs_E = grid["trajectory_projected"], grid["trajectory_epochs"]
        with mpl.rc_context(STYLE):
            figure, ((axis,),) = panels(5.5, 4.4)
            canvas = FigureCanvasAgg(figure)
            label = shown_metrics(scan.notes["units"])[0][1]
            contours(figure, axis, grid, grid["train_loss"], label, logarithmic=True)
            (line,) = axis.plot([], [], ".-", color="white", markeredgecolor="#d1495b", linewidth=1.2)
            shown = np.unique(np.linspace(1, len(at_E2), min(len(at_E2), FRAMES)).round().astype(int))
            frames = []
            for count in shown:
                line.set_data(*at_E2[:count].T)
                axis.set_title(f"epoch {epochs_E[count - 1]:g}")
                canvas.draw()
                frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
        with files.replacing(folder / f"{scan.name}.gif") as temporary:
            options: dict[str, Any] = {"duration": 1000 * LASTING / len(frames), "loop": 0, "save_all": True}
            frames[0].save(temporary, format="GIF", append_images=frames[1:], **options)
        yield folder / f"{scan.name}.gif"


FORMATS: dict[str, tuple[Callable[[StudyResults, Path], Drawn], str]] = {
    "h5": (_to_h5, "make lines or planes, say with scan=[plane] stages=[scan]"),
    "vtp": (_to_vtp, "make a plane, say with scan=[plane] stages=[scan]"),
    "stl": (_to_stl, "make a plane, say with scan=[plane] stages=[scan]"),
    "pdf": (_figures("pdf"), "make its report, with stages=[report]"),
    "svg": (_figures("svg"), "make its report, with stages=[report]"),
    "gif": (_to_gif, "make a trajectory's plane, with minima.collect=every scan=[trajectory]"),
}
"""How each format is written, and what makes something to write."""
