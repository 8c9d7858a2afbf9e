"""Tabulation: any measures at any points, a chunk at a time, with chunks that are kept and taken."""

import importlib
from collections.abc import Callable
from pathlib import Path
from threading import current_thread, main_thread

import pytest
import torch
from torch import Tensor, nn

from lowloss import Charted, Data, Exact, LowlossError, MullerBrown, NetworkLandscape, Span, tabulate
from lowloss.files import load_tensors
from lowloss.landscape import Columns, Landscape, Quadratic


def shape_of(landscape: Landscape, theta_KP: Tensor) -> Columns:
    """Columns of several kinds and dimensions, of one's own."""
    with torch.enable_grad():
        theta_KP = theta_KP.detach().requires_grad_()
        (gradient_KP,) = torch.autograd.grad(landscape.losses(theta_KP, None).sum(), theta_KP)
    curved_KP = torch.stack([landscape.product(theta_KP, v_P.expand_as(theta_KP), None) for v_P in torch.eye(2)], 1)
    return {
        "slope": gradient_KP.norm(dim=1),
        "hessian": curved_KP.detach(),
        "right": theta_KP.detach()[:, 0] > 0,
        "place": torch.arange(len(theta_KP)),
    }


POINTS = torch.randn(11, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 4, 11, 16])
def test_a_function_of_one_s_own(chunk: int) -> None:
    surface = MullerBrown()
    table = tabulate(surface, POINTS, measures=[shape_of], chunk=chunk)
    # There is no metric among them, so they come by name.
    assert list(table) == ["hessian", "place", "right", "slope"]
    expected = shape_of(surface, POINTS)
    assert table["hessian"].shape == (11, 2, 2)
    for name in ("hessian", "right", "slope"):
        assert table[name].dtype == expected[name].dtype
        torch.testing.assert_close(table[name], expected[name])
    assert table["place"].tolist() == [i % chunk for i in range(11)]
    assert torch.equal(torch.autograd.functional.hessian(lambda p: surface.energy(p[None])[0], POINTS[4]).argmax(),
                       table["hessian"][4].argmax())  # fmt: skip


def test_a_matrix_and_a_function_of_indices_are_the_same() -> None:
    asked: list[list[int]] = []

    def points(indices_T: Tensor) -> Tensor:
        asked.append(indices_T.tolist())
        return POINTS[indices_T]

    matrix = tabulate(MullerBrown(), POINTS, measures=[shape_of, Exact()], chunk=4)
    function = tabulate(MullerBrown(), points, 11, [shape_of, Exact()], chunk=4)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    # Metrics come first, wherever they were measured.
    assert list(matrix) == list(function) == ["train_loss", "hessian", "place", "right", "slope"]
    assert all(torch.equal(matrix[name], function[name]) for name in matrix)
    assert torch.equal(matrix["train_loss"], MullerBrown().evaluate(POINTS)["loss"])


def network() -> NetworkLandscape:
    x, y = torch.randn(30, 3), torch.arange(30) % 2
    more = {"valid": (x[20:], y[20:])}
    return NetworkLandscape(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), Data(x, y, x[:7], y[:7], more=more)
    )


def norms(landscape: Landscape, theta_KP: Tensor) -> Columns:
    return {"a_norm": theta_KP.norm(dim=1)}


def test_metrics_come_in_the_order_of_the_splits_and_others_by_name() -> None:
    landscape = network()
    theta_KP = torch.stack([landscape.initial(k) for k in range(5)])
    names = [f"{split}_{name}" for split in ("train", "test", "valid") for name in ("loss", "error")]
    assert list(tabulate(landscape, theta_KP)) == names
    table = tabulate(landscape, theta_KP, measures=[norms, Exact(["test", "train"], details=["test"])], chunk=2)
    assert list(table) == [
        "train_loss", "train_error", "test_loss", "test_error",
        "a_norm", "test_class_confidence", "test_class_error", "test_confidence", "test_label", "test_wrong",
    ]  # fmt: skip
    for split in ("train", "test"):
        columns = landscape.evaluate(theta_KP, split, details=split == "test")
        for name, column in columns.items():
            torch.testing.assert_close(table[f"{split}_{name}"], column)
    assert table["test_wrong"].shape == (5, 7)


def test_points_may_be_coordinates() -> None:
    surface = Charted(Quadratic([1.0, 2.0, 3.0]), Span(torch.ones(3).double(), torch.eye(3).double()[:2]))
    z_KQ = torch.randn(5, 2, dtype=torch.float64)
    theta_KP = torch.cat([1 + z_KQ, torch.ones(5, 1)], 1)
    table = tabulate(surface, z_KQ, chunk=2)
    torch.testing.assert_close(table["train_loss"], theta_KP.square() @ torch.tensor([0.5, 1.0, 1.5]).double())


def recording(measured: list[list[float]], fails_at: int | None = None) -> Callable[[Landscape, Tensor], Columns]:
    def measure(landscape: Landscape, theta_KP: Tensor) -> Columns:
        if len(measured) == fails_at:
            raise RuntimeError("struck")
        measured.append(theta_KP[:, 0].tolist())
        return {"slope": shape_of(landscape, theta_KP)["slope"], "wide": theta_KP.clone(), "right": theta_KP[:, 0] > 0}

    return measure


