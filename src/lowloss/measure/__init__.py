"""What is tabulated at points of a landscape."""

from lowloss.measure.curvature import Density, Extremes, Hessian, Large, Trace
from lowloss.measure.directional import Directional
from lowloss.measure.exact import Exact, augmented
from lowloss.measure.layers import Layers
from lowloss.measure.width import Width

__all__ = ["Density", "Directional", "Exact", "Extremes", "Hessian", "Large", "Layers", "Trace", "Width", "augmented"]
