"""Any module: a point is its parameters alone, whatever else the module does; what cannot be right is refused."""

import enum
import random
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, linear
from torch.nn.utils import prune
from torch.nn.utils import weight_norm as legacy_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from lowloss import Data, LowlossError, NetworkLandscape, train_minima
from lowloss.model import CNN


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    return Data(x[:40], y[:40], x[40:], y[40:])


def gradient(landscape: NetworkLandscape, seed: int) -> Tensor:
    theta_1P = landscape.initial(seed)[None].requires_grad_()
    loss_1 = landscape.losses(theta_1P, landscape.batches(40, (1,), True)[0])
    return torch.autograd.grad(loss_1.sum(), theta_1P)[0]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(self.b(h) if self.reentrant is None else checkpoint(self.b, h, use_reentrant=self.reentrant))


def test_gradient_checkpointing_gives_the_gradient_of_the_point() -> None:
    plain, checkpointed = (NetworkLandscape(lambda r=r: Checkpointed(r), data()) for r in (None, False))
    assert torch.equal(gradient(checkpointed, 5), gradient(plain, 5))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused_in_one_line() -> None:
    with pytest.raises(LowlossError, match="must have use_reentrant=False"):
        NetworkLandscape(lambda: Checkpointed(True), data())


class OwnNorm(nn.Module):
    """BatchNorm of one's own, its statistics in buffers or in plain attributes."""

    def __init__(self, features: int, buffers: bool) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(features))
        if buffers:
            self.register_buffer("m", torch.zeros(features))
            self.register_buffer("v", torch.ones(features))
        else:
            self.m, self.v = torch.zeros(features), torch.ones(features)

    def forward(self, x: Tensor) -> Tensor:
        m, v = (x.mean(0), x.var(0)) if self.training else (self.m, self.v)
        if self.training:
            self.m, self.v = 0.9 * self.m + 0.1 * m.detach(), 0.9 * self.v + 0.1 * v.detach()
        return self.g * (x - m) / (v + 1e-5).sqrt()


class Counting(nn.Module):
    """Its loss depends on how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(8, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * (1 + self.calls)


class Late(nn.Module):
    """Its loss changes after a hundred calls, or in one of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind, self.calls = nn.Linear(8, 2), kind, 0
        self.register_buffer("ran", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.ran = self.calls + (self.kind != "buffer"), self.ran + 1
        late = {"once": self.calls == 60, "attribute": self.calls > 100, "buffer": bool(self.ran > 100)}[self.kind]
        return self.linear(x) * (2 if late else 1)


class Remembering(nn.Module):
    """Subtracts what was the mean of the first minibatch that it saw; `places` does no harm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 2)
        self.centre: Tensor | None = None
        self.places: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.places is None:
            self.places = torch.arange(16.0)
        if self.centre is None:
            self.centre = h.detach().mean(0)
        return self.b((h + self.places - self.centre).relu())


class Store:
    """Of an object's own, not of a module."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class Keeping(nn.Module):
    """Subtracts the mean of what it kept of its calls: of the last 20 once there are so many, with minibatches of more
    than `rows` rows alone, or what there was when a shape came first."""

    shared: ClassVar[dict[torch.Size, Tensor]] = {}

    def __init__(self, kind: str, rows: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.kind, self.rows = nn.Linear(8, 16), nn.Linear(16, 2), kind, rows
        self.queue = list[Tensor]() if kind == "queue" else deque[Tensor](maxlen=20)
        self.cache, self._store, self.centre = dict[torch.Size, Tensor](), Store(), torch.zeros(16)
        self.hidden = partial(dict[torch.Size, Tensor].setdefault, {})
        self.generator = torch.Generator()
        Keeping.shared.clear()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        mean = h.detach().mean(0)
        centre = torch.zeros(16)
        if self.kind in {"queue", "deque", "object"}:
            kept = self._store.seen if self.kind == "object" else self.queue
            kept.append(mean)
            if len(kept) >= 20:
                centre = torch.stack(list(kept)[-20:]).mean(0)
        elif self.kind == "many":
            if len(x) > self.rows:
                centre, self.centre = self.centre, 0.9 * self.centre + 0.1 * mean
        elif self.kind == "buffer":
            if not hasattr(self, "late"):
                self.register_buffer("late", mean)
            centre = self.late
        elif self.kind == "generator":
            centre = torch.randn(16, generator=self.generator)
        else:
            caches = {"shape": self.cache.setdefault, "class": self.shared.setdefault, "closure": self.hidden}
            mean = self.a.weight.detach().mean(1) if self.kind == "closure" else mean
            centre = caches[self.kind](x.shape, mean)
        return self.b((h - centre).relu())


class Merged(nn.Module):
    """Low-rank weights that eval() adds to the others, or a sum that it keeps."""

    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.w, self.a, self.b = (nn.Parameter(torch.randn(*shape)) for shape in ((2, 8), (2, 1), (1, 8)))
        self.kept, self.merged, self.sums = kept, False, list[Tensor]()

    def train(self, mode: bool = True) -> nn.Module:
        if mode == self.merged:
            if self.kept:
                self.sums = [] if mode else [(self.w + self.a @ self.b).detach()]
            else:
                self.w.data += (self.a @ self.b).data * (-1 if mode else 1)
        self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.merged:
            return x @ (self.w + self.a @ self.b).T
        return x @ (self.sums[0] if self.kept else self.w).T


class Asleep(nn.Module):
    """Puts its BatchNorm into evaluation mode when it is called, or reads its statistics without a call."""

    def __init__(self, called: bool) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.called = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2), called

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm.eval()(self.a(x)) if self.called else self.a(x) - self.norm.running_mean
        return self.b(h.relu())


class Evaluating(nn.Module):
    """Has a buffer that changes in evaluation alone: a counter, or the mean of what it has evaluated."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.linear, self.counts = nn.Linear(8, 2), counts
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x)
        if not self.training:
            self.seen += 1 if self.counts else outputs.detach().mean()
            outputs = outputs * (1 + self.seen)
        return outputs


class Renormed(nn.BatchNorm1d):
    """Has an average of its own of its statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), 0.1)
            self.running_var.lerp_(x.detach().var(0), 0.1)
            self.num_batches_tracked += 1
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt()


