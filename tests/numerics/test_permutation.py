"""Permutation points and the ways to them, against closed forms and against what symmetry and algebra say."""

from itertools import islice, pairwise

import pytest
import torch
from torch import nn

from lowloss.data import Data, Regression
from lowloss.errors import LowlossError
from lowloss.jobs.permutations import _alike
from lowloss.landscape import NetworkLandscape, Tied
from lowloss.landscape.students import Students
from lowloss.model import MLP
from lowloss.symmetry import derive_symmetries
from lowloss.symmetry.neurons import Neurons, halfway
from lowloss.symmetry.permutation import CLASSES, descend, hessian, shape, signs
from lowloss.training.permutation import LAST, Contraction, contract, taught


def student(outputs, hidden=3, activation=nn.Softplus):
    torch.manual_seed(0)
    x = torch.randn(60, 2)
    net = nn.Sequential(nn.Linear(2, hidden), activation(), nn.Linear(hidden, outputs))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    landscape = NetworkLandscape(net, Data(x, torch.zeros(60, outputs), x, torch.zeros(60, outputs), task=Regression()))
    return landscape, landscape.point(net), Neurons.of(derive_symmetries(net, x[:2]), None)


@pytest.fixture(scope="module", params=[1, 3])
def contracted(request):
    landscape, theta_P, neurons = student(request.param)
    pairs = [[0, 1]]
    found = contract(landscape, theta_P, neurons, pairs, Contraction(2, 0.1, 250, 1e-8, order=2))
    return request.param, taught(landscape, theta_P), theta_P.double(), neurons, pairs, found


def test_the_way_begins_at_the_minimum_and_ends_where_the_two_are_one(contracted):
    _, landscape, theta_P, neurons, pairs, found = contracted
    for r, (l, m) in enumerate(pairs):  # noqa: E741
        bends_BP = found["bends"][r]
        assert torch.equal(bends_BP[0], theta_P)
        point_P = bends_BP[-1]
        # The point is its own permuted copy, so the way back with the two exchanged goes on from it.
        assert torch.equal(neurons.swapped(point_P[None], l, m)[0], point_P)
        distance = (theta_P[neurons.incoming_NS[l]] - theta_P[neurons.incoming_NS[m]]).norm()
        wanted = [float(distance * 0.1 ** (step / 2)) for step in range(3)]
        assert found["distance"][r, :3].tolist() == pytest.approx(wanted, rel=1e-9)
        assert found["loss"][r, 0] == pytest.approx(0, abs=1e-20)
        # The loss by hand.
        named = landscape.layout.views(point_P)
        x, y = landscape.data.split("train")
        hidden = nn.functional.softplus(x @ named["0.weight"].T + named["0.bias"])
        outputs = hidden @ named["2.weight"].T + named["2.bias"]
        by_hand = (outputs - y).square().sum() / len(x) / y.square().mean()
        assert float(found["loss"][r, -1]) == pytest.approx(float(by_hand), rel=1e-9)


def test_the_way_to_the_point_is_no_higher_than_the_point_where_it_rises():
    landscape, theta_P, neurons = student(3)
    found = contract(landscape, theta_P, neurons, [[0, 1], [1, 2]], Contraction(6, 1e-4, 300, 1e-8))
    assert (found["loss"].max(1).values <= 1.01 * found["loss"][:, -1]).all()
    # While the distance is small, outgoing weights grow as it falls, and descents converge all the same.
    assert (found["gradient_norm"][:, 3:6] <= 1e-7).all()
    near_RB = found["distance"][:, 6:-1]
    torch.testing.assert_close(near_RB, near_RB[:, :1].expand_as(near_RB))
    before_P, point_P = found["bends"][0, 6], found["bends"][0, -1]
    apart = [
        (theta_P[neurons.outgoing_NO[0]] - theta_P[neurons.outgoing_NO[1]]).norm() for theta_P in (before_P, point_P)
    ]
    assert apart[0] > 100
    assert apart[1] == 0


