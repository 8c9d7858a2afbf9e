"""Losses and gradients of a network's points against plain modules and autograd."""

from collections.abc import Callable
from copy import deepcopy
from math import log

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lowloss import Data, LowlossError, NetworkLandscape
from lowloss.landscape import Batch, Layout
from lowloss.model import CNN, MLP, ResNet


class Tied(nn.Module):
    """Two layers share a weight; the first layer may also go by a second name."""

    def __init__(self, alias: bool) -> None:
        super().__init__()
        self.inner, self.tied, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.tied.weight = self.inner.weight
        self.alias = self.inner if alias else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.tied(self.alias(self.inner(x.flatten(1)).tanh())))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.used, self.after = nn.Linear(2, 5), nn.Linear(16, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.flatten(1))


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    module[3].requires_grad_(False)
    return module


def repeated() -> nn.Module:
    layer, norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
    return nn.Sequential(nn.Flatten(), layer, norm, nn.Tanh(), layer, norm, nn.Linear(16, 3))


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )  # fmt: skip


def with_dropout() -> nn.Module:
    return nn.Sequential(
        nn.Dropout2d(0.3), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)
    )


MODULES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)),
    "float64": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double(),
    "batch norm": batch_norm,
    "dropout": with_dropout,
    "tied": lambda: Tied(alias=False),
    "tied and repeated": lambda: Tied(alias=True),
    "repeated": repeated,
    "frozen": frozen,
    "unused": Unused,
}


def random_data(samples: int = 40) -> Data:
    return Data(torch.randn(samples, 1, 4, 4), torch.arange(samples) % 3, torch.randn(9, 1, 4, 4), torch.arange(9) % 3)


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> nn.Module:
    return MODULES[request.param]()


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def plain(module: nn.Module, theta_P: Tensor, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """The loss and its gradient of an ordinary module in training mode."""
    module = deepcopy(module).train()
    vector_to_parameters(theta_P, trainable(module))
    x, y = (batch.x, batch.y) if batch.shared else (batch.x[k], batch.y[k])
    torch.manual_seed(batch.seeds[0] if batch.shared else batch.seeds[k])
    loss = cross_entropy(module(x), y)
    gradients = torch.autograd.grad(loss, trainable(module), materialize_grads=True)
    return loss.detach(), parameters_to_vector(gradients)


@pytest.mark.parametrize("shared", [True, False])
def test_losses_and_gradients_are_those_of_plain_modules(module: nn.Module, shared: bool) -> None:
    landscape = NetworkLandscape(module, random_data())
    batch = landscape.batches(8, seeds=[5, 6, 7], shared=shared)[3]
    assert batch.y.shape == ((8,) if shared else (3, 8))
    dtype = next(module.parameters()).dtype
    theta_KP = (0.5 * torch.randn(3, landscape.dim, dtype=dtype)).requires_grad_()
    losses_K = landscape.losses(theta_KP, batch)
    assert losses_K.dtype == dtype
    # Any objective of the losses: here row k counts k + 1 times.
    (gradient_KP,) = torch.autograd.grad(losses_K @ torch.tensor([1, 2, 3], dtype=dtype), theta_KP)
    expected = [plain(module, theta_P.detach(), batch, k) for k, theta_P in enumerate(theta_KP)]
    torch.testing.assert_close(losses_K.detach(), torch.stack([loss for loss, _ in expected]))
    expected_KP = torch.stack([(k + 1) * gradient_P for k, (_, gradient_P) in enumerate(expected)])
    torch.testing.assert_close(gradient_KP, expected_KP, rtol=1e-5, atol=1e-6)


def test_a_point_is_its_trainable_parameters(module: nn.Module) -> None:
    landscape = NetworkLandscape(module, random_data())
    assert landscape.dim == sum(parameter.numel() for parameter in trainable(module))
    assert torch.equal(landscape.point(module), parameters_to_vector(trainable(module)))


def test_a_point_has_no_memory(module: nn.Module) -> None:
    """Neither other points, nor evaluation, nor a module's own running statistics change a loss."""
    with torch.no_grad():
        for buffer in module.buffers():
            buffer += 3
    kept = deepcopy(module.state_dict())
    data = random_data()
    landscape = NetworkLandscape(module, data)
    dtype = next(module.parameters()).dtype
    theta_KP = torch.randn(3, landscape.dim, dtype=dtype)
    batch = landscape.batches(8, [1], shared=True)[0]
    first, exact = landscape.losses(theta_KP, batch), landscape.evaluate(theta_KP)
    for other in range(3):
        landscape.losses(5 * torch.randn(2, landscape.dim, dtype=dtype), landscape.batches(8, [1], True)[other])
        landscape.evaluate(5 * torch.randn(2, landscape.dim, dtype=dtype), "test")
    assert torch.equal(landscape.losses(theta_KP, batch), first)
    assert torch.equal(landscape.evaluate(theta_KP)["loss"], exact["loss"])
    fresh = deepcopy(module)
    for part in fresh.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_running_stats()
    assert torch.equal(NetworkLandscape(fresh, data).evaluate(theta_KP)["loss"], exact["loss"])
    assert all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items())