class Third(nn.BatchNorm1d):
    """Has a statistic more."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.register_buffer("third", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.third.lerp_((x.detach() ** 3).mean(0), 0.1)
        return super().forward(x) + self.third * (not self.training)


class Growing(nn.Module):
    """Makes its last layer when it first runs, or first trains."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.linear, self.trained = nn.Linear(8, 2), trained

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "head") and (self.training or not self.trained):
            self.head = nn.Linear(2, 2)
        return self.head(self.linear(x)) if hasattr(self, "head") else self.linear(x)


class Flagged(nn.Module):
    """Reads a mask that hangs on its weight, or changes the weight's gradients."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)
        if kind == "hook":
            self.linear.weight.register_hook(lambda gradient: 0 * gradient)
        elif kind == "post":
            self.linear.weight.register_post_accumulate_grad_hook(lambda parameter: None)
        else:
            self.linear.weight.mask = torch.arange(8) % 2

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        return linear(x, weight * weight.mask if hasattr(weight, "mask") else weight, self.linear.bias)


class Writing(nn.Module):
    """Sets, scales or bounds a parameter as it runs, or has a frozen one follow it, or moves it to where it is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.w, self.kind = nn.Linear(8, 4), nn.Parameter(torch.rand(2, 4) / 4), kind
        self.slow = nn.Parameter(torch.zeros(2, 4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "set":
            self.w = nn.Parameter(self.w * 2)
        elif self.kind == "data":
            self.w.data = self.w.data * 2
        elif self.kind == "unit" and self.training:
            self.w.data.div_(self.w.data.norm(dim=1, keepdim=True))
        elif self.kind == "bound":
            with torch.no_grad():
                self.w.clamp_(max=5)
        elif self.kind == "renorm":
            self.w.data = torch.renorm(self.w.data, p=2, dim=0, maxnorm=5)
        elif self.kind == "slow":
            self.slow.data.lerp_(self.w.detach(), 0.1)
        elif self.kind == "moved":
            self.w.data = self.w.data.to(x.device).clone()
        return linear(self.linear(x), self.w)


class Bounded(nn.Module):
    """Its embedding has a largest norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(2, 4, max_norm=8.0), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.embed((x > 0).long()).mean(1))


WRITTEN = "set", "data", "unit", "bound", "renorm"


class Counted(nn.Module):
    """Counts calls in a vector, all its entries or one, which matters after a thousand if it is late; `places` is a
    table of whole numbers that it fills in."""

    def __init__(self, dtype: torch.dtype, entries: int, late: bool) -> None:
        super().__init__()
        self.linear, self.entries, self.late = nn.Linear(8, 2), entries, late
        self.register_buffer("calls", torch.zeros(3, dtype=dtype))
        self.register_buffer("places", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls[: self.entries] += 1
        self.places.copy_(torch.arange(8))
        return self.linear(x * (self.places + 1)) * (2 if self.late and self.calls.sum() > 1000 else 1)


def normed(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), norm(16), nn.ReLU(), nn.Linear(16, 2))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 16), OwnNorm(16, False), nn.ReLU(), nn.Linear(16, 2)), r"1\.m, 1\.v"),
        (lambda: nn.Sequential(nn.Linear(8, 16), OwnNorm(16, True), nn.ReLU(), nn.Linear(16, 2)), r"buffer 1\.m"),
        (lambda: nn.Sequential(spectral_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 2)), r"buffer 0\..*_u"),
        (Counting, "calls"),
        (lambda: Late("attribute"), "changes calls when it runs, and its loss depends on that"),
        (lambda: Late("buffer"), "changes its buffer ran in training, and its loss depends on it"),
        (Remembering, "changes centre when it runs, and its loss depends on that"),
        (lambda: Keeping("queue"), "changes queue when it runs"),
        (lambda: Keeping("deque"), "changes queue when it runs"),
        (lambda: Keeping("object"), "changes _store when it runs"),
        (lambda: Keeping("many"), "changes centre when it runs"),
        (lambda: Keeping("shape"), "changes cache when it runs"),
        (lambda: Keeping("class"), r"changes Keeping\.shared when it runs"),
        (lambda: Keeping("buffer"), "changes late when it runs"),
        (lambda: Keeping("closure"), "has state outside of parameters, buffers and attributes"),
        (lambda: Keeping("generator"), "changes generator when it runs"),
        (lambda: Merged(False), "Merged computes with its weights when train\\(\\) or eval\\(\\) is called"),
        (lambda: Merged(True), "Merged computes with its weights when train\\(\\) or eval\\(\\) is called"),
        (lambda: Asleep(True), r"norm is put into evaluation mode as it is called.*freeze it in the module's train"),
        (lambda: Asleep(False), "norm has other statistics than those"),
        (lambda: normed(Renormed), "1 has other statistics than those"),
        (lambda: normed(Third), r"buffer 1\.third in training"),
        (lambda: Evaluating(True), "changes its buffer seen in evaluation"),
        (lambda: Evaluating(False), "changes its buffer seen in evaluation"),
        (lambda: Growing(False), r"Growing makes head\.bias as it first runs.*: make it in __init__"),
        (lambda: Growing(True), r"Growing makes head\.bias as it first runs.*: make it in __init__"),
        (lambda: Flagged("hook"), r"linear\.weight of Flagged has a gradient hook"),
        (lambda: Flagged("post"), r"linear\.weight of Flagged has a gradient hook"),
        *((partial(Writing, kind), "Writing changes its parameter w when it runs") for kind in WRITTEN),
        (lambda: Writing("slow"), "Writing changes its parameter slow when it runs.*: make it a buffer"),
        (Bounded, r"Bounded changes its parameter embed\.weight when it runs.*nn\.Embedding without max_norm"),
        (lambda: Counted(torch.long, 3, True), "changes its buffer calls in training"),
        (lambda: Counted(torch.float, 1, True), "changes its buffer calls in training"),
    ],
    ids=[
        "attributes",
        "buffers",
        "spectral-norm",
        "counter",
        "late",
        "late-buffer",
        "first-call",
        "queue",
        "deque",
        "object",
        "many-rows",
        "shape",
        "class",
        "later-buffer",
        "closure",
        "generator",
        "merged",
        "kept-sum",
        "asleep",
        "read",
        "renormed",
        "third",
        "evaluations",
        "evaluated",
        "growing",
        "growing-in-training",
        "hook",
        "hook-of-sums",
        *WRITTEN,
        "slow",
        "embedding",
        "counters",
        "counter-of-several",
    ],
)
def test_state_that_the_loss_depends_on_is_refused_by_its_name(build: Callable[[], nn.Module], told: str) -> None:
    with pytest.raises(LowlossError, match=told):
        NetworkLandscape(build, data())


@pytest.mark.parametrize("instance", [False, True])
def test_attributes_of_parameters_are_theirs_at_every_point(instance: bool) -> None:
    given = data()
    landscape = NetworkLandscape(Flagged("mask") if instance else lambda: Flagged("mask"), given)
    theta_P = landscape.initial(0)
    weight, bias = landscape.layout.views(theta_P).values()
    masked = cross_entropy(linear(given.x_train, weight * (torch.arange(8) % 2), bias), given.y_train)
    torch.testing.assert_close(landscape.evaluate(theta_P[None])["loss"][0].float(), masked)
    assert not gradient(landscape, 0)[0, :16].view(2, 8)[:, ::2].any()
    torch.testing.assert_close(cross_entropy(landscape.module(theta_P)(given.x_train), given.y_train), masked)
    assert landscape.point(landscape.module(theta_P)).equal(theta_P)


@pytest.mark.parametrize("kind", ["hook", "post"])
def test_a_gradient_hook_of_an_instance_is_refused(kind: str) -> None:
    with pytest.raises(LowlossError, match=r"linear\.weight of Flagged has a gradient hook"):
        NetworkLandscape(Flagged(kind), data())


def test_the_first_minibatch_of_a_size_is_looked_at() -> None:
    landscape = NetworkLandscape(lambda: Keeping("many", 20), data())
    theta_1P = landscape.initial(0)[None]
    landscape.losses(theta_1P, landscape.batches(20, (1,), True)[0])
    with pytest.raises(LowlossError, match="changes centre when it runs, and its loss depends on that"):
        landscape.losses(theta_1P, landscape.batches(40, (1,), True)[0])


class Shortcut(nn.Module):
    """Keeps what it adds behind its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.a(x)
        h = self.norm(self.kept.relu())
        return self.b(self.kept + h)


class Around(nn.Module):
    """Keeps that in a dict which a hook and a lambda hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, kept = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2), dict[str, Tensor]()
        self.last = nn.BatchNorm1d(8)
        self.a.register_forward_hook(lambda _, given, out: kept.update(a=out))
        self.kept = lambda: kept["a"]

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x).relu())
        return self.b(self.last(self.kept() + h).relu())


@pytest.mark.parametrize("kind", [Shortcut, Around, partial(normed, nn.BatchNorm1d)])
@pytest.mark.parametrize("count", [2048, 2501])
def test_statistics_of_a_large_set_are_those_of_a_module_that_keeps_activations(
    kind: Callable[[], nn.Module], count: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    y, net = (x[:, 0] > 0).long(), kind().double()
    landscape = NetworkLandscape(lambda: kind().double(), Data(x, y, x[:40], y[:40]), evaluation_batch=count)
    theta_P = landscape.point(net)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = None
    with torch.no_grad():
        net.train()(x)
        wanted = cross_entropy(net.eval()(x), y)
    assert landscape.evaluate(theta_P[None])["loss"].item() == pytest.approx(wanted.item(), rel=1e-9)
    assert (landscape.loop.part > count) == (kind is Around)
    # Kept activations are no leaves where gradients are taken.
    landscape.losses(theta_P[None].requires_grad_(), landscape.batches(40, (1,), True)[0])
    assert landscape.point(landscape.module(theta_P)).equal(theta_P)


class Held(nn.Module):
    """Goes through what holds it: a lambda, a local function in a list, a hook, or a forward in place of a layer's."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 2), nn.Linear(1, 16)
        self.norm, self.stages = nn.BatchNorm1d(16), list[Callable[[Tensor], Tensor]]()

        def scaled(h: Tensor) -> Tensor:
            return h * self.c.weight[:, 0]

        self.f: Callable[[Tensor], Tensor] = lambda h: h
        if kind == "lambda":
            self.f = lambda h: scaled(h)
        elif kind == "list":
            self.stages = [scaled]
        elif kind == "hook":
            self.a.register_forward_hook(lambda _, given, out: scaled(out))
        elif kind == "forward":
            own = self.a.forward
            self.a.forward = lambda x: scaled(own(x))
        elif kind == "statistics":
            self.f = lambda h: self.norm(h)

    def forward(self, x: Tensor) -> Tensor:
        h = self.f(self.a(x))
        for stage in self.stages:
            h = stage(h)
        return self.b(h.relu())


@pytest.mark.parametrize("kind", ["lambda", "list", "hook", "forward", "statistics"])
def test_an_instance_that_a_lambda_holds_is_refused_and_a_function_that_builds_it_taken(kind: str) -> None:
    given, net = data(), Held(kind)
    before = {name: (value.data_ptr(), value.clone()) for name, value in net.state_dict().items()}
    with pytest.raises(LowlossError, match=r"Held reaches the weights of the module .*: pass a function that builds"):
        NetworkLandscape(net, given)
    for name, value in net.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])
    landscape = NetworkLandscape(lambda: Held(kind), given)
    theta_1P = landscape.point(net)[None].requires_grad_()
    loss_1 = landscape.losses(theta_1P, landscape.batches(None, (1,), True)[0])
    gradient_P = torch.autograd.grad(loss_1.sum(), theta_1P)[0][0]
    wanted = cross_entropy(net(given.x_train), given.y_train)
    gradients = torch.autograd.grad(wanted, list(net.parameters()), materialize_grads=True)
    torch.testing.assert_close(loss_1[0], wanted)
    torch.testing.assert_close(gradient_P, torch.cat([one.flatten() for one in gradients]))
    with torch.no_grad():
        exact = cross_entropy(landscape.module(theta_1P[0].detach())(given.x_train), given.y_train)
    torch.testing.assert_close(landscape.evaluate(theta_1P)["loss"][0].float(), exact)


