"""A network and a data set as a landscape.

Shapes: K points, P parameters, N samples of a split, B samples of a chunk.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from math import inf

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lowloss.data.base import AUGMENTED, Batch, Data
from lowloss.data.task import Sums
from lowloss.errors import LowlossError, check_number, reason
from lowloss.landscape.base import BatchSource, Columns, Held, Losses, check_points
from lowloss.landscape.engine.checked import Trust
from lowloss.landscape.engine.graph import Graph
from lowloss.landscape.engine.loop import PART, Buffers, Engine, Loop
from lowloss.landscape.engine.parts import Parts, near_equal, room
from lowloss.landscape.engine.products import Samples
from lowloss.landscape.initial import built, clone, copied, drawn, rebuilt
from lowloss.landscape.layout import Layout
from lowloss.landscape.probe import ROWS, bound, check_fixed, probe, watch
from lowloss.landscape.state import State
from lowloss.landscape.written import FAILURES
from lowloss.seeding import derive

SAMPLE = 8
"""Training samples on which an engine is compared with the plain loop before it is used."""

POINTS_KEPT, NUMBERS_KEPT = 16, 1 << 24
"""Points of a call, and numbers of each point's outputs, up to which those of the training split are kept for the next
call; more would fill the memory."""

STATISTICS = ("held", "batch")

PRODUCT = 2500
"""Samples of a Hessian product taken at once, at most, where they may be chosen: fewer where memory is short."""

log = logging.getLogger("lowloss")


class NetworkLandscape:
    """The mean loss of any `nn.Module` on a data set, as a function of its parameters.

    BatchNorm: `losses` uses the minibatch's own statistics. `evaluate` recomputes each point's statistics in one
    pass over the un-augmented training data (Garipov et al. 2018, sec. 3.3), so a point is its parameters alone.

    Args:
        model: a module, or a function that builds one. A function draws every initial point by its own
            initialisation; a module draws them by `reset_parameters` of its layers. The module is copied.
        data: the data set, and with its task the loss.
        evaluation_batch: BatchNorm's statistics are the mean of theirs over chunks of so many samples. As many as
            there are training samples: exact statistics, and on a GPU one sweep, not two. The plain loop evaluates
            at most so many samples at once; the graph engine more, where they fit.
        engine: how K points run on the device.

    Raises LowlossError: the outputs do not fit the data's task, or the module rejects the data.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Data,
        evaluation_batch: int = 1000,
        engine: Engine | None = None,
    ) -> None:
        check_number("evaluation_batch", evaluation_batch, int, 1)
        self.model, self.data, self.evaluation_batch = model, data, int(evaluation_batch)
        self.settings = engine or Engine()
        module = copied(model, data) if isinstance(model, nn.Module) else built(model, data, seed=0)
        self.layout = Layout.of(module)
        self.dim, self.splits, self.task = self.layout.dim, data.splits, data.task
        self.loop, self._before, self._watched = Loop(module, self.layout, data.task), State(module), set[int]()
        self._normalises = any(isinstance(part, _BatchNorm) for part in module.modules())
        self.couples_samples = self._normalises or any(isinstance(part, _DropoutNd) for part in module.modules())
        if evaluation_batch == 1 and self._normalises:
            raise LowlossError("evaluation_batch=1 leaves BatchNorm nothing to normalise: set it to at least 2")
        self._redrawn, self._bound, self._product_parts = False, False, Parts(min(evaluation_batch, PRODUCT))
        self._engine: Loop | Graph | None = None
        self._trust = self._no_trust()
        # Statistics need chunks that each resemble the whole: a split sorted by class would spoil them.
        order = torch.Generator().manual_seed(derive(0, "batch-norm"))
        self._statistics_order_N = torch.randperm(len(data.y_train), generator=order)
        # The last points' statistics: evaluating them on a second split needs no second pass.
        self._statistics: tuple[Loop | Graph, Tensor, list[tuple[Buffers, Tensor | None]]] | None = None
        self._check_fit()

    def losses(self, theta_KP: Tensor, batch: Batch | None) -> Tensor:
        """The K mean losses on a minibatch, in training mode; differentiable once (see `product` for twice)."""
        if batch is None:
            raise ValueError("a network's losses need a minibatch")
        theta_KP = self._points(theta_KP)
        with room("the batch size"):
            if batch.samples not in self._watched and len(theta_KP):
                self._watched.add(batch.samples)
                x, y, seed = batch.part(0, PART).row(0)
                watch(self.loop, theta_KP[0].detach(), Batch(x, y, (seed,)), self._before)
            # A state that is handed on is the plain loop's affair.
            engine = self.loop if batch.carry else self.engine
            result: Tensor = Losses.apply(theta_KP, engine.losses, batch)
        return result

    def product(self, theta_KP: Tensor, v_KP: Tensor, data: Batch | str | None, statistics: Held = "held") -> Tensor:
        """The Hessian of the mean loss at each point times a vector each (K, P), in the parameters' own precision.

        By differentiating twice; on a GPU convolutions take TF32 where `torch.backends.cudnn.allow_tf32` does, as by
        default. A minibatch is taken as training takes it, dropout included, if its own statistics are asked for; with
        others as evaluation does, in near-equal parts. Of a split it is the Hessian of what `evaluate` reports, or with
        statistics="batch" of its mean over the chunks of the statistics, each normalised by its own.

        Raises LowlossError: `statistics` is neither "held" nor "batch".
        """
        if isinstance(statistics, str) and statistics not in STATISTICS:
            raise LowlossError(f"statistics must be one of {', '.join(STATISTICS)}, got {statistics!r}")
        if data is None:
            raise ValueError("a network's Hessian needs a minibatch or a split")
        theta_KP, tf32 = self._points(theta_KP), torch.backends.cudnn.allow_tf32
        v_KP = v_KP.to(theta_KP)
        with room("evaluation_batch"):
            held: list[Buffers | None] = [None] * len(theta_KP)
            if statistics != "batch":
                given = None if isinstance(statistics, str) else statistics
                with self.loop.exact():
                    held = [buffers for buffers, _ in self._statistics_at(self.loop, theta_KP, given)]
            with self.loop.exact(tf32):
                products = [self._product(theta_KP[k], v_KP[k], data, k, held[k]) for k in range(len(theta_KP))]
        return torch.stack(products).to(theta_KP) if products else torch.empty_like(theta_KP)

    def keeping(self) -> contextlib.AbstractContextManager[Callable[[], int]]:
        """While `product` keeps gradients, as far as there is memory; see `engine.products`."""
        return self.loop.products.keeping()

    def _product(self, theta_P: Tensor, v_P: Tensor, data: Batch | str, k: int, buffers: Buffers | None) -> Tensor:
        x_N, y_N, seed = (*self.data.split(data), 0) if isinstance(data, str) else data.row(k)
        whole = isinstance(data, str) or buffers is not None
        drawn = data if isinstance(data, str) else (id(data), 0 if data.shared else k)

        def of(span: slice, order_N: Tensor | None = None) -> Tensor:
            x, y = (t[span if order_N is None else order_N[span].to(t.device)] for t in (x_N, y_N))
            samples = Samples(x, y, seed, buffers, whole, (drawn, span.start, span.stop))
            return self.loop.products(theta_P, v_P, samples).double()

        if not whole:
            return of(slice(None))
        parts: Iterator[Tensor] = self._product_parts(of, len(y_N))
        if buffers is None:
            order_N = self._statistics_order_N if data == "train" else torch.arange(len(y_N))
            parts = (of(span, order_N) for span in near_equal(len(y_N), self.evaluation_batch))
        return sum(parts, torch.zeros_like(theta_P, dtype=torch.float64)) / self.task.scored(y_N)

    @torch.no_grad()
    def evaluate(
        self, theta_KP: Tensor, split: str = "train", details: bool = False, statistics: Sequence[Buffers] | None = None
    ) -> Columns:
        """The task's metrics of K points over the whole un-augmented split, as float64 columns (K,) on the CPU.

        The split AUGMENTED has the training images after one augmentation, the same for all points; BatchNorm's
        statistics are those of the un-augmented ones.

        Args:
            details: whether what the task keeps of each sample comes too; see `Task.summarise`.
            statistics: BatchNorm's, of each point; by default each point's own are computed.
        """
        theta_KP = self._points(theta_KP)
        arguments = theta_KP, split, details, statistics
        with self.loop.exact(), room("evaluation_batch"):
            engine = self.engine if self.engine.usable and self.data.streams is None else self.loop
            columns, kept = self._columns(engine, *arguments)
            if not engine.usable:
                # What it gave before it gave up, as a point's statistics, is of 16 bits.
                engine, self._statistics = self.loop, None
                columns, kept = self._columns(engine, *arguments)
            if engine is not self.loop:
                engine.used = True
                self._compare(theta_KP, columns, split, statistics)
                # What 16 bits may not tell, or what overflowed in them far from any minimum, float32 does.
                wild = (~self._trust[split].holds(columns["loss"])).nonzero().flatten()
                if len(wild):
                    own = None if statistics is None else [statistics[k] for k in wild]
                    again = self._columns(self.loop, theta_KP[wild.to(theta_KP.device)], split, details, own)
                    for found, exact in zip((columns, kept), again, strict=True):
                        for name, column in exact.items():
                            found[name][wild] = column
        return columns | (self.task.summarise(kept, self.data.split(split)[1].cpu()) if details else {})

    def _compare(self, theta_KP: Tensor, columns: Columns, split: str, statistics: Sequence[Buffers] | None) -> None:
        """Compare the highest and the lowest point with the plain loop, where that is not known to agree."""
        trust, known, differing = self._trust[split], self._statistics, ""
        for lowest in (False, True):
            k = trust.doubtful(columns["loss"], lowest)
            if k is None:
                continue
            own = None if statistics is None else [statistics[k]]
            try:
                found, _ = self._columns(self.loop, theta_KP[k : k + 1], split, False, own)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                log.warning("engine: evaluation could not be checked against float32, which does not fit the memory")
                trust.unchecked()
                break
            exact = {name: float(column[0]) for name, column in found.items()}
            fast = {name: float(columns[name][k]) for name in exact}
            if not trust.compare(fast, exact):
                texts = (", ".join(f"{value:.4g}" for value in values.values()) for values in (exact, fast))
                differing = "{} there and {} in 16 bits".format(*texts)
        self._statistics = known
        if differing:
            log.warning(
                "engine: %s evaluates losses from %.3g on in float32 on the plain loop: the %s of a point on the %s "
                "split are %s",
                type(self.loop.module).__name__,
                trust.limit,
                " and ".join(columns),
                split,
                differing,
            )

    def _columns(
        self, engine: Loop | Graph, theta_KP: Tensor, split: str, details: bool, statistics: Sequence[Buffers] | None
    ) -> tuple[Columns, Columns]:
        """The metrics (K,) and what is kept of each sample (K, N), on the CPU; sums are in float64."""
        rows: list[dict[str, Tensor]] = []
        kept: dict[str, list[Tensor]] = {}
        found_K = self._statistics_at(engine, theta_KP, statistics)
        for theta_P, (buffers, train_outputs) in zip(theta_KP, found_K, strict=True):
            sums, found = Sums(self.task), dict[str, list[Tensor]]()
            known = train_outputs if split == "train" else None
            for outputs, y in self._outputs_at(engine, theta_P, buffers, split, known):
                wide = outputs.double()
                sums.add(wide, y)
                if details:
                    for name, column_B in self.task.details(wide, y).items():
                        found.setdefault(name, []).append(column_B)
            rows.append(sums.metrics())
            for name, parts in found.items():
                kept.setdefault(name, []).append(torch.cat(parts))
        names = rows[0] if rows else self.task.units
        # The one wait for the device.
        columns = {name: torch.stack([row[name] for row in rows]).cpu() if rows else torch.empty(0) for name in names}
        return columns, {name: torch.stack(parts).cpu() for name, parts in kept.items()}

    @torch.no_grad()
    def outputs(self, theta_P: Tensor, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The outputs (B, ...) at a point and their targets, chunk by chunk in the split's order, in float32 or wider.

        They are the plain loop's, or the graph engine's where `evaluate` was seen to agree.
        """
        (theta_P,) = self._points(theta_P[None])
        fast = self.engine.usable and self.data.streams is None and split in self._trust
        if fast and self.engine is not self.loop:
            loss_1 = self.evaluate(theta_P[None], split)["loss"]
            fast = bool(self._trust[split].holds(loss_1)[0]) and self.engine.usable
        engine = self.engine if fast else self.loop
        with self.loop.exact():
            ((buffers, _),) = list(self._statistics_at(engine, theta_P[None], None))
        yield from self._outputs_at(engine, theta_P, buffers, split, None)

    def _outputs_at(
        self, engine: Loop | Graph, theta_P: Tensor, buffers: Buffers, split: str, known: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        (x_N, y_N), done = self.data.split(split), 0
        settings = self.evaluation_batch, self.data.streams
        chunks = iter([known]) if known is not None else engine.outputs(theta_P, buffers, x_N, *settings)
        for outputs in chunks:
            yield outputs, y_N[done : done + len(outputs)]
            done += len(outputs)

    def _statistics_at(
        self, engine: Loop | Graph, theta_KP: Tensor, given: Sequence[Buffers] | None
    ) -> Iterator[tuple[Buffers, Tensor | None]]:
        """The buffers of each point, and its outputs on the training split where they came with them."""
        if given is not None:
            own = engine.loop.fresh_buffers() if isinstance(engine, Graph) else engine.fresh_buffers()
            for buffers in given:
                yield {**own, **{name: buffer.to(theta_KP.device) for name, buffer in buffers.items()}}, None
            return
        known = self._statistics
        if known is not None and known[0] is engine:
            if torch.equal(known[1], theta_KP):
                yield from known[2]
                return
            # Some of them may be asked for, as where the others have converged.
            same = [(known[1] == theta_P).all(1).nonzero().flatten().tolist() for theta_P in theta_KP]
            if all(same):
                yield from (known[2][rows[0]] for rows in same)
                return
        whole = self.evaluation_batch >= len(self.data.y_train)
        spans = near_equal(len(self._statistics_order_N), self.evaluation_batch)
        parts = None if whole else [self._statistics_order_N[span] for span in spans]
        found: list[tuple[Buffers, Tensor | None]] = []
        for theta_P in theta_KP:
            buffers, outputs = engine.statistics(theta_P, self.data.x_train, parts)
            keeps = outputs is not None and len(theta_KP) <= POINTS_KEPT and outputs.numel() <= NUMBERS_KEPT
            found.append((buffers, outputs if keeps else None))
            yield buffers, outputs
        self._statistics = engine, theta_KP.clone(), found

    @torch.no_grad()
    def statistics(self, theta_P: Tensor) -> Buffers:
        """BatchNorm's statistics at a point (and other buffers), recomputed by the plain loop."""
        (theta_P,) = self._points(theta_P[None])
        with self.loop.exact():
            ((buffers, _),) = list(self._statistics_at(self.loop, theta_P[None], None))
        return buffers

    def subset(self, split: str, samples: int, seed: int) -> Batch:
        """So many samples of a split, or all where it has no more, in their order, un-augmented."""
        x_N, y_N = self.data.split(split)
        chosen_B = torch.randperm(len(y_N), generator=torch.Generator().manual_seed(seed))[:samples].sort().values
        return Batch(x_N[chosen_B.to(x_N.device)], y_N[chosen_B.to(y_N.device)], (seed,))

    def batches(self, size: int | None, seeds: Sequence[int], shared: bool) -> BatchSource:
        if size == 1 and self._normalises:
            raise LowlossError("batch_size=1 leaves BatchNorm nothing to normalise: set it to at least 2")
        return self.data.batches(size, seeds[:1] if shared else seeds, shared)

    def initial(self, seed: int) -> Tensor:
        module = drawn(self.model, self.data, seed, None if self._redrawn else self.loop.module)
        self._redrawn = True
        return self.layout.flatten(dict(module.named_parameters()))

    def point(self, module: nn.Module) -> Tensor:
        """The point (P,) of a module, say one trained elsewhere. Raises LowlossError: what is frozen in it is other."""
        check_fixed(self.loop, dict([*module.named_parameters(), *module.named_buffers()]), "the module")
        return self.layout.flatten(dict(module.named_parameters()))

    def module(self, theta_P: Tensor) -> nn.Module:
        """A module at this point, its BatchNorm statistics recomputed, in evaluation mode, on the CPU."""
        (theta_P,) = self._points(theta_P[None])
        module = self.copy()
        held = dict([*module.named_parameters(), *module.named_buffers()])
        with torch.no_grad():  # load_state_dict is overridden by some, which then want a state_dict of their own
            for name, value in {**self.layout.views(theta_P), **self.statistics(theta_P)}.items():
                held[name].copy_(value)
        return module.cpu().eval()

    def copy(self) -> nn.Module:
        """A copy of its module, or where that would compute with the weights of the module itself another one built."""
        self._before.restore()  # what is kept of a call may be no leaf, which cannot be copied
        module = self.loop.module
        return rebuilt(self.model, self.data, module) if self._bound else clone(module)

    def to(self, device: torch.device) -> NetworkLandscape:
        device = torch.empty(0, device=device).device  # with its index, where that is left open
        if device != self.data.device:
            self._engine = self._statistics = None
            self._trust = self._no_trust()
            self._before.restore()
            self.loop.module.to(device)
            self._before, kept = State(self.loop.module), self.loop.state
            self.loop.state = self._before.only(kept.names, kept) if kept else None
            self.data.move(device)
        return self

    def _no_trust(self) -> dict[str, Trust]:
        sizes = {split: len(self.data.split(split)[1]) for split in self.splits}
        sizes[AUGMENTED] = sizes["train"]
        return {split: Trust(size, self.task.units) for split, size in sizes.items()}

    @property
    def engine(self) -> Loop | Graph:
        """What runs the points on the present device, chosen when it is first needed."""
        if self._engine is None:
            # From all over the set: the first may be alike, in a set sorted by class.
            chosen = torch.linspace(0, len(self.data.x_train) - 1, SAMPLE).long()
            sample = self.data.x_train[chosen], self.data.y_train[chosen]
            self.loop.step_dtype = self._narrowest(Batch(*sample, (0,)))
            dtypes = self.settings.graph_dtypes(self.data.device)
            strict = self.settings.kind == "graph"
            self._engine = Graph(self.loop, sample, *dtypes, strict=strict) if dtypes else self.loop
        return self._engine

    def _narrowest(self, batch: Batch) -> torch.dtype | None:
        """To what the plain loop casts activations in steps, if that runs."""
        module, dtype = self.loop.module, self.settings.loop_dtype(self.loop, batch.x)
        if dtype is None:
            return None
        try:
            Loop(module, self.layout, self.task, dtype).losses(self.point(module)[None], batch, True)
        except Exception as error:  # whatever a module that is written for float32 does to others
            name = type(module).__name__
            if self.settings.precision != "auto":
                raise LowlossError(
                    f"{name} fails in bfloat16: {reason(error)}: set engine.precision=float32"
                ) from error
            log.warning("engine: %s takes its steps in float32: in bfloat16 it fails: %s", name, reason(error))
            return None
        return dtype

    @property
    def arithmetic(self) -> str:
        """The engine in use and its precisions, for a result's provenance."""
        engine, exact = self.engine, self.layout.dtype
        graph, told = engine if isinstance(engine, Graph) else None, []
        evaluates = graph is not None and graph.usable
        if graph and (graph.usable or graph.used):
            steps = f"steps in {graph.step_dtype}, " if graph.takes_steps or graph.took_steps else ""
            limits = {split: trust.limit for split, trust in self._trust.items() if trust.limit < inf}
            text = "".join(f", of {split} losses from {limit:.3g} on in {exact}" for split, limit in limits.items())
            told.append(f"graph, {steps}evaluation in {graph.evaluation_dtype}{text}")
        if not graph or not graph.takes_steps:
            how = "captured " if graph and graph.captured.used else ""
            text = "" if evaluates else f", evaluation in {exact}"
            told.append(f"loop, steps {how}in {self.loop.step_dtype or exact}{text}")
        return ("; " if evaluates else "; then ").join(told).replace("torch.", "")

    def _points(self, theta_KP: Tensor) -> Tensor:
        check_points(theta_KP, self.dim, self.layout.dtype)
        return theta_KP.to(self.data.device)

    def _check_fit(self) -> None:
        name = type(self.loop.module).__name__
        self.data = self.data.moved(dtype=self.layout.dtype)
        some, y = self.data.x_train[:ROWS], self.data.y_train[:ROWS]
        theta_P, x, untouched = self.point(self.loop.module), some[:2], None
        with contextlib.suppress(Exception):  # what cannot be copied is not looked at so closely
            untouched = clone(self.loop.module)
            self._bound = bound(untouched, self.model, self.loop, theta_P, Batch(x.clone(), y[:2], (0,)))
        untouched = self.copy() if self._bound else untouched
        try:
            outputs = torch.cat(list(self.loop.outputs(theta_P, self.loop.fresh_buffers(), x, len(x))))
        except FAILURES as error:
            raise LowlossError(f"{name} rejects inputs of shape {tuple(x.shape[1:])}: {reason(error)}") from error
        self.task.check(outputs, y[:2], name)
        if self._normalises and len(x) < 2:
            return
        try:
            self.couples_samples |= probe(self.loop, theta_P, Batch(some, y, (0,)), self._before, untouched)
        except FAILURES as error:
            raise LowlossError(f"{name} fails in training mode: {reason(error)}") from error
