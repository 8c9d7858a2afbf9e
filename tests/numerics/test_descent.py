"""Descent: what is collected, when rows have converged, other coordinates, objectives of one's own, carried states."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lowloss import Data, LowlossError, NetworkLandscape, train_minima
from lowloss.data import CropFlip, text
from lowloss.files import load_tensors
from lowloss.landscape import AnalyticSurface, BatchSource, Quadratic, RandomSpan, Rosenbrock, Span
from lowloss.seeding import derive
from lowloss.training import descent
from lowloss.training.descent import Descent, Objective, Recipe, fit
from lowloss.training.methods import Minima

SAMPLES, SIZE, PER_EPOCH = 42, 10, 4
EIGENVALUES = [0.5, 1.0, 2.0, 4.0]
plain_sgd = partial(torch.optim.SGD, lr=0.1)
momentum = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
adam = partial(torch.optim.Adam, lr=0.05)


class StruckError(Exception):
    """An interruption."""


def strike(at: float) -> Callable[[float], float]:
    """A schedule of which a run dies once this fraction of it is reached."""

    def factor(progress: float) -> float:
        if progress >= at:
            raise StruckError
        return 1.0

    return factor


@pytest.fixture
def landscape() -> NetworkLandscape:
    x, y = torch.randn(SAMPLES, 5), torch.arange(SAMPLES) % 3
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))
    return NetworkLandscape(module, Data(x, y, x[:6], y[:6]))


def train(landscape: Any, count: int = 2, **settings: Any) -> Minima:
    return train_minima(
        landscape, **{"count": count, "epochs": 3, "batch_size": SIZE, "optimizer": momentum} | settings
    )


def assert_same(a: Minima, b: Minima) -> None:
    """Bit for bit, files and all."""
    assert torch.equal(a.theta_KP, b.theta_KP)
    assert (a.history, a.status) == (b.history, b.status)
    assert str(a.gradient_norms) == str(b.gradient_norms)  # with NaN
    assert (a.z_KQ is None) == (b.z_KQ is None)
    assert a.z_KQ is None or torch.equal(a.z_KQ, b.z_KQ)
    for one, other in zip(a.trajectories, b.trajectories, strict=True):
        assert one.epochs == other.epochs
        assert torch.equal(one.theta_EP, other.theta_EP)
        if one.collected.folder is not None and other.collected.folder is not None:
            assert [file.name for file in one.files] == [file.name for file in other.files]
            assert [file.read_bytes() for file in one.files] == [file.read_bytes() for file in other.files]


def test_every_epoch_is_collected(landscape: NetworkLandscape) -> None:
    found = train(landscape, collect="every")
    for k, trajectory in enumerate(found.trajectories):
        assert trajectory.epochs == [0, 1, 2, 3]
        assert torch.equal(trajectory.theta_EP[0], landscape.initial(derive(0, "initial", k)))
        assert torch.equal(trajectory.theta_EP[3], found.theta_KP[k])
    for epochs in (1, 2):
        shorter_KP = train(landscape, epochs=epochs).theta_KP
        assert torch.equal(torch.stack([t.theta_EP[epochs] for t in found.trajectories]), shorter_KP)
    assert torch.equal(train(landscape).theta_KP, found.theta_KP)
    assert train(landscape).trajectories == []
    # The last point is collected wherever training ends.
    assert train(landscape, epochs=1.5, collect="every").trajectories[0].epochs == [0, 1, 1.5]


def test_a_list_of_epochs_is_collected(landscape: NetworkLandscape) -> None:
    found = train(landscape, collect=[2, 0.5, 0, 2.0])
    assert [trajectory.epochs for trajectory in found.trajectories] == [[0, 0.5, 2]] * 2
    assert found.trajectories[1].theta_EP.shape == (3, landscape.dim)
    for e, epochs in ((1, 0.5), (2, 2)):
        shorter_KP = train(landscape, epochs=epochs).theta_KP
        assert torch.equal(torch.stack([t.theta_EP[e] for t in found.trajectories]), shorter_KP)
    assert train(landscape, collect=[3]).trajectories[0].epochs == [3]


@pytest.mark.parametrize("collect", ["some", 3, [-1], ["every"], [True], [float("nan")]])
def test_what_is_no_list_of_epochs_is_refused(landscape: NetworkLandscape, collect: Any) -> None:
    with pytest.raises(LowlossError, match="collect must be null, every or a list of epochs") as caught:
        train(landscape, collect=collect)
    assert "\n" not in str(caught.value)


def test_what_is_collected_lies_in_a_file_a_row_and_is_written_once(
    landscape: NetworkLandscape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: Counter[Path] = Counter()

    def counting(file: Path, *arguments: Any) -> None:
        written[file] += 1
        save(file, *arguments)

    save = descent.save_tensors
    monkeypatch.setattr(descent, "save_tensors", counting)
    monkeypatch.setattr(descent, "PAUSE", 0.0)
    found = train(landscape, collect="every", folder=tmp_path)
    held = train(landscape, collect="every")
    files = [file for trajectory in found.trajectories for file in trajectory.files]
    assert written == dict.fromkeys(files, 1)
    assert len(files) == 2 * 4
    for ours, theirs in zip(found.trajectories, held.trajectories, strict=True):
        assert torch.equal(ours.theta_EP, theirs.theta_EP)
        for file, theta_P, step in zip(ours.files, theirs.theta_EP, (0, 4, 8, 12), strict=True):
            tensors, notes = load_tensors(file)
            assert torch.equal(tensors["theta"], theta_P)
            assert (list(tensors), notes) == (["theta"], {"step": step})
    # The checkpoint does not grow with what was collected.
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["collected"] == [0, 4, 8, 12]


# Between two checkpoints, with a point that was collected since the first; right after one; within the first epoch.
@pytest.mark.parametrize("at", [0.62, 0.4, 0.2])
def test_resumed_is_uninterrupted_with_what_was_collected(
    landscape: NetworkLandscape, tmp_path: Path, at: float
) -> None:
    settings = {"collect": [0, 1, 1.5, 1.75, 3], "optimizer": adam}
    whole = train(landscape, folder=tmp_path / "whole", **settings)
    with pytest.raises(StruckError):
        train(landscape, folder=tmp_path / "parts", schedule=strike(at), **settings)
    resumed = train(landscape, folder=tmp_path / "parts", **settings)
    assert_same(whole, resumed)
    assert sorted(file.name for file in (tmp_path / "parts").iterdir()) == sorted(
        file.name for file in (tmp_path / "whole").iterdir()
    )
    # And what is complete is read again as it was.
    assert_same(whole, train(landscape, folder=tmp_path / "parts", **settings))


def converging(folder: Path | None = None, **settings: Any) -> Minima:
    chosen = {"epochs": 400, "gradient_norm": 0.05, "optimizer": plain_sgd, "batch_size": None, "collect": "every"}
    return train(Quadratic(EIGENVALUES), 3, folder=folder, **chosen | settings)


def test_gradient_descent_ends_where_the_gradient_is_short() -> None:
    eigenvalues_P, found = torch.tensor(EIGENVALUES, dtype=torch.float64), converging()
    taken = []
    for k, trajectory in enumerate(found.trajectories):
        x_P, on_the_way = Quadratic(EIGENVALUES).initial(derive(0, "initial", k)), []
        while (eigenvalues_P * x_P).norm() > 0.05:
            on_the_way.append(x_P)
            x_P = x_P - 0.1 * eigenvalues_P * x_P
        taken.append(len(on_the_way))
        torch.testing.assert_close(found.theta_KP[k], x_P)
        torch.testing.assert_close(trajectory.theta_EP[: taken[k] + 1], torch.stack([*on_the_way, x_P]))
        # It stays exactly there, while the others go on.
        assert (trajectory.theta_EP[taken[k] :] == trajectory.theta_EP[-1]).all()
        assert found.gradient_norms[k] == float((eigenvalues_P * found.theta_KP[k]).norm()) <= 0.05
    assert len(set(taken)) > 1
    assert found.status == ["converged"] * 3
    # A step a block: the last to converge ends the descent with the step at which that was seen.
    assert [row[0] for row in found.history] == list(range(1, max(taken) + 2))
    for k, steps in enumerate(taken):
        losses = [row[2 + k] for row in found.history]
        assert losses[steps:] == [losses[steps]] * (len(losses) - steps)
        assert losses[steps] == pytest.approx(float(Quadratic(EIGENVALUES).energy(found.theta_KP[k : k + 1])))
        assert losses[:steps] == sorted(losses[:steps], reverse=True)


@pytest.mark.parametrize("optimizer", [momentum, adam, partial(torch.optim.SGD, lr=0.1, weight_decay=0.1)])
def test_a_row_that_has_converged_stays_whatever_trains_beside_it(optimizer: Any) -> None:
    found = converging(optimizer=optimizer)
    assert found.status == ["converged"] * 3
    longest = 0
    for k in range(3):
        alone = converging(optimizer=optimizer, indices=[k])
        steps = int(alone.history[-1][0])
        longest = max(longest, steps)
        theta_EP = found.trajectories[k].theta_EP
        assert torch.equal(alone.theta_KP[0], found.theta_KP[k])
        assert alone.gradient_norms == [found.gradient_norms[k]]
        assert torch.equal(alone.trajectories[0].theta_EP, theta_EP[: steps + 1])
        assert (theta_EP[steps - 1 :] == alone.theta_KP[0]).all()
        assert [row[2] for row in alone.history] == [row[2 + k] for row in found.history[:steps]]
        assert not torch.equal(theta_EP[steps - 2], theta_EP[steps - 1])
    assert longest == found.history[-1][0]


def test_rows_that_have_not_converged_say_so() -> None:
    whole = converging()
    lengths = [int(converging(indices=[k]).history[-1][0]) for k in range(3)]
    found = converging(epochs=sorted(lengths)[1])
    assert [status == "converged" for status in found.status] == [n <= sorted(lengths)[1] for n in lengths]
    for k in range(3):
        assert (found.gradient_norms[k] <= 0.05) == (found.status[k] == "converged")
        assert torch.equal(found.theta_KP[k], whole.trajectories[k].theta_EP[int(found.history[-1][0])])
    free = converging(epochs=5, gradient_norm=None)
    assert free.status == ["steps_done"] * 3
    assert all(norm != norm for norm in free.gradient_norms)


def test_converged_rows_are_resumed_as_such(tmp_path: Path) -> None:
    whole = converging(tmp_path / "whole", epochs=60, gradient_norm=0.2)
    assert whole.status == ["converged"] * 3
    first = min(int(converging(indices=[k], gradient_norm=0.2).history[-1][0]) for k in range(3))
    assert first < whole.history[-1][0] - 1
    for name, at in (("one", first + 1), ("none", 2)):
        with pytest.raises(StruckError):
            converging(tmp_path / name, epochs=60, gradient_norm=0.2, schedule=strike(at / 60))
        assert_same(whole, converging(tmp_path / name, epochs=60, gradient_norm=0.2))
    # One that had ended does not go on.
    assert_same(whole, converging(tmp_path / "whole", epochs=60, gradient_norm=0.2))


def whole_set(dropout: float = 0.0) -> NetworkLandscape:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=generator).double(), torch.arange(30) % 3
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)).double()
    return NetworkLandscape(module, Data(x, y, x[:5], y[:5]))


def test_the_whole_training_set_is_gradient_descent_on_the_exact_loss() -> None:
    landscape = whole_set()
    found = train(landscape, 3, epochs=25, batch_size=None, collect="every")
    for k, trajectory in enumerate(found.trajectories):
        module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        vector_to_parameters(landscape.initial(derive(0, "initial", k)), module.parameters())
        optimizer, losses = momentum(module.parameters()), []
        for _ in range(25):
            loss = cross_entropy(module(landscape.data.x_train[:]), landscape.data.y_train)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        torch.testing.assert_close(found.theta_KP[k], parameters_to_vector(module.parameters()).detach())
        # A step an epoch, and the loss is what evaluation reports before it.
        assert [row[0] for row in found.history] == list(range(1, 26))
        assert [row[2 + k] for row in found.history] == pytest.approx(losses)
        exact_E = landscape.evaluate(trajectory.theta_EP)["loss"]
        assert exact_E[:-1].tolist() == pytest.approx(losses)


def test_rows_of_the_whole_training_set_have_their_own_masks() -> None:
    landscape = whole_set(dropout=0.5)
    batches = landscape.batches(None, [7, 8], shared=False)
    theta_KP = landscape.initial(0).expand(2, -1)
    found = set()
    for step in (0, 1):
        batch = batches[step]
        assert batch is not None
        assert batch.shared
        assert len(batch.y) == 30
        losses_K = landscape.losses(theta_KP, batch)
        for k, seed in enumerate((7, 8)):
            module = deepcopy(landscape.loop.module).train()
            vector_to_parameters(theta_KP[k], module.parameters())
            torch.manual_seed(derive(seed, "step", step))
            expected = cross_entropy(module(landscape.data.x_train[:]), landscape.data.y_train)
            torch.testing.assert_close(losses_K[k], expected.detach())
            found.add(float(losses_K[k]))
    assert len(found) == 4
    together = train(landscape, 2, epochs=6, batch_size=None)
    for k in range(2):
        assert torch.equal(train(landscape, indices=[k], epochs=6, batch_size=None).theta_KP[0], together.theta_KP[k])


def test_the_whole_training_set_is_augmented_a_row_each() -> None:
    x, y = torch.randn(12, 1, 4, 4), torch.arange(12) % 3
    landscape = NetworkLandscape(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Data(x, y, x, y, augment=CropFlip(padding=1))
    )
    batches = landscape.batches(None, [7, 8], shared=False)
    assert batches.steps_per_epoch == 1
    batch, alone = batches[3], landscape.batches(None, [8], shared=False)[3]
    assert batch is not None
    assert alone is not None
    assert batch.x.shape == (2, 12, 1, 4, 4)
    assert torch.equal(batch.x[1], alone.x[0])
    assert all(sorted(row.tolist()) == sorted(y.tolist()) for row in batch.y)


DECAY = 0.3


def test_training_in_a_random_hyperplane_by_hand() -> None:
    surface, eigenvalues_P = Quadratic(EIGENVALUES), torch.tensor(EIGENVALUES, dtype=torch.float64)
    chart = RandomSpan(2, seed=5, weight_decay=DECAY)
    found = train(surface, 3, epochs=20, batch_size=None, optimizer=plain_sgd, chart=chart, collect=[0, 20])
    assert found.z_KQ is not None
    assert found.z_KQ.shape == (3, 2)
    for k in range(3):
        origin_P = surface.initial(derive(0, "initial", k))
        basis_QP = Span.random(origin_P, 2, 5).basis_QP
        z_Q = torch.zeros(2, dtype=torch.float64)
        losses = []
        for _ in range(20):
            theta_P = origin_P + z_Q @ basis_QP
            losses.append(float((eigenvalues_P + DECAY) @ theta_P.square() / 2))
            # The decay is that of the point, not of its coordinates.
            z_Q = z_Q - 0.1 * basis_QP @ ((eigenvalues_P + DECAY) * theta_P)
        torch.testing.assert_close(found.z_KQ[k], z_Q)
        torch.testing.assert_close(found.theta_KP[k], origin_P + z_Q @ basis_QP)
        assert [row[2 + k] for row in found.history] == pytest.approx(losses)
        # What is collected are points.
        assert torch.equal(found.trajectories[k].theta_EP, torch.stack([origin_P, found.theta_KP[k]]))


def test_a_network_in_a_random_hyperplane(landscape: NetworkLandscape, tmp_path: Path) -> None:
    chart = RandomSpan(4, seed=5)
    settings = {"chart": chart, "collect": [0, 1.5, 3], "optimizer": adam}
    whole = train(landscape, folder=tmp_path / "whole", **settings)
    assert whole.z_KQ is not None
    assert whole.z_KQ.abs().min() > 0
    origin_KP = torch.stack([landscape.initial(derive(0, "initial", k)) for k in range(2)])
    basis_QP = Span.random(origin_KP[0], 4, 5).basis_QP
    torch.testing.assert_close(whole.theta_KP, origin_KP + whole.z_KQ @ basis_QP)
    assert torch.equal(whole.trajectories[1].theta_EP[[0, -1]], torch.stack([origin_KP[1], whole.theta_KP[1]]))
    torch.testing.assert_close(train(landscape, indices=[1], **settings).theta_KP[0], whole.theta_KP[1])
    with pytest.raises(StruckError):
        train(landscape, folder=tmp_path / "parts", schedule=strike(0.62), **settings)
    assert_same(whole, train(landscape, folder=tmp_path / "parts", **settings))


@pytest.mark.parametrize("decays", [partial(torch.optim.SGD, lr=0.1, weight_decay=0.01), torch.optim.AdamW])
def test_an_optimizer_s_decay_of_coordinates_is_refused(landscape: NetworkLandscape, decays: Any) -> None:
    with pytest.raises(LowlossError, match=r"weight_decay=0\.01 of .* would act on the coordinates of Span") as caught:
        train(landscape, optimizer=decays, chart=RandomSpan(4))
    assert "\n" not in str(caught.value)
    assert train(landscape, optimizer=decays, epochs=1).status == ["steps_done"] * 2


class OnSphere(Objective):
    """Rows are kept on the unit sphere and follow it; those with a negative last coordinate go half as fast."""

    def prepare(self, x_RQ: Tensor) -> Tensor:
        return x_RQ / x_RQ.norm(dim=1, keepdim=True)

    def nudge(self, x_RQ: Tensor, gradient_RQ: Tensor, losses_K: Tensor) -> Tensor:
        assert torch.equal(losses_K, self.landscape.losses(x_RQ, None))
        across_RQ = gradient_RQ - (gradient_RQ * x_RQ).sum(1, keepdim=True) * x_RQ
        return torch.where(x_RQ[:, -1:] < 0, 0.5, 1.0) * across_RQ


def descended(
    objective: Objective, start_RQ: Tensor, recipe: Recipe, block: int, folder: Path | None = None
) -> Descent:
    module = Descent(objective, start_RQ, recipe, "rows", "lower lr", folder=folder)
    fit(module, block, lambda done, note: None, folder=folder)
    return module


def test_checkpoints_take_a_small_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surface, clock, written = Quadratic(EIGENVALUES), [0.0], list[float]()
    start_RQ = torch.ones(2, surface.dim, dtype=torch.float64)
    save = descent._AtomicCheckpoints.save_checkpoint

    def slowly(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        clock[0] += 1.0
        written.append(clock[0])

    def ran(folder: Path | None, advance: Callable[[int, str], None]) -> Tensor:
        objective = Objective(surface, surface.batches(None, [], shared=False))
        module = Descent(objective, start_RQ, Recipe(60, plain_sgd, lambda _: 1.0), "rows", "lower lr", folder=folder)
        fit(module, 2, advance, folder=folder)
        return module.x_RQ.detach()

    def at_work(done: int, note: str) -> None:
        clock[0] += 2.0
        if done == 50 and len(written) == 5:
            raise RuntimeError("killed")

    monkeypatch.setattr(descent.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(descent._AtomicCheckpoints, "save_checkpoint", slowly)
    with pytest.raises(RuntimeError, match="killed"):
        ran(tmp_path, at_work)
    # A block takes four seconds, and twenty times the second of a checkpoint pass between two.
    assert [later - earlier for earlier, later in pairwise(written)] == [21.0] * 4
    assert torch.equal(ran(tmp_path, at_work), ran(None, at_work))


def test_an_objective_of_one_s_own_prepares_and_nudges() -> None:
    surface, eigenvalues_P = Quadratic(EIGENVALUES), torch.tensor(EIGENVALUES, dtype=torch.float64)
    start_RQ = 3 * torch.randn(3, 4, dtype=torch.float64)
    start_RQ[:, -1] = torch.tensor([1.0, -2.0, 1.0])
    kept = start_RQ.clone()
    batches = surface.batches(None, [], shared=False)

    def rate(step: int) -> float:
        return 1 / (1 + 0.01 * step)

    recipe = Recipe(200, plain_sgd, rate, lambda step: step in (0, 100))
    module = descended(OnSphere(surface, batches), start_RQ, recipe, block=7)
    assert torch.equal(start_RQ, kept)
    x_RQ = start_RQ.clone()
    losses = []
    for step in range(200):
        if step == 100:
            torch.testing.assert_close(torch.stack([module.collected.row(r)[1] for r in range(3)]), x_RQ)
        x_RQ = x_RQ / x_RQ.norm(dim=1, keepdim=True)
        gradient_RQ = eigenvalues_P * x_RQ
        losses.append((gradient_RQ * x_RQ).sum(1) / 2)
        gradient_RQ = gradient_RQ - (gradient_RQ * x_RQ).sum(1, keepdim=True) * x_RQ
        x_RQ = x_RQ - 0.1 * rate(step) * torch.where(x_RQ[:, -1:] < 0, 0.5, 1.0) * gradient_RQ
    torch.testing.assert_close(module.x_RQ.detach(), x_RQ)
    assert torch.equal(torch.stack([module.collected.row(r)[0] for r in range(3)]), start_RQ)
    # A row a block: the step, the rate of its last step and the mean losses.
    assert [row[0] for row in module.history] == [*range(7, 200, 7), 200]
    for first, (step, lr, *means) in zip(range(0, 200, 7), module.history, strict=True):
        assert lr == pytest.approx(0.1 * rate(int(step) - 1))
        assert means == pytest.approx(torch.stack(losses[first : int(step)]).mean(0).tolist())
    # The least curved direction has the lowest energy on the sphere.
    assert surface.energy(x_RQ / x_RQ.norm(dim=1, keepdim=True)).tolist() == pytest.approx([0.25] * 3, abs=2e-3)


class InPlace(Objective):
    """Changes the gradient itself."""

    def nudge(self, x_RQ: Tensor, gradient_RQ: Tensor, losses_K: Tensor) -> Tensor:
        return gradient_RQ.mul_(2)


def test_a_gradient_may_be_nudged_in_place() -> None:
    surface, start_RQ = Rosenbrock(3), torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    batches = surface.batches(None, [], shared=False)
    twice = descended(InPlace(surface, batches), start_RQ, Recipe(9, partial(plain_sgd, lr=1e-4), lambda _: 1.0), 5)
    plain = descended(Objective(surface, batches), start_RQ, Recipe(9, partial(plain_sgd, lr=2e-4), lambda _: 1.0), 5)
    torch.testing.assert_close(twice.x_RQ.detach(), plain.x_RQ.detach())


class Cliff(AnalyticSurface):
    dim = 1

    def energy(self, theta_KP: Tensor) -> Tensor:
        return theta_KP[:, 0].log()


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_row() -> None:
    objective = Objective(Cliff(), Cliff().batches(None, [], shared=False))
    start_RQ = torch.tensor([[10.0], [1.0]], dtype=torch.float64)
    with pytest.raises(LowlossError, match=r"rows: the loss of row 1 is not finite at step 2 .*lower lr"):
        descended(objective, start_RQ, Recipe(10, partial(plain_sgd, lr=2.0), lambda _: 1.0), 5)


class Recurrent(nn.Module):
    """A small LSTM that returns its outputs and its state."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, 3)
        self.recur = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, num_classes)
        self.double()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, state = self.recur(self.embed(x), state)
        return self.head(hidden), state


