"""What is tabulated at points of a landscape."""

from lowloss.measure.exact import Exact

__all__ = ["Exact"]
