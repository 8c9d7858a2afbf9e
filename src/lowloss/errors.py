"""Errors that a user can mend: one line that names the cause and the remedy."""

from __future__ import annotations

from math import inf
from numbers import Integral, Real


class LowlossError(Exception):
    """Something the user can mend; the message is one line that says how."""


class OtherConfigError(LowlossError):
    """A result was made with another configuration."""


class NonFiniteLossError(LowlossError):
    """A loss became NaN or infinite during training."""


def is_number(value: object, kind: type) -> bool:
    """Whether the value of a setting is a number of this kind, int or float, numpy's too; true and false are none."""
    return isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)


def check_number(key: str, value: object, kind: type, least: float) -> None:
    """Raise LowlossError unless the value of a setting is a number of this kind, int or float, and large enough."""
    if not is_number(value, kind) or not value >= least:  # type: ignore[operator]
        noun = "a number" if kind is float else "a whole number"
        raise LowlossError(f"{key} must be {noun} of at least {least:g}, got {value!r}")


def check_sgd(momentum: float, weight_decay: float, batch_size: int) -> None:
    """Raise LowlossError for settings with which SGD cannot descend."""
    if not 0 <= momentum < 1:
        raise LowlossError(f"momentum must be at least 0 and less than 1, got {momentum}")
    if not 0 <= weight_decay < inf:
        raise LowlossError(f"weight_decay must be at least 0 and finite, got {weight_decay}")
    check_number("batch_size", batch_size, int, 1)
