"""At which losses evaluation in 16 bits is trusted."""

from __future__ import annotations

from math import inf

from torch import Tensor

LOSS_AGREEMENT, ERROR_AGREEMENT = 1e-3, 5e-4
"""How far evaluation in 16 bits may be from float32, in nats (relative above 1) and as a fraction of the samples."""


class Trust:
    """Of one split: from half the lowest to twice the highest loss that float32 confirmed, below the first it did not.

    Args:
        samples: of the split; one of them may fall on either side by rounding.
    """

    def __init__(self, samples: int) -> None:
        self._error_agreement = ERROR_AGREEMENT + 1 / samples
        self._lowest, self._highest = inf, -inf
        self.limit = inf
        """The lowest loss at which the two differed, from which on float32 is reported."""

    def holds(self, loss_K: Tensor) -> Tensor:
        """Which points are reported as 16 bits give them; none that is not a number."""
        return (loss_K <= 2 * self._highest) & (loss_K < self.limit)

    def doubtful(self, loss_K: Tensor, lowest: bool) -> int | None:
        """The highest or the lowest point below the limit, unless its loss is near one that was confirmed."""
        below_K = loss_K < self.limit
        if not below_K.any():
            return None
        k = int(loss_K.where(below_K, inf).argmin() if lowest else loss_K.where(below_K, -inf).argmax())
        # Lower than what float32 has to agree with, one is as another.
        near = self._lowest / 2 <= max(float(loss_K[k]), LOSS_AGREEMENT) and loss_K[k] <= 2 * self._highest
        return None if near else k

    def compare(self, fast: tuple[float, float], exact: tuple[float, float]) -> bool:
        """Learn from the loss and error of a point in 16 bits and in float32, and say whether they agree."""
        loss, error = fast
        agree = abs(loss - exact[0]) <= LOSS_AGREEMENT * max(1.0, abs(exact[0]))
        agree = agree and abs(error - exact[1]) <= self._error_agreement
        if agree:
            self._lowest = min(self._lowest, max(loss, LOSS_AGREEMENT))
            self._highest = max(self._highest, loss)
        else:
            self.limit = loss
            if loss <= 2 * self._highest:
                # Then what was confirmed says nothing of what lies below.
                self._lowest, self._highest = inf, -inf
        return agree

    def unchecked(self) -> None:
        """Trust every loss below the limit: there is no memory to compare."""
        self._lowest, self._highest = -inf, inf
