"""What is measured: the loss at K points at once."""

from lowloss.data.base import AUGMENTED, Batch
from lowloss.landscape.analytic import (
    AnalyticSurface,
    GaussianMixture,
    MullerBrown,
    Quadratic,
    Rosenbrock,
    Wedge,
    Wedges,
)
from lowloss.landscape.base import BatchSource, Columns, Landscape
from lowloss.landscape.chart import Chart, NeuronDistance, Normal, Span, Tied
from lowloss.landscape.engine import Engine
from lowloss.landscape.layout import Layout
from lowloss.landscape.network import NetworkLandscape
from lowloss.landscape.wrappers import Charted, RandomSpan, Regularised