def test_chunks_are_kept_and_taken(tmp_path: Path) -> None:
    landscape = MullerBrown()
    whole = tabulate(landscape, POINTS, measures=[recording([]), Exact()], chunk=4)
    measured: list[list[float]] = []
    with pytest.raises(RuntimeError, match="struck"):
        tabulate(landscape, POINTS, measures=[recording(measured, 2), Exact()], folder=tmp_path, chunk=4)
    assert measured == [POINTS[:4, 0].tolist(), POINTS[4:8, 0].tolist()]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "points-000000.safetensors",
        "points-000004.safetensors",
    ]
    # What is kept is not made again.
    asked: list[list[int]] = []

    def points(indices_T: Tensor) -> Tensor:
        asked.append(indices_T.tolist())
        return POINTS[indices_T]

    measured = []
    resumed = tabulate(landscape, points, 11, [recording(measured), Exact()], folder=tmp_path, chunk=4)
    assert asked == [[8, 9, 10]]
    assert measured == [POINTS[8:, 0].tolist()]
    # One from the middle that got lost.
    (tmp_path / "points-000004.safetensors").unlink()
    measured = []
    again = tabulate(landscape, POINTS, measures=[recording(measured), Exact()], folder=tmp_path, chunk=4)
    assert measured == [POINTS[4:8, 0].tolist()]
    finished = tabulate(landscape, POINTS, measures=[recording([], 0), Exact()], folder=tmp_path, chunk=4)
    for table in (resumed, again, finished):
        assert list(table) == list(whole) == ["train_loss", "right", "slope", "wide"]
        assert all(torch.equal(table[name], column) for name, column in whole.items())
    tensors, _ = load_tensors(tmp_path / "points-000008.safetensors")
    assert {name: len(column) for name, column in tensors.items()} == dict.fromkeys(whole, 3)
    assert tensors["right"].dtype == torch.bool


def test_no_more_than_two_chunks_are_held_and_another_thread_makes_them() -> None:
    made: list[int] = []
    ahead: list[int] = []

    def points(indices_T: Tensor) -> Tensor:
        assert current_thread() is not main_thread()
        made.append(int(indices_T[-1]) + 1)
        return POINTS[indices_T]

    def measure(landscape: Landscape, theta_KP: Tensor) -> Columns:
        assert current_thread() is main_thread()
        ahead.append(made[-1])
        return {"n": torch.zeros(len(theta_KP))}

    tabulate(MullerBrown(), points, 11, [measure], chunk=2)
    assert made == [2, 4, 6, 8, 10, 11]
    assert all(count <= min(11, 2 * (i + 2)) for i, count in enumerate(ahead))


def test_a_later_measure_of_the_same_name_counts() -> None:
    table = tabulate(MullerBrown(), POINTS, measures=[norms, lambda _, theta_KP: {"a_norm": theta_KP[:, 0]}])
    assert torch.equal(table["a_norm"], POINTS[:, 0])


@pytest.mark.parametrize(("points", "count"), [(POINTS[:0], None), (POINTS.__getitem__, 0), (POINTS.__getitem__, None)])
def test_no_points_are_refused(points: object, count: int | None) -> None:
    with pytest.raises(LowlossError, match="no point to evaluate"):
        tabulate(MullerBrown(), points, count)  # type: ignore[arg-type]


def test_a_measure_may_differentiate_a_network() -> None:
    landscape = network()
    theta_KP = torch.stack([landscape.initial(k) for k in range(3)])
    batch = landscape.batches(None, [0], shared=True)[0]

    def measure(landscape: Landscape, theta_KP: Tensor) -> Columns:
        with torch.enable_grad():
            theta_KP = theta_KP.clone().requires_grad_()
            (gradient_KP,) = torch.autograd.grad(landscape.losses(theta_KP, batch).sum(), theta_KP)
        return {"gradient": gradient_KP, "curved": landscape.product(theta_KP.detach(), gradient_KP, "train")}

    table = tabulate(landscape, theta_KP, measures=[measure], chunk=2)
    step_KP = 1e-3 * table["gradient"]
    ahead, behind = (measure(landscape, theta_KP + sign * step_KP)["gradient"] for sign in (1, -1))
    torch.testing.assert_close(table["curved"], (ahead - behind) / 2e-3, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("count", "most"), [(3, 1), (61, 8), (171, 22), (625, 80), (2601, 336)])
def test_eight_processes_have_about_as_much_to_do(count: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lowloss.training.tabulate")
    monkeypatch.setattr(module, "world", lambda: 8)
    found: list[Tensor] = []

    def kept(landscape: Landscape, theta_KP: Tensor) -> Columns:
        found.append(theta_KP)
        return {"x": theta_KP[:, 0]}

    def points(indices_T: Tensor) -> Tensor:
        # What is made with how many others, as one process makes them.
        assert len(indices_T) == min(16, count - int(indices_T[0]))
        return indices_T.double()[:, None].expand(-1, 2)

    taken, seen = [], set()
    for place in range(8):
        monkeypatch.setattr(module, "rank", lambda place=place: place)
        # The others' parts are not needed here, but for the names of columns.
        monkeypatch.setattr(module, "gather", lambda mine: [mine or [{"x": torch.zeros(1)}]])
        found.clear()
        tabulate(MullerBrown(), points, count, [kept])
        taken.append(sum(map(len, found)))
        seen |= {float(theta_P[0]) for theta_KP in found for theta_P in theta_KP}
    assert sum(taken) == count
    assert seen == {*range(count)}
    assert max(taken) == most <= 1.07 * count / 8 + 1
