"""Symmetries of networks: which neurons can be permuted, and networks aligned by it."""

from lowloss.symmetry.derive import derive_symmetries
from lowloss.symmetry.groups import Group, Place, Symmetries

__all__ = ["Group", "Place", "Symmetries", "derive_symmetries"]
