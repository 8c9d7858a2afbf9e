"""A study's results in other programs' formats: `lowloss export STUDY --to FORMAT …`.

Shapes: R × C a plane's grid (axis-0 is x, axis-1 is y), N its points, E epochs.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
from matplotlib.animation import FFMpegWriter, PillowWriter

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


def export(study: str | Path, formats: str | Sequence[str], folder: str | Path | None = None) -> list[Path]:
    """Write a study's results as files of this format or of these: h5, vtp, stl, glb, pdf, svg, gif, mp4.

    Args:
        study: its folder.
        folder: where to write; by default `export` in the study.

    Raises LowlossError: a format is unknown, needs a package that is not there, or the study holds nothing for it.
    """
    formats = [formats] if isinstance(formats, str) else formats
    for form in formats:
        if form not in FORMATS:
            raise LowlossError(f"there is no format {form}{nearest(form, FORMATS)}: choose of {', '.join(FORMATS)}")
    if "h5" in formats and find_spec("h5py") is None:
        raise LowlossError("h5 needs h5py: pip install 'lowloss[export]'")
    if "mp4" in formats and not FFMpegWriter.isAvailable():
        raise LowlossError("mp4 needs the program ffmpeg: install it (apt install ffmpeg, say), or export gif")
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
                components = scan.notes["settings"]["directions"] == "pca"
                keys["explained_variance_ratio_"] = scan.notes["variance" if components else "captured"]
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
        elif name in ("hessian_min", "hessian_max", "hessian_converged"):
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


def _body(scan: ScanResult) -> tuple[Any, Any]:
    """The points (N, 3) of a plane's surface from 0 on, in units of its longer side, and its triangles (·, 3), two a
    cell."""
    points_N3, cells = _surface(scan)
    low_3, extent_3 = points_N3.min(0), np.ptp(points_N3, axis=0)
    side = extent_3[:2].max()
    points_N3 = (points_N3 - low_3) / np.array([side, side, max(extent_3[2], 1e-12) / HEIGHT])
    return points_N3, np.concatenate([cells[:, [0, 1, 2]], cells[:, [0, 2, 3]]])


def _to_stl(study: StudyResults, folder: Path) -> Drawn:
    """A surface a plane as binary STL."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    for scan in _planes(study):
        points_N3, places = _body(scan)
        corners = points_N3[places]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        triangles = np.zeros(len(corners), record)
        triangles["corners"], triangles["normal"] = corners, normals / np.linalg.norm(normals, axis=1, keepdims=True)
        head = scan.name.encode()[:80].ljust(80)
        with files.replacing(folder / f"{scan.name}.stl") as temporary:
            temporary.write_bytes(head + np.uint32(len(triangles)).astype("<u4").tobytes() + triangles.tobytes())
        yield folder / f"{scan.name}.stl"


