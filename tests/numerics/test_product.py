"""Hessian times vector of networks: against dense Hessians, finite differences and curvlinops."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lowloss import Data, LanguageModel, LowlossError, NetworkLandscape, Regression
from lowloss.data.task import PADDING
from lowloss.landscape import Batch
from lowloss.model import CNN, MLP, DenseNet, ResNet, WideResNet

IMAGE = (1, 8, 8)


def tanh(module: nn.Module) -> nn.Module:
    """The module with tanh in place of ReLU, so that finite differences are what they stand for."""
    for name, part in module.named_children():
        if isinstance(part, nn.ReLU):
            setattr(module, name, nn.Tanh())
        tanh(part)
    return module


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: tanh(MLP(IMAGE, 3, hidden=(4,))),
    "mlp-bn": lambda: tanh(MLP(IMAGE, 3, hidden=(4,), batch_norm=True)),
    "cnn": lambda: tanh(CNN(IMAGE, 3, width=2, depth=2, hidden=4)),
    "resnet": lambda: ResNet(IMAGE, 3, depth=8, width=1),
    "wide resnet": lambda: nn.Sequential(nn.AvgPool2d(2), tanh(WideResNet((1, 4, 4), 3, depth=10, widen=1))),
    "densenet": lambda: tanh(DenseNet(IMAGE, 3, growth=1, layers=(1, 1))),
}
SMALL = ("mlp", "mlp-bn", "cnn", "resnet", "densenet")
"""Those whose Hessian is computed densely."""


def images(dtype: torch.dtype = torch.float64, samples: int = 24) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples + 6, *IMAGE, generator=generator).to(dtype)
    y = torch.randint(3, (samples + 6,), generator=generator)
    return Data(x[:samples], y[:samples], x[samples:], y[samples:], num_classes=3)


def landscape(family: str, dtype: torch.dtype = torch.float64, evaluation_batch: int = 8) -> NetworkLandscape:
    return NetworkLandscape(lambda: FAMILIES[family]().to(dtype), images(dtype), evaluation_batch)


def loss_of(
    land: NetworkLandscape, x: Tensor, y: Tensor, buffers: dict[str, Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """The mean loss as torch computes it: with these buffers in evaluation mode, or with the minibatch's statistics."""
    module = land.module(land.initial(0))
    for part in module.modules():
        part.train(buffers is None and isinstance(part, nn.modules.batchnorm._BatchNorm))

    def loss(theta_P: Tensor) -> Tensor:
        given = dict(module.named_buffers()) if buffers is None else buffers
        held = {name: buffer.clone() for name, buffer in given.items()}
        return cross_entropy(functional_call(module, {**land.layout.views(theta_P), **held}, (x,)), y)

    return loss


def dense(loss: Callable[[Tensor], Tensor], theta_P: Tensor) -> Tensor:
    hessian: Tensor = torch.autograd.functional.hessian(loss, theta_P)
    return hessian


def product(loss: Callable[[Tensor], Tensor], theta_P: Tensor, v_P: Tensor, k: int) -> Tensor:
    """By the dense Hessian at the first point, by differentiating twice at the others, which takes less time."""
    if k == 0:
        return dense(loss, theta_P) @ v_P
    _, found_P = torch.autograd.functional.hvp(loss, theta_P, v_P)
    return found_P


def points(land: NetworkLandscape, count: int = 2) -> tuple[Tensor, Tensor]:
    theta_KP = torch.stack([land.initial(k) for k in range(count)])
    return theta_KP, torch.randn_like(theta_KP)


