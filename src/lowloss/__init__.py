"""Minima, paths, ensembles and scans of the loss landscapes of neural networks.

Everything named in `__all__` is the public API; it is imported when first used, so that `import lowloss` is fast.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowloss.data import Data
    from lowloss.ensemble import FGE, ensemble_curve
    from lowloss.errors import LowlossError
    from lowloss.finder import NEB, AutoNEB, BezierCurve, Line, PolygonalChain
    from lowloss.landscape import GaussianMixture, MullerBrown, NetworkLandscape, Wedge
    from lowloss.scans import Grid, plane
    from lowloss.training.ensemble import fast_ensemble
    from lowloss.training.evaluation import evaluate_points
    from lowloss.training.minima import train_minima
    from lowloss.training.path import find_path
    from lowloss.training.scan import scan

__version__ = version("lowloss")

_HOMES = {
    "lowloss.data": ("Data",),
    "lowloss.ensemble": ("FGE", "ensemble_curve"),
    "lowloss.errors": ("LowlossError",),
    "lowloss.finder": ("NEB", "AutoNEB", "BezierCurve", "Line", "PolygonalChain"),
    "lowloss.landscape": ("GaussianMixture", "MullerBrown", "NetworkLandscape", "Wedge"),
    "lowloss.scans": ("Grid", "plane"),
    "lowloss.training.ensemble": ("fast_ensemble",),
    "lowloss.training.evaluation": ("evaluate_points",),
    "lowloss.training.minima": ("train_minima",),
    "lowloss.training.path": ("find_path",),
    "lowloss.training.scan": ("scan",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "FGE",
    "NEB",
    "AutoNEB",
    "BezierCurve",
    "Data",
    "GaussianMixture",
    "Grid",
    "Line",
    "LowlossError",
    "MullerBrown",
    "NetworkLandscape",
    "PolygonalChain",
    "Wedge",
    "ensemble_curve",
    "evaluate_points",
    "fast_ensemble",
    "find_path",
    "plane",
    "scan",
    "train_minima",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lowloss' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