@pytest.mark.parametrize("kept", [1, 4, 8, 15, 17])
def test_a_way_that_continues_is_the_same_to_the_bit(tmp_path, kept):
    landscape, theta_P, neurons = student(3, hidden=4, activation=nn.ReLU)
    given = landscape, theta_P, neurons, [[0, 1], [2, 3]], Contraction(6, 1e-3, 12, 1e-8, order=2)
    wanted = contract(*given)
    contract(*given, folder=tmp_path)
    steps = sorted(tmp_path.iterdir())
    assert len(steps) == 2 * (6 + LAST)
    for file in steps[kept:]:
        file.unlink()
    found = contract(*given, folder=tmp_path)
    for name, column in wanted.items():
        assert torch.equal(found[name], column), name


def test_what_lies_between_the_descents_is_seen():
    landscape, theta_P, neurons = student(2, hidden=4, activation=nn.ReLU)
    pairs, steps = [[0, 1], [2, 3]], 5
    found = contract(landscape, theta_P, neurons, pairs, Contraction(steps, 1e-3, 30, 1e-8))
    assert found["between"].shape == (2, steps + LAST)
    wide = taught(landscape, theta_P)
    for r, pair in enumerate(pairs):
        vectors, weights = neurons.incoming_NS[pair], neurons.outgoing_NO[pair]
        for i in range(steps + LAST):
            a_P, b_P = found["bends"][r, i], found["bends"][r, i + 1]
            highest, merges = 0.0, i == steps + LAST - 1
            for s in (0.25, 0.5, 0.75):
                point_P = a_P.lerp(b_P, s)
                if not merges:
                    # The direction of the difference of the two is on a line, and so is that of what reads them, times
                    # the distance, which falls logarithmically.
                    apart = [theta_P[vectors[0]] - theta_P[vectors[1]] for theta_P in (a_P, b_P)]
                    out = [theta_P[weights[0]] - theta_P[weights[1]] for theta_P in (a_P, b_P)]
                    length = [float(x.norm()) for x in apart]
                    delta = length[0] ** (1 - s) * length[1] ** s
                    direction = (apart[0] / length[0]).lerp(apart[1] / length[1], s)
                    direction *= delta / direction.norm()
                    read = (out[0] * length[0]).lerp(out[1] * length[1], s) / delta
                    for index, change in ((vectors, direction), (weights, read)):
                        mean = point_P[index].mean(0)
                        point_P[index] = torch.stack([mean + change / 2, mean - change / 2])
                highest = max(highest, float(wide.evaluate(point_P[None])["loss"]))
            assert float(found["between"][r, i]) == pytest.approx(highest, rel=1e-6, abs=1e-14)
    # These few steps are coarse: nothing shows a way that is no higher than the ends of the descents.
    assert (found["between"].amax(1) > 1.5 * found["loss"].amax(1)).any()


def test_gradients_and_eigenvalues_along_the_way_by_hand(contracted):
    _, landscape, _, _, _, found = contracted
    x, y = landscape.data.split("train")
    module, bends_BP = landscape.loop.module, found["bends"][0]

    def loss(theta_P):
        outputs = torch.func.functional_call(module, landscape.layout.views(theta_P), x)
        return (outputs - y).square().sum() / len(x) / y.square().mean()

    for place in (2, 7, len(bends_BP) - 1):
        gradient_P = torch.autograd.functional.jacobian(loss, bends_BP[place])
        way_P = bends_BP[min(place + 1, len(bends_BP) - 1)] - bends_BP[place - 1]
        cosine = (gradient_P @ way_P).abs() / gradient_P.norm() / way_P.norm()
        eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, bends_BP[place]))
        assert float(found["along_gradient"][0, place]) == pytest.approx(float(gradient_P.norm()), rel=1e-5, abs=1e-12)
        assert float(found["along_parallel"][0, place]) == pytest.approx(float(cosine), rel=1e-3, abs=1e-6)
        assert int(found["along_negative"][0, place]) == int((eigenvalues < -1e-6 * eigenvalues.abs().max()).sum())


