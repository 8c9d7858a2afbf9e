"""Charts, and landscapes that wrap landscapes, on surfaces whose answers are known."""

from itertools import combinations

import pytest
import torch
from torch import nn

from lowloss.errors import LowlossError
from lowloss.landscape import chart as chart_module
from lowloss.landscape.analytic import AnalyticSurface, MullerBrown, Quadratic, Rosenbrock, Wedge
from lowloss.landscape.chart import NeuronDistance, Normal, Span
from lowloss.landscape.layout import Layout
from lowloss.landscape.wrappers import Charted, RandomSpan, Regularised, check_optimizer_decay

P = 8
NET = nn.Sequential(nn.Conv2d(2, 4, 2, bias=False), nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
LAYOUT = Layout.of(NET)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def span(rows=None, **settings):
    return Span(draw(*([rows] if rows else []), P, seed=1), draw(3, P, seed=2), **settings)


def normal(rows=None):
    return Normal(draw(*([rows] if rows else []), P, seed=3), draw(2, P, seed=4))


def distance(l=1, m=2, delta=0.7, layer="2"):  # noqa: E741
    return NeuronDistance(LAYOUT, layer, l, m, delta)


CHARTS = {
    "span": (span, 3),
    "span_by_row": (lambda: span(dims=[3, 1, 2]), 3),
    "span_by_origin": (lambda: span(3), 3),
    "span_by_both": (lambda: span(3, dims=[3, 1, 2]), 3),
    "normal": (normal, P),
    "normal_by_row": (lambda: normal(3), P),
    "neurons": (distance, LAYOUT.dim),
    "neurons_by_row": (lambda: distance(l=[0, 1, 2], m=[1, 2, 0], delta=[0.1, 2.0, 0.5]), LAYOUT.dim),
    "filters": (lambda: distance(0, 3, layer="0"), LAYOUT.dim),
}


@pytest.fixture(params=CHARTS)
def charted(request):
    """A chart and coordinates of three points."""
    make, dim = CHARTS[request.param]
    chart = make()
    assert chart.dim == dim
    return chart, draw(3, dim, seed=5)


def test_derivatives_are_those_of_finite_differences(charted):
    chart, z_KQ = charted
    assert torch.autograd.gradcheck(chart.points, z_KQ.requires_grad_())


def test_coordinates_give_the_point_back(charted):
    chart, z_KQ = charted
    theta_KP = chart.points(z_KQ)
    again_KQ = chart.coordinates(theta_KP)
    torch.testing.assert_close(chart.points(again_KQ), theta_KP)
    if isinstance(chart, Span) and chart.dims is None:
        torch.testing.assert_close(again_KQ, z_KQ)
    if isinstance(chart, NeuronDistance):
        torch.testing.assert_close(again_KQ, theta_KP)


def test_coordinates_of_other_points_are_the_orthogonal_projection(charted):
    chart, z_KQ = charted
    theta_KP = draw(*chart.points(z_KQ).shape, seed=6)
    found_KQ = chart.coordinates(theta_KP).requires_grad_()
    nearest_KP = chart.points(found_KQ)
    assert (theta_KP - nearest_KP).norm(dim=1).min() > 0.1
    (along_KQ,) = torch.autograd.grad(nearest_KP, found_KQ, theta_KP - nearest_KP.detach())
    assert along_KQ.abs().max() < 1e-12
    if chart.dim == chart.points(z_KQ).shape[1]:  # nearer than others of the chart
        assert ((theta_KP - nearest_KP).norm(dim=1) < (theta_KP - chart.points(z_KQ)).norm(dim=1)).all()


def test_affine_is_what_it_says(charted):
    chart, z_KQ = charted
    other_KQ = draw(*z_KQ.shape, seed=14)
    middle_KP = (chart.points(z_KQ) + chart.points(other_KQ)) / 2
    assert torch.allclose(chart.points((z_KQ + other_KQ) / 2), middle_KP) == chart.affine


def test_points_keep_the_dtype_of_their_coordinates(charted):
    chart, z_KQ = charted
    theta_KP = chart.points(z_KQ.float())
    assert theta_KP.dtype == chart.coordinates(theta_KP).dtype == torch.float32
    torch.testing.assert_close(theta_KP.double(), chart.points(z_KQ), rtol=1e-5, atol=1e-5)


def test_span_by_hand():
    chart = Span(torch.tensor([1.0, 1, 1]), torch.tensor([[2.0, 0, 0], [1, 1, 0]]))
    assert chart.points(torch.tensor([[3.0, 5], [0, 0]])).tolist() == [[12, 6, 1], [1, 1, 1]]
    # Its rows are not orthogonal: a division by their norms would give another answer.
    torch.testing.assert_close(chart.coordinates(torch.tensor([[12.0, 6, 9]])), torch.tensor([[3.0, 5]]))


def test_span_projects_as_least_squares_do_whatever_fits_the_memory(monkeypatch):
    monkeypatch.setattr(chart_module, "COLUMNS", 3)
    chart, theta_KP = span(dims=[3, 1, 2]), draw(3, P, seed=7)
    found_KQ = chart.coordinates(theta_KP)
    for k, d in enumerate([3, 1, 2]):
        directions_PQ = draw(3, P, seed=2)[:d].T
        expected_Q = torch.linalg.lstsq(directions_PQ, (theta_KP[k] - draw(P, seed=1))[:, None]).solution[:, 0]
        torch.testing.assert_close(found_KQ[k, :d], expected_Q)
        assert (found_KQ[k, d:] == 0).all()


def test_padding_moves_nothing_and_feels_nothing():
    chart, plain, z_KQ = span(dims=[1, 3]), span(), draw(2, 3, seed=8).requires_grad_()
    theta_KP = chart.points(z_KQ)
    torch.testing.assert_close(theta_KP[0], plain.points(z_KQ[:1] * torch.tensor([1, 0, 0]))[0])
    torch.testing.assert_close(theta_KP[1], plain.points(z_KQ[1:])[0])
    (gradient_KQ,) = torch.autograd.grad(theta_KP.sum(), z_KQ)
    assert gradient_KQ[0, 1:].tolist() == [0, 0]
    assert (gradient_KQ[1] != 0).all()


def test_random_span_is_orthonormal_and_fixed_by_its_seed():
    origin_P = draw(40, dtype=torch.float32)
    chart = RandomSpan(dim=6, seed=3).over(Quadratic([1.0] * 40), origin_P).chart
    assert chart.basis_QP.dtype == torch.float32
    torch.testing.assert_close(chart.basis_QP @ chart.basis_QP.T, torch.eye(6), atol=1e-6, rtol=0)
    assert torch.equal(chart.points(torch.zeros(1, 6))[0], origin_P)
    assert torch.equal(chart.basis_QP, Span.random(origin_P, 6, 3).basis_QP)
    assert not torch.equal(chart.basis_QP, Span.random(origin_P, 6, 4).basis_QP)
    # The same number seeds an initial point: no direction may point along it.
    initial_P = Quadratic([1.0] * 40).initial(3)
    alone = Span.random(torch.zeros(40, dtype=torch.float64), 1, 3).basis_QP[0]
    assert abs(float(alone @ initial_P / initial_P.norm())) < 0.5


def test_random_spans_have_one_orientation_and_an_origin_each():
    origin_KP, surface = draw(3, P, dtype=torch.float32), Quadratic([1.0] * P)
    charted = RandomSpan(2, seed=3, weight_decay=0.3).over(surface, origin_KP)
    assert isinstance(charted, Charted)
    assert isinstance(charted.base, Regularised)
    assert (charted.base.base, charted.base.weight_decay) == (surface, 0.3)
    assert RandomSpan(2, seed=3).over(surface, origin_KP).base is surface
    assert torch.equal(charted.chart.points(torch.zeros(3, 2)), origin_KP)
    z_KQ = draw(3, 2, seed=1, dtype=torch.float32).requires_grad_()
    losses_K = charted.losses(z_KQ, None)
    for k in range(3):
        alone = RandomSpan(2, seed=3, weight_decay=0.3).over(surface, origin_KP[k])
        assert torch.equal(alone.chart.basis_QP, charted.chart.basis_QP)
        torch.testing.assert_close(alone.chart.points(z_KQ[k : k + 1])[0], charted.chart.points(z_KQ)[k])
        torch.testing.assert_close(alone.losses(z_KQ[k : k + 1], None)[0], losses_K[k])
    theta_KP = (origin_KP + z_KQ @ charted.chart.basis_QP).detach()
    torch.testing.assert_close(losses_K.detach(), (1 + 0.3) / 2 * theta_KP.square().sum(1))
    (gradient_KQ,) = torch.autograd.grad(losses_K.sum(), z_KQ)
    torch.testing.assert_close(gradient_KQ, 1.3 * theta_KP @ charted.chart.basis_QP.T)
    torch.testing.assert_close(charted.evaluate(z_KQ)["loss"], losses_K.detach().double())


def descend(landscape, start_KQ, optimizer, steps=1000):
    z_KQ = start_KQ.clone().requires_grad_()
    stepper = optimizer([z_KQ])
    for _ in range(steps):
        stepper.zero_grad()
        landscape.losses(z_KQ, None).sum().backward()
        stepper.step()
    return z_KQ.detach()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.03, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.03),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_normal_space_is_kept_through_a_descent_to_its_minimum(optimizer, dtype):
    origins_KP, normals_MP, eigenvalues_P = draw(3, P, seed=3), draw(2, P, seed=4), torch.linspace(0.5, 2, P).double()
    chart = Normal(origins_KP.to(dtype), normals_MP.to(dtype))
    landscape = Charted(Quadratic(eigenvalues_P.tolist()), chart)
    z_KP = descend(landscape, torch.zeros(3, P, dtype=dtype), OPTIMIZERS[optimizer])
    theta_KP = chart.points(z_KP).double()
    moved_KP = theta_KP - origins_KP.to(dtype).double()
    off_KM = moved_KP @ normals_MP.to(dtype).double().T
    scale_KM = moved_KP.norm(dim=1)[:, None] * normals_MP.norm(dim=1)
    assert (off_KM.abs() < 10 * torch.finfo(dtype).eps * scale_KM).all()
    # Lagrange: lambda x = N^T mu, and N x = N origin.
    scaled_PM = normals_MP.T / eigenvalues_P[:, None]
    mu_MK = torch.linalg.solve(normals_MP @ scaled_PM, normals_MP @ origins_KP.T)
    lowest_K = (scaled_PM @ mu_MK).T.square() @ eigenvalues_P / 2
    # Adam at a constant learning rate does not come to rest in float32.
    torch.testing.assert_close(theta_KP.square() @ eigenvalues_P / 2, lowest_K, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_neurons_keep_their_distance_through_a_descent_to_its_minimum(optimizer, dtype):
    deltas = [0.1, 2.0, 0.5]
    chart = distance(l=[0, 1, 2], m=[1, 2, 0], delta=deltas)
    start_KP = chart.coordinates(draw(3, LAYOUT.dim, seed=9, dtype=dtype))
    landscape = Charted(Quadratic([1.0] * LAYOUT.dim), chart)
    theta_KP = chart.points(descend(landscape, start_KP, OPTIMIZERS[optimizer]))
    for theta_P, l, m, delta in zip(theta_KP, [0, 1, 2], [1, 2, 0], deltas, strict=True):  # noqa: E741
        named = LAYOUT.views(theta_P)
        vectors = torch.cat([named["2.weight"], named["2.bias"][:, None]], dim=1).double()
        assert (vectors[l] - vectors[m]).norm().item() == pytest.approx(delta, rel=20 * torch.finfo(dtype).eps)
        # All free parameters are zero then, and what is left is the two of opposite sign: delta² / 4.
        assert 0.5 * theta_P.square().sum().item() == pytest.approx(delta**2 / 4, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("layer", "l", "m"), [("2", 0, 2), ("0", 3, 1)])
def test_only_the_two_neurons_move_and_their_mean_stays(layer, l, m):  # noqa: E741
    chart, z_P = distance(l, m, 0.7, layer), draw(LAYOUT.dim)
    before, after = LAYOUT.views(z_P), LAYOUT.views(chart.points(z_P[None])[0])
    for name in LAYOUT.names:
        others = [k for k in range(len(before[name])) if not (name.startswith(layer) and k in (l, m))]
        assert torch.equal(after[name][others], before[name][others])
        torch.testing.assert_close(after[name].sum(0), before[name].sum(0))
    parts = [after[f"{layer}.weight"].flatten(1)]
    parts += [after["2.bias"][:, None]] if layer == "2" else []
    vectors = torch.cat(parts, dim=1)
    assert (vectors[l] - vectors[m]).norm().item() == pytest.approx(0.7)


REFUSED = {
    "layer": (lambda: distance(layer="1"), r"'1' has no neurons: take one of 0, 2, 4$"),
    "neuron": (lambda: distance(m=3), r"2 has neurons 0 … 2: take two of them, not 1 and 3"),
    "negative": (lambda: distance(l=-1), r"2 has neurons 0 … 2"),
    "same": (lambda: distance(l=2), r"not 2 and 2"),
    "delta": (lambda: distance(delta=[0.1, 0.0]), "positive"),
    "lengths": (lambda: distance(l=[0, 1], m=[2, 2, 2]), "one length"),
    "equal": (lambda: distance().points(torch.zeros(1, LAYOUT.dim)), "equal"),
    "dims": (lambda: span(dims=[1, 4]), r"1 … 3"),
    "rows": (lambda: span(dims=[1, 2]).points(torch.zeros(3, 3)), "2 points at once, not 3"),
    "span origin": (lambda: span(2).points(torch.zeros(1, 3)), "2 points at once, not 1"),
    "span origins": (lambda: span(2).coordinates(torch.zeros(3, P)), "2 points at once, not 3"),
    "origins": (lambda: normal(2).coordinates(torch.zeros(1, P)), "2 points at once, not 1"),
    "neuron rows": (lambda: distance(l=[0, 1]).points(torch.ones(1, LAYOUT.dim)), "2 points at once, not 1"),
    "dependent": (lambda: Span(draw(P), draw(2, P)[[0, 1, 0]]), "directions must be independent: leave out number 2"),
    "many": (lambda: Span(draw(2), draw(3, 2)), "leave out number 2"),
    "segment": (lambda: Normal(draw(P), torch.zeros(1, P)), "normals must be independent: leave out number 0"),
    "large": (lambda: Span.random(draw(P), 9, 0), "8 parameters has at most"),
    "none": (lambda: Span.random(draw(P), 0, 0), "dim must be"),
    "decay": (lambda: Regularised(MullerBrown(), -1), "weight_decay must be"),
    "order": (lambda: Regularised(Charted(Quadratic([1.0] * P), span()), 0.1), r"Charted\(Regularised\(base\)"),
    "product": (
        lambda: Charted(Quadratic([1.0] * LAYOUT.dim), distance()).product(*draw(2, 1, LAYOUT.dim), None),
        r"NeuronDistance is not affine.*its base's at chart\.points",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(LowlossError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_regularised_span_by_hand():
    eigenvalues_P, origin_P, basis_QP = draw(P, seed=10), draw(P, seed=1), draw(3, P, seed=2)
    landscape = Charted(Regularised(Quadratic(eigenvalues_P.tolist()), 0.3), span())
    z_KQ = draw(4, 3, seed=11).requires_grad_()
    theta_KP = (origin_P + z_KQ @ basis_QP).detach()
    losses_K = landscape.losses(z_KQ, None)
    torch.testing.assert_close(losses_K, (theta_KP.square() @ eigenvalues_P + 0.3 * theta_KP.square().sum(1)) / 2)
    (gradient_KQ,) = torch.autograd.grad(losses_K.sum(), z_KQ)
    torch.testing.assert_close(gradient_KQ, ((eigenvalues_P + 0.3) * theta_KP) @ basis_QP.T)
    columns = landscape.evaluate(z_KQ)
    torch.testing.assert_close(columns["loss"], losses_K.detach())
    torch.testing.assert_close(columns["loss_without_l2"], theta_KP.square() @ eigenvalues_P / 2)
    assert list(columns) == list(landscape.task.units) == ["loss", "loss_without_l2"]
    assert list(Quadratic.task.units) == ["loss"]


@pytest.mark.parametrize("name", ["span", "span_by_row", "span_by_origin", "normal", "normal_by_row"])
def test_product_is_the_hessian_of_the_composition(name):
    chart, surface, decay = CHARTS[name][0](), Rosenbrock(P), 0.3
    z_KQ, v_KQ = draw(3, chart.dim, seed=12), draw(3, chart.dim, seed=13)

    def total(z):
        theta_KP = chart.points(z)
        return (surface.energy(theta_KP) + decay / 2 * theta_KP.square().sum(1)).sum()

    hessian = torch.autograd.functional.hessian(total, z_KQ)
    expected_KQ = torch.einsum("kiln,ln->ki", hessian, v_KQ)
    for grad in (torch.no_grad(), torch.enable_grad()):
        with grad:
            found_KQ = Charted(Regularised(surface, decay), chart).product(z_KQ, v_KQ, None)
        torch.testing.assert_close(found_KQ, expected_KQ)


@pytest.mark.parametrize(
    "landscape",
    [
        Regularised(Rosenbrock(P), 0.3),
        Charted(Rosenbrock(P), span()),
        Charted(Regularised(Rosenbrock(LAYOUT.dim), 0.3), distance()),
    ],
    ids=["regularised", "charted", "both"],
)
def test_second_derivatives_through_losses_are_refused(landscape):
    x_KQ = draw(2, landscape.dim).requires_grad_()
    (gradient_KQ,) = torch.autograd.grad(landscape.losses(x_KQ, None).sum(), x_KQ, create_graph=True)
    with pytest.raises(LowlossError, match=r"landscape\.product"):
        torch.autograd.grad(gradient_KQ.sum(), x_KQ)


class Told(AnalyticSurface):
    """Says what it was asked."""

    dim, splits, couples_samples = P, ("train", "test"), True

    def energy(self, theta_KP):
        return theta_KP.sum(1)

    def evaluate(self, theta_KP, split="train", details=False):
        seen_KP = theta_KP if details else theta_KP[:, :0]
        return {"error": torch.zeros(len(theta_KP)), "loss": theta_KP[:, 0].double(), split: seen_KP}

    def outputs(self, theta_P, split):
        yield theta_P, split

    def batches(self, size, seeds, shared):
        return size, seeds, shared

    def to(self, device):
        self.device = device
        return self


def test_wrappers_forward_what_they_do_not_change():
    base, chart = Told(), span()
    wrapped = Charted(Regularised(base, 0.0), chart)
    assert (wrapped.dim, wrapped.splits, wrapped.couples_samples) == (3, ("train", "test"), True)
    assert wrapped.batches(5, (1, 2), True) == (5, (1, 2), True)
    z_KQ = draw(2, 3)
    ((theta_P, split),) = wrapped.outputs(z_KQ[0], "test")
    torch.testing.assert_close(theta_P, chart.points(z_KQ)[0])
    assert split == "test"
    columns = wrapped.evaluate(z_KQ, "test", details=True)
    assert list(columns) == ["loss", "loss_without_l2", "error", "test"]
    assert torch.equal(columns["test"], chart.points(z_KQ))
    assert wrapped.evaluate(z_KQ)["train"].shape == (2, 0)


def test_initial_points_are_the_base_s_on_the_chart():
    surface = Quadratic([1.0] * P)
    assert torch.equal(Regularised(surface, 0.1).initial(7), surface.initial(7))
    assert torch.equal(Charted(surface, span()).initial(7), torch.zeros(3, dtype=torch.float64))
    chart = normal()
    offset_P = chart.points(Charted(surface, chart).initial(7)[None])[0] - surface.initial(7)
    # What the projection changed is a combination of the normals.
    normals_PM = draw(2, P, seed=4).T
    mix_M = torch.linalg.lstsq(normals_PM, offset_P[:, None]).solution
    torch.testing.assert_close(normals_PM @ mix_M, offset_P[:, None])
    surface = Quadratic([1.0] * LAYOUT.dim)
    wide = Charted(surface, distance()).initial(7)
    torch.testing.assert_close(wide, distance().points(surface.initial(7)[None])[0])


def test_to_moves_the_base_and_the_chart():
    meta = torch.device("meta")
    for chart, dim in ((span(dims=[1, 2]), 3), (span(2), 3), (normal(2), P)):
        base = Told()
        wrapped = Charted(Regularised(base, 0.1), chart)
        assert wrapped.to(meta) is wrapped
        assert base.device == meta
        z_KQ = torch.zeros(2, dim, device=meta)
        assert chart.points(z_KQ).device.type == chart.coordinates(torch.zeros(2, P, device=meta)).device.type == "meta"
    for chart in (span(), normal(), distance()):
        Charted(Told(), chart).to(meta)
        held = [value for value in vars(chart).values() if isinstance(value, torch.Tensor)]
        assert held
        assert all(value.device == meta for value in held)


def test_an_optimizer_that_decays_coordinates_is_refused():
    surface, z = Quadratic([1.0] * P), [torch.zeros(1, requires_grad=True)]
    charted = Charted(surface, span())
    check_optimizer_decay(charted, torch.optim.SGD(z, lr=0.1))
    check_optimizer_decay(Regularised(surface, 0.1), torch.optim.SGD(z, lr=0.1, weight_decay=1e-4))
    message = r"weight_decay=0\.01 of AdamW.*Span.*optimizer\.weight_decay=0.*Regularised"
    with pytest.raises(LowlossError, match=message):
        check_optimizer_decay(charted, torch.optim.AdamW(z))


@pytest.mark.parametrize(("cut", "reaches_zero"), [(2, False), (4, True)])
def test_random_cut_reaches_zero_where_it_has_more_dimensions_than_constraints(cut, reaches_zero):
    """Fort & Jastrzebski 2019, sec. 3.3: d_lim = D - n."""
    dim, n = 8, 5
    origin_P = draw(dim)
    landscape = RandomSpan(cut, seed=1).over(Wedge(dim, n), origin_P)
    chart = landscape.chart
    # On a cut, the loss is the distance to the nearest wedge: one linear least-squares problem for each wedge.
    floor = min(
        torch.linalg.vector_norm(origin_P[rows] + chart.basis_QP[:, rows].T @ solution)
        for rows in map(list, combinations(range(dim), dim - n))
        for solution in [torch.linalg.lstsq(chart.basis_QP[:, rows].T, -origin_P[rows]).solution]
    )
    z_KQ = 2 * draw(256, cut, seed=2)
    for _ in range(1000):
        z_KQ.requires_grad_()
        (step_KQ,) = torch.autograd.grad(landscape.losses(z_KQ, None).square().sum(), z_KQ)
        z_KQ = (z_KQ - 0.4 * step_KQ).detach()
    found = landscape.evaluate(z_KQ)["loss"].min()
    assert found >= floor - 1e-9
    if reaches_zero:
        assert found < 1e-6
    else:
        assert found > 0.01
        assert found == pytest.approx(float(floor), rel=1e-6)


def test_neurons_that_are_close_have_coordinates_of_the_size_of_others():
    layer, reader = nn.Linear(3, 4), nn.Linear(4, 2)
    net = nn.Sequential(layer, nn.Tanh(), reader).double()
    layout, x = Layout.of(net), draw(50, 3, seed=20)
    outgoing_NO = layout.views(torch.arange(layout.dim))["2.weight"].T
    z_KP, outputs = draw(3, layout.dim, seed=21), []

    def chart(delta, **settings):
        return NeuronDistance(layout, "0", 1, 3, delta, outgoing_NO, 2.0, **settings)

    z_KP = chart(2.0).points(z_KP)
    torch.testing.assert_close(chart(2.0).coordinates(z_KP), z_KP)
    for delta in (2.0, 1e-4, 1e-5):
        theta_KP = chart(delta).points(z_KP)
        named = [layout.views(theta_P) for theta_P in theta_KP]
        for views, z_P in zip(named, z_KP, strict=True):
            w_NS = torch.cat([views["0.weight"], views["0.bias"][:, None]], 1)
            assert (w_NS[1] - w_NS[3]).norm().item() == pytest.approx(delta, rel=1e-9)
            a_NO, b_NO = views["2.weight"].T, layout.views(z_P)["2.weight"].T
            torch.testing.assert_close(a_NO[1] - a_NO[3], (b_NO[1] - b_NO[3]) * 2 / delta)
            torch.testing.assert_close(a_NO[1] + a_NO[3], b_NO[1] + b_NO[3], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(chart(delta).coordinates(theta_KP), z_KP)
        assert torch.autograd.gradcheck(chart(delta).points, z_KP.clone().requires_grad_(), rtol=1e-2, atol=1e-2)
        outputs.append([torch.func.functional_call(net, views, x) for views in named])
    # The same coordinates are nearly the same function at any small distance, and another one at a large.
    torch.testing.assert_close(outputs[1], outputs[2], rtol=1e-6, atol=1e-6)
    assert (outputs[0][0] - outputs[2][0]).abs().max() > 0.01
    held = chart(1e-4, spread=0.5)
    assert held.spreads(held.coordinates(held.points(z_KP))).tolist() == pytest.approx([0.5] * 3)
    same = layout.views(chart(1e-4, spread=0.0).points(z_KP)[0])["2.weight"]
    torch.testing.assert_close(same[:, 1], same[:, 3])
