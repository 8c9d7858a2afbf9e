"""Evaluation of recurrent networks: the state goes from row to row, and no split of outputs is ever held."""

import weakref
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowloss import Data, NetworkLandscape, Regression, ensemble_metrics
from lowloss.data import Task, text
from lowloss.data.language import Text
from lowloss.data.task import PADDING

STEPS, STREAMS = 6, 4


class LSTM(nn.Module):
    """Returns its outputs and its state, a pair of tensors."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, 4)
        self.recur = nn.LSTM(4, 5, num_layers=2, batch_first=True, dropout=0.4)
        self.head = nn.Linear(5, num_classes)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, state = self.recur(self.embed(x), state)
        return self.head(hidden), state


class GRU(nn.Module):
    """Its state is one tensor."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, 4)
        self.recur = nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, num_classes)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden, state = self.recur(self.embed(x), state)
        return self.head(hidden), state


@pytest.fixture
def data(tmp_path: Path) -> Text:
    generator = torch.Generator().manual_seed(0)
    for name, length in (("train", 331), ("valid", 90), ("test", 67)):
        letters = torch.randint(5, (length,), generator=generator).cumsum(0) % 7
        (tmp_path / f"{name}.txt").write_text("".join("abcdefg"[i] for i in letters), encoding="utf-8")
    found = text(str(tmp_path), steps=STEPS, streams=STREAMS, vocabulary="char", carry=True)
    assert isinstance(found, Text)
    return found