@pytest.mark.parametrize(
    ("losses", "points"),
    [([0.3, 0.1, 0.3 + 1e-8, 0.2], [2, 0, 2, 1]), ([1e-9, 5e-7, 0.1], [0, 0, 1]), ([0.1, 0.1], [0, 0]), ([0.2], [0])],
)
def test_points_of_one_loss_are_one(losses, points):
    assert _alike(losses, 1e-6) == points


def test_permutation_points_are_critical_and_their_plateaus_flat(contracted):
    outputs, _, _, _, _, found = contracted
    assert (found["gradient"] <= 1e-4).all()
    assert (found["flatness"] <= 1e-6 * found["loss"][:, -1] + 1e-12).all()
    assert (found["plateau_change"] <= 1e-12).all()
    assert (found["gradient_in_proportion"] <= 1e-4).all()
    if outputs == 1:
        # Brea et al. 2019, property (i): with one output the plateau is a line of critical points.
        assert (found["gradient_otherwise"] <= 1e-4).all()
        assert (found["vanishing"] >= 1).all()
    else:
        assert (found["gradient_otherwise"] >= 20 * found["gradient_in_proportion"]).all()


def test_eigenvalues_across_are_of_the_hessian_and_have_all_negative_ones(contracted):
    _, _, _, neurons, _, found = contracted
    assert found["across"].shape[1] == neurons.incoming_NS.shape[1] + neurons.outgoing_NO.shape[1]
    for all_P, across_B in zip(found["eigenvalues"], found["across"], strict=True):
        nearest_B = (across_B[:, None] - all_P).abs().amin(1)
        assert (nearest_B <= 1e-9 * all_P.abs().max()).all()
    # The descent ended in a minimum of the network in which the two neurons are one.
    negative_R = (found["eigenvalues"] < -1e-6 * found["across"].abs().amax(1, keepdim=True)).sum(1)
    assert found["across_negative"].tolist() == negative_R.tolist()


def test_rows_of_several_teachers_are_those_of_each_alone(caplog):
    landscape, theta_P, neurons = student(2)
    theta_KP = torch.stack([theta_P, theta_P.flip(0), theta_P])
    # Few iterations, since rounding grows with each.
    pairs, contraction = [[0, 1], [1, 2], [0, 2]], Contraction(2, 0.1, 4, 1e-8, order=2)
    together = contract(landscape, theta_KP, neurons, pairs, contraction)
    for r in range(3):
        alone = contract(landscape, theta_KP[r], neurons, pairs[r : r + 1], contraction)
        assert together.keys() == alone.keys()
        for name in ("bends", "loss", "gradient_norm", "order_loss"):
            assert torch.allclose(together[name][r], alone[name][0], rtol=1e-9, atol=1e-12), name
    # The losses of all at once are those of each row's own landscape, and so they are where they go one by one.
    rows = [taught(landscape, theta_P) for theta_P in theta_KP]
    at_RP = theta_KP.double() * torch.tensor([[1.1], [0.9], [1.2]], dtype=torch.float64)
    wanted = torch.cat([row.evaluate(at_1P)["loss"] for row, at_1P in zip(rows, at_RP[:, None], strict=True)])
    assert wanted.min() > 1e-3
    students = Students(rows)
    assert torch.allclose(students.losses(at_RP, students.whole()), wanted, rtol=1e-12)
    assert torch.equal(students.evaluate(at_RP)["loss"], wanted)
    assert not caplog.text

    class Decides(nn.Softplus):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) < torch.inf else x

    for row in rows:
        row.loop.module[1] = Decides()
    slow = Students(rows)
    assert torch.allclose(slow.losses(at_RP, slow.whole()), wanted, rtol=1e-12)
    assert "runs one student after the other" in caplog.text


