"""Text: what is predicted from what, in evaluation and in training, and the states that are handed on."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowloss import LowlossError, NetworkLandscape
from lowloss.data import text
from lowloss.data.base import Carry
from lowloss.data.language import Text, rows_of
from lowloss.data.task import PADDING


def story(tokens: int, steps: int = 4, streams: int = 3, carry: bool = False, **splits: int) -> Text:
    """Token i of every split is the number i."""
    sizes = {"train": tokens, "test": 10, **splits}
    names = [str(i) for i in range(max(sizes.values()))]
    return Text({name: torch.arange(size) for name, size in sizes.items()}, names, steps, streams, carry)


@pytest.mark.parametrize(("tokens", "steps", "streams"), [(30, 4, 3), (25, 4, 3), (26, 4, 3), (9, 4, 20), (2, 1, 1)])
def test_every_token_but_the_first_is_predicted_once_from_the_one_before(tokens: int, steps: int, streams: int) -> None:
    x_NT, y_NT = rows_of(torch.arange(tokens), steps, streams)
    scored = y_NT != PADDING
    assert sorted(y_NT[scored].tolist()) == list(range(1, tokens))
    assert torch.equal(x_NT[scored], y_NT[scored] - 1)
    assert x_NT.shape == y_NT.shape == (math.ceil(math.ceil((tokens - 1) / streams) / steps) * streams, steps)


def test_a_row_continues_the_one_a_stream_before() -> None:
    x_NT, y_NT = rows_of(torch.arange(26), 4, 3)
    # 25 predictions in streams of 9, 9 and 7, in windows of 4.
    no = PADDING
    assert y_NT.tolist() == [
        [1, 2, 3, 4], [10, 11, 12, 13], [19, 20, 21, 22],
        [5, 6, 7, 8], [14, 15, 16, 17], [23, 24, 25, no],
        [9, no, no, no], [18, no, no, no], [no, no, no, no],
    ]  # fmt: skip
    assert x_NT[:6, 0].tolist() == [0, 9, 18, 4, 13, 22]


def test_streams_with_their_states_handed_on_lose_as_the_whole_text_at_once() -> None:
    tokens = torch.randint(5, (68,), generator=torch.Generator().manual_seed(0))
    data = Text({"train": tokens, "test": tokens[:9]}, list("abcde"), 4, 1, carry=False)
    embed, recur, out = nn.Embedding(5, 6), nn.GRU(6, 6, batch_first=True), nn.Linear(6, 5)
    x_NT, y_NT = data.split("train")
    state, columns = None, []
    for x_T, y_T in zip(x_NT, y_NT, strict=True):
        hidden, state = recur(embed(x_T[None]), state)
        columns.append(data.task.columns(out(hidden).double(), y_T[None])["loss"])
    hidden, _ = recur(embed(tokens[None, :-1]))
    log_p = out(hidden)[0].double().log_softmax(1)
    expected = -sum(log_p[i, token] for i, token in enumerate(tokens[1:].tolist())) / 67
    finished = data.task.finish({"loss": torch.cat(columns).mean()})
    assert len(torch.cat(columns)) == 67
    torch.testing.assert_close(finished["loss"], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(finished["perplexity"], expected.exp(), rtol=1e-6, atol=0)


class Attending(nn.Module):
    """Gives its attention beside its outputs, and can be given a mask, a flag or more."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.out = (
            nn.Embedding(5, 4),
            nn.MultiheadAttention(4, 1, batch_first=True),
            nn.Linear(4, 5),
        )

    def both(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.embed(x)
        attended, weights = self.attention(h, h, h, attn_mask=mask)
        return self.out(h + attended), weights


class Alone(Attending):
    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)[0]


class Masked(Attending):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.both(x, attn_mask)


class Asked(Attending):
    def forward(self, x: Tensor, weights: bool = True) -> tuple[Tensor, Tensor]:
        outputs, found = self.both(x)
        return outputs * weights, found


