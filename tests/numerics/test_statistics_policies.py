"""BatchNorm's statistics on lines and planes: recomputed, held and interpolated, against plain torch."""

import os
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from lowloss import Data, Exact, Grid, LowlossError, NetworkLandscape, tabulate
from lowloss.data import digits
from lowloss.files import load_tensors
from lowloss.landscape import Layout
from lowloss.measure.exact import Statistics, interpolated
from lowloss.points import PathPlane, RandomPlane, line, plane

EPS = 1e-5
Moments = tuple[Tensor, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, eps=EPS), nn.Tanh(), nn.Linear(6, 2)).double()


@pytest.fixture
def landscape() -> NetworkLandscape:
    x, y = 2 * torch.randn(50, 3).double() + 1, torch.arange(50) % 2
    return NetworkLandscape(network(), Data(x[:40], y[:40], x[40:], y[40:]))


def moments(landscape: NetworkLandscape, theta_P: Tensor) -> Moments:
    """The mean and the unbiased variance of what BatchNorm sees of the training set."""
    parts = landscape.layout.views(theta_P)
    seen_NF = landscape.data.x_train[:] @ parts["0.weight"].T + parts["0.bias"]
    return seen_NF.mean(0), seen_NF.var(0)


def by_hand(landscape: NetworkLandscape, theta_P: Tensor, moments: Moments, split: str) -> tuple[float, float]:
    """Loss and error with these statistics."""
    parts, (mean_F, var_F), (x_N, y_N) = landscape.layout.views(theta_P), moments, landscape.data.split(split)
    hidden_NF = (x_N[:] @ parts["0.weight"].T + parts["0.bias"] - mean_F) / (var_F + EPS).sqrt()
    hidden_NF = torch.tanh(hidden_NF * parts["1.weight"] + parts["1.bias"])
    outputs_NC = hidden_NF @ parts["3.weight"].T + parts["3.bias"]
    return float(cross_entropy(outputs_NC, y_N)), float((outputs_NC.argmax(1) != y_N).double().mean())


