"""What is tabulated at points of a landscape."""

from lowloss.measure.curvature import Density, Extremes, Hessian, Large, Layers, Trace
from lowloss.measure.directional import Directional
from lowloss.measure.exact import Exact, augmented
from lowloss.measure.width import Width
