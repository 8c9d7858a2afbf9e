"""Recurrent networks for text.

Shapes: B rows, T tokens, C words.
"""

from typing import Any

from torch import Tensor, nn

from lowloss.checking import Few, Fraction, Positive, Width


class LSTM(nn.Module):
    """The language model of TensorFlow's Penn Treebank tutorial, after Zaremba et al. 2014.

    Dropout acts between layers, before the first and after the last, never along time. Every parameter begins uniform.

    Args:
        width: units of the embedding and of each layer.
        layers: of LSTM.
        dropout: probability.
        span: parameters begin uniform in -span … span.
    """

    def __init__(
        self, num_classes: int, width: Width = 650, layers: Few = 2, dropout: Fraction = 0.5, span: Positive = 0.05
    ) -> None:
        super().__init__()
        self.embed, self.dropout = nn.Embedding(num_classes, width), nn.Dropout(dropout)
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(layers))
        self.head = nn.Linear(width, num_classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -span, span)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Outputs (B, T, C) for tokens (B, T), and the state to continue from."""
        hidden, states = self.dropout(self.embed(x)), []
        for layer, before in zip(self.layers, state or [None] * len(self.layers), strict=True):
            hidden, after = layer(hidden, before)
            hidden = self.dropout(hidden)
            states.append(after)
        return self.head(hidden), tuple(states)
