"""Sharing tokens out: proportions, capacities and exact sums."""

import torch
from static_videos import share

from flashvid_hf.budget import share_out


def shared(total: int, weights: list, capacity: list) -> list[int]:
    return share_out(total, torch.tensor(weights), torch.tensor(capacity)).tolist()


def test_known_shares():
    assert shared(5, [1, 1, 1], [9, 9, 9]) == [2, 2, 1]
    assert shared(7, [1.0, 2.0, 4.0], [9, 9, 9]) == [1, 2, 4]
    assert shared(0, [1.0, 2.0], [9, 9]) == [0, 0]
    assert shared(3, [0, 0, 0], [0, 9, 9]) == [0, 2, 1]


def test_what_does_not_fit_goes_to_the_others():
    assert shared(10, [8.0, 1.0, 1.0], [2, 9, 9]) == [2, 4, 4]
    assert shared(10, [0.0, 0.0, 1.0], [9, 9, 4]) == [3, 3, 4]
    assert shared(22, [3.0, 0.0, 1.0], [9, 9, 4]) == [9, 9, 4]


def test_sums_and_capacities_are_exact():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        weights, capacity = torch.rand(20, generator=generator), torch.randint(0, 9, (20,), generator=generator)
        total = int(torch.randint(0, int(capacity.sum()) + 1, (1,), generator=generator))
        counts = share_out(torch.tensor(total), weights, capacity)
        assert counts.sum() == total and (counts >= 0).all() and (counts <= capacity).all()
        # Whoever has room has, but for the rounding, no less for its weight than the others.
        has_room = counts < capacity
        if has_room.any():
            assert ((counts - 1) / weights).max() < ((counts + 1) / weights)[has_room].min()
        sizes = capacity * 50
        assert share_out(total, sizes, sizes).tolist() == share(total, sizes.tolist())
