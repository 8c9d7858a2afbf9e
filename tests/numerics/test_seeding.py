"""Derived seeds are stable and distinct."""

from itertools import product

import pytest
import torch

from lowloss.seeding import derive


@pytest.mark.parametrize(
    ("seed", "names", "digest"),
    [
        (0, ("initial", 3), 0x73B027E08C7CD593),
        (7, ("batches", 0), 0xC28347B4BE4B6D49),
        (123456789, (), 0x7E73EDBFE1AA9531),
    ],
)
def test_seeds_are_the_same_everywhere(seed: int, names: tuple[object, ...], digest: int) -> None:
    # The digests are `printf 0/initial/3 | b2sum -l 64` and so on; the top 63 bits are the seed.
    assert derive(seed, *names) == digest >> 1


def test_streams_are_distinct() -> None:
    names = [(), ("step", 1), ("step", 11), (1, "step"), ("epoch", 1), ("step", 1, 1), ("step",), ("",), (11,), (1, 1)]
    seeds = [derive(seed, *name) for seed, name in product((0, 1, 11, 2**62), names)]
    assert len(set(seeds)) == len(seeds)
    chained = {derive(derive(0, "batches", k), "step", step) for k in range(20) for step in range(100)}
    assert len(chained) == 2000
    assert all(0 <= seed < 2**63 for seed in [*seeds, *chained])


def test_seeds_suit_torch() -> None:
    first, second = (torch.rand(1000, generator=torch.Generator().manual_seed(derive(0, k))) for k in range(2))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.1
