"""What is measured: the loss at K points at once."""

from lowloss.data.base import AUGMENTED, Batch
from lowloss.landscape.analytic import LEPS, AnalyticSurface, GaussianMixture, MullerBrown, Quadratic, Rosenbrock, Wedge
from lowloss.landscape.base import BatchSource, Columns, Landscape
from lowloss.landscape.chart import Chart, NeuronDistance, Normal, Span, Tied
from lowloss.landscape.engine import Engine
from lowloss.landscape.layout import Layout
from lowloss.landscape.network import NetworkLandscape
from lowloss.landscape.wedges import Wedges
from lowloss.landscape.wrappers import Charted, RandomSpan, Regularised

__all__ = [
    "AUGMENTED",
    "LEPS",
    "AnalyticSurface",
    "Batch",
    "BatchSource",
    "Chart",
    "Charted",
    "Columns",
    "Engine",
    "GaussianMixture",
    "Landscape",
    "Layout",
    "MullerBrown",
    "NetworkLandscape",
    "NeuronDistance",
    "Normal",
    "Quadratic",
    "RandomSpan",
    "Regularised",
    "Rosenbrock",
    "Span",
    "Tied",
    "Wedge",
    "Wedges",
]
