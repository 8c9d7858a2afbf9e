"""What is tabulated at points of a landscape."""

from lowloss.measure.exact import Exact
from lowloss.measure.width import Width

__all__ = ["Exact", "Width"]
