"""Ensembles of networks."""

from lowloss.ensemble.averaging import ensemble_metrics
from lowloss.ensemble.base import EnsembleRecipe, Independent
from lowloss.ensemble.curve import Curve
from lowloss.ensemble.fge import FGE
from lowloss.ensemble.snapshot import Snapshot
from lowloss.ensemble.swa import SWA
