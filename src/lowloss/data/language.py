"""Text as a stream of tokens, for language models.

Shapes: S parallel streams, W windows of T tokens, L = W T tokens of a stream, N = W S rows of a split, K points.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowloss.checking import Count
from lowloss.data.base import Batch, Batches, Carry, Data
from lowloss.data.task import PADDING, LanguageModel
from lowloss.errors import LowlossError, check_number

SPLITS = ("train", "valid", "test")


class Text(Data):
    """Splits of text, each a stream of tokens that is cut into parallel streams and these into windows.

    Row w S + s of a split is window w of stream s, so that row i + S continues row i. The target of a token is the
    next one, and every token but a split's first is a target once; the ends of streams are filled up with padding.

    Args:
        tokens: of each split (n,), by name, with train and test among them.
        vocabulary: the tokens' names.
        steps: T.
        streams: S, in evaluation.
        carry: whether training goes through the text in its order, a state handed on from each minibatch to the next,
            or takes its windows in random order, each with a fresh state.
    """

    def __init__(
        self, tokens: dict[str, Tensor], vocabulary: Sequence[str], steps: int, streams: int, carry: bool
    ) -> None:
        rows = {name: rows_of(tokens_n, steps, streams) for name, tokens_n in tokens.items()}
        train, test = rows.pop("train"), rows.pop("test")
        super().__init__(*train, *test, task=LanguageModel(len(vocabulary)), more=rows, streams=streams)
        self.vocabulary, self.steps, self.carry = tuple(vocabulary), steps, carry

    def batches(self, size: int | None, seeds: Sequence[int], shared: bool) -> Batches:
        """Minibatches of `size` windows, of which none is padded; see `Carried` for those that hand on a state.

        Where points share them, a step has several calls, and every one begins with a fresh state.
        """
        if self.carry and not shared and size is not None:
            return Carried(self, size, seeds)
        windows = len(self.stream()[1]) // self.steps
        if windows == 0:
            raise LowlossError(f"the training text has no window of {self.steps} tokens: lower data.steps")
        x_WT, y_WT = (stream[: windows * self.steps].view(windows, -1) for stream in self.stream())
        other = copy.copy(self)
        other._splits = {**self._splits, "train": (x_WT, y_WT)}
        return Windows(self, other, size, seeds[:1] if shared else seeds, shared)

    def stream(self) -> tuple[Tensor, Tensor]:
        """The training split's tokens and the one that follows each (n,)."""
        assert self.streams is not None
        x, y = (
            rows.view(-1, self.streams, self.steps).transpose(0, 1).flatten()
            for rows in (self.x_train[:], self.y_train)
        )
        return x[y != PADDING], y[y != PADDING]


class Windows(Batches):
    """Minibatches of windows in random order, on the device of the text.

    Args:
        text: where the windows were cut from.
        data: the windows, as rows of its training split.
    """

    def __init__(self, text: Text, data: Data, size: int | None, seeds: Sequence[int], shared: bool) -> None:
        super().__init__(data, size, seeds, shared)
        self.text = text

    def __getitem__(self, step: int, /) -> Batch:
        batch = super().__getitem__(step)
        return batch._replace(x=batch.x.to(self.text.device), y=batch.y.to(self.text.device))