def test_descent_finds_the_minimum_of_a_quadratic():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.T + 0.1 * torch.eye(6)
    centre = torch.randn(6, generator=generator, dtype=torch.float64)

    class Bowl:
        def losses(self, z_RP, batch):
            return 0.5 * torch.einsum("rp,pq,rq->r", z_RP - centre, matrix, z_RP - centre)

    start_RP = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    z_RP, losses_R, norms_R = descend(Bowl(), start_RP, None, 200, 1e-10)
    assert torch.allclose(z_RP, centre.expand(3, -1), atol=1e-8)
    assert (norms_R <= 1e-10).all()
    assert (losses_R <= 1e-18).all()
    # A row is the same whatever descends beside it, and one that has converged stays.
    beside_RP = torch.stack([start_RP[1], 1e6 * start_RP[0]])
    assert torch.allclose(
        descend(Bowl(), beside_RP, None, 9, 1e-10)[0][0], descend(Bowl(), start_RP, None, 9, 1e-10)[0][1]
    )
    assert torch.equal(descend(Bowl(), z_RP, None, 200, 1e-9)[0], z_RP)


def test_points_of_higher_orders_are_smaller_networks_on_plateaus(contracted):
    outputs, *_, found = contracted
    assert found["order_pair"][0, 0].tolist() == [0, 1]
    assert found["order_pair"][0, 1].tolist() == [0, 2]  # what is left
    assert found["order_loss"][0, 0] == pytest.approx(found["loss"][0, -1])
    # Proposition 2: K n_{k+1} dimensions of equal loss.
    assert found["order_dimensions"][0].tolist() == [outputs, 2 * outputs]
    assert (found["order_change"][0] <= 2e-12 * found["order_loss"][0]).all()
    # A network of one neuron has no lower loss nearby, and it is a critical point of the whole one.
    assert found["order_loss"][0, 1] >= found["order_loss"][0, 0]
    assert found["order_gradient"][0, 1] <= 1e-7
    assert (found["order_vanishing"][0] >= (found["order_dimensions"][0] if outputs == 1 else 1)).all()


def test_tied_parameters_take_the_mean_and_feel_the_sum():
    chart = Tied(torch.tensor([[0, 0, 2, 0], [0, 1, 1, 3]]))
    theta_RP = torch.tensor([[1.0, 2.0, 5.0, 6.0], [1.0, 2.0, 5.0, 6.0]])
    wanted = [[3.0, 3.0, 5.0, 3.0], [1.0, 3.5, 3.5, 6.0]]
    z_RP = chart.coordinates(theta_RP).requires_grad_()
    assert chart.points(z_RP).tolist() == wanted
    (chart.points(z_RP) * theta_RP).sum().backward()
    assert z_RP.grad.tolist() == [[9, 0, 5, 0], [1, 7, 0, 6]]


def test_hessian_is_that_of_autograd():
    landscape, theta_P, _ = student(2)
    wide = taught(landscape, theta_P)
    at_P = theta_P.double() + 0.1
    x, y = wide.data.split("train")

    def loss(point_P):
        named = wide.layout.views(point_P)
        hidden = nn.functional.softplus(x @ named["0.weight"].T + named["0.bias"])
        return (hidden @ named["2.weight"].T + named["2.bias"] - y).square().sum() / len(x) / y.square().mean()

    assert torch.allclose(hessian(wide, at_P), torch.autograd.functional.hessian(loss, at_P), atol=1e-9)
    negative, vanishing = signs(torch.tensor([-1.0, -1e-8, 0.0, 0.5, 2.0]))
    assert (int(negative), int(vanishing)) == (1, 2)


def test_the_six_moves_exchange_two_neurons_at_equal_loss():
    landscape, theta_P, neurons = student(2, hidden=4)
    wide, point_P = taught(landscape, theta_P), theta_P.double()
    point_P[neurons.incoming_NS[1]] = point_P[neurons.incoming_NS[0]]
    point_P[neurons.outgoing_NO[1]] = point_P[neurons.outgoing_NO[0]]
    way_KP = neurons.exchange(point_P, 0, 1, 3)
    assert len(way_KP) == 7
    assert torch.allclose(way_KP[-1], neurons.swapped(point_P[None], 1, 3)[0], atol=1e-12)
    fine_KP = torch.cat([a.lerp(b, torch.linspace(0, 1, 5)[:, None].double()) for a, b in pairwise(way_KP)])
    losses_K = wide.evaluate(fine_KP)["loss"]
    assert float(losses_K.max() - losses_K.min()) <= 1e-12 * float(losses_K.max())
    assert float(losses_K[0]) > 1e-3