def test_a_copy_that_computes_with_the_weights_of_its_original_is_refused() -> None:
    original = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    original.forward = lambda x: original[2](original[1](original[0](x)))
    with pytest.raises(LowlossError, match=r"outputs of Sequential do not depend on its parameters.*: pass a function"):
        NetworkLandscape(deepcopy(original), data())


class Twofold(nn.Module):
    """Computes with the last layer that it made, whatever a copy of it has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), (b := nn.Linear(4, 2))
        self.f = lambda x: b(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.a(x))


def test_a_copy_that_computes_with_a_layer_of_its_original_is_told(caplog: pytest.LogCaptureFixture) -> None:
    NetworkLandscape(deepcopy(Twofold()), data())
    assert "do not depend on b.weight, b.bias at 16 samples: they are not used, or its forward pass" in caplog.text


def test_a_deep_network_whose_units_are_dead_beside_its_initial_point_is_not_called_unused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    layers = [layer for width in (8, *[256] * 4) for layer in (nn.Linear(width, 256), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    NetworkLandscape(nn.Sequential(*layers, nn.Linear(256, 2)), data())
    assert not caplog.records


class Complex(nn.Module):
    """Has a complex weight and real outputs."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 2, dtype=torch.complex64))
        self.last = nn.Linear(2, 2) if mixed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x.to(torch.complex64) @ self.w).abs())