class Carried(Batches):
    """Minibatches that go through the text in its order: each row of one continues the same row of the last.

    The text is cut into `size` streams of equal length, of which every minibatch has the next window; what is left
    over at the ends is not seen. All points see the same, each with its own states, which begin afresh in each epoch.
    Steps are thus asked for one after the other.
    """

    def __init__(self, data: Text, size: int, seeds: Sequence[int]) -> None:
        super().__init__(data, size, seeds, shared=False)
        x, y = data.stream()
        self.size, self.window = size, data.steps
        self.steps_per_epoch = len(y) // size // data.steps
        if self.steps_per_epoch == 0:
            raise LowlossError(
                f"the training text has {len(y)} tokens to predict, fewer than batch_size={size} windows of "
                f"{data.steps}: lower one of them"
            )
        self._x_BL, self._y_BL = (stream[: len(y) // size * size].view(size, -1) for stream in (x, y))
        self.carry = Carry(len(self.seeds))

    def __getitem__(self, step: int, /) -> Batch:
        i, device = step % self.steps_per_epoch, self.data.device
        # States from a checkpoint come on the CPU.
        self.carry.states = [None if i == 0 else _moved(row, device) for row in self.carry.states]
        x_BT, y_BT = (t[:, i * self.window : (i + 1) * self.window].to(device) for t in (self._x_BL, self._y_BL))
        return Batch(x_BT, y_BT, self.seeds_at(step), carry=self.carry)

    def state_dict(self) -> dict[str, Any]:
        """The states after the last step, a row each."""
        return {"states": self.carry.states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.carry.states = list(state["states"])


def _moved(state: Any, device: torch.device) -> Any:
    if isinstance(state, Tensor):
        return state.to(device)
    return tuple(_moved(part, device) for part in state) if isinstance(state, tuple) else state


def rows_of(tokens_n: Tensor, steps: int, streams: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (N, T) of a stream of tokens, as `Text` describes them."""
    length = -(-(len(tokens_n) - 1) // streams)
    windows = -(-length // steps)

    def cut(t: Tensor, fill: int) -> Tensor:
        t_SL = torch.nn.functional.pad(t, (0, streams * length - len(t)), value=fill).view(streams, length)
        t_SL = torch.nn.functional.pad(t_SL, (0, windows * steps - length), value=fill)
        return t_SL.view(streams, windows, steps).transpose(0, 1).reshape(-1, steps)

    return cut(tokens_n[:-1], 0), cut(tokens_n[1:], PADDING)


def text(
    path: str,
    steps: Count = 35,
    streams: Count = 20,
    vocabulary: str = "word",
    carry: bool = False,
    limit: Count | None = None,
) -> Data:
    """A language model's data: the next word, or character, of a text. Its splits are train, test and valid.

    The vocabulary is the training split's, the most frequent first. Words are what white space parts, and the end of
    a line is the word <eos>; a word that the training split lacks is <unk>, if it has that.

    Args:
        path: a folder of *train*.txt, *valid*.txt and *test*.txt, such as the Penn Treebank's ptb.train.txt, or one
            .txt file, of which 90, 5 and 5 % become these.
        steps: tokens a window.
        streams: parallel streams in evaluation.
        vocabulary: word or char.
        carry: whether a recurrent network's state is handed from one minibatch of training to the next.
        limit: only the first so many tokens of each split are used; the vocabulary stays that of the whole.

    Raises LowlossError: a file is missing or too short, or has a token that the training split lacks.
    """
    for key, value in (("steps", steps), ("streams", streams), ("limit", 2 if limit is None else limit)):
        check_number(f"data.{key}", value, int, 2 if key == "limit" else 1)
    if vocabulary not in ("word", "char"):
        raise LowlossError(f"data.vocabulary must be word or char, got {vocabulary!r}")
    splits = _splits(Path(path), vocabulary)
    for name, tokens in splits.items():
        if len(tokens) < 2:
            raise LowlossError(f"{path}: the {name} split has no two tokens: give a longer text")
    counts = Counter(splits["train"])
    known = sorted(counts, key=lambda token: (-counts[token], token))
    number = {token: i for i, token in enumerate(known)}
    numbers = {name: _numbers(tokens[:limit], number, f"{path}: the {name} split") for name, tokens in splits.items()}
    return Text(numbers, known, steps, streams, carry)


def _numbers(tokens: Sequence[str], number: dict[str, int], what: str) -> Tensor:
    unknown = number.get("<unk>")
    numbers = [number.get(token, unknown) for token in tokens]
    if None in numbers:
        raise LowlossError(
            f"{what} has {tokens[numbers.index(None)]!r}, which the training split lacks: let both have <unk> instead "
            "of rare tokens"
        )
    return torch.tensor(numbers)


def _splits(path: Path, vocabulary: str) -> dict[str, Sequence[str]]:
    """The tokens of each split."""
    if path.is_file():
        tokens = _tokens(path, vocabulary)
        first, second = len(tokens) * 90 // 100, len(tokens) * 95 // 100
        parts = (tokens[:first], tokens[first:second], tokens[second:])
        return dict(zip(SPLITS, parts, strict=True))
    if not path.is_dir():
        raise LowlossError(f"{path} does not exist: set data.path to a .txt file, or a folder of them")
    found = {name: sorted(path.glob(f"*{name}*.txt")) for name in SPLITS}
    for name, files in found.items():
        if len(files) != 1:
            number = f"{len(files)} files" if files else "no file"
            raise LowlossError(f"{path} has {number} *{name}*.txt: let it have one for each of {', '.join(SPLITS)}")
    return {name: _tokens(file, vocabulary) for name, (file,) in found.items()}


def _tokens(file: Path, vocabulary: str) -> Sequence[str]:
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LowlossError(f"{file} cannot be read as UTF-8 text: {error}") from error
    return content.replace("\n", " <eos> ").split() if vocabulary == "word" else content
