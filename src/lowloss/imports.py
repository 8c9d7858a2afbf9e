"""Importing what is heavy when it is used, and Lightning in less time, where the process is ours.

Lightning imports torchmetrics, which imports whatever it finds of its optional packages, for plots and metrics of
images, sound and text: all of matplotlib, torchvision and transformers and much of SciPy, which no step of ours needs.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import torch
else:

    class _Later:
        """A module that is imported when something of it is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(import_module(self._name), name)

    pd, torch = _Later("pandas"), _Later("torch")

light = False
"""Whether torchmetrics does without them. The command line says so; a program of a user's may want its plots."""


def import_torchmetrics() -> None:
    """When `light`, import torchmetrics without its optional packages, before Lightning imports it with them."""
    if light and "torchmetrics" not in sys.modules:
        with _optional_unasked():
            import torchmetrics  # noqa: F401


@contextlib.contextmanager
def _optional_unasked() -> Iterator[None]:
    """Where torchmetrics asks whether a package is installed, the answer is no, but for torch.

    It stays no for what was asked, since what then was not imported is missing. Nothing is hidden from others.
    """
    from unittest.mock import patch

    from lightning_utilities.core import imports

    required = imports.RequirementCache.__bool__

    def required_now(cache: imports.RequirementCache) -> bool:
        if re.match(r"torch\b", cache.requirement or ""):
            return required(cache)
        cache.available, cache.message = False, f"{cache.requirement} is not used by torchmetrics under lowloss"
        return False

    with (
        patch.object(imports.RequirementCache, "__bool__", required_now),
        patch.object(imports, "package_available", lambda _: False),
    ):
        yield