def test_classes_and_times_of_ways():
    for least in (1.0, 1e-5):
        rising, saddle, falling = (
            [least * loss for loss in losses] for losses in ((0, 1, 2, 3), (0, 3, 1, 2), (0, 1, 3, 2))
        )
        assert [shape(losses, 1e-6) for losses in (rising, saddle, falling)] == [*CLASSES[:3]]
    # Losses that differ by less than the descents tell, or than the float64 of the loss does.
    for losses in ([0, 1e-10, 3e-10, 2e-10], [0, 3e-10, 1e-10, 2e-10], [0, 0, 0], [0.5, 0.5 + 1e-7]):
        assert shape(losses, 1e-6) == CLASSES[3]
        assert (shape(losses, 1e-12) == CLASSES[3]) == (max(losses) == 0)
    assert shape([1.0, 1 + 1e-13], 0.0) == CLASSES[3]
    distance = torch.tensor([[4.0, 2.0, 1.0, *[0.5] * (LAST - 1), 0.0]], dtype=torch.float64)
    t = halfway(distance, LAST)[0]
    assert t[:3].tolist() == [0, 1 / 8, 3 / 16]
    assert t[-1] == 0.5
    assert (t.diff() > 0).all()


def test_the_most_similar_neurons_are_two_that_are_not_equal():
    _, theta_P, neurons = student(1, hidden=4)
    theta_P[neurons.incoming_NS] = torch.tensor([[1.0, 0, 0], [0, 1, 0.3], [1, 0, 0], [0, 1, 0.1]])
    assert [*islice(neurons.by_similarity(theta_P), 2)] == [[0, 2], [1, 3]]
    assert neurons.similar(theta_P) == [1, 3]
    assert neurons.similar(theta_P, [0, 2, 3]) == [0, 3]
    with pytest.raises(LowlossError, match=r"^all neurons of 0 are equal already: take another network or layer$"):
        neurons.similar(theta_P, [0, 2])


class Mirrored(nn.Module):
    """Its neurons are read by the weights that make them."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x):
        return self.a(x).relu() @ self.a.weight


def test_bad_input_is_told_in_a_line():
    landscape, theta_P, neurons = student(1)
    with pytest.raises(LowlossError, match=r"^0 has the neurons 0 … 2: name two of them, not \[0, 3\]$"):
        neurons.check([[0, 3]])
    theta_P[neurons.incoming_NS[1]] = theta_P[neurons.incoming_NS[0]]
    with pytest.raises(LowlossError, match=r"^the neurons 0 and 1 of 0 are equal already: name other pairs$"):
        contract(landscape, theta_P, neurons, [[0, 1]], Contraction(2, 0.1, 2, 1e-6))
    x = torch.randn(4, 3)
    with pytest.raises(LowlossError, match=r"no layer 'x' .* take one of layers\.1"):
        Neurons.of(derive_symmetries(MLP((3,), 2, [4]), x), "x")
    with pytest.raises(LowlossError, match=r"those of layers\.2\.weight too"):
        Neurons.of(derive_symmetries(MLP((3,), 2, [4], batch_norm=True), x), "layers.1")
    tied = derive_symmetries(Mirrored(), x)
    for layer, told in ((None, "^no layer's neurons are read by one other"), ("a", r"of a are those of a\.weight too")):
        with pytest.raises(LowlossError, match=told):
            Neurons.of(tied, layer)
    square = nn.Linear(4, 4)
    twice = derive_symmetries(nn.Sequential(nn.Linear(3, 4), square, nn.ReLU(), square, nn.Linear(4, 2)), x)
    with pytest.raises(LowlossError, match=r"^no layer's neurons are read by one other"):
        Neurons.of(twice, None)
    recurrent = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5))
    with pytest.raises(LowlossError, match=r"by one other layer alone \(1: what goes through lstm keeps its order\)"):
        Neurons.of(derive_symmetries(recurrent, x), None)
