"""The Lightning modules, one a stage, and what runs them."""

from lowloss.imports import import_torchmetrics

# Before any module here imports Lightning itself.
import_torchmetrics()