@pytest.mark.parametrize("statistics", ["held", "batch"])
@pytest.mark.parametrize("family", SMALL)
def test_minibatch_against_the_dense_hessian(family: str, statistics: str) -> None:
    land = landscape(family)
    theta_KP, v_KP = points(land)
    batch = land.batches(10, [3], shared=True)[0]
    found_KP = land.product(theta_KP, v_KP, batch, statistics)
    for k, (theta_P, v_P, found_P) in enumerate(zip(theta_KP, v_KP, found_KP, strict=True)):
        buffers = land.statistics(theta_P) if statistics == "held" else None
        expected_P = product(loss_of(land, batch.x, batch.y, buffers), theta_P, v_P, k)
        torch.testing.assert_close(found_P, expected_P, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("family", SMALL)
def test_a_split_against_the_hessian_of_what_evaluate_reports(family: str, split: str) -> None:
    land = landscape(family)
    theta_KP, v_KP = points(land)
    x, y = land.data.split(split)
    found_KP = land.product(theta_KP, v_KP, split)
    for k, (theta_P, v_P, found_P) in enumerate(zip(theta_KP, v_KP, found_KP, strict=True)):
        loss = loss_of(land, x[:], y, land.statistics(theta_P))
        assert loss(theta_P).item() == pytest.approx(land.evaluate(theta_P[None], split)["loss"].item(), rel=1e-12)
        torch.testing.assert_close(found_P, product(loss, theta_P, v_P, k), rtol=1e-9, atol=1e-9)


def test_a_split_with_the_statistics_of_its_chunks() -> None:
    land = landscape("cnn")
    theta_KP, v_KP = points(land, 1)
    order = land._statistics_order_N.split(8)
    x, y = land.data.x_train, land.data.y_train
    expected_PP = sum(dense(loss_of(land, x[index], y[index], None), theta_KP[0]) for index in order) / len(order)
    found_P = land.product(theta_KP, v_KP, "train", "batch")[0]
    torch.testing.assert_close(found_P, expected_PP @ v_KP[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("statistics", ["held", "batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_float64_to_rounding(family: str, statistics: str) -> None:
    land, narrow = landscape(family), landscape(family, torch.float32)
    theta_KP, v_KP = points(land)
    theta_KP, v_KP = theta_KP.float().double(), v_KP.float().double()
    for data, other in (("train", "train"), tuple(one.batches(12, [0], shared=True)[0] for one in (land, narrow))):
        exact = land.product(theta_KP, v_KP, data, statistics)
        found = narrow.product(theta_KP.float(), v_KP.float(), other, statistics)
        assert found.dtype == torch.float32
        assert (found - exact).norm() <= 1e-4 * exact.norm()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "resnet"])  # of ReLUs
def test_finite_differences_of_the_gradients_of_losses(family: str) -> None:
    land = landscape(family)
    theta_KP, v_KP = points(land)
    batch = land.batches(12, [0], shared=True)[0]

    def gradient(shifted_KP: Tensor) -> Tensor:
        shifted_KP = shifted_KP.requires_grad_()
        return torch.autograd.grad(land.losses(shifted_KP, batch).sum(), shifted_KP)[0]

    def difference(step: float) -> Tensor:
        return (gradient(theta_KP + step * v_KP) - gradient(theta_KP - step * v_KP)) / (2 * step)

    fourth_order = (4 * difference(1e-5) - difference(2e-5)) / 3
    torch.testing.assert_close(land.product(theta_KP, v_KP, batch, "batch"), fourth_order, rtol=1e-7, atol=1e-8)


def test_dropout_of_a_minibatch_follows_its_seed() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()

    land = NetworkLandscape(net, images())
    theta_KP, v_KP = points(land, 1)
    batch = land.batches(12, [0], shared=True)[0]
    one, again = (land.product(theta_KP, v_KP, batch, "batch") for _ in range(2))
    other = land.product(theta_KP, v_KP, batch._replace(seeds=(5,)), "batch")
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    module = land.module(theta_KP[0]).train()

    def dropped(theta_P: Tensor) -> Tensor:
        torch.manual_seed(batch.row(0)[2])
        return cross_entropy(functional_call(module, land.layout.views(theta_P), (batch.x,)), batch.y)

    torch.testing.assert_close(one[0], dense(dropped, theta_KP[0]) @ v_KP[0], rtol=1e-9, atol=1e-9)
    # The statistics of the point are those of evaluation, without dropout.
    exact = dense(loss_of(land, batch.x, batch.y, land.statistics(theta_KP[0])), theta_KP[0]) @ v_KP[0]
    torch.testing.assert_close(land.product(theta_KP, v_KP, batch)[0], exact)
    for split in ("train", "test"):
        x, y = land.data.split(split)
        exact = dense(loss_of(land, x[:], y, land.statistics(theta_KP[0])), theta_KP[0]) @ v_KP[0]
        torch.testing.assert_close(land.product(theta_KP, v_KP, split)[0], exact)


def test_padding_is_no_part_of_a_language_models_hessian() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(5, (9, 4), generator=generator)
    y = torch.randint(5, (9, 4), generator=generator)
    y[-2, 1:] = y[-1, 2:] = PADDING
    net = nn.Sequential(nn.Embedding(5, 3), nn.Tanh(), nn.Linear(3, 5)).double()
    land = NetworkLandscape(net, Data(x, y, x, y, task=LanguageModel(5)), evaluation_batch=4)
    theta_KP, v_KP = points(land, 1)

    def loss(theta_P: Tensor) -> Tensor:
        outputs = functional_call(net, land.layout.views(theta_P), (x,))
        return cross_entropy(outputs.flatten(0, 1), y.flatten(), ignore_index=PADDING)

    assert loss(theta_KP[0]).item() == pytest.approx(land.evaluate(theta_KP)["loss"].item(), rel=1e-12)
    torch.testing.assert_close(land.product(theta_KP, v_KP, "train")[0], dense(loss, theta_KP[0]) @ v_KP[0])


def test_a_linear_regression_has_its_constant_hessian() -> None:
    x = torch.randn(20, 3, dtype=torch.float64)
    y = torch.randn(20, 2, dtype=torch.float64)
    land = NetworkLandscape(
        nn.Linear(3, 2, bias=False, dtype=torch.float64), Data(x, y, x, y, task=Regression(4.0)), evaluation_batch=7
    )
    theta_KP, v_KP = points(land)
    # L = sum over 2 outputs of |x w - y|² / (2 · 4 · 20), so each output's block is x^T x / 80.
    expected_KOI = v_KP.view(2, 2, 3) @ (x.T @ x) / 80
    torch.testing.assert_close(land.product(theta_KP, v_KP, "train"), expected_KOI.flatten(1))


def test_a_recurrent_network_and_attention_have_one() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(4, 4)
            self.lstm = nn.LSTM(4, 4, batch_first=True)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h, _ = self.lstm(self.embed(x))
            return self.head(self.attention(h, h, h, need_weights=False)[0])

    x = torch.randint(4, (6, 5))
    land = NetworkLandscape(lambda: Recurrent().double(), Data(x, x, x, x, task=LanguageModel(4)))
    theta_KP, v_KP = points(land, 1)
    batch = Batch(x, x, (0,))
    step = 1e-5
    found = land.product(theta_KP, v_KP, batch, "batch")

    def gradient(shifted_KP: Tensor) -> Tensor:
        shifted_KP = shifted_KP.requires_grad_()
        return torch.autograd.grad(land.losses(shifted_KP, batch).sum(), shifted_KP)[0]

    difference = (gradient(theta_KP + step * v_KP) - gradient(theta_KP - step * v_KP)) / (2 * step)
    torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-8)


def test_points_together_are_each_alone() -> None:
    land = landscape("cnn")
    theta_KP, v_KP = points(land, 3)
    alone = [land.product(theta_KP[k : k + 1], v_KP[k : k + 1], "train")[0] for k in range(3)]
    assert torch.equal(land.product(theta_KP, v_KP, "train"), torch.stack(alone))


@pytest.mark.parametrize("statistics", ["held", "batch"])
def test_points_with_minibatches_of_their_own_are_each_alone(statistics: str) -> None:
    land = landscape("cnn")
    theta_KP, v_KP = points(land, 3)
    batch = land.batches(10, [0, 1, 2], shared=False)[0]
    for k, found_P in enumerate(land.product(theta_KP, v_KP, batch, statistics)):
        x, y, seed = batch.row(k)
        alone = land.product(theta_KP[k : k + 1], v_KP[k : k + 1], Batch(x, y, (seed,)), statistics)
        assert torch.equal(found_P, alone[0])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_curvlinops_agrees() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    land = landscape("mlp")
    theta_KP, v_KP = points(land, 1)
    module = land.module(theta_KP[0])
    chunks = list(zip(land.data.x_train.split(10), land.data.y_train.split(10), strict=True))
    operator = curvlinops.HessianLinearOperator(module, nn.CrossEntropyLoss(), list(module.parameters()), chunks)
    torch.testing.assert_close(operator @ v_KP[0], land.product(theta_KP, v_KP, "train")[0], rtol=1e-7, atol=1e-9)


def test_losses_refuse_a_second_derivative() -> None:
    land = landscape("mlp")
    theta_KP = points(land)[0].requires_grad_()
    losses_K = land.losses(theta_KP, land.batches(10, [0], shared=True)[0])
    (gradient_KP,) = torch.autograd.grad(losses_K.sum(), theta_KP, create_graph=True)
    with pytest.raises(LowlossError, match=r"differentiable once.*landscape\.product"):
        torch.autograd.grad(gradient_KP.square().sum(), theta_KP)


def test_unknown_statistics_name_the_choices() -> None:
    land = landscape("mlp")
    with pytest.raises(LowlossError, match="must be one of held, batch"):
        land.product(*points(land), "train", "running")
