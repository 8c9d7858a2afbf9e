"""Ensembles of networks."""

from lowloss.ensemble.averaging import ensemble_metrics
from lowloss.ensemble.fge import FGE

__all__ = ["FGE", "ensemble_metrics"]
