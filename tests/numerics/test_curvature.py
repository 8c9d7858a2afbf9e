"""Extreme eigenvalues, trace and density of Hessians against dense algebra and closed forms."""

import gc
import weakref
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.optimize import root
from scipy.stats import norm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.functional import cross_entropy, multi_margin_loss

from lowloss import Data, LowlossError, MullerBrown, NetworkLandscape, Task, tabulate
from lowloss.errors import OnceError
from lowloss.landscape.analytic import AnalyticSurface, Quadratic, Rosenbrock
from lowloss.landscape.engine import products
from lowloss.measure import Density, Extremes, Hessian, Large, Layers, Trace, curvature
from lowloss.report.spectra import smoothed

EIGENVALUES = [-3.0, -0.5, *np.linspace(-0.01, 0.01, 190).tolist(), 0.3, 1.0, 2.0, 2.5, 7.0, 7.2, 9.0, 40.0]


class Rotated(AnalyticSurface):
    """A quadratic with these eigenvalues along random axes: its Hessian is Q diag(lambda) Q^T."""

    def __init__(self, eigenvalues: list[float], curl: float = 0.0) -> None:
        self.dim = len(eigenvalues)
        generator = torch.Generator().manual_seed(1)
        self.axes_PP = torch.linalg.qr(torch.randn(self.dim, self.dim, generator=generator, dtype=torch.float64)).Q
        self.values_P, self.curl = torch.tensor(eigenvalues, dtype=torch.float64), curl

    def energy(self, theta_KP: Tensor) -> Tensor:
        z_KP = theta_KP @ self.axes_PP.to(theta_KP)
        return 0.5 * z_KP.square() @ self.values_P.to(z_KP) + self.curl * z_KP.pow(4).sum(1)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def landscape(module: Any = network) -> NetworkLandscape:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (60,), generator=generator)
    return NetworkLandscape(module, Data(x[:40], y[:40], x[40:], y[40:]), evaluation_batch=16)


def dense(land: NetworkLandscape, theta_P: Tensor, x: Tensor, y: Tensor, buffers: dict[str, Tensor]) -> Tensor:
    """The Hessian (P, P) of the mean loss on samples, at some statistics, by differentiating every entry."""
    module = land.loop.module.eval()

    def loss(at_P: Tensor) -> Tensor:
        return cross_entropy(functional_call(module, {**land.layout.views(at_P), **buffers}, (x,)), y)

    found: Tensor = torch.autograd.functional.hessian(loss, theta_P)
    return found


class Counting(nn.Module):
    """Counts its forward passes where a gradient is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = network(), [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += torch.is_grad_enabled()
        outputs: Tensor = self.inner(x)
        return outputs


@pytest.mark.parametrize("statistics", ["held", "batch"])
@pytest.mark.parametrize("samples", [None, 30])
def test_each_gradient_is_taken_once_where_there_is_memory_for_it(
    statistics: str, samples: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    land = landscape(Counting)
    calls, theta_KP = land.loop.module.calls, torch.stack([land.initial(k) for k in range(3)])
    measures = [kind(Hessian("train", samples, statistics=statistics)) for kind in (Extremes, Trace, Density)]
    found, taken = [], []
    # Of all points, of one at a time, of all its parts but one, and of none.
    for kept in ("all", "one", "parts", "none"):
        needed = list(land.loop.products._needed.values()) or [0]
        one = sum(needed) + products.SPARE * max(needed)
        room = {"all": products.KEPT, "one": one, "parts": one - 1, "none": 0}
        monkeypatch.setattr(products, "KEPT", room[kept])
        calls[0] = 0
        found.append([measure(land, theta_KP) for measure in measures])
        taken.append(calls[0])
        assert land.loop.products._kept is None
    parts = 1 if samples and statistics == "batch" else -(-(samples or 40) // land.evaluation_batch)
    assert taken[0] == taken[1] == len(measures) * len(theta_KP) * parts
    assert taken[1] < taken[2] <= taken[3]
    assert (taken[2] < taken[3]) == (parts > 1)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert one.keys() == other.keys()
            # Products of matrices of several points are rounded otherwise than those of one.
            for name in one:
                torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


class _Token:
    """Lives as long as a graph that it is noted in."""


class Noted(torch.autograd.Function):
    token: ClassVar[Any] = None

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.token = _Token()
        Noted.token = weakref.ref(ctx.token)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Notes(nn.Module):
    """Its first layer is noted, and its second saves what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        noted: Tensor = Noted.apply(x @ self.weight.T)
        return noted.tanh()


