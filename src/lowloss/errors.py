"""Errors that a user can mend: one line that names the cause and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from math import inf
from numbers import Integral, Real


class LowlossError(Exception):
    """Something the user can mend; the message is one line that says how."""


class OtherConfigError(LowlossError):
    """A result was made with another configuration."""


class OnceError(LowlossError):
    """A network's loss has no second derivative."""


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


def check_collect(key: str, epochs: object) -> None:
    """Raise LowlossError unless these are epochs at which minima can be kept: none, every one, or a list."""
    listed = isinstance(epochs, (list, tuple)) and all(is_number(e, float) and 0 <= e < inf for e in epochs)
    if epochs is not None and epochs != "every" and not listed:
        raise LowlossError(f"{key} must be null, every or a list of epochs, got {epochs!r}")


def reason(error: Exception) -> str:
    """The first line of what an error of a library or of a user's code tells; its type where it tells nothing, and
    before a number that is alone, as of a key that is not there."""
    kind = type(error).__name__
    told = str(getattr(error, "strerror", None) or str(error) or kind).splitlines()[0]
    return told if any(letter.isalpha() for letter in told) else f"{kind} {told}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are most like a wrong one, as a question; nothing where none is."""
    return did_you_mean(difflib.get_close_matches(name, list(known), 2))


def did_you_mean(names: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(names)}?)" if names else ""