def assert_by_hand(landscape: NetworkLandscape, table: dict[str, Tensor], theta_KP: Tensor, of: list[Moments]) -> None:
    for split in ("train", "test"):
        expected_K2 = torch.tensor(
            [by_hand(landscape, theta_P, m, split) for theta_P, m in zip(theta_KP, of, strict=True)]
        ).double()
        torch.testing.assert_close(table[f"{split}_loss"], expected_K2[:, 0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(table[f"{split}_error"], expected_K2[:, 1], rtol=1e-6, atol=1e-6)


def tabled(landscape: NetworkLandscape, grid: Grid, statistics: Statistics | None) -> tuple[dict[str, Tensor], Tensor]:
    count = prod(grid.shape)
    table = tabulate(landscape, grid.points, count, [Exact(statistics=statistics)], chunk=7)
    return table, grid.points(torch.arange(count))


def around(landscape: NetworkLandscape) -> Grid:
    theta_P = landscape.initial(0)
    return RandomPlane(resolution=(5, 3), normalization="none").grid(theta_P[None], None, landscape.layout, seed=1)


def test_statistics_of_a_point_are_those_of_the_training_set(landscape: NetworkLandscape) -> None:
    theta_P = landscape.initial(0)
    buffers = landscape.statistics(theta_P)
    assert set(buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    mean_F, var_F = moments(landscape, theta_P)
    torch.testing.assert_close(buffers["1.running_mean"], mean_F)
    torch.testing.assert_close(buffers["1.running_var"], var_F)
    # Another point's answer is its own, and evaluation leaves no trace.
    landscape.evaluate(landscape.initial(1)[None])
    torch.testing.assert_close(landscape.statistics(theta_P)["1.running_mean"], mean_F)


def test_a_plane_with_recomputed_statistics(landscape: NetworkLandscape) -> None:
    table, theta_KP = tabled(landscape, around(landscape), None)
    assert_by_hand(landscape, table, theta_KP, [moments(landscape, theta_P) for theta_P in theta_KP])


def test_a_plane_with_the_centre_s_statistics(landscape: NetworkLandscape) -> None:
    grid = around(landscape)
    held = interpolated(grid.project, grid.anchors_AD[:1], [landscape.statistics(grid.origin_P)])
    table, theta_KP = tabled(landscape, grid, held)
    centre = moments(landscape, grid.origin_P)
    assert_by_hand(landscape, table, theta_KP, [centre] * len(theta_KP))
    # And by a module of plain torch with the centre's running statistics.
    module = network().eval()
    module[1].running_mean, module[1].running_var = centre
    for k, theta_P in enumerate(theta_KP):
        vector_to_parameters(theta_P, module.parameters())
        with torch.no_grad():
            loss = cross_entropy(module(landscape.data.x_test[:]), landscape.data.y_test)
        torch.testing.assert_close(table["test_loss"][k], loss)
    recomputed, _ = tabled(landscape, grid, None)
    # The same at the centre and, but for it, nowhere.
    same_K = torch.isclose(recomputed["train_loss"], table["train_loss"], rtol=1e-9, atol=0)
    assert same_K.nonzero().flatten().tolist() == [7]
    assert torch.equal(grid.points(torch.tensor([7]))[0], grid.origin_P)


def test_a_line_with_interpolated_statistics(landscape: NetworkLandscape) -> None:
    a_P, b_P = landscape.initial(0), landscape.initial(1)
    grid = line(a_P, b_P, resolution=9, margin=0.25)
    statistics = interpolated(grid.project, grid.anchors_AD, [landscape.statistics(theta_P) for theta_P in (a_P, b_P)])
    table, theta_KP = tabled(landscape, grid, statistics)
    (mean_a, var_a), (mean_b, var_b) = moments(landscape, a_P), moments(landscape, b_P)
    between = []
    for t in grid.axes[0].tolist():
        between.append(((1 - t) * mean_a + t * mean_b, ((1 - t) * var_a + t * var_b).clamp_min(0)))
    assert_by_hand(landscape, table, theta_KP, between)
    # The ends' own.
    recomputed, _ = tabled(landscape, grid, None)
    same_K = torch.isclose(recomputed["train_loss"], table["train_loss"], rtol=1e-9, atol=0)
    assert same_K.nonzero().flatten().tolist() == [int(k) for k in range(9) if grid.axes[0][k] in (0, 1)]


def test_a_variance_that_extrapolates_below_zero_is_zero() -> None:
    parts = [{"running_var": torch.tensor([v]), "running_mean": torch.tensor([m]), "count": torch.tensor(3)}
             for v, m in ((1.0, 1.0), (2.0, 3.0))]  # fmt: skip
    at = interpolated(lambda theta_KP: theta_KP, torch.tensor([[0.0], [1.0]]), parts)
    found = at(torch.tensor([[-2.0], [0.5], [3.0]]))
    assert [float(one["running_var"]) for one in found] == pytest.approx([0, 1.5, 4])
    assert [float(one["running_mean"]) for one in found] == pytest.approx([-3, 2, 7])
    assert [one["count"].tolist() for one in found] == [3, 3, 3]
    assert all(one["running_var"].dtype == torch.float32 for one in found)


def test_a_plane_with_statistics_between_three_points(landscape: NetworkLandscape) -> None:
    corners_3P = torch.stack([landscape.initial(k) for k in range(3)])
    grid = plane(corners_3P, ("a", "b", "c"), (4, 3), margin=0.1)
    statistics = interpolated(grid.project, grid.anchors_AD, [landscape.statistics(theta_P) for theta_P in corners_3P])
    table, theta_KP = tabled(landscape, grid, statistics)
    means_3F, vars_3F = (torch.stack(parts) for parts in zip(*(moments(landscape, p) for p in corners_3P), strict=True))
    between = []
    for theta_P in theta_KP:
        # The weights of the three corners that make the point, which sum to one.
        system = torch.cat([corners_3P.T, torch.ones(1, 3).double()])
        weights_3 = torch.linalg.lstsq(system, torch.cat([theta_P, torch.ones(1).double()])[:, None]).solution[:, 0]
        assert weights_3.sum().item() == pytest.approx(1)
        between.append((weights_3 @ means_3F, (weights_3 @ vars_3F).clamp_min(0)))
    assert_by_hand(landscape, table, theta_KP, between)
    own = statistics(corners_3P)
    for k in range(3):
        torch.testing.assert_close(own[k]["1.running_mean"], means_3F[k])
        torch.testing.assert_close(own[k]["1.running_var"], vars_3F[k])


@pytest.mark.parametrize("recipe", [RandomPlane, PathPlane])
def test_an_unknown_policy_is_refused(recipe: Any) -> None:
    with pytest.raises(LowlossError, match="statistics must be one of recomputed, held, interpolated, got 'frozen'"):
        recipe(statistics="frozen")
    assert recipe().statistics == "recomputed"


def small() -> nn.Module:
    """conf/model/mlp with one hidden layer of six and BatchNorm."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10))


COMMAND = """
    study=t trainer=cpu model=mlp model.hidden=[6] model.batch_norm=true minima.count=2 minima.epochs=2 finder=[neb]
    finder.neb.steps=8 finder.neb.pivots=2 scan.plane.path=neb scan.plane.resolution=[4,3]
    scan.plane.statistics=interpolated scan.random_plane.resolution=[3,5] scan.random_plane.statistics=held
    stages=[minima,path,scan] evaluation_batch=2000
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose scans hold and interpolate."""
    outputs = tmp_path_factory.mktemp("outputs")
    command = [sys.executable, "-m", "lowloss", *COMMAND.split(), f"outputs={outputs}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, cwd=outputs, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return outputs / "t"


def scanned(study: Path, name: str) -> dict[str, Tensor]:
    (folder,) = (study / "scans").glob(f"{name}-*")
    (file,) = folder.glob("*.safetensors")
    tensors, notes = load_tensors(file)
    assert notes["settings"]["statistics"] == {"random_plane": "held", "plane": "interpolated"}[name]
    return tensors


def assert_plane(tensors: dict[str, Tensor], anchors_AP: Tensor, weights: Any) -> None:
    """A scan of the study against modules of plain torch with the anchors' statistics, mixed by weights (u, v)."""
    data, module = digits(), small()
    means, variances = [], []
    for theta_P in anchors_AP:
        vector_to_parameters(theta_P, module.parameters())
        with torch.no_grad():
            seen_NF = module[:2](data.x_train[:])
        means.append(seen_NF.mean(0))
        variances.append(seen_NF.var(0))
    assert Layout.of(module).dim == len(tensors["origin"])
    for i, u in enumerate(tensors["axis-0"].tolist()):
        for j, v in enumerate(tensors["axis-1"].tolist()):
            theta_P = tensors["origin"] + torch.tensor([u, v]) @ tensors["directions"]
            vector_to_parameters(theta_P, module.parameters())
            weights_A = weights(u, v)
            module.eval()
            module[2].running_mean = weights_A @ torch.stack(means)
            module[2].running_var = (weights_A @ torch.stack(variances)).clamp_min(0)
            for split in ("train", "test"):
                x_N, y_N = data.split(split)
                with torch.no_grad():
                    outputs_NC = module(x_N[:])
                loss = cross_entropy(outputs_NC.double(), y_N)
                torch.testing.assert_close(tensors[f"{split}_loss"][i, j], loss, rtol=1e-5, atol=1e-6)


def test_a_job_holds_statistics_at_its_centre(study: Path) -> None:
    tensors = scanned(study, "random_plane")
    theta_P = load_tensors(next((study / "minima" / "0000").glob("*.safetensors")))[0]["theta"]
    assert torch.equal(tensors["origin"], theta_P)
    assert tensors["train_loss"].shape == (3, 5)
    assert_plane(tensors, theta_P[None], lambda u, v: torch.ones(1))


def test_a_job_interpolates_statistics_between_its_anchors(study: Path) -> None:
    tensors = scanned(study, "plane")
    anchors_AD = tensors["anchors"]
    assert anchors_AD.shape == (3, 2)
    system = torch.cat([anchors_AD.T, torch.ones(1, 3).double()])

    def weights(u: float, v: float) -> Tensor:
        return torch.linalg.solve(system, torch.tensor([u, v, 1.0]).double()).float()

    assert_plane(tensors, tensors["origin"] + anchors_AD.float() @ tensors["directions"], weights)
