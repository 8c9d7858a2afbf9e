"""The curvature that a plane shows along a direction, beside the Hessian's."""

import pytest
import torch
from torch import Tensor, nn

from lowloss import Data, NetworkLandscape
from lowloss.landscape import AnalyticSurface
from lowloss.measure import Directional


class Quartic(AnalyticSurface):
    """theta^T A theta / 2 + sum theta^4, whose second differences are known in closed form."""

    dim = 3
    A_PP = torch.tensor([[2.0, 1.0, 0.0], [1.0, -3.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)

    def energy(self, theta_KP: Tensor) -> Tensor:
        return 0.5 * ((theta_KP @ self.A_PP) * theta_KP).sum(1) + (theta_KP**4).sum(1)


def test_on_a_surface_both_are_what_algebra_gives() -> None:
    delta_DP = torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    theta_KP = torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.2, 1.0]], dtype=torch.float64)
    found = Directional(delta_DP, [0.5, 0.1])(Quartic(), theta_KP)
    for k, theta_P in enumerate(theta_KP):
        for d, (delta_P, h) in enumerate(zip(delta_DP, (0.5, 0.1), strict=True)):
            hessian = float(delta_P @ (Quartic.A_PP + 12 * torch.diag(theta_P**2)) @ delta_P)
            assert float(found["hessian"][k, d]) == pytest.approx(hessian)
            # A fourth power adds 2 h^2 delta^4 to the second difference.
            assert float(found["shown"][k, d]) == pytest.approx(hessian + 2 * h**2 * float((delta_P**4).sum()))


def test_of_a_smooth_network_the_plane_shows_the_hessian() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=generator, dtype=torch.float64), torch.arange(40) % 3
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    landscape = NetworkLandscape(model, Data(x, y, x[:6], y[:6]), evaluation_batch=40)
    theta_P = landscape.initial(0)
    delta_DP = torch.randn(2, landscape.dim, generator=generator, dtype=torch.float64)
    statistics = landscape.statistics(theta_P)
    errors = []
    for h in (0.004, 0.002):
        found = Directional(delta_DP, [h, h], lambda at_KP: [statistics] * len(at_KP))(landscape, theta_P[None])
        errors.append((found["shown"] - found["hessian"])[0])
    # The difference is of second order in the spacing, so that half of it leaves a quarter.
    torch.testing.assert_close(errors[1] / errors[0], torch.full((2,), 0.25, dtype=torch.float64), rtol=0.01, atol=0)
    assert float(errors[1].abs().max()) < 1e-2 * float(found["hessian"].abs().max())
    # The statistics of each of the three points in turn would show something else.
    recomputed = torch.stack([theta_P + s * 0.002 * delta_DP[0] for s in (-1, 0, 1)])
    low, here, high = landscape.evaluate(recomputed)["loss"].tolist()
    assert abs((low - 2 * here + high) / 0.002**2 - float(found["shown"][0, 0])) > 1e-2
