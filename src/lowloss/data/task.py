"""What a network's outputs mean: the loss of a sample, the metrics of a split, and how an ensemble averages.

Shapes: B samples, C classes, M members of an ensemble, S scored items (a sample, or each of its tokens), K points,
N samples of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lowloss.errors import LowlossError

PADDING = -100
"""The target of a token that is not scored, as torch's cross-entropy has it."""


class Task:
    """A loss and the metrics that go with it. A task of one's own writes `losses`, and what else differs.

    Attributes:
        units: of every metric, `loss` first, in the order of tables. "fraction" is shown in per cent.
    """

    units: ClassVar[Mapping[str, str]] = {"loss": ""}

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each sample (B,), differentiable."""
        raise NotImplementedError

    def mean_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The mean of `losses`, which a task may know to compute faster."""
        return self.losses(outputs, y).mean()

    def columns(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The metrics of each scored item (S,); a split's value is their mean. Outputs are float64."""
        return {"loss": self.losses(outputs, y)}

    def scored(self, y: Tensor) -> int:
        """How many items `columns` scores."""
        return len(y)

    def finish(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The metrics of a split, by the names of `units`, from the means of `columns`."""
        return means

    def details(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """What is kept of each sample (B,) where details are asked for. Outputs are float64."""
        return {}

    def summarise(self, details: dict[str, Tensor], y_N: Tensor) -> dict[str, Tensor]:
        """Columns with K first, from the details (K, N) of a whole split."""
        return details

    def together(self, outputs_M: Sequence[Tensor]) -> Iterator[Tensor]:
        """The outputs of the first 1, 2, … M members as one ensemble, in float64: here their mean."""
        total = torch.zeros_like(outputs_M[0], dtype=torch.float64)
        for m, outputs in enumerate(outputs_M, start=1):
            total = total + outputs.double()
            yield total / m

    def logits(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """The logits (S, C) and classes (S,) of what is scored; None where outputs are no logits of classes."""
        return None

    def check(self, outputs: Tensor, y: Tensor, name: str) -> None:
        """Raise LowlossError where a network's outputs for a few samples do not fit their targets."""


class Sums:
    """The sums of a task's columns over the chunks of a split, in float64; outputs come as float64."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, outputs: Tensor, y: Tensor) -> None:
        """Add a chunk."""
        for name, column_S in self.task.columns(outputs, y).items():
            self.sums[name] = self.sums.get(name, 0) + column_S.sum(dtype=torch.float64)
            self.counts[name] = self.counts.get(name, 0) + len(column_S)

    def metrics(self) -> dict[str, Tensor]:
        """The metrics of all that was added."""
        return self.task.finish({name: total / self.counts[name] for name, total in self.sums.items()})


class _Logits(Task):
    """Of outputs that are logits of classes, on the last axis; an ensemble averages probabilities.

    Args:
        num_classes: C, the number of classes: of outputs, or the size of the vocabulary.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def together(self, outputs_M: Sequence[Tensor]) -> Iterator[Tensor]:
        # In logarithms, so that no probability underflows.
        total = torch.full_like(outputs_M[0], -torch.inf, dtype=torch.float64)
        for m, outputs in enumerate(outputs_M, start=1):
            total = torch.logaddexp(total, outputs.double().log_softmax(-1))
            yield total - log(m)


class Classification(_Logits):
    """Cross-entropy in nats, and the fraction of misclassified samples."""

    units: ClassVar[Mapping[str, str]] = {"loss": "nats", "error": "fraction"}

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(outputs, y, reduction="none")

    def mean_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(outputs, y)

    def columns(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": self.losses(outputs, y), "error": (outputs.argmax(1) != y).double()}

    def details(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        confidence_B, predicted_B = outputs.softmax(1).max(1)
        return {"confidence": confidence_B, "wrong": predicted_B != y, "label": predicted_B.int()}

    def summarise(self, details: dict[str, Tensor], y_N: Tensor) -> dict[str, Tensor]:
        """Columns of predictions; confidence is the probability of the predicted class.

        confidence (K,): its mean.  class_error, class_confidence (K, C): over the samples of each class, NaN for a
        class without any.  wrong (K, N): whether a sample is misclassified.  label (K, N): the predicted class.
        """
        confidence_KN, wrong_KN = details["confidence"], details["wrong"]
        member_NC = one_hot(y_N, self.num_classes).double()
        size_C = member_NC.sum(0)
        return {
            "confidence": confidence_KN.mean(1),
            "class_error": wrong_KN.double() @ member_NC / size_C,
            "class_confidence": confidence_KN @ member_NC / size_C,
            "wrong": wrong_KN,
            "label": details["label"],
        }

    def logits(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        return outputs, y

    def check(self, outputs: Tensor, y: Tensor, name: str) -> None:
        if tuple(outputs.shape) != (len(y), self.num_classes):
            raise LowlossError(
                f"{name} gives outputs of shape {tuple(outputs.shape[1:])} for {self.num_classes} classes: "
                f"set its number of outputs (often model.num_classes={self.num_classes})"
            )


class LanguageModel(_Logits):
    """Cross-entropy of the next token in nats a token, and perplexity, its exponential.

    Outputs are (B, T, C) for targets (B, T) of T tokens. A target of -100 is padding, which is not scored.
    """

    units: ClassVar[Mapping[str, str]] = {"loss": "nats a token", "perplexity": ""}

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        loss_BT = cross_entropy(outputs.transpose(1, 2), y, reduction="none", ignore_index=PADDING)
        return loss_BT.sum(1) / (y != PADDING).sum(1).clamp_min(1)

    def columns(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        scored = y != PADDING
        return {"loss": cross_entropy(outputs[scored], y[scored], reduction="none")}

    def scored(self, y: Tensor) -> int:
        return int((y != PADDING).sum())

    def finish(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**means, "perplexity": means["loss"].exp()}

    def logits(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        scored = y != PADDING
        return outputs[scored], y[scored]

    def check(self, outputs: Tensor, y: Tensor, name: str) -> None:
        if tuple(outputs.shape) != (*y.shape, self.num_classes):
            raise LowlossError(
                f"{name} gives outputs of shape {tuple(outputs.shape[1:])}, where a language model gives "
                f"(tokens, vocabulary): {(*y.shape[1:], self.num_classes)}"
            )


class Regression(Task):
    """Mean squared error over the outputs of a sample; an ensemble averages outputs.

    Args:
        scale: what the error is divided by: 1, or with the variance of the targets the normalised error, of which
            predicting the mean has the value 1. See `normalised`.
    """

    units: ClassVar[Mapping[str, str]] = {"loss": "squared error"}

    def __init__(self, scale: float = 1.0) -> None:
        if not scale > 0:
            raise LowlossError(f"a regression's scale must be positive, got {scale}: do its targets vary?")
        self.scale = scale

    @classmethod
    def normalised(cls, y_N: Tensor) -> Regression:
        """The task whose error is divided by the mean variance of these targets."""
        return cls(float(y_N.double().var(0, correction=0).mean()))

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y.to(outputs.dtype)).square().reshape(len(outputs), -1).mean(1) / self.scale

    def check(self, outputs: Tensor, y: Tensor, name: str) -> None:
        if outputs.shape != y.shape:
            shapes = f"{tuple(outputs.shape[1:])} for targets of shape {tuple(y.shape[1:])}"
            raise LowlossError(f"{name} gives outputs of shape {shapes}: let them be the same")