@pytest.mark.parametrize("instance", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_complex_parameters_are_refused_in_one_line(instance: bool, mixed: bool) -> None:
    with pytest.raises(LowlossError, match=r"w of Complex is complex, .*: have torch\.view_as_real"):
        NetworkLandscape(Complex(mixed) if instance else lambda: Complex(mixed), data())


def made(kind: str) -> nn.Module:
    module, x = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 2)), torch.zeros(4, 8)
    if kind == "trace":
        return torch.jit.trace(module, x, check_trace=False)
    if kind == "script":
        return torch.jit.script(module)
    if kind == "part":
        return nn.Sequential(torch.jit.script(module), nn.Linear(2, 2))
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},)).module()
    return exported if kind == "export" else deepcopy(exported)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("instance", [False, True])
@pytest.mark.parametrize("kind", ["trace", "script", "part", "export", "copy"])
def test_what_torch_has_made_of_a_module_is_refused_in_one_line(instance: bool, kind: str) -> None:
    by = "export" if kind in {"export", "copy"} else "jit"
    with pytest.raises(LowlossError, match=rf"was made by torch\.{by}, .*: give the nn\.Module it was made of"):
        NetworkLandscape(made(kind) if instance else lambda: made(kind), data())


class Caught(nn.Module):
    """Computes with a parameter that a lambda has caught, whatever stands in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)
        weight = self.linear.weight
        self.f = lambda x: x @ weight.T

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x) + self.linear.bias


def test_a_function_whose_module_computes_with_a_parameter_that_a_lambda_caught_is_refused() -> None:
    with pytest.raises(LowlossError, match="a point's loss is not of its parameters alone"):
        NetworkLandscape(Caught, data())


class Harmless(nn.Module):
    """Keeps what it saw, and looks at it no more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls, self.last = nn.Linear(8, 2), 0, torch.zeros(1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.last = self.calls + 1, x.detach()
        self.seen += 1
        return self.linear(x)


class Tables(nn.Module):
    """Tables for each shape, the last attention and the features that a hook takes, in many places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.attention, self._tables = nn.Linear(8, 8), nn.Linear(8, 2), None, dict[int, Tensor]()
        self.features: dict[str, Tensor] = {}
        self.register_buffer("positions", None)
        self.log, self.toggled = SimpleNamespace(losses=[]), False
        self.a.register_forward_hook(partial(_feature, self.features))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) not in self._tables:
            self._tables[len(x)] = torch.arange(8.0).expand(len(x), 8)
        if self.positions is None or len(self.positions) < len(x):
            self.positions = torch.ones(len(x), 1)
        self.attention = (self.a(x) + self._tables[len(x)]).softmax(1)
        self.log.losses.append(float(self.attention.detach().mean()))
        self.toggled = not self.toggled
        return self.b(self.attention * self.features["a"]) + self.positions[: len(x)]


class Phase(enum.Enum):
    """What a module may note of a call."""

    TRAINING = 1
    EVALUATION = 2


class Describing(nn.Module):
    """Keeps its outputs with the configuration of which it was made, and reads that."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.linear, self.config, self.calls, self.last = nn.Linear(8, 2), config, list[Phase](), None

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.config.scale * self.linear(x)
        self.calls.append(Phase.TRAINING if self.training else Phase.EVALUATION)
        self.last = outputs.detach(), self.config, SimpleNamespace(config=self.config)
        return outputs


def test_what_a_module_shares_with_others_is_left_as_it_is() -> None:
    config = SimpleNamespace(scale=2.0, widths=[8, 2])
    landscape = NetworkLandscape(lambda: Describing(config), data())
    landscape.losses(landscape.initial(1)[None], landscape.batches(40, (1,), True)[0])
    assert config == SimpleNamespace(scale=2.0, widths=[8, 2])
    assert [one.value for one in Phase] == [1, 2]


def _feature(features: dict[str, Tensor], part: nn.Module, given: object, outputs: Tensor) -> None:
    features["a"] = outputs


class Activated(nn.BatchNorm1d):
    """Has the activation in it, as timm's have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def twice_normed() -> nn.Module:
    norm = Activated(16)
    return nn.Sequential(nn.Linear(8, 16), norm, nn.Linear(16, 16), norm, nn.Linear(16, 2))


def test_a_batch_norm_with_more_in_it_is_taken() -> None:
    landscape = NetworkLandscape(twice_normed, data(), 40)
    (theta_P,) = landscape.initial(0)[None]
    net = twice_normed()
    for name, view in landscape.layout.views(theta_P).items():
        net.get_parameter(name).data.copy_(view)
    x, y = data().split("train")
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = None
    with torch.no_grad():
        net.train()(x[:])
        wanted = nn.functional.cross_entropy(net.eval()(x[:]), y)
    torch.testing.assert_close(landscape.evaluate(theta_P[None])["loss"][0], wanted.double(), rtol=1e-5, atol=1e-6)


class Split(nn.BatchNorm1d):
    """In training normalises the second half of a minibatch by another BatchNorm, as timm's do for AdvProp."""

    def __init__(self, features: int, factor: int = 1) -> None:
        super().__init__(features)
        self.others, self.factor = nn.ModuleList([nn.BatchNorm1d(features)]), factor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x) * self.factor
        first, second = x.chunk(2)
        return torch.cat([super().forward(first), self.others[0](second)])