def test_kept_gradients_are_given_up_in_the_end() -> None:
    data = Data(torch.randn(20, 6), torch.randint(5, (20,)), torch.randn(8, 6), torch.randint(5, (8,)))
    land = NetworkLandscape(Notes(), data)
    theta_1P = torch.randn(1, land.dim)
    with land.keeping():
        land.product(theta_1P, theta_1P, "train")
        gc.collect()
        assert Noted.token() is not None
    gc.collect()
    assert Noted.token() is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_ends_of_a_known_spectrum_with_their_vectors(dtype: torch.dtype) -> None:
    surface = Rotated(EIGENVALUES)
    theta_KP = torch.randn(3, surface.dim).to(dtype)
    found = Extremes(tolerance=1e-5, count=3, vectors=True)(surface, theta_KP)
    wanted = torch.tensor(EIGENVALUES, dtype=torch.float64)
    error = 40 * 1e-5
    for k in range(3):
        torch.testing.assert_close(found["hessian_lowest"][k], wanted[:3], rtol=0, atol=error)
        torch.testing.assert_close(found["hessian_highest"][k], wanted[-3:].flip(0), rtol=0, atol=error)
        assert found["hessian_ratio"][k].item() == pytest.approx(3 / 40, rel=1e-4)
        for end, place, value in (("min", 0, -3.0), ("max", -1, 40.0)):
            v_P = found[f"hessian_vector_{end}"][k].double()
            assert abs(v_P @ surface.axes_PP[:, place]).item() == pytest.approx(1, abs=1e-5)
            product_P = surface.product(theta_KP[:1].double(), v_P[None])[0]
            residual = (product_P - found[f"hessian_{end}"][k] * v_P).norm().item()
            assert residual == pytest.approx(found[f"hessian_residual_{end}"][k].item(), abs=1e-4)
            assert abs(found[f"hessian_{end}"][k].item() - value) <= residual + 1e-4
    assert found["hessian_converged"].all()
    assert (found["hessian_index"] == 3).all()  # of the three that are asked for
    assert (Extremes(tolerance=1e-3, count=3)(surface, theta_KP)["hessian_index"] == 2).all()  # -0.01 is above -0.04