def whole_streams(data: Data, split: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the parallel streams (S, L)."""
    return tuple(  # type: ignore[return-value]
        torch.cat([t[i : i + STREAMS] for i in range(0, len(t), STREAMS)], 1) for t in data.split(split)
    )


@pytest.mark.parametrize("build", [LSTM, GRU])
def test_evaluation_is_one_pass_over_the_whole_stream(data: Text, build: Callable[[int], nn.Module]) -> None:
    landscape = NetworkLandscape(build, data)
    assert landscape.splits == ("train", "test", "valid")
    theta_KP = torch.stack([2 * landscape.initial(k) for k in range(3)])
    for split in landscape.splits:
        x_SL, y_SL = whole_streams(data, split)
        assert x_SL.shape[1] > 2 * STEPS
        scored = y_SL != PADDING
        columns = landscape.evaluate(theta_KP, split)
        assert list(columns) == ["loss", "perplexity"]
        for k, theta_P in enumerate(theta_KP):
            module = landscape.module(theta_P)
            with torch.no_grad():
                outputs, _ = module(x_SL)
                afresh, _ = module(data.split(split)[0])
            loss = cross_entropy(outputs[scored].double(), y_SL[scored])
            assert float(columns["loss"][k]) == pytest.approx(float(loss), rel=1e-6)
            assert float(columns["perplexity"][k]) == pytest.approx(exp(float(columns["loss"][k])), rel=1e-12)
            # Windows that begin afresh would tell something else.
            y_NT = data.split(split)[1]
            other = cross_entropy(afresh[y_NT != PADDING].double(), y_NT[y_NT != PADDING])
            assert abs(float(other - loss)) > 1e-5


def test_a_stream_is_the_text_itself(data: Text) -> None:
    """Its tokens are those of the file, one stream after the other."""
    x_SL, y_SL = whole_streams(data, "train")
    assert torch.equal(x_SL[y_SL != PADDING], data.stream()[0])
    single = Text({"train": data.stream()[0], "test": data.stream()[0]}, data.vocabulary, STEPS, 1, carry=True)
    landscape = NetworkLandscape(GRU, single)
    theta_P = 2 * landscape.initial(0)
    with torch.no_grad():
        outputs, _ = landscape.module(theta_P)(data.stream()[0][None, :-1])
    loss = cross_entropy(outputs[0].double(), data.stream()[0][1:])
    assert float(landscape.evaluate(theta_P[None])["loss"]) == pytest.approx(float(loss), rel=1e-6)


def test_evaluation_depends_on_nothing_before_it(data: Text) -> None:
    landscape = NetworkLandscape(LSTM, data)
    theta_KP = torch.stack([landscape.initial(k) for k in range(3)])
    first = landscape.evaluate(theta_KP)["loss"]
    batches = landscape.batches(STREAMS, [1, 2, 3], shared=False)
    for step in range(3):
        batch = batches[step]
        assert batch is not None
        landscape.losses(theta_KP, batch)
    assert torch.equal(landscape.evaluate(theta_KP.flip(0))["loss"].flip(0), first)
    # Nor does the state of training come from evaluation.
    again = landscape.batches(STREAMS, [1, 2, 3], shared=False)[0]
    assert again is not None
    assert torch.equal(landscape.losses(theta_KP, again), landscape.losses(theta_KP, again._replace(carry=None)))


def test_outputs_and_ensembles_carry_the_state_too(data: Text) -> None:
    landscape = NetworkLandscape(LSTM, data)
    theta_MP = torch.stack([2 * landscape.initial(k) for k in range(3)])
    x_SL, y_SL = whole_streams(data, "test")
    scored = y_SL != PADDING
    logs_M = []
    for theta_P in theta_MP:
        with torch.no_grad():
            expected, _ = landscape.module(theta_P)(x_SL)
        chunks = list(landscape.outputs(theta_P, "test"))
        assert all(outputs.shape == (STREAMS, STEPS, 7) for outputs, _ in chunks)
        torch.testing.assert_close(torch.cat([outputs for outputs, _ in chunks], 1), expected)
        assert torch.equal(torch.cat([y for _, y in chunks], 1), y_SL)
        logs_M.append(expected[scored].double().log_softmax(1))
    # Members that go through the split side by side keep their states apart.
    together, alone = ensemble_metrics(landscape, theta_MP)
    for m, log_p in enumerate(logs_M):
        assert float(alone["loss"][m]) == pytest.approx(float(-log_p[range(len(log_p)), y_SL[scored]].mean()), rel=1e-6)
        mean = torch.stack(logs_M[: m + 1]).exp().mean(0).log()
        loss = float(-mean[range(len(mean)), y_SL[scored]].mean())
        assert float(together["loss"][m]) == pytest.approx(loss, rel=1e-6)
        assert float(together["perplexity"][m]) == pytest.approx(exp(loss), rel=1e-6)


class Follower(nn.Module):
    """A running sum of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.weight(x).cumsum(1)
        h = h if state is None else h + state
        return h, h[:, -1:]


def test_other_tasks_have_streams_too() -> None:
    x, y = torch.randn(2, 12, 3, 1).double()
    for task in (Regression(), Regression(scale=2.0)):
        landscape = NetworkLandscape(Follower().double(), Data(x, y, x[:4], y[:4], task=task, streams=2))
        theta_P = torch.tensor([0.7, -0.2]).double()
        for split, rows in (("train", 12), ("test", 4)):
            sums = torch.zeros(2, 1).double()
            errors = []
            for row in range(0, rows, 2):
                for t in range(3):
                    sums = sums + 0.7 * x[row : row + 2, t] - 0.2
                    errors.append((sums - y[row : row + 2, t]).square())
            expected = torch.cat(errors).mean() / task.scale
            torch.testing.assert_close(landscape.evaluate(theta_P[None], split)["loss"][0], expected)


class Held(TorchDispatchMode):
    """The most numbers of float64 in one tensor, and in all that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.most = self.now = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float64:
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, numbers = storage.data_ptr(), storage.nbytes() // 8
        self.largest = max(self.largest, tensor.numel(), numbers)
        if place in self.seen:
            return
        self.seen.add(place)
        self.now += numbers
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, place, numbers)

    def _gone(self, place: int, numbers: int) -> None:
        self.seen.discard(place)
        self.now -= numbers


VOCABULARY, WINDOW = 10_000, 5


class Bigram(nn.Module):
    """A language model without a state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 2), nn.Linear(2, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


class Recurrent(Bigram):
    def __init__(self) -> None:
        super().__init__()
        self.recur = nn.GRU(2, 2, batch_first=True)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Any:
        hidden, state = self.recur(self.embed(x), state)
        return self.head(hidden), state


def large(task: Task | None, streams: int | None) -> Data:
    tokens = torch.randint(VOCABULARY, (1501,), generator=torch.Generator().manual_seed(0))
    data = Text({"train": tokens, "test": tokens[:400]}, [str(i) for i in range(VOCABULARY)], WINDOW, STREAMS, False)
    return Data(*data.split("train"), *data.split("test"), task=task or data.task, streams=streams)


@pytest.mark.parametrize(("build", "streams"), [(Recurrent, STREAMS), (Bigram, None)])
def test_no_split_of_outputs_is_held(build: Callable[[], nn.Module], streams: int | None) -> None:
    landscape = NetworkLandscape(build, large(None, streams), evaluation_batch=20)
    theta_KP = torch.stack([landscape.initial(k) for k in range(2)])
    with Held() as held:
        columns = landscape.evaluate(theta_KP)
    chunk = (streams or 20) * WINDOW * VOCABULARY
    split = 1500 * VOCABULARY
    # A chunk in float64, where only the targets are scored, and what cross-entropy makes of it.
    assert 0 < held.largest <= chunk
    assert held.most <= 4 * chunk < split / 3
    expected = landscape.evaluate(theta_KP, details=True)
    assert all(torch.equal(columns[name], expected[name]) for name in columns)
    with Held() as held:
        ensemble_metrics(landscape, theta_KP, "train")
    assert held.largest <= 2 * chunk
    assert held.most <= 10 * chunk < split


def test_what_is_held_is_counted() -> None:
    with Held() as held:
        a = torch.zeros(100, dtype=torch.float64)
        b = a + 1
        del a
        c = b.view(10, 10)[:5] + torch.zeros(5, 10, dtype=torch.float64)
        del b, c
    assert (held.largest, held.most, held.now) == (100, 200, 0)