def test_split_batch_norms_have_the_statistics_of_all_samples() -> None:
    def build(norm: Callable[[int], nn.Module]) -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 3), norm(3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)
        )

    landscape, plain = (NetworkLandscape(partial(build, norm), data(), 40) for norm in (Split, nn.BatchNorm1d))
    theta_1P, named = landscape.initial(0)[None], landscape.layout.views(landscape.initial(0))
    assert landscape.evaluate(theta_1P)["loss"] == plain.evaluate(plain.layout.flatten(named)[None])["loss"]
    net = landscape.module(theta_1P[0]).train()
    x, y = data().split("train")
    loss_1 = landscape.losses(theta_1P, landscape.batches(None, (1,), True)[0])
    torch.testing.assert_close(loss_1[0], cross_entropy(net(x[:]), y).detach())
    assert "forward" not in vars(landscape.loop.module[2])
    with pytest.raises(LowlossError, match="2 has other statistics than those"):
        NetworkLandscape(partial(build, partial(Split, factor=2)), data())


@pytest.mark.parametrize(
    "build",
    [
        Harmless,
        Tables,
        lambda: Late("once"),
        lambda: Writing("moved"),
        lambda: Counted(torch.long, 3, False),
        lambda: nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2)),
    ],
    ids=["kept", "tables", "once", "moved", "counters", "weight-norm"],
)
def test_what_changes_nothing_is_taken(build: Callable[[], nn.Module]) -> None:
    landscape = NetworkLandscape(build, data())
    a_1P, b_1P = (landscape.initial(seed)[None] for seed in (0, 1))
    first = landscape.evaluate(a_1P)["loss"]
    for _ in range(100):
        landscape.losses(b_1P, landscape.batches(40, (1,), True)[0])
        assert torch.equal(landscape.evaluate(a_1P)["loss"], first)
    both = landscape.evaluate(torch.cat([b_1P, a_1P]))["loss"]
    assert both[1] == first


