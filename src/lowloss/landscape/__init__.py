"""What is measured: the loss at K points at once."""

from lowloss.data.base import Batch
from lowloss.landscape.analytic import AnalyticSurface, GaussianMixture, MullerBrown, Wedge
from lowloss.landscape.base import BatchSource, Evaluation, Landscape
from lowloss.landscape.engine import Engine
from lowloss.landscape.layout import Layout
from lowloss.landscape.network import NetworkLandscape

__all__ = [
    "AnalyticSurface",
    "Batch",
    "BatchSource",
    "Engine",
    "Evaluation",
    "GaussianMixture",
    "Landscape",
    "Layout",
    "MullerBrown",
    "NetworkLandscape",
    "Wedge",
]
