"""A network and a data set as a landscape.

Shapes: K points, P parameters, N samples, C classes.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from lowloss.data.base import Batch, Batches, Data
from lowloss.errors import LowlossError, check_number
from lowloss.landscape.base import BatchSource, Evaluation
from lowloss.landscape.engine import Buffers, Engine, Loop, alike
from lowloss.landscape.graph import Graph
from lowloss.landscape.layout import Layout
from lowloss.landscape.trust import Trust
from lowloss.seeding import derive

SAMPLE = 8
"""Training samples on which an engine is compared with the plain loop before it is used."""

OUTPUTS_KEPT = 16
"""Points of a call up to which the outputs are kept for the next one; those of many would fill the memory."""

log = logging.getLogger("lowloss")


class _Losses(torch.autograd.Function):
    """Computes the gradients while it computes the losses, however the engine does that best."""

    @staticmethod
    def forward(ctx: Any, theta_KP: Tensor, engine: Loop | Graph, batch: Batch) -> Tensor:
        losses_K, gradients_KP = engine.losses(theta_KP, batch, gradients=ctx.needs_input_grad[0])
        ctx.gradients_KP = gradients_KP
        return losses_K

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (upstream_K,) = upstream
        return upstream_K[:, None] * ctx.gradients_KP, None, None


class NetworkLandscape:
    """The mean cross-entropy of any classifier `nn.Module` on a data set, as a function of its parameters.

    BatchNorm: `losses` uses the minibatch's own statistics. `evaluate` recomputes each point's statistics in one
    pass over the un-augmented training data (Garipov et al. 2018, sec. 3.3), so a point is its parameters alone.

    Args:
        model: a module, or a function that builds one. A function draws every initial point by its own
            initialisation; a module draws them by `reset_parameters` of its layers. The module is copied.
        data: the data set.
        evaluation_batch: BatchNorm's statistics are the mean of theirs over chunks of so many samples. As many as
            there are training samples: exact statistics, and on a GPU one sweep, not two. The plain loop evaluates
            at most so many samples at once; the graph engine more, where they fit.
        engine: how K points run on the device.

    Raises:
        LowlossError: the outputs do not fit the data's classes, or the module rejects the data.
    """

    splits = ("train", "test")

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Data,
        evaluation_batch: int = 1000,
        engine: Engine | None = None,
    ) -> None:
        check_number("evaluation_batch", evaluation_batch, int, 1)
        self.model, self.data, self.evaluation_batch = model, copy.copy(data), int(evaluation_batch)
        self.settings = engine or Engine()
        module = copy.deepcopy(model) if isinstance(model, nn.Module) else self._build(seed=0)
        self.layout = Layout.of(module)
        self.loop = Loop(module, self.layout)
        self._normalises = any(isinstance(part, _BatchNorm) for part in module.modules())
        if evaluation_batch == 1 and self._normalises:
            raise LowlossError("evaluation_batch=1 leaves BatchNorm nothing to normalise: set it to at least 2")
        self._engine: Loop | Graph | None = None
        self._trust = self._no_trust()
        # Statistics need chunks that each resemble the whole: a split sorted by class would spoil them.
        order = torch.Generator().manual_seed(derive(0, "batch-norm"))
        self._statistics_order_N = torch.randperm(len(data.y_train), generator=order)
        # The last points' statistics: evaluating them on a second split needs no second pass.
        self._statistics: tuple[Loop | Graph, Tensor, list[tuple[Buffers, Tensor | None]]] | None = None
        self._check_fit()

    @property
    def dim(self) -> int:
        return self.layout.dim

    def losses(self, theta_KP: Tensor, batch: Batch | None) -> Tensor:
        """The K mean cross-entropies in nats on a minibatch, in training mode; differentiable once."""
        if batch is None:
            raise ValueError("a network's losses need a minibatch")
        theta_KP = self._points(theta_KP)
        with _room("the batch size"):
            result: Tensor = _Losses.apply(theta_KP, self.engine, batch)
        return result

    @torch.no_grad()
    def evaluate(self, theta_KP: Tensor, split: str = "train", logits: bool = False) -> Evaluation:
        """Mean cross-entropy (nats) and error (fraction) of K points over the whole un-augmented split, in float64.

        With `logits`, the outputs (K, N, C) come too, in the split's order, on the CPU.
        """
        theta_KP = self._points(theta_KP)
        with self.loop.exact(), _room("evaluation_batch"):
            engine = self.engine if self.engine.usable else self.loop
            scores_K2, kept = self._scores(engine, theta_KP, split, logits)
            if not engine.usable:
                # What it gave before it gave up, as a point's statistics, is of 16 bits.
                engine, self._statistics = self.loop, None
                scores_K2, kept = self._scores(engine, theta_KP, split, logits)
            loss_K, error_K = scores_K2.unbind(1)
            if engine is not self.loop:
                engine.used = True
                self._compare(theta_KP, scores_K2, split)
                # What 16 bits may not tell, or what overflowed in them far from any minimum, float32 does.
                wild = (~self._trust[split].holds(loss_K)).nonzero().flatten()
                if len(wild):
                    again, kept_again = self._scores(self.loop, theta_KP[wild.to(theta_KP.device)], split, logits)
                    loss_K[wild], error_K[wild] = again.unbind(1)
                    for k, outputs in zip(wild.tolist(), kept_again, strict=False):
                        kept[k] = outputs
        if not logits:
            return Evaluation(loss_K, error_K, None)
        none = torch.empty(0, len(self.data.split(split)[1]), self.data.num_classes)
        return Evaluation(loss_K, error_K, torch.stack(kept) if kept else none)

    def _compare(self, theta_KP: Tensor, scores_K2: Tensor, split: str) -> None:
        """Compare the highest and the lowest point with the plain loop, where that is not known to agree."""
        trust, known, told = self._trust[split], self._statistics, ""
        for lowest in (False, True):
            k = trust.doubtful(scores_K2[:, 0], lowest)
            if k is None:
                continue
            try:
                ((loss, error),) = self._scores(self.loop, theta_KP[k : k + 1], split, False)[0].tolist()
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                log.warning("engine: evaluation could not be checked against float32, which does not fit the memory")
                trust.unchecked()
                break
            fast_loss, fast_error = scores_K2[k].tolist()
            if not trust.compare((fast_loss, fast_error), (loss, error)):
                told = f"{loss:.4g}, {error:.4g} there and {fast_loss:.4g}, {fast_error:.4g} in 16 bits"
        self._statistics = known
        if told:
            log.warning(
                "engine: %s evaluates losses from %.3g on in float32 on the plain loop: the loss and error of a point "
                "on the %s split are %s",
                type(self.loop.module).__name__,
                trust.limit,
                split,
                told,
            )

    def _scores(self, engine: Loop | Graph, theta_KP: Tensor, split: str, logits: bool) -> tuple[Tensor, list[Tensor]]:
        """Loss and error (K, 2), and the outputs (N, C) of each point if asked for, on the CPU."""
        x_N, y_N = self.data.split(split)
        scores_K2 = torch.empty(len(theta_KP), 2, dtype=torch.float64, device=y_N.device)
        kept = []
        for k, (buffers, train_outputs) in enumerate(self._statistics_at(engine, theta_KP)):
            outputs = train_outputs if split == "train" else None
            if outputs is None:
                outputs = engine.logits(theta_KP[k], buffers, x_N, self.evaluation_batch)
            wide = outputs.double()
            scores_K2[k, 0] = cross_entropy(wide, y_N)
            scores_K2[k, 1] = (wide.argmax(1) != y_N).double().mean()
            if logits:
                kept.append(outputs.float().cpu())
        return scores_K2.cpu(), kept  # the one wait for the device

    def _statistics_at(self, engine: Loop | Graph, theta_KP: Tensor) -> Iterator[tuple[Buffers, Tensor | None]]:
        known = self._statistics
        if known is not None and known[0] is engine and torch.equal(known[1], theta_KP):
            yield from known[2]
            return
        whole = self.evaluation_batch >= len(self.data.y_train)
        parts = None if whole else alike(self._statistics_order_N, self.evaluation_batch)
        found: list[tuple[Buffers, Tensor | None]] = []
        for theta_P in theta_KP:
            buffers, outputs = engine.statistics(theta_P, self.data.x_train, parts)
            found.append((buffers, outputs if len(theta_KP) <= OUTPUTS_KEPT else None))
            yield buffers, outputs
        self._statistics = engine, theta_KP.clone(), found

    def batches(self, size: int, seeds: Sequence[int], shared: bool) -> BatchSource:
        if size == 1 and self._normalises:
            raise LowlossError("batch_size=1 leaves BatchNorm nothing to normalise: set it to at least 2")
        return Batches(self.data, size, seeds[:1] if shared else seeds, shared)

    def initial(self, seed: int) -> Tensor:
        module = self._build(seed) if not isinstance(self.model, nn.Module) else self._reset(self.model, seed)
        return self.point(module)

    def point(self, module: nn.Module) -> Tensor:
        """The point (P,) of a module of this architecture, say one trained elsewhere."""
        return self.layout.flatten(dict(module.named_parameters()))

    def module(self, theta_P: Tensor) -> nn.Module:
        """A module at this point, its BatchNorm statistics recomputed, in evaluation mode, on the CPU."""
        (theta_P,) = self._points(theta_P[None])
        with self.loop.exact():
            ((buffers, _),) = list(self._statistics_at(self.loop, theta_P[None]))
        module = copy.deepcopy(self.loop.module)
        module.load_state_dict({**self.layout.views(theta_P), **buffers}, strict=False)
        return module.cpu().eval()

    def to(self, device: torch.device) -> NetworkLandscape:
        device = torch.empty(0, device=device).device  # with its index, where that is left open
        if device != self.data.y_train.device:
            self._engine = self._statistics = None
            self._trust = self._no_trust()
            self.loop.module.to(device)
            self.data.to(device=device)
        return self

    def _no_trust(self) -> dict[str, Trust]:
        return {split: Trust(len(self.data.split(split)[1])) for split in self.splits}

    @property
    def engine(self) -> Loop | Graph:
        """What runs the points on the present device, chosen when it is first needed."""
        if self._engine is None:
            # From all over the set: the first may be alike, in a set sorted by class.
            chosen = torch.linspace(0, len(self.data.x_train) - 1, SAMPLE).long()
            sample = self.data.x_train[chosen]
            self.loop.step_dtype = self._narrowest(Batch(sample, self.data.y_train[chosen], (0,)))
            dtypes = self.settings.graph_dtypes(sample.device)
            self._engine = (
                Graph(self.loop, sample, *dtypes, strict=self.settings.kind == "graph") if dtypes else self.loop
            )
        return self._engine

    def _narrowest(self, batch: Batch) -> torch.dtype | None:
        """To what the plain loop casts activations in steps, if that runs."""
        module, dtype = self.loop.module, self.settings.loop_dtype(self.loop.module, batch.x)
        if dtype is None:
            return None
        try:
            Loop(module, self.layout, dtype).losses(self.point(module)[None], batch, True)
        except Exception as error:  # whatever a module that is written for float32 does to others
            name, reason = type(module).__name__, (str(error) or type(error).__name__).splitlines()[0]
            if self.settings.precision != "auto":
                raise LowlossError(f"{name} fails in bfloat16: {reason}: set engine.precision=float32") from error
            log.warning("engine: %s takes its steps in float32: in bfloat16 it fails: %s", name, reason)
            return None
        return dtype

    @property
    def arithmetic(self) -> str:
        """The engine in use and its precisions, for a result's provenance."""
        engine, exact = self.engine, self.layout.dtype
        told = []
        if isinstance(engine, Graph) and (engine.usable or engine.used):
            text = f"graph, steps in {engine.step_dtype}, evaluation in {engine.evaluation_dtype}"
            limits = {split: trust.limit for split, trust in self._trust.items() if trust.limit < inf}
            text += "".join(f", of {split} losses from {limit:.3g} on in {exact}" for split, limit in limits.items())
            told.append(text)
        if not isinstance(engine, Graph) or not engine.usable:
            told.append(f"loop, steps in {self.loop.step_dtype or exact}, evaluation in {exact}")
        return "; then ".join(told).replace("torch.", "")

    def _build(self, seed: int) -> nn.Module:
        assert not isinstance(self.model, nn.Module)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(self.model, self.data)

    @staticmethod
    def _reset(model: nn.Module, seed: int) -> nn.Module:
        module = copy.deepcopy(model).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, part in module.named_modules():
                reset = getattr(part, "reset_parameters", None)
                if callable(reset):
                    reset()
                elif any(p.requires_grad for p in part.parameters(recurse=False)):
                    raise LowlossError(
                        f"{name or type(part).__name__} has parameters but no reset_parameters(): "
                        "pass a function that builds the model, so that seeds can draw its initial points"
                    )
        return module

    def _points(self, theta_KP: Tensor) -> Tensor:
        if theta_KP.dim() != 2 or theta_KP.shape[1] != self.dim:
            raise ValueError(f"points are rows of a K × {self.dim} matrix, got {tuple(theta_KP.shape)}")
        return theta_KP.to(self.data.y_train.device)

    def _check_fit(self) -> None:
        name = type(self.loop.module).__name__
        self.data.to(dtype=self.layout.dtype)
        given = self.data.x_train[:2]
        x, theta_P = given.clone(), self.point(self.loop.module)
        try:
            shape = tuple(self.loop.logits(theta_P, self.loop.fresh_buffers(), x, len(x)).shape)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise LowlossError(f"{name} rejects inputs of shape {tuple(x.shape[1:])}: {reason}") from error
        if not torch.equal(x, given):
            raise LowlossError(f"{name} changes its inputs in place: let it compute on a copy")
        if shape != (len(x), self.data.num_classes):
            raise LowlossError(
                f"{name} gives outputs of shape {shape[1:]} for {self.data.num_classes} classes: "
                f"set its number of outputs (often model.num_classes={self.data.num_classes})"
            )


@contextlib.contextmanager
def _room(setting: str) -> Iterator[None]:
    """Raises LowlossError where the GPU's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LowlossError(f"the GPU's memory is too small: lower {setting} ({str(error).splitlines()[0]})") from error


def build_model(factory: Callable[..., nn.Module], data: Data) -> nn.Module:
    """Call the factory, filling in `input_shape` and `num_classes` where it takes them and they are not set.

    Raises:
        LowlossError: the factory rejects its arguments.
    """
    known = {"input_shape": data.input_shape, "num_classes": data.num_classes}
    given = factory.keywords if isinstance(factory, partial) else {}
    taken = inspect.signature(factory).parameters
    filled = {key: value for key, value in known.items() if key in taken and key not in given}
    try:
        return factory(**filled)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LowlossError(f"model: {error}") from error