class Open(Attending):
    def forward(self, x: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        return self.both(x, **more)


@pytest.mark.parametrize("kind", [Masked, Asked, Open])
def test_attention_beside_outputs_is_not_taken_for_a_state(kind: type[nn.Module]) -> None:
    tokens = torch.randint(5, (68,), generator=torch.Generator().manual_seed(0))
    data = Text({"train": tokens, "test": tokens[:30]}, list("abcde"), 4, 2, carry=True)
    alone, other = (NetworkLandscape(build, data) for build in (Alone, kind))
    theta_1P = alone.initial(0)[None]
    for split in ("train", "test"):
        assert other.evaluate(theta_1P, split)["loss"] == alone.evaluate(theta_1P, split)["loss"]
    batches = other.batches(4, (1,), False)
    for step in (0, 1):
        assert torch.equal(other.losses(theta_1P, batches[step]), alone.losses(theta_1P, batches[step]))


def test_random_windows_have_no_padding_and_are_visited_once_an_epoch() -> None:
    data = story(28)  # 27 predictions: 6 windows of 4
    batches = data.batches(3, [1, 2], shared=False)
    assert batches.steps_per_epoch == 2
    firsts = []
    for step in range(2):
        batch = batches[step]
        assert batch.carry is None
        assert batch.x.shape == (2, 3, 4)
        assert torch.equal(batch.y, batch.x + 1)
        assert torch.equal(batch.x.diff(), torch.ones(2, 3, 3, dtype=torch.long))
        firsts.append(batch.x[..., 0])
    assert all(row.sort().values.tolist() == [0, 4, 8, 12, 16, 20] for row in torch.cat(firsts, 1))
    assert data.batches(None, [1, 2], shared=True)[0].x.flatten().tolist() == list(range(24))
    assert data.batches(3, [1, 2], shared=True)[0].x.shape == (3, 4)


def test_carried_minibatches_continue_each_other() -> None:
    data = story(30, carry=True)  # 29 predictions: two streams of 14, of which 12 are in windows of 4
    batches = data.batches(2, [1, 2, 3], shared=False)
    assert batches.steps_per_epoch == 3
    seen = [batches[step] for step in range(4)]
    assert torch.cat([batch.x for batch in seen[:3]], 1).tolist() == [list(range(12)), list(range(14, 26))]
    assert all(torch.equal(batch.y, batch.x + 1) for batch in seen)
    assert torch.equal(seen[3].x, seen[0].x)
    assert len({seed for batch in seen for seed in batch.seeds}) == 12
    assert all(batch.shared and batch.carry is seen[0].carry for batch in seen)
    # What one point sees does not depend on the others.
    alone = data.batches(2, [2], shared=False)[1]
    for ours, theirs in zip(seen[1].row(1), alone.row(0), strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def states_of(carry: Carry | None) -> list[Any]:
    assert carry is not None
    return carry.states


def test_states_are_handed_on_and_begin_afresh_each_epoch() -> None:
    batches = story(30, carry=True).batches(2, [1, 2], shared=False)
    first = batches[0].carry
    assert states_of(first) == [None, None]
    states_of(first)[:] = ["a", "b"]
    assert states_of(batches[1].carry) == ["a", "b"]
    assert states_of(batches[2].carry) == ["a", "b"]
    assert states_of(batches[3].carry) == [None, None]


def test_states_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    def nest(value: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return torch.full((2, 3), value), (torch.full((1,), value + 1), torch.full((1,), value + 2))

    before = story(30, carry=True).batches(2, [1, 2], shared=False)
    states_of(before[0].carry)[:] = [nest(1.0), nest(5.0)]
    torch.save(before.state_dict(), tmp_path / "states.pt")
    after = story(30, carry=True).batches(2, [1, 2], shared=False)
    after.load_state_dict(torch.load(tmp_path / "states.pt", weights_only=True))
    for state, value in zip(states_of(after[1].carry), (1.0, 5.0), strict=True):
        assert isinstance(state, tuple)
        h, (c, d) = state
        assert torch.equal(h, torch.full((2, 3), value))
        assert (float(c), float(d)) == (value + 1, value + 2)


def test_points_that_share_minibatches_begin_afresh() -> None:
    for shared, size in ((True, 2), (False, None)):
        assert story(30, carry=True).batches(size, [1, 2], shared)[1].carry is None


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(LowlossError, match=r"no window of 8 tokens: lower data\.steps"):
        story(8, steps=8).batches(2, [1], shared=False)
    with pytest.raises(LowlossError, match="batch_size=5"):
        story(20, carry=True).batches(5, [1], shared=False)


def test_words_of_a_folder(tmp_path: Path) -> None:
    texts = {"train": " b a b\n <unk> a b \n", "valid": "a new b\n", "test": "b <unk> b\n"}
    for name, content in texts.items():
        (tmp_path / f"my.{name}.txt").write_text(content, encoding="utf-8")
    data = text(str(tmp_path), steps=2, streams=2)
    assert data.splits == ("train", "test", "valid")
    assert data.streams == 2
    assert data.num_classes == 4

    def read(name: str) -> list[str]:
        x, y = data.split(name)
        words = [data.vocabulary[i] for i in y[y != PADDING].tolist()]
        return [data.vocabulary[int(x[0, 0])], *words]

    # Equally frequent words come in the order of their names.
    assert data.vocabulary == ("b", "<eos>", "a", "<unk>")
    # "b a b <eos> <unk> a b <eos>": 7 predictions in streams of 4 and 3, in windows of 2, the second stream's at 4.
    assert read("train") == ["b", "a", "b", "a", "b", "<eos>", "<unk>", "<eos>"]
    assert read("valid") == ["a", "<unk>", "b", "<eos>"]
    assert read("test") == ["b", "<unk>", "b", "<eos>"]
    limited = text(str(tmp_path), steps=2, streams=2, limit=3)
    assert limited.vocabulary == data.vocabulary
    assert all(int((limited.split(name)[1] != PADDING).sum()) == 2 for name in limited.splits)


def test_one_file_of_characters_is_split_in_its_order(tmp_path: Path) -> None:
    content = "ab\nb" * 50
    (tmp_path / "all.txt").write_text(content, encoding="utf-8")
    data = text(str(tmp_path / "all.txt"), vocabulary="char", streams=1)
    assert data.vocabulary == ("b", "\n", "a")
    for name, part in (("train", content[:180]), ("valid", content[180:190]), ("test", content[190:])):
        x, y = data.split(name)
        assert [data.vocabulary[i] for i in y[y != PADDING].tolist()] == list(part[1:])
        assert data.vocabulary[int(x[0, 0])] == part[0]


def test_texts_that_do_not_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LowlossError, match="does not exist"):
        text(str(tmp_path / "nothing"))
    with pytest.raises(LowlossError, match=r"no file \*train\*"):
        text(str(tmp_path))
    for name, content in (("train", "a b a\n"), ("valid", "a b\n"), ("test", "a c\n")):
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8")
    with pytest.raises(LowlossError, match="the test split has 'c', which the training split lacks"):
        text(str(tmp_path))
    (tmp_path / "test.txt").write_text("", encoding="utf-8")
    with pytest.raises(LowlossError, match="no two tokens"):
        text(str(tmp_path))
    (tmp_path / "test.txt").write_bytes(b"\xff\xfe a")
    with pytest.raises(LowlossError, match="UTF-8"):
        text(str(tmp_path))
    (tmp_path / "test2.txt").write_text("a b", encoding="utf-8")
    with pytest.raises(LowlossError, match="2 files"):
        text(str(tmp_path))
    with pytest.raises(LowlossError, match="word or char"):
        text(str(tmp_path), vocabulary="byte")
    with pytest.raises(LowlossError, match=r"data\.streams"):
        text(str(tmp_path), streams=0)
