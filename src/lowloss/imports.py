"""Importing Lightning in less time, where the process is ours.

Lightning imports torchmetrics, which imports whatever it finds of its optional packages, for plots and metrics of
images, sound and text: all of matplotlib, torchvision and transformers and much of SciPy, which no step of ours needs.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from unittest.mock import patch

light = False
"""Whether torchmetrics does without them. The command line says so; a program of a user's may want its plots."""


def import_lightning() -> None:
    """Import Lightning's torchmetrics, when `light` without its optional packages."""
    if light and "torchmetrics" not in sys.modules:
        with _optional_unasked():
            import torchmetrics  # noqa: F401


@contextlib.contextmanager
def _optional_unasked() -> Iterator[None]:
    """Where torchmetrics asks whether a package is installed, the answer is no, but for torch.

    The questions alone are answered otherwise: nothing is hidden from other packages, and later answers are true.
    """
    from lightning_utilities.core import imports

    required, available, asked = imports.RequirementCache.__bool__, imports.package_available, True

    def required_now(cache: imports.RequirementCache) -> bool:
        return re.match(r"torch\b", cache.requirement or "") is not None and required(cache)

    def available_now(name: str) -> bool:
        # torchmetrics keeps this function.
        return not asked and available(name)

    with (
        patch.object(imports.RequirementCache, "__bool__", required_now),
        patch.object(imports, "package_available", available_now),
    ):
        yield
    asked = False