def test_restarts_find_what_one_long_basis_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense spectrum without gaps at its ends takes more products than a basis has vectors."""
    values = np.linspace(-1, 2, 600).tolist()
    surface = Rotated(values)
    theta_1P = torch.zeros(1, 600, dtype=torch.float64)
    found = Extremes(tolerance=1e-6, products=600)(surface, theta_1P)
    assert found["hessian_products"].item() > curvature.BASIS
    assert found["hessian_converged"].all()
    assert found["hessian_min"].item() == pytest.approx(-1, abs=2e-6)
    assert found["hessian_max"].item() == pytest.approx(2, abs=2e-6)


def test_what_has_not_converged_says_so() -> None:
    surface = Rotated(np.linspace(-1, 2, 600).tolist())
    found = Extremes(tolerance=1e-6, products=12)(surface, torch.zeros(2, 600, dtype=torch.float64))
    assert not found["hessian_converged"].any()
    assert (found["hessian_products"] == 12).all()
    assert (found["hessian_residual_max"] > 2e-6).all()
    assert (found["hessian_max"] < 2).all()


@pytest.mark.parametrize("beyond", [0.1, 0.03, 0.015])
def test_an_end_next_to_many_eigenvalues_is_not_taken_for_one_of_them(beyond: float) -> None:
    """Next to zero there is always an eigenvalue, so that a small residual alone tells nothing of the lowest."""
    random = np.random.default_rng(0)
    for _ in range(40):
        values = 1e-5 * random.normal(size=20_000)
        values[random.choice(20_000, 7, replace=False)] = [1, 0.5, 0.3, 0.2, 0.1, 0.05, -beyond]
        found = Extremes()(Quadratic(values.tolist()), torch.zeros(1, 20_000))
        assert found["hessian_converged"].item()
        assert found["hessian_min"].item() == pytest.approx(-beyond, rel=0.01)


def test_a_point_does_not_depend_on_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    surface = Rotated(EIGENVALUES, curl=0.3)  # another Hessian at every point
    theta_KP = torch.randn(5, surface.dim, dtype=torch.float64)
    measures = [Extremes(tolerance=1e-6), Trace(), Density(probes=1, steps=10)]
    together = tabulate(surface, theta_KP, measures=measures)
    assert len(together["hessian_products"].unique()) > 1
    monkeypatch.setattr(curvature, "NUMBERS", 1)  # one point after the other
    alone = tabulate(surface, theta_KP, measures=measures, chunk=2)
    for name, column in alone.items():
        torch.testing.assert_close(column, together[name], rtol=1e-8, atol=1e-10)
    for k, theta_P in enumerate(theta_KP):
        hessian_PP = torch.autograd.functional.hessian(lambda at_P: surface.energy(at_P[None])[0], theta_P)
        wanted_P = torch.linalg.eigvalsh(hessian_PP)
        torch.testing.assert_close(together["hessian_max"][k], wanted_P[-1], rtol=0, atol=2e-6 * float(wanted_P[-1]))
        torch.testing.assert_close(together["hessian_min"][k], wanted_P[0], rtol=0, atol=2e-6 * float(wanted_P[-1]))


@pytest.mark.parametrize("values", [[5.0], [2.0, 2.0, 2.0], [-1.0, 4.0], [0.0, 0.0, 0.0], [1.0] * 50 + [3.0]])
def test_exhausted_spaces(values: list[float]) -> None:
    surface = Quadratic(values)
    found = Extremes()(surface, torch.zeros(2, len(values), dtype=torch.float64))
    assert found["hessian_converged"].all()
    torch.testing.assert_close(found["hessian_min"], torch.full((2,), min(values), dtype=torch.float64))
    torch.testing.assert_close(found["hessian_max"], torch.full((2,), max(values), dtype=torch.float64))
    trace = Trace()(surface, torch.zeros(2, len(values), dtype=torch.float64))
    if len(values) <= 10:  # what the sketch of a third of the products holds whole
        assert trace["hessian_trace"].tolist() == pytest.approx([sum(values)] * 2)
        assert trace["hessian_trace_error"].tolist() == pytest.approx([0, 0], abs=1e-9)
    spectrum = Density(probes=1, steps=8)(surface, torch.zeros(1, len(values), dtype=torch.float64))
    nodes_N, weights_N = spectrum["hessian_nodes"][0], spectrum["hessian_weights"][0]
    assert weights_N.sum().item() == pytest.approx(1)
    assert all(min(abs(float(node) - value) for value in values) < 1e-9 for node in nodes_N[weights_N > 1e-12])


def test_an_infinite_loss_has_no_eigenvalue_and_leaves_the_others_alone() -> None:
    surface = MullerBrown()
    theta_KP = torch.tensor([[1e3, 1e3], [-0.558224, 1.441726]], dtype=torch.float64)
    found = tabulate(surface, theta_KP, measures=[Extremes(), Trace(products=6)])
    assert found["hessian_converged"].tolist() == [False, True]
    for name in ("hessian_min", "hessian_max", "hessian_trace"):
        assert found[name].isnan().tolist() == [True, False]


def muller_brown_hessian(x: float, y: float) -> np.ndarray:
    """Written out from the published coefficients."""
    A, a, b = (-200, -100, -170, 15), (-1, -1, -6.5, 0.7), (0, 0, 11, 0.6)
    c, x0, y0 = (-10, -10, -6.5, 0.7), (1, 0, -0.5, -1), (0, 0.5, 1.5, 1)
    total = np.zeros((2, 2))
    for i in range(4):
        dx, dy = x - x0[i], y - y0[i]
        gx, gy = 2 * a[i] * dx + b[i] * dy, b[i] * dx + 2 * c[i] * dy
        value = A[i] * np.exp(a[i] * dx**2 + b[i] * dx * dy + c[i] * dy**2)
        total += value * np.array([[gx * gx + 2 * a[i], gx * gy + b[i]], [gx * gy + b[i], gy * gy + 2 * c[i]]])
    return total


def test_muller_browns_saddles_have_index_one_and_its_minima_none() -> None:
    surface = MullerBrown()
    known = [*surface.saddles, *surface.minima]
    found = Extremes(count=2)(surface, torch.tensor(known, dtype=torch.float64)[:, :2])
    assert found["hessian_index"].tolist() == [1, 1, 0, 0, 0]
    for k, (x, y, _) in enumerate(known):
        low, high = np.linalg.eigvalsh(muller_brown_hessian(x, y))
        assert found["hessian_min"][k].item() == pytest.approx(low, rel=1e-9)
        assert found["hessian_max"][k].item() == pytest.approx(high, rel=1e-9)


def rosenbrock_hessian(x: np.ndarray) -> np.ndarray:
    diagonal = np.zeros(len(x))
    diagonal[:-1] += 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
    diagonal[1:] += 200
    return np.diag(diagonal) + np.diag(-400 * x[:-1], 1) + np.diag(-400 * x[:-1], -1)


def rosenbrock_gradient(x: np.ndarray) -> np.ndarray:
    found = np.zeros(len(x))
    found[:-1] += -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
    found[1:] += 200 * (x[1:] - x[:-1] ** 2)
    return found


def test_rosenbrocks_saddle_in_five_dimensions_has_index_one() -> None:
    """Between the two minima, which are there from four dimensions on."""
    start = np.array([-0.66, 0.45, 0.21, 0.05, 0.0])
    solved = root(rosenbrock_gradient, start, jac=rosenbrock_hessian, tol=1e-13)
    wanted = np.linalg.eigvalsh(rosenbrock_hessian(solved.x))
    assert solved.success
    assert (wanted < 0).sum() == 1
    theta_2P = torch.from_numpy(np.stack([solved.x, np.ones(5)]))
    found = Extremes(count=5, tolerance=1e-9)(Rosenbrock(5), theta_2P)
    assert found["hessian_index"].tolist() == [1, 0]
    np.testing.assert_allclose(found["hessian_lowest"][0].numpy(), wanted, rtol=1e-9)


@pytest.mark.parametrize("statistics", ["held", "given"])
@pytest.mark.parametrize(("split", "samples"), [("train", None), ("test", None), ("train", 25)])
def test_small_networks_against_dense_hessians(split: str, samples: int | None, statistics: str) -> None:
    land = landscape()
    theta_KP = torch.stack([land.initial(k) for k in range(2)])
    x_N, y_N = land.data.split(split)
    x_N, y_N = x_N[:], y_N
    centre = land.statistics(theta_KP[0])
    which = Hessian(split, samples, seed=3)
    if statistics == "given":  # a scan's, of its centre
        which = curvature.with_statistics(which, lambda at_KP: [centre] * len(at_KP))
    if samples is not None:
        batch = land.subset(split, samples, curvature.derive(3, "hessian"))
        x_N, y_N = batch.x, batch.y
        rows = {tuple(row) for row in land.data.x_train[:].tolist()}
        assert len({tuple(row) for row in x_N.tolist()} & rows) == samples
    found = tabulate(land, theta_KP, measures=[Extremes(which, tolerance=1e-6), Trace(which, 3 * land.dim)])
    for k, theta_P in enumerate(theta_KP):
        buffers = centre if statistics == "given" else land.statistics(theta_P)
        hessian_PP = dense(land, theta_P, x_N, y_N, buffers)
        wanted_P = torch.linalg.eigvalsh(hessian_PP)
        assert found["hessian_converged"][k]
        assert found["hessian_min"][k].item() == pytest.approx(float(wanted_P[0]), rel=1e-4)
        assert found["hessian_max"][k].item() == pytest.approx(float(wanted_P[-1]), rel=1e-4)
        # The sketch has as many vectors as there are parameters, so nothing is left to chance.
        assert found["hessian_trace"][k].item() == pytest.approx(float(hessian_PP.trace()), rel=1e-9)


def test_the_statistics_of_the_samples_are_another_hessian() -> None:
    land = landscape()
    theta_1P = land.initial(0)[None]
    batch = land.subset("train", 25, curvature.derive(0, "hessian"))

    def loss(at_P: Tensor) -> Tensor:
        return cross_entropy(functional_call(land.loop.module.train(), land.layout.views(at_P), (batch.x,)), batch.y)

    wanted_P = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta_1P[0]))
    found = {mode: Extremes(Hessian(samples=25, statistics=mode), 1e-6)(land, theta_1P) for mode in curvature.MODES}
    assert found["batch"]["hessian_max"].item() == pytest.approx(float(wanted_P[-1]), rel=1e-4)
    assert found["batch"]["hessian_min"].item() == pytest.approx(float(wanted_P[0]), rel=1e-4)
    assert found["held"]["hessian_max"].item() != pytest.approx(float(wanted_P[-1]), rel=1e-2)


def test_a_networks_lowest_eigenvalues_in_float32() -> None:
    """A network without BatchNorm, whose float32 Hessian products are far from float64's."""
    narrow = landscape(lambda: nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 3)))
    theta_1P = narrow.initial(1)[None]
    wide = landscape(lambda: nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 3)).double())
    x, y = narrow.data.split("train")
    wanted_P = torch.linalg.eigvalsh(dense(wide, theta_1P[0].double(), x[:].double(), y, {}))
    found = Extremes(tolerance=1e-4)(narrow, theta_1P)
    assert found["hessian_converged"].all()
    for name, wanted in (("hessian_min", wanted_P[0]), ("hessian_max", wanted_P[-1])):
        assert found[name].item() == pytest.approx(float(wanted), abs=1e-4 * float(wanted_P[-1]))