class Narrowed(nn.Module):
    """Its BatchNorm is given bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = self.norm(self.a(x[:, None])).relu()
        return self.b(h.float().flatten(1))


class Energy(nn.Module):
    """Goes by the gradient of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.b(self.a(x).tanh()).sum(), x, create_graph=True)
        return self.head(force)


def legacy() -> nn.Module:
    return nn.Sequential(legacy_weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))


class Recurrent(nn.Module):
    """Its computed weights are in a list of its layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = legacy_weight_norm(nn.GRU(4, 3, batch_first=True), "weight_hh_l0"), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.view(-1, 2, 4))[0][:, -1])


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("build", [Narrowed, Energy, legacy, Recurrent])
def test_points_and_modules_of_what_computes_with_more_than_its_parameters(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    given = data()
    landscape = NetworkLandscape(build, given, 40)
    theta_1P, batch = landscape.initial(1)[None], landscape.batches(None, (1,), True)[0]
    net = landscape.module(theta_1P[0])
    with torch.set_grad_enabled(build is Energy):
        exact = cross_entropy(net(given.x_test), given.y_test)
    torch.testing.assert_close(landscape.evaluate(theta_1P, "test")["loss"][0].float(), exact.detach())
    own = dict(net.train().named_parameters())
    loss = cross_entropy(net(given.x_train), given.y_train)
    first = torch.autograd.grad(loss, list(own.values()), create_graph=True, materialize_grads=True)
    first_P = landscape.layout.flatten(dict(zip(own, first, strict=True)))
    torch.testing.assert_close(gradient(landscape, 1)[0], first_P, rtol=1e-4, atol=1e-6)
    along = sum(one.sum() for one in first if one.requires_grad)
    second = torch.autograd.grad(along, list(own.values()), materialize_grads=True)
    second_P = landscape.layout.flatten(dict(zip(own, second, strict=True)))
    product_1P = landscape.product(theta_1P, torch.ones_like(theta_1P), batch, "batch")
    torch.testing.assert_close(product_1P[0], second_P, rtol=1e-3, atol=1e-5)


class Frozen(nn.Module):
    """Keeps its BatchNorm in evaluation mode, as fine-tuning does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.norm.running_mean.fill_(0.3)
        self.norm.running_var.fill_(2.0)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu())


