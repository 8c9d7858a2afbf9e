"""What the API is called with and cannot take is told in one line that names the remedy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowloss import (
    FGE,
    NEB,
    AutoNEB,
    BezierCurve,
    Data,
    Line,
    LowlossError,
    MullerBrown,
    NetworkLandscape,
    Regression,
    Tunnel,
    find_path,
    train_minima,
)

X_ND, Y_N = torch.randn(20, 2), torch.arange(20) % 2
NET = NetworkLandscape(nn.Linear(2, 2), Data(X_ND, Y_N, X_ND, Y_N))
A_P, B_P = torch.randn(2, NET.dim)

# A call, and what is told of it.
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "endless": (lambda: train_minima(NET, epochs=float("inf")), "epochs must be a finite number, got inf"),
    "epochs": (lambda: train_minima(NET, epochs="3"), "epochs must be float, got '3'"),  # type: ignore[arg-type]
    "count": (lambda: train_minima(NET, count="3"), "count must be int, got '3'"),  # type: ignore[arg-type]
    "steps": (lambda: BezierCurve(steps="5"), "steps must be int, got '5'"),  # type: ignore[arg-type]
    "bends": (lambda: BezierCurve(bends=1.5), r"bends must be int, got 1\.5"),  # type: ignore[arg-type]
    "pivots": (lambda: AutoNEB(pivots="5"), "pivots must be int, got '5'"),  # type: ignore[arg-type]
    "spring": (lambda: NEB(spring_constant="1"), "spring_constant must be float or null, got '1'"),  # type: ignore[arg-type]
    "tunnel": (lambda: Tunnel(steps="5"), "steps must be int, got '5'"),  # type: ignore[arg-type]
    "members": (lambda: FGE(members="5"), "members must be a whole number"),  # type: ignore[arg-type]
    "sizes": (lambda: find_path(NET, A_P, B_P[1:], Line()), r"a tensor of 6 finite numbers, got torch\.float32 \(5,\)"),
    "both": (
        lambda: find_path(NET, A_P[1:], B_P[1:], Line()),
        r"a tensor of 6 finite numbers, got torch\.float32 \(5,\)",
    ),
    "lists": (lambda: find_path(NET, A_P.tolist(), B_P, Line()), "an end of a path is a tensor of 6 .* got list"),  # type: ignore[arg-type]
    "nan": (lambda: find_path(NET, A_P * np.nan, B_P, Line()), "an end of a path is a tensor of 6 finite numbers"),
    "wide": (lambda: NET.evaluate(A_P[None].double()), r"of torch\.float32, got torch\.float64: take them \.to\("),
    "whole": (lambda: NET.evaluate(A_P[None].long()), r"points are of torch\.float32, got torch\.int64"),
    "flat": (lambda: NET.evaluate(A_P), r"rows of a K × 6 matrix, got \(6,\)"),
    "array": (lambda: NET.evaluate(A_P[None].numpy()), "rows of a K × 6 matrix, got ndarray"),  # type: ignore[arg-type]
    "surface": (lambda: MullerBrown().evaluate(A_P[None]), r"rows of a K × 2 matrix, got \(1, 6\)"),
    "complex": (lambda: MullerBrown().losses(torch.zeros(1, 2).cfloat()), r"got torch\.complex64"),
    "complex x": (lambda: Data(X_ND.cfloat(), Y_N, X_ND, Y_N), "train split .* real numbers, got complex ones"),
    "complex y": (
        lambda: Data(X_ND, X_ND, X_ND, X_ND.cfloat(), task=Regression()),
        "complex ones: torch.view_as_real",
    ),
    "arrays": (lambda: Data(X_ND.numpy(), Y_N, X_ND, Y_N), "got ndarray: torch.as_tensor makes one"),  # type: ignore[arg-type]
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_told_in_a_line(case: str) -> None:
    call, told = WRONG[case]
    with pytest.raises((LowlossError, ValueError), match=told) as raised:
        call()
    assert "\n" not in str(raised.value)
