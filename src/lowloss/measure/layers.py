"""Curvature of each layer by itself: blocks on the diagonal of the Hessian.

Shapes: K points, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowloss.landscape.base import Columns, Landscape
from lowloss.measure.curvature import Extremes, Trace


@dataclass(frozen=True)
class Layers:
    """The measures of `Extremes` and `Trace` of each layer's block of the Hessian (K, L), as `layers_min` and so on.

    A block has the second derivatives in the parameters of one layer, where all others stay as they are. Its extreme
    eigenvalues lie between those of the whole Hessian (Cauchy interlacing), and the blocks' traces sum to its trace.

    layers: of each the first parameter and the one after the last, as `Layout.blocks` has them.
    extremes: how its eigenvalues are found.  trace: and its trace; None: without.
    """

    layers: Mapping[str, tuple[int, int]]
    extremes: Extremes
    trace: Trace | None = None

    def __call__(self, landscape: Landscape, theta_KP: Tensor) -> Columns:
        found = []
        for block in self.layers.values():
            of = replace(self.extremes.hessian, block=block)
            columns = replace(self.extremes, hessian=of, count=1, vectors=False)(landscape, theta_KP)
            if self.trace is not None:
                columns |= replace(self.trace, hessian=of)(landscape, theta_KP)
            found.append(columns)
        return {
            name.replace("hessian", "layers", 1): torch.stack([columns[name] for columns in found], 1)
            for name in found[0]
        }