def test_the_trace_of_a_spectrum_with_outliers_is_within_its_error() -> None:
    surface = Rotated([*np.linspace(-0.5, 1, 300).tolist(), 50.0, 100.0, 200.0])
    truth, errors = 75 + 350, []
    for seed in range(40):
        found = Trace(Hessian(seed=seed), products=30)(surface, torch.zeros(1, surface.dim, dtype=torch.float64))
        errors.append(((found["hessian_trace"] - truth) / found["hessian_trace_error"]).item())
    # Student's t with nine degrees of freedom has the standard deviation 1.13; the estimate is unbiased.
    assert np.std(errors) == pytest.approx(1.13, rel=0.35)
    assert np.mean(errors) == pytest.approx(0, abs=4 * 1.13 / np.sqrt(40))
    # Hutchinson's alone, with all products, would err by sqrt(2 |H|_F^2 / 30), that of the outliers.
    spread = float(found["hessian_trace_error"])
    assert spread < 0.1 * np.sqrt(2 * (50**2 + 100**2 + 200**2) / 30)


def test_the_density_is_the_histogram_of_the_dense_spectrum() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0, 0.2, 500), generator.normal(2, 0.1, 100), [5.0] * 20])
    surface = Rotated(values.tolist())
    found = Density(probes=8, steps=40)(surface, torch.zeros(1, surface.dim, dtype=torch.float64))
    nodes_N, weights_N = found["hessian_nodes"][0], found["hessian_weights"][0]
    assert weights_N.sum().item() == pytest.approx(1)
    edges = np.array([-1, -0.2, 0, 0.2, 1, 1.9, 2, 2.5, 4.9, 5.1])
    histogram = np.histogram(values, edges)[0] / len(values)
    ours = [float(weights_N[(nodes_N >= a) & (nodes_N < b)].sum()) for a, b in pairwise(edges)]
    # The 8 probes' weights of an interval spread by sqrt(2 p / (8 P)), and nodes are a few hundredths apart.
    np.testing.assert_allclose(ours, histogram, atol=0.05)
    # The first moments are the mean and the mean square of the eigenvalues, to the probes' spread.
    assert float(weights_N @ nodes_N) == pytest.approx(values.mean(), abs=4 * np.sqrt(2 * (values**2).mean() / 8 / 620))
    at_T = np.linspace(-2, 7, 2001)
    smooth_T = smoothed(nodes_N.numpy(), weights_N.numpy(), at_T, 0.1)
    wanted_T = norm.pdf(at_T[:, None], values, 0.1).mean(1)
    assert trapezoid(smooth_T, at_T) == pytest.approx(1, abs=1e-6)
    assert trapezoid(abs(smooth_T - wanted_T), at_T) < 0.15