@pytest.fixture
def recurrent(tmp_path: Path) -> NetworkLandscape:
    (tmp_path / "text.txt").write_text("abcab badcab " * 16, encoding="utf-8")
    data = text(str(tmp_path / "text.txt"), steps=5, streams=3, vocabulary="char", carry=True)
    return NetworkLandscape(Recurrent, data)


STREAMS = 4


def test_a_carried_state_is_truncated_backpropagation_by_hand(recurrent: NetworkLandscape) -> None:
    found = train(recurrent, epochs=2, batch_size=STREAMS)
    assert isinstance(recurrent.data.vocabulary, tuple)  # type: ignore[attr-defined]
    x_n, y_n = recurrent.data.stream()  # type: ignore[attr-defined]
    length = len(y_n) // STREAMS
    windows = length // 5
    assert windows > 5
    x_BL, y_BL = (stream[: STREAMS * length].view(STREAMS, length) for stream in (x_n, y_n))
    for k in range(2):
        module = Recurrent(recurrent.data.num_classes or 0)
        vector_to_parameters(recurrent.initial(derive(0, "initial", k)), module.parameters())
        optimizer, means = momentum(module.parameters()), []
        for _ in range(2):
            state, losses = None, []  # afresh in each epoch
            for w in range(windows):
                x_BT, y_BT = (t[:, 5 * w : 5 * w + 5] for t in (x_BL, y_BL))
                outputs, state = module(x_BT, state)
                state = tuple(part.detach() for part in state)
                loss = cross_entropy(outputs.flatten(0, 1), y_BT.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            means.append(sum(losses) / windows)
        torch.testing.assert_close(found.theta_KP[k], parameters_to_vector(module.parameters()).detach())
        assert [row[2 + k] for row in found.history] == pytest.approx(means)


def rows(landscape: NetworkLandscape) -> tuple[Tensor, BatchSource]:
    return torch.stack([landscape.initial(k) for k in range(2)]), landscape.batches(STREAMS, [1, 2], shared=False)


@pytest.mark.parametrize("at", [0.72, 0.4, 0.9])
def test_a_carried_state_is_resumed_within_an_epoch(recurrent: NetworkLandscape, tmp_path: Path, at: float) -> None:
    """A block is no whole number of epochs, so that states are in the checkpoints."""
    start_RQ, batches = rows(recurrent)
    steps = 2 * batches.steps_per_epoch - 1

    def run(folder: Path | None, factor: Callable[[float], float] = lambda _: 1.0) -> tuple[Descent, Any]:
        batches = recurrent.batches(STREAMS, [1, 2], shared=False)
        recipe = Recipe(steps, momentum, lambda step: factor(step / steps))
        module = descended(Objective(recurrent, batches), start_RQ, recipe, 3, folder)
        return module, batches.carry.states  # type: ignore[attr-defined]

    whole, states = run(None)
    with pytest.raises(StruckError):
        run(tmp_path / "parts", strike(at))
    kept = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["batches"]["states"]
    assert all(part.abs().max() > 0 for state in kept for part in state)
    resumed, again = run(tmp_path / "parts")
    assert torch.equal(whole.x_RQ, resumed.x_RQ)
    assert whole.history == resumed.history
    for ours, theirs in zip(states, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # Each row has its own.
    assert not any(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_recurrent_minima_are_resumed_and_independent_of_each_other(
    recurrent: NetworkLandscape, tmp_path: Path
) -> None:
    settings = {"batch_size": STREAMS, "collect": [0.5, 1.5, 3]}
    whole = train(recurrent, folder=tmp_path / "whole", **settings)
    with pytest.raises(StruckError):
        train(recurrent, folder=tmp_path / "parts", schedule=strike(0.6), **settings)
    assert_same(whole, train(recurrent, folder=tmp_path / "parts", **settings))
    for k in range(2):
        assert torch.equal(train(recurrent, indices=[k], **settings).theta_KP[0], whole.theta_KP[k])


def test_states_begin_afresh_in_each_epoch(recurrent: NetworkLandscape) -> None:
    theta_RP, batches = rows(recurrent)
    losses = []
    for step in range(2 * batches.steps_per_epoch):
        batch = batches[step]
        assert batch is not None
        losses.append(recurrent.losses(theta_RP, batch))
        fresh = recurrent.losses(theta_RP, batch._replace(carry=None))
        assert torch.equal(losses[-1], fresh) == (step % batches.steps_per_epoch == 0)
    # The same points see the same states in the second epoch.
    first, second = losses[: batches.steps_per_epoch], losses[batches.steps_per_epoch :]
    assert torch.equal(torch.stack(first), torch.stack(second))


@pytest.mark.parametrize(("size", "carry"), [(STREAMS, True), (STREAMS, False), (None, False)])
def test_minibatches_follow_the_landscape_to_a_device(tmp_path: Path, size: int | None, carry: bool) -> None:
    (tmp_path / "text.txt").write_text("abcab badcab " * 16, encoding="utf-8")
    data = text(str(tmp_path / "text.txt"), steps=5, streams=3, vocabulary="char", carry=carry)
    x, y = torch.randn(12, 1, 4, 4), torch.arange(12) % 3
    images = Data(x, y, x, y, augment=CropFlip(padding=1))
    for landscape, given in (
        (NetworkLandscape(Recurrent, data), data),
        (NetworkLandscape(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), images), images),
    ):
        batches = landscape.batches(size, [1, 2], shared=False)
        landscape.to(torch.device("meta"))
        batch = batches[1]
        assert batch is not None
        assert batch.x.device.type == batch.y.device.type == "meta"
        # The user's own data stay where they are.
        assert given.device.type == "cpu"
