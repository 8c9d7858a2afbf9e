"""Symmetries of networks: which neurons can be permuted, and networks aligned by it."""

from lowloss.symmetry.alignment import align, samples
from lowloss.symmetry.derive import derive_symmetries, symmetries_of
from lowloss.symmetry.groups import Group, Place, Symmetries
from lowloss.symmetry.matching import match_activations, match_weights
from lowloss.symmetry.repair import irreparable, repaired
from lowloss.symmetry.straight_through import match_straight_through
