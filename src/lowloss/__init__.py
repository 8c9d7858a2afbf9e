"""Minima, paths, ensembles and scans of the loss landscapes of neural networks.

Everything named in `__all__` is the public API; it is imported when first used, so that `import lowloss` is fast.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowloss.data import Classification, Data, LanguageModel, Regression, Task
    from lowloss.ensemble import FGE, ensemble_metrics
    from lowloss.errors import LowlossError
    from lowloss.finder import NEB, AutoNEB, BezierCurve, Line, PolygonalChain, Tunnel
    from lowloss.landscape import (
        AnalyticSurface,
        Charted,
        GaussianMixture,
        MullerBrown,
        NetworkLandscape,
        Normal,
        Regularised,
        Span,
        Wedge,
    )
    from lowloss.measure import Exact
    from lowloss.papers import compare, published
    from lowloss.points import Grid, plane
    from lowloss.results.export import export
    from lowloss.results.found import fast_ensemble, find_path, scan, train_minima
    from lowloss.results.loaded import load
    from lowloss.training.tabulate import tabulate

__version__ = version("lowloss")

_HOMES = {
    "lowloss.data": ("Classification", "Data", "LanguageModel", "Regression", "Task"),
    "lowloss.ensemble": ("FGE", "ensemble_metrics"),
    "lowloss.errors": ("LowlossError",),
    "lowloss.finder": ("NEB", "AutoNEB", "BezierCurve", "Line", "PolygonalChain", "Tunnel"),
    "lowloss.landscape": (
        "AnalyticSurface",
        "Charted",
        "GaussianMixture",
        "MullerBrown",
        "NetworkLandscape",
        "Normal",
        "Regularised",
        "Span",
        "Wedge",
    ),
    "lowloss.measure": ("Exact",),
    "lowloss.papers": ("compare", "published"),
    "lowloss.points": ("Grid", "plane"),
    "lowloss.results.export": ("export",),
    "lowloss.results.found": ("fast_ensemble", "find_path", "scan", "train_minima"),
    "lowloss.results.loaded": ("load",),
    "lowloss.training.tabulate": ("tabulate",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "FGE",
    "NEB",
    "AnalyticSurface",
    "AutoNEB",
    "BezierCurve",
    "Charted",
    "Classification",
    "Data",
    "Exact",
    "GaussianMixture",
    "Grid",
    "LanguageModel",
    "Line",
    "LowlossError",
    "MullerBrown",
    "NetworkLandscape",
    "Normal",
    "PolygonalChain",
    "Regression",
    "Regularised",
    "Span",
    "Task",
    "Tunnel",
    "Wedge",
    "compare",
    "ensemble_metrics",
    "export",
    "fast_ensemble",
    "find_path",
    "load",
    "plane",
    "published",
    "scan",
    "tabulate",
    "train_minima",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lowloss' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
