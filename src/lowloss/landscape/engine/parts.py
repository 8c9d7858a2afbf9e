"""Samples in parts, as many at once as fit the memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeVar

import torch

from lowloss.errors import LowlossError, reason

T = TypeVar("T")


def near_equal(count: int, size: int) -> list[slice]:
    """Spans of at most so many samples, near-equal, and of two where there are two.

    A last part of one sample would have no variance, and would weigh like a full one.
    """
    parts = max(1, min(-(-count // size), count // 2))
    short, longer = divmod(count, parts)
    ends = [i * short + min(i, longer) for i in range(parts + 1)]
    return [slice(first, end) for first, end in pairwise(ends)]


class Parts:
    """Work on near-equal parts of at most `size` samples, and of half as many from where that does not fit.

    least: samples that are not taken apart further, at least three.
    """

    def __init__(self, size: int, least: int = 3) -> None:
        self.size, self._least = size, max(3, least)

    def __call__(self, work: Callable[[slice], T], count: int) -> Iterator[T]:
        """What the work gives for each part of so many samples, in their order."""
        first = 0
        while first < count:
            span = near_equal(count - first, self.size)[0]
            span = slice(first, first + span.stop)
            try:
                found = work(span)
            except torch.OutOfMemoryError:
                if span.stop - first <= self._least:
                    raise
                found = None
            # Not within the except: what has failed would keep its tensors until the end of that.
            if found is None:
                torch.cuda.empty_cache()
                self.size = max(self._least, (span.stop - first) // 2)
                continue
            yield found
            first = span.stop


@contextlib.contextmanager
def room(setting: str) -> Iterator[None]:
    """Raises LowlossError where the GPU's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LowlossError(f"the GPU's memory is too small: lower {setting} ({reason(error)})") from error
