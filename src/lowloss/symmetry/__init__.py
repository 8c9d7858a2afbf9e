"""Symmetries of networks: which neurons can be permuted, and networks aligned by it."""

from lowloss.symmetry.derive import derive_symmetries
from lowloss.symmetry.groups import Group, Place, Symmetries
from lowloss.symmetry.matching import align, match_activations, match_weights

__all__ = ["Group", "Place", "Symmetries", "align", "derive_symmetries", "match_activations", "match_weights"]
