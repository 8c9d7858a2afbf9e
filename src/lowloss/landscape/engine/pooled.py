"""BatchNorm's statistics of a whole split, in parts.

At a BatchNorm all samples meet. A part's pass is a thread that waits there until all parts have come, and goes on with
the moments of them all. They go on one after the other, so that memory holds what waits, a layer's outputs and what a
shortcut keeps of the whole split, and all else of one part alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Semaphore, Thread, current_thread

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from lowloss.errors import LowlossError


class _StoppedError(Exception): ...


class _Pass(Thread):
    """One part's, which runs while `proceed` waits for it to come to a BatchNorm, or to its end."""

    def __init__(self, call: Callable[[], object], stream: torch.cuda.Stream | None) -> None:
        super().__init__(daemon=True)
        self._call, self._stream = call, stream
        self._go, self._came = Semaphore(0), Semaphore(0)
        self._error: BaseException | None = None
        self.norm: _BatchNorm | None = None
        self._stopped = False
        self.moments: tuple[int, Tensor, Tensor]
        """Of what is at the BatchNorm: the count, mean and biased variance of each channel."""

    def run(self) -> None:
        self._go.acquire()
        try:
            # Modes and streams are a thread's own.
            with torch.no_grad(), torch.cuda.stream(self._stream) if self._stream else nullcontext():
                if not self._stopped:
                    self._call()
        except BaseException as error:  # told where it is waited for
            self._error = error
        self.norm = None
        self._came.release()

    def wait(self, norm: _BatchNorm, x: Tensor) -> None:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var, mean = torch.var_mean(x, axes, correction=0)
        self.norm, self.moments = norm, (x.numel() // x.shape[1], mean, var)
        self._came.release()
        self._go.acquire()
        if self._stopped:
            raise _StoppedError

    def stop(self) -> None:
        self._stopped = True
        self._go.release()
        if self.ident is not None:
            self.join()

    def proceed(self) -> None:
        self._go.release()
        self._came.acquire()
        if self._error is not None:
            raise self._error


def pooled(
    call: Callable[[slice], object], spans: Sequence[slice], norms: Sequence[_BatchNorm], device: torch.device
) -> None:
    """Call with all spans of samples, each BatchNorm normalising by the moments of what comes to it in all of them.

    These become its statistics: the mean of those of its uses, where it has several. What comes after the last is left
    out. Raises LowlossError: the calls do not come to the same BatchNorms.
    """
    known: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}
    order: list[_BatchNorm] = []

    def normalise(norm: _BatchNorm, x: Tensor) -> Tensor:
        here = current_thread()
        if isinstance(here, _Pass):
            here.wait(norm, x)
            return batch_norm(x, *known[norm], norm.weight, norm.bias, False, 0.0, norm.eps)
        order.append(norm)
        return batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)

    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    passes, uses = [_Pass(partial(call, span), stream) for span in spans], Counter[_BatchNorm]()
    for norm in norms:
        norm.forward = partial(normalise, norm)  # type: ignore[method-assign]
    try:
        call(slice(0, 2))
        for one in passes:
            one.start()
        for norm in order:
            for one in passes:
                one.proceed()
            if any(one.norm is not norm for one in passes):
                raise LowlossError(
                    "what a module does depends on its samples, so that BatchNorm's statistics are not those of all at "
                    "once: set evaluation_batch below the number of training samples"
                )
            counts, means, variances = zip(*(one.moments for one in passes), strict=True)
            share_T1 = torch.tensor(counts, dtype=torch.float64, device=means[0].device)[:, None] / sum(counts)
            mean_TC, var_TC = torch.stack(means).double(), torch.stack(variances).double()
            mean_C = (share_T1 * mean_TC).sum(0)
            var_C = (share_T1 * (var_TC + (mean_TC - mean_C).square())).sum(0)
            known[norm] = mean_C.to(means[0]), var_C.to(means[0])
            uses[norm] += 1
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            norm.running_mean.lerp_(mean_C.to(norm.running_mean), 1 / uses[norm])
            unbiased_C = var_C * (sum(counts) / max(sum(counts) - 1, 1))
            norm.running_var.lerp_(unbiased_C.to(norm.running_var), 1 / uses[norm])
            norm.num_batches_tracked.add_(1)
    finally:
        for norm in norms:
            del norm.forward
        for one in passes:
            one.stop()


def divides(norm: nn.Module) -> bool:
    """Whether a BatchNorm has others in it, among which it divides minibatches in training (AdvProp's split BatchNorm):
    in evaluation it is as one that has none."""
    return sum(isinstance(part, _BatchNorm) for part in norm.modules()) > 1


@contextmanager
def undivided(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """While those BatchNorms that divide minibatches normalise the whole, as in evaluation."""
    given = [(norm, vars(norm).get("forward")) for norm in norms if divides(norm)]
    for norm, _ in given:
        vars(norm)["forward"] = partial(_BatchNorm.forward, norm)
    try:
        yield
    finally:
        for norm, forward in given:
            del vars(norm)["forward"]
            vars(norm).update({"forward": forward} if forward else {})