def _to_glb(study: StudyResults, folder: Path) -> Drawn:
    """A surface a plane as binary glTF 2.0, upright along y, its points in the colours of their heights."""
    from matplotlib import colormaps

    for scan in _planes(study):
        points_N3, places = _body(scan)
        colours_N3 = colormaps["viridis"](points_N3[:, 2] / HEIGHT)[:, :3] ** 2.2  # glTF's are linear
        parts = [points_N3[:, [0, 2, 1]] * (1, 1, -1), colours_N3, places.ravel()]
        held = [part.astype("<f4" if part.ndim > 1 else "<u4") for part in parts]
        views, accessors, at = list[Any](), list[Any](), 0
        for part in held:
            kind = (
                {"componentType": 5126, "type": "VEC3"} if part.ndim > 1 else {"componentType": 5125, "type": "SCALAR"}
            )
            views.append({"buffer": 0, "byteOffset": at, "byteLength": part.nbytes})
            accessors.append({"bufferView": len(accessors), "count": len(part), **kind})
            at += part.nbytes
        accessors[0] |= {"min": held[0].min(0).tolist(), "max": held[0].max(0).tolist()}
        surface = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}
        matt = {"doubleSided": True, "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 0.9}}
        scene = {
            "asset": {"version": "2.0", "generator": "lowloss"}, "scene": 0, "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0, "name": scan.name}], "meshes": [{"primitives": [surface]}], "materials": [matt],
            "buffers": [{"byteLength": at}], "bufferViews": views, "accessors": accessors,
        }  # fmt: skip
        text = json.dumps(scene).encode()
        text += b" " * (-len(text) % 4)
        body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", at, b"BIN\0")
        body += b"".join(part.tobytes() for part in held)
        with files.replacing(folder / f"{scan.name}.glb") as temporary:
            temporary.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
        yield folder / f"{scan.name}.glb"


def _figures(form: str) -> Callable[[StudyResults, Path], Drawn]:
    """Copies every figure of the report in a vector format."""

    def write(study: StudyResults, folder: Path) -> Drawn:
        for file in sorted((study.root / "report" / "figures").glob(f"*.{form}")):
            with files.replacing(folder / file.name) as temporary:
                temporary.write_bytes(file.read_bytes())
            yield folder / file.name

    return write


def _animation(form: str, writer: Callable[..., Any]) -> Callable[[StudyResults, Path], Drawn]:
    """Draws each trajectory on its plane, growing by epochs, with a writer of matplotlib."""

    def write(study: StudyResults, folder: Path) -> Drawn:
        import matplotlib as mpl

        from lowloss.report.paths import shown_metrics
        from lowloss.report.pictures import STYLE, panels
        from lowloss.report.scans import contours

        for scan in _planes(study):
            grid = scan.arrays
            if "trajectory_projected" not in grid:
                continue
            at_E2, epochs_E = grid["trajectory_projected"], grid["trajectory_epochs"]
            shown = np.unique(np.linspace(1, len(at_E2), min(len(at_E2), FRAMES)).round().astype(int))
            name, frames = f"{scan.name}.{form}", writer(fps=len(shown) / LASTING)
            # The writers go by the end of a file's name.
            with tempfile.TemporaryDirectory() as made, mpl.rc_context(STYLE):
                figure, ((axis,),) = panels(5.5, 4.4)
                label = shown_metrics(scan.notes["units"])[0][1]
                contours(figure, axis, grid, grid["train_loss"], label, logarithmic=True)
                (line,) = axis.plot([], [], ".-", color="white", markeredgecolor="#d1495b", linewidth=1.2)
                with frames.saving(figure, str(Path(made, name)), dpi=100):
                    for count in shown:
                        line.set_data(*at_E2[:count].T)
                        axis.set_title(f"epoch {epochs_E[count - 1]:g}")
                        frames.grab_frame()
                with files.replacing(folder / name) as temporary:
                    temporary.write_bytes(Path(made, name).read_bytes())
            yield folder / name

    return write


FORMATS: dict[str, tuple[Callable[[StudyResults, Path], Drawn], str]] = {
    "h5": (_to_h5, "make lines or planes, say with scan=[plane] stages=[scan]"),
    "vtp": (_to_vtp, "make a plane, say with scan=[plane] stages=[scan]"),
    "stl": (_to_stl, "make a plane, say with scan=[plane] stages=[scan]"),
    "glb": (_to_glb, "make a plane, say with scan=[plane] stages=[scan]"),
    "pdf": (_figures("pdf"), "make its report, with stages=[report]"),
    "svg": (_figures("svg"), "make its report, with stages=[report]"),
    "gif": (_animation("gif", PillowWriter), "make a trajectory's plane, with minima.collect=every scan=[trajectory]"),
    "mp4": (_animation("mp4", FFMpegWriter), "make a trajectory's plane, with minima.collect=every scan=[trajectory]"),
}
"""How each format is written, and what makes something to write."""
