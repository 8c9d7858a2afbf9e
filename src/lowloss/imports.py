"""Importing Lightning in less time, where the process is ours.

Lightning imports torchmetrics, which imports whatever of its optional packages it finds, for plots and metrics of
images and sound: all of matplotlib, torchvision and much of SciPy, which no step of ours needs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError

OPTIONAL = {"matplotlib", "scipy", "torchvision"}

light = False
"""Whether torchmetrics does without them. The command line says so; a program of a user's may want its plots."""


class _Hiding(MetaPathFinder):
    """As if the optional packages were not installed, to who asks for the module and to who asks for the version."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

    def find_distributions(self, context: DistributionFinder.Context) -> Iterable[Distribution]:
        if context.name in OPTIONAL:
            raise PackageNotFoundError(context.name)
        return []


def import_lightning() -> None:
    """Import Lightning, and when `light` without the optional packages of torchmetrics."""
    if not light or "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core.imports import module_available, package_available

    hiding = _Hiding()
    sys.meta_path.insert(0, hiding)
    try:
        import lightning  # noqa: F401
    finally:
        sys.meta_path.remove(hiding)
        # They are to be found again by whoever asks from now on.
        package_available.cache_clear()
        module_available.cache_clear()
