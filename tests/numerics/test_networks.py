"""Networks of torchvision, and all that are shipped, against plain torch: losses, gradients and exact values at two
points, in either order."""

from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
import torchvision.models as zoo
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowloss import Data, LanguageModel, NetworkLandscape
from lowloss.conf import config_folder

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "squeezenet": partial(zoo.squeezenet1_1, dropout=0.0),
    "mobilenet_v2": partial(zoo.mobilenet_v2, dropout=0.0, width_mult=0.25),
    "mobilenet_v3": partial(zoo.mobilenet_v3_small, dropout=0.0),
    "shufflenet": zoo.shufflenet_v2_x0_5,
    "mnasnet": partial(zoo.mnasnet0_5, dropout=0.0),
    "resnet": partial(zoo.ResNet, zoo.resnet.BasicBlock, [1, 1, 1, 1]),
    "regnet": zoo.regnet_x_400mf,
    "densenet": partial(zoo.DenseNet, 8, (2, 2, 2, 2), 16),
    "convnext": partial(
        zoo.ConvNeXt, [zoo.convnext.CNBlockConfig(8, 16, 1), zoo.convnext.CNBlockConfig(16, None, 1)],
    ),
    "transformer": partial(zoo.VisionTransformer, 32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32),
}  # fmt: skip


SHIPPED = sorted(file.stem for file in (config_folder() / "model").glob("*.yaml"))


def shipped(name: str) -> tuple[Callable[..., nn.Module], int]:
    """A network of conf/model, as small as scale=tiny makes it, and the size of the images that it takes then."""
    node = yaml.safe_load((config_folder() / "model" / f"{name}.yaml").read_text())
    small = config_folder() / "small" / f"tiny_{name}.yaml"
    changed = yaml.safe_load(small.read_text()) if small.exists() else {}
    settings: dict[str, Any] = node | changed.get("model", {})
    target = resolve_name(settings.pop("_target_"))
    settings.pop("num_classes", None)
    return partial(target, **settings), changed.get("data", {}).get("size", 8)


def cross(module: nn.Module, split: tuple[Any, Tensor]) -> Tensor:
    """The mean cross-entropy of a module's outputs, without the state that a recurrent one hands on."""
    x, y = split
    outputs = module(x)
    return cross_entropy((outputs[0] if isinstance(outputs, tuple) else outputs).flatten(0, -2), y.flatten())


def plain(landscape: NetworkLandscape, module: nn.Module, theta_P: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss and gradient of a step on the whole training split, whose seed is 0, and the exact losses of both splits."""
    data = landscape.data
    nn.utils.vector_to_parameters(theta_P, module.parameters())
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_running_stats()
            part.momentum = None  # the statistics of the one pass that follows
    torch.manual_seed(0)
    loss = cross(module.train(), data.split("train"))
    gradient_P = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
    module.eval()
    with torch.no_grad():
        exact = [cross(module, data.split(split)) for split in ("train", "test")]
    return loss.detach(), gradient_P, exact


@pytest.mark.parametrize("name", NETWORKS)
def test_a_point_is_what_plain_torch_gives(name: str) -> None:
    x_ND, y_N = torch.randn(14, 3, 32, 32), torch.arange(14) % 5
    build = lambda: NETWORKS[name](num_classes=5).double()  # noqa: E731
    check(build, Data(x_ND[:8], y_N[:8], x_ND[8:], y_N[8:]))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_point_of_a_network_that_is_shipped_is_what_plain_torch_gives(name: str) -> None:
    make, size = shipped(name)
    if name.startswith("lstm"):
        x_NT = torch.arange(14 * 6).reshape(14, 6).square() % 7
        data = Data(x_NT[:8, :-1], x_NT[:8, 1:], x_NT[8:, :-1], x_NT[8:, 1:], task=LanguageModel(7))
        check(lambda: make(num_classes=7).double(), data)
        return
    x_ND, y_N = torch.randn(14, 3, size, size), torch.arange(14) % 5
    shape = {} if name == "torchvision" else {"input_shape": (3, size, size)}
    check(lambda: make(num_classes=5, **shape).double(), Data(x_ND[:8], y_N[:8], x_ND[8:], y_N[8:]))


def check(build: Callable[[], nn.Module], data: Data) -> None:
    landscape = NetworkLandscape(build, data, evaluation_batch=8)
    theta_2P = torch.stack([landscape.initial(seed) for seed in (0, 1)])
    module = build()
    expected = [plain(landscape, module, theta_P) for theta_P in theta_2P]
    batch = landscape.subset("train", 8, seed=0)
    for order in ([0, 1], [1, 0]):
        there_2P = theta_2P[order].requires_grad_()
        losses_2 = landscape.losses(there_2P, batch)
        (gradient_2P,) = torch.autograd.grad(losses_2.sum(), there_2P)
        exact = [landscape.evaluate(theta_2P[order], split)["loss"] for split in ("train", "test")]
        for row, k in enumerate(order):
            loss, gradient_P, (train, test) = expected[k]
            assert losses_2[row].item() == pytest.approx(loss.item(), rel=1e-9)
            torch.testing.assert_close(gradient_2P[row], gradient_P, rtol=1e-7, atol=1e-10)
            assert exact[0][row].item() == pytest.approx(train.item(), rel=1e-9)
            assert exact[1][row].item() == pytest.approx(test.item(), rel=1e-9)
    loss = cross(landscape.module(theta_2P[0]), landscape.data.split("test"))
    assert loss.item() == pytest.approx(expected[0][2][1].item(), rel=1e-9)