def test_rows_of_a_shared_batch_drop_the_same_units() -> None:
    landscape = NetworkLandscape(with_dropout(), random_data())
    theta_P = landscape.initial(0)
    losses_K = landscape.losses(torch.stack([theta_P, theta_P]), landscape.batches(8, [1], shared=True)[0])
    assert losses_K[0] == losses_K[1]
    other = landscape.losses(theta_P[None], landscape.batches(8, [1], shared=True)[5])
    assert other != losses_K[0]


class FunctionalDropout(nn.Module):
    """Drops units without a dropout layer, as networks of torchvision do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(dropout(x.flatten(1), 0.5, self.training))


def test_the_step_alone_fixes_every_randomness_in_a_network() -> None:
    landscape = NetworkLandscape(FunctionalDropout(), random_data())
    theta_KP, batches = landscape.initial(0)[None], landscape.batches(8, [1], shared=True)
    assert torch.equal(landscape.losses(theta_KP, batches[2]), landscape.losses(theta_KP, batches[2]))
    assert not torch.equal(landscape.losses(theta_KP, batches[2]), landscape.losses(theta_KP, batches[3]))


def test_dropout_leaves_the_global_random_state_alone() -> None:
    landscape = NetworkLandscape(with_dropout(), random_data())
    theta_KP, batch = landscape.initial(0)[None], landscape.batches(8, [1], shared=True)[0]
    before = torch.get_rng_state()
    landscape.losses(theta_KP, batch)
    landscape.initial(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_and_dropout_draw_from_different_streams() -> None:
    """Were they the same, whatever the augmentation switches off would stand or fall with the dropped units."""

    def half(x_B: Tensor, generator: torch.Generator) -> Tensor:
        return torch.empty_like(x_B).bernoulli_(0.5, generator=generator)

    seen = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dropout = nn.Linear(64, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            seen.append((x, self.dropout(torch.ones_like(x)) > 0))
            return self.linear(x)

    data = Data(torch.ones(8, 64), torch.arange(8) % 3, torch.ones(8, 64), torch.arange(8) % 3, augment=half)
    landscape = NetworkLandscape(Spy, data)
    landscape.losses(landscape.initial(0)[None], landscape.batches(8, [1], shared=True)[0])
    augmented, kept = seen[-1]
    assert ((augmented > 0) == kept).double().mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_untrained_classifier_has_loss_ln_classes(classes: int) -> None:
    x, y = torch.randn(300, 3, 8, 8), torch.arange(300) % classes
    data = Data(x, y, x, y, num_classes=classes)
    for factory in (MLP, CNN):
        landscape = NetworkLandscape(factory, data)
        theta_KP = torch.stack([landscape.initial(seed) for seed in range(3)])
        assert landscape.evaluate(theta_KP)["loss"].mean() == pytest.approx(log(classes), abs=0.25)


def test_initial_points_are_the_modules_own_initialisation() -> None:
    data = random_data()
    for model, build in (
        (batch_norm, batch_norm),
        (lambda input_shape, num_classes: ResNet(input_shape, num_classes, depth=8), lambda: ResNet((1, 4, 4), 3, 8)),
    ):
        torch.manual_seed(11)
        expected_P = parameters_to_vector(build().parameters())
        landscape = NetworkLandscape(model, data)
        assert torch.equal(landscape.initial(11), expected_P)
        assert not torch.equal(landscape.initial(12), expected_P)


def test_initial_points_of_a_module_reset_its_layers() -> None:
    module = batch_norm()
    landscape = NetworkLandscape(module, random_data())
    given_P = landscape.point(module)
    expected = deepcopy(module)
    torch.manual_seed(11)
    for part in expected:
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert torch.equal(landscape.initial(11), parameters_to_vector(expected.parameters()))
    assert not torch.equal(landscape.initial(11), given_P)
    assert torch.equal(landscape.point(module), given_P)


class NoReset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.scale


def test_initial_points_need_reset_parameters() -> None:
    landscape = NetworkLandscape(NoReset(), random_data())
    with pytest.raises(LowlossError, match=r"NoReset .*reset_parameters"):
        landscape.initial(0)
    # A function draws them instead.
    assert NetworkLandscape(NoReset, random_data()).initial(0).tolist() == [1.0] * 48


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x.flatten(1)), x


def mixed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3).double())


class Wordless(nn.Linear):
    """Fails in one mode, without a word."""

    def __init__(self, fails_in_training: bool) -> None:
        super().__init__(16, 3)
        self.fails_in_training = fails_in_training

    def forward(self, x: Tensor) -> Tensor:
        if self.training == self.fails_in_training:
            raise AssertionError
        return super().forward(x.flatten(1))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), "3 classes"),
        (nn.Linear(4, 3), "outputs of shape"),
        (nn.Sequential(nn.Flatten(), nn.Linear(15, 3)), r"rejects inputs of shape \(1, 4, 4\)"),
        (nn.Sequential(nn.BatchNorm1d(16), nn.Flatten(), nn.Linear(16, 3)), r"rejects inputs of shape \(1, 4, 4\)"),
        (Wordless(False), r"Wordless rejects inputs of shape \(1, 4, 4\): AssertionError"),
        (Wordless(True), "Wordless fails in training mode: AssertionError"),
        (Pair(16, 3), "Pair returns a tuple"),
        (mixed(), r"float32, torch\.float64"),
        (nn.Flatten(), "no trainable parameters"),
        (frozen().requires_grad_(False), "no trainable parameters"),
    ],
)
def test_modules_that_do_not_fit_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(LowlossError, match=message):
        NetworkLandscape(module, random_data())


def test_batch_norm_needs_two_samples() -> None:
    with pytest.raises(LowlossError, match="BatchNorm"):
        NetworkLandscape(batch_norm(), random_data()).batches(1, [1], shared=True)
    assert NetworkLandscape(with_dropout(), random_data()).batches(1, [1], shared=True)[0].y.shape == (1,)


def test_a_factory_learns_the_datas_shape_and_its_errors_are_reported() -> None:
    landscape = NetworkLandscape(MLP, random_data())
    assert landscape.dim == 16 * 256 + 256 + 256 * 3 + 3
    with pytest.raises(LowlossError, match=r"model: .*poolings"):
        NetworkLandscape(lambda input_shape, num_classes: CNN(input_shape, num_classes, depth=3), random_data())


def test_landscapes_of_different_precision_share_a_data_set() -> None:
    data = random_data()
    single = NetworkLandscape(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), data)
    before = single.evaluate(single.initial(0)[None])["loss"]
    double = NetworkLandscape(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), data)
    assert torch.equal(single.evaluate(single.initial(0)[None])["loss"], before)
    torch.testing.assert_close(double.evaluate(single.initial(0)[None].double())["loss"], before, rtol=1e-5, atol=0)


def test_points_are_rows_of_a_matrix_of_the_right_width() -> None:
    landscape = NetworkLandscape(batch_norm(), random_data())
    batch = landscape.batches(8, [1], shared=True)[0]
    for wrong in (landscape.initial(0), torch.zeros(2, landscape.dim + 1)):
        with pytest.raises(ValueError, match="rows of a K"):
            landscape.losses(wrong, batch)
        with pytest.raises(ValueError, match="rows of a K"):
            landscape.evaluate(wrong)
    with pytest.raises(ValueError, match="minibatch"):
        landscape.losses(landscape.initial(0)[None], None)


def test_layout_of_a_small_network() -> None:
    layout = Layout.of(nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)))
    assert layout.names == ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    assert layout.sizes == [8, 2, 2, 2, 24, 3]
    assert layout.dim == 41
    theta_P = torch.arange(41.0)
    views = layout.views(theta_P)
    assert views["0.weight"].tolist() == [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]]
    assert views["1.bias"].tolist() == [12, 13]
    assert torch.equal(layout.flatten(views), theta_P)
    filters, layers = layout.filters(theta_P), layout.layers(theta_P)
    assert filters["0.weight"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert filters["3.weight"].tolist() == torch.arange(14.0, 38.0).view(3, 8).tolist()
    assert layers["3.weight"].tolist() == [list(range(14, 38))]
    assert set(filters) == set(layers) == {"0.weight", "3.weight"}
    views["3.bias"].fill_(-1)
    filters["0.weight"][1].fill_(-2)
    layers["3.weight"].zero_()
    assert theta_P.tolist() == [0, 1, 2, 3, -2, -2, -2, -2, 8, 9, 10, 11, 12, 13, *[0] * 24, -1, -1, -1]


def test_instance_norm_that_evaluates_otherwise_is_refused() -> None:
    module = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(), nn.Linear(16, 2))
    x, y = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    with pytest.raises(LowlossError, match="InstanceNorm"):
        NetworkLandscape(module, Data(x, y, x, y))