def test_a_frozen_batch_norm_keeps_its_statistics() -> None:
    given = data()
    landscape = NetworkLandscape(Frozen, given)
    theta_P = landscape.initial(0)
    module = landscape.module(theta_P)
    assert module.norm.running_mean.unique().tolist() == [pytest.approx(0.3)]
    with torch.no_grad():
        exact = cross_entropy(module(given.x_train), given.y_train)
    whole = landscape.losses(theta_P[None], landscape.batches(None, (1,), True)[0])
    torch.testing.assert_close(landscape.evaluate(theta_P[None])["loss"][0].float(), exact)
    torch.testing.assert_close(whole[0], exact)


class Features(nn.Module):
    """Random features in a buffer and in a frozen layer, and a counter that does no harm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.randn(8, 16))
        self.register_buffer("ran", torch.zeros(()))
        self.frozen, self.norm, self.head = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.ran += self.training
        return self.head(self.norm(x @ self.basis + self.frozen(x)).relu())


@pytest.mark.parametrize(
    ("build", "name"), [(Features, "frozen.weight"), (Features, "basis"), (Frozen, "norm.running_var")]
)
def test_a_point_of_a_module_with_other_frozen_values_is_refused(build: Callable[[], nn.Module], name: str) -> None:
    landscape = NetworkLandscape(given := build(), data())
    theta_P = landscape.point(given.train())
    given(data().x_train)  # moves statistics and a counter
    assert landscape.point(given).equal(theta_P)
    assert landscape.point(landscape.module(theta_P)).equal(theta_P)
    dict([*given.named_parameters(), *given.named_buffers()])[name].data[0] += 1
    with pytest.raises(LowlossError, match=rf"{name} of the module is no coordinate .*: have the function that builds"):
        landscape.point(given)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(dropout(self.a(x).relu(), 0.5))


def test_randomness_in_evaluation_is_told_and_the_same_every_time(caplog: pytest.LogCaptureFixture) -> None:
    landscape = NetworkLandscape(Noisy, data())
    assert "draws random numbers in evaluation" in caplog.text
    theta_1P = landscape.initial(0)[None]
    assert len({float(landscape.evaluate(theta_1P)["loss"]) for _ in range(3)}) == 1


class Mixing(nn.Module):
    """Normalises over the minibatch by itself, in evaluation too if it is asked to."""

    def __init__(self, evaluated: bool) -> None:
        super().__init__()
        self.linear, self.evaluated = nn.Linear(8, 2), evaluated

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return x - x.mean(0) / 2 if self.training or self.evaluated else x


@pytest.mark.parametrize("evaluated", [False, True])
def test_samples_that_are_coupled_are_noticed(evaluated: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "lowloss"):
        assert NetworkLandscape(lambda: Mixing(evaluated), data()).couples_samples
    assert ("other outputs beside other samples, in evaluation too" in caplog.text) == evaluated
    assert not NetworkLandscape(lambda: nn.Linear(8, 2), data()).couples_samples


class Experts(nn.Module):
    """Sends each sample to one of its experts, which take as many as their share is, and four at least."""

    def __init__(self, evaluated: bool) -> None:
        super().__init__()
        self.gate, self.experts, self.head = nn.Linear(8, 4), nn.Linear(8, 4 * 8), nn.Linear(8, 2)
        self.evaluated = evaluated

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.gate(x).softmax(1).max(1)
        place = (one := nn.functional.one_hot(chosen, 4)).cumsum(0)[one.bool()]
        taken = place <= max(4, len(x) // 4) if self.training or self.evaluated else place > 0
        outputs = self.experts(x).view(-1, 4, 8)[torch.arange(len(x)), chosen]
        return self.head(x + outputs * (share * taken)[:, None])


@pytest.mark.parametrize("evaluated", [False, True])
def test_experts_that_have_no_room_for_many_samples_are_noticed(
    evaluated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert NetworkLandscape(lambda: Experts(evaluated), data()).couples_samples
    assert ("other outputs beside other samples, in evaluation too" in caplog.text) == evaluated


class Skipping(nn.Module):
    """Stochastic depth by Python's random numbers, noise by NumPy's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if not self.training:
            return self.c(h + self.b(h).relu())
        h = h + float(np.random.rand())  # noqa: NPY002
        return self.c(h if random.random() < 0.5 else h + self.b(h).relu())


def test_other_generators_follow_from_the_seed_too() -> None:
    landscape = NetworkLandscape(Skipping, data())
    assert landscape.loop.foreign == ("random", "numpy")
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    a, b = (train_minima(landscape, count=1, epochs=5, batch_size=20).theta_KP for _ in range(2))
    assert torch.equal(a, b)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


class ZeroHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).relu())


def test_parts_are_redrawn_before_the_whole() -> None:
    for model in (ZeroHead(), ZeroHead):
        landscape = NetworkLandscape(model, data())
        assert landscape.layout.views(landscape.initial(0))["head.weight"].abs().max() == 0


def pruned(evaluated: bool) -> nn.Module:
    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    module = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2))
    if evaluated:
        with torch.no_grad():
            module.eval()(torch.zeros(1, 8))
    return module


@pytest.mark.parametrize("evaluated", [False, True])
def test_an_instance_that_is_not_redrawn_is_refused(evaluated: bool) -> None:
    landscape = NetworkLandscape(pruned(evaluated), data())
    with pytest.raises(LowlossError, match=r"0\.weight_orig is the same for every seed.*pass a function that builds"):
        landscape.initial(0)


def drawn_from_numpy() -> nn.Module:
    np.random.seed(3)  # noqa: NPY002
    module = nn.Linear(8, 2)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.random.randn(2, 8)))  # noqa: NPY002
        module.bias.zero_()
    return module


def seeded() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(8, 2)


def test_a_function_that_gives_every_seed_one_point_is_refused() -> None:
    for build in (seeded, drawn_from_numpy):
        with pytest.raises(LowlossError, match=r"seeds the random numbers itself: pass a function that builds"):
            NetworkLandscape(build, data()).initial(0)
    module = nn.Linear(8, 2)
    with pytest.raises(LowlossError, match="one and the same at every call: pass a function that builds a new one"):
        NetworkLandscape(lambda: module, data()).initial(0)


def test_a_function_with_a_generator_of_its_own_is_refused() -> None:
    generator = np.random.default_rng(3)

    def build() -> nn.Module:
        module = nn.Linear(8, 2)
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(generator.normal(size=(2, 8))))
        return module

    with pytest.raises(LowlossError, match="begins elsewhere when it is drawn again from the same seed"):
        NetworkLandscape(build, data()).initial(0)


@pytest.mark.parametrize("seed", [0, 3])
def test_few_modules_are_built_for_a_first_point(seed: int) -> None:
    made = list[nn.Module]()

    def build() -> nn.Module:
        made.append(nn.Linear(8, 2))
        return made[-1]

    landscape = NetworkLandscape(build, data())
    assert torch.equal(landscape.initial(seed), landscape.point(made[1]))
    assert len(made) == 3
    landscape.initial(seed)
    assert len(made) == 4


def test_a_function_that_loads_its_weights_is_told(caplog: pytest.LogCaptureFixture) -> None:
    weights = nn.Linear(8, 2).state_dict()

    def build() -> nn.Module:
        module = nn.Linear(8, 2)
        module.load_state_dict(weights)
        return module

    with caplog.at_level("WARNING", "lowloss"):
        NetworkLandscape(build, data()).initial(0)
    assert "begins at one point whatever the seed" in caplog.text


def test_an_instance_with_an_initialisation_of_its_own_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Its initial points are those of `reset_parameters`."""
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    with caplog.at_level("WARNING", "lowloss"):
        NetworkLandscape(net, data()).initial(0)
        assert not caplog.text
        nn.init.orthogonal_(net[0].weight)
        NetworkLandscape(net, data()).initial(0)
    assert "0.weight of the model has standard deviation" in caplog.text
    assert "pass a function that builds the model if its own initialisation is meant" in caplog.text


def test_a_counter_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "lowloss"):
        NetworkLandscape(Harmless, data())
    assert "Harmless changes calls, last when it runs: every call finds that as it was" in caplog.text


def test_a_lazy_module_that_does_not_fit_is_told_in_a_line() -> None:
    with pytest.raises(LowlossError, match=r"^Sequential rejects inputs of shape \(8,\): "):
        NetworkLandscape(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(2)), data())


def test_images_without_channels_are_told_the_remedy() -> None:
    x, y = torch.randn(20, 12, 10), torch.arange(20) % 2
    with pytest.raises(LowlossError, match=r"images need an axis of channels, x\[:, None\]"):
        NetworkLandscape(CNN, Data(x, y, x, y))


def test_an_argument_that_a_model_does_not_take_is_told_with_the_remedy() -> None:
    with pytest.raises(
        LowlossError, match=r"unexpected keyword argument 'hidden': leave it out, as ~model\.hidden does"
    ):
        NetworkLandscape(partial(normed, hidden=3), data())


def test_lazy_layers_are_made_by_a_pass() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))

    for model in (lazy, lazy()):
        landscape = NetworkLandscape(model, data())
        assert landscape.dim == 8 * 8 + 8 + 8 * 2 + 2
        assert not torch.equal(landscape.initial(0), landscape.initial(1))
        assert torch.equal(landscape.initial(0), landscape.initial(0))
