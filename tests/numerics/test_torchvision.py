"""Networks of torchvision against plain torch: losses, gradients and exact values at two points, in either order."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowloss import Data, NetworkLandscape

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


def plain(landscape: NetworkLandscape, module: nn.Module, theta_P: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss and gradient of a step on the whole training split, and the exact losses of both splits."""
    data = landscape.data
    nn.utils.vector_to_parameters(theta_P, module.parameters())
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # the statistics of the one pass that follows
    loss = cross_entropy(module.train()(data.x_train), data.y_train)
    gradient_P = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
    module.eval()
    with torch.no_grad():
        exact = [cross_entropy(module(data.split(split)[0]), data.split(split)[1]) for split in ("train", "test")]
    return loss.detach(), gradient_P, exact


@pytest.mark.parametrize("name", NETWORKS)
def test_a_point_is_what_plain_torch_gives(name: str) -> None:
    x_ND, y_N = torch.randn(14, 3, 32, 32), torch.arange(14) % 5
    build = lambda: NETWORKS[name](num_classes=5).double()  # noqa: E731
    landscape = NetworkLandscape(build, Data(x_ND[:8], y_N[:8], x_ND[8:], y_N[8:]), evaluation_batch=8)
    theta_2P = torch.stack([landscape.initial(seed) for seed in (0, 1)])
    module = build()
    expected = [plain(landscape, module, theta_P) for theta_P in theta_2P]
    batch = landscape.batches(None, (0,), shared=True)[0]
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
    x_ND, y_N = landscape.data.split("test")
    loss = cross_entropy(landscape.module(theta_2P[0])(x_ND), y_N)
    assert loss.item() == pytest.approx(expected[0][2][1].item(), rel=1e-9)
