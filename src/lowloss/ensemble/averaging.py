"""The prediction of an ensemble: the mean of its members' probabilities.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor


def ensemble_curve(logits_MNC: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """Error (fraction) and negative log-likelihood (nats) of the first 1, 2, … M members together.

    Probabilities are averaged, not logits. Returns two float64 tensors (M,).
    """
    log_probability_MNC, y_N = logits_MNC.double().log_softmax(2), y_N.to(logits_MNC.device)
    members = len(log_probability_MNC)
    error_M, nll_M = torch.empty(members, dtype=torch.float64), torch.empty(members, dtype=torch.float64)
    total_NC = torch.full_like(log_probability_MNC[0], -torch.inf)
    for m, member_NC in enumerate(log_probability_MNC):
        total_NC = torch.logaddexp(total_NC, member_NC)
        error_M[m] = (total_NC.argmax(1) != y_N).double().mean()
        # log of a mean of probabilities, kept in logarithms so that no probability underflows.
        nll_M[m] = -(total_NC.gather(1, y_N[:, None]) - log(m + 1)).mean()
    return error_M, nll_M