def test_what_cannot_be_measured_is_told() -> None:
    land = landscape()
    with pytest.raises(LowlossError, match="statistics must be one of held, batch, got 'running'"):
        Hessian(statistics="running")
    with pytest.raises(LowlossError, match="split must be one of train, test, got 'validation'"):
        Extremes(Hessian("validation"))(land, land.initial(0)[None])
    with pytest.raises(LowlossError, match="at least 6"):
        Trace(products=5)
    assert Hessian(samples=100).about == {"of": "mean loss", "split": "train", "samples": 100, "statistics": "held"}


class Once(torch.autograd.Function):
    """A tanh that can be differentiated once alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 - ctx.saved_tensors[0].square())


class Tanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        activations: Tensor = Once.apply(x)
        return activations


class Margin(Task):
    """A loss whose second derivative torch does not have."""

    units: ClassVar = {"loss": "margin"}

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        return multi_margin_loss(outputs, y, reduction="none")


@pytest.mark.parametrize(
    ("middle", "task", "told"),
    [(Tanh(), None, "once_differentiable"), (nn.Tanh(), Margin(), "multi_margin_loss_backward is not implemented")],
)
def test_a_loss_without_a_second_derivative_is_told(middle: nn.Module, task: Task | None, told: str) -> None:
    x_N4, y_N = torch.randn(12, 4), torch.arange(12) % 3
    land = NetworkLandscape(
        nn.Sequential(nn.Linear(4, 3), middle, nn.Linear(3, 3)), Data(x_N4, y_N, x_N4, y_N, task=task)
    )
    for measure in (Extremes(), Trace(), Density()):
        with pytest.raises(OnceError, match=rf"the loss of Sequential has no second derivative \(.*{told}\): leave"):
            measure(land, land.initial(0)[None])


def test_large_eigenvalues_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    surface, theta_KP = Rotated(EIGENVALUES), torch.zeros(2, len(EIGENVALUES), dtype=torch.float64)
    for share, count in ((0.01, 7), (0.2, 2), (0.9, 1)):
        found = Large(share=share)(surface, theta_KP)
        assert found["hessian_large"].tolist() == pytest.approx([count, count])
        assert found["hessian_largest"].tolist() == pytest.approx([40, 40])
    # By the density to three standard errors.
    monkeypatch.setattr(curvature, "DENSE", 0)
    estimated = Large(share=0.01, probes=30, steps=60)(surface, theta_KP[:1])["hessian_large"]
    assert float(estimated) == pytest.approx(7, rel=3 * (2 / (30 * 7)) ** 0.5)


def test_blocks_of_layers_are_those_of_the_dense_hessian() -> None:
    land = landscape()
    theta_KP = torch.stack([land.initial(seed) for seed in (0, 1)])
    layers = land.layout.blocks()
    assert layers == {"0": (0, 30), "1": (30, 42), "3": (42, 63)}
    of = Hessian()
    found = tabulate(land, theta_KP, measures=[Layers(layers, Extremes(of, tolerance=1e-8), Trace(of, 99))])
    assert found["layers_converged"].all()
    data = land.data
    for k, theta_P in enumerate(theta_KP):
        hessian_PP = dense(land, theta_P, data.x_train, data.y_train, land.statistics(theta_P))
        for place, (first, end) in enumerate(layers.values()):
            wanted_P = torch.linalg.eigvalsh(hessian_PP[first:end, first:end])
            scale = 1e-4 * float(wanted_P.abs().max())
            for name, value in (("min", wanted_P[0]), ("max", wanted_P[-1])):
                assert found[f"layers_{name}"][k, place].item() == pytest.approx(float(value), abs=scale)
            # A third of the products sketches all of a block's space.
            assert found["layers_trace"][k, place].item() == pytest.approx(float(wanted_P.sum()), abs=scale)
        assert found["layers_trace"][k].sum().item() == pytest.approx(float(hessian_PP.trace()), rel=1e-4)
