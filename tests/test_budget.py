"""Distributing tokens: proportions, capacities and exact sums."""

from fractions import Fraction

import torch
from static_videos import share

from flashvid_hf.compression.budget import indices_of, share_out


def share_exactly(total: int, weights: list, capacity: list[int]) -> list[int]:
    """Largest remainder in exact fractions. Full shares are capped one after the other; no weight gets no tokens."""
    counts = [0] * len(weights)
    total = min(total, sum(c for w, c in zip(weights, capacity, strict=True) if w))
    open_ = [i for i, weight in enumerate(weights) if weight]
    left = total
    while open_:
        rate = Fraction(left) / sum(Fraction(weights[i]) for i in open_)
        full = [i for i in open_ if weights[i] * rate >= capacity[i]]
        if not full:
            break
        for i in full:
            counts[i] = capacity[i]
            left -= capacity[i]
        open_ = [i for i in open_ if i not in full]
    ideal = {i: Fraction(weights[i]) * rate for i in open_}
    for i in open_:
        counts[i] = int(ideal[i])
    for i in sorted(open_, key=lambda i: (int(ideal[i]) - ideal[i], i))[: total - sum(counts)]:
        counts[i] += 1
    return counts


def shared(total: int, weights: list, capacity: list) -> list[int]:
    return share_out(total, torch.tensor(weights, dtype=torch.float64), torch.tensor(capacity)).tolist()


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
        # Relative to its weight, a share below its capacity is not smaller than another one, except for rounding.
        has_room = counts < capacity
        if has_room.any():
            assert ((counts - 1) / weights).max() < ((counts + 1) / weights)[has_room].min()
        sizes = capacity * 50
        assert share_out(total, sizes, sizes).tolist() == share(total, sizes.tolist())
        weights = [Fraction(1 + int(100 * weight), 100) for weight in weights]
        expected = share_exactly(total, weights, capacity.tolist())
        assert shared(total, [float(weight) for weight in weights], capacity.tolist()) == expected


def test_indices_of_a_mask():
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(indices_of(mask, int(mask.sum())), mask.flatten().nonzero()[:, 0])
