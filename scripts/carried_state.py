"""How much a recurrent network's state, handed on from window to window, lowers the perplexity of a text.

python scripts/carried_state.py TEXT [KEY=VALUE ...]

TEXT is a folder such as the Penn Treebank's, or a .txt file, as data=text reads it. Two LSTMs are trained on it from
the same initial point, one on windows in random order and one with carry; both are evaluated with the state carried
and with a fresh state for every window. Keys are those of data=text, and width, epochs and batch_size.
"""

from __future__ import annotations

import ast
import sys
from functools import partial

import torch
from torch import Tensor, nn

import lowloss
from lowloss.data import text
from lowloss.schedule import Cosine


class LSTM(nn.Module):
    """One layer; with the state of the window before it gives the outputs and its own state."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, width)
        self.recur = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, state = self.recur(self.embed(x), state)
        return self.head(h), state


def main(path: str, *settings: str) -> None:
    given = {"width": 128, "epochs": 4, "batch_size": 20}
    options = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        value = ast.literal_eval(value) if value[:1].isdigit() else value
        (given if key in given else options)[key] = value
    model = partial(LSTM, width=given["width"])
    adam = partial(torch.optim.Adam, lr=0.003)
    print(
        "| trained with | state carried: test perplexity | fresh state a window: test perplexity |\n| --- | --- | --- |"
    )
    for carry in (False, True):
        data = text(path, carry=carry, **options)
        landscape = lowloss.NetworkLandscape(model, data)
        theta_KP = lowloss.train_minima(
            landscape, 1, given["epochs"], given["batch_size"], optimizer=adam, schedule=Cosine()
        ).theta_KP
        # The same windows as rows of their own, and not as parallel streams.
        apart = lowloss.Data(*data.split("train"), *data.split("test"), task=data.task)
        found = [
            float(seen.evaluate(theta_KP, "test")["perplexity"])
            for seen in (landscape, lowloss.NetworkLandscape(model, apart))
        ]
        print(f"| carry={str(carry).lower()} | {found[0]:.4g} | {found[1]:.4g} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
