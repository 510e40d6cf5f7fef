"""VidCom2 against a plain reference, its special properties, and the distribution of a budget over frames."""

import math
from fractions import Fraction

import pytest
import torch

from flashvid_hf.compression import frame_chunks
from flashvid_hf.compression.budget import indices_of, share_out
from flashvid_hf.methods.vidcom2 import VidCom2

SIZES = ((1, 1, 4), (1, 17, 4), (5, 1, 4), (3, 2, 5), (2, 64, 9), (4, 50, 6), (12, 23, 16))
RATIOS = (0.02, 0.05, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9)


def redundant_video(num_frames, num_tokens, width, seed):
    """Features (T, N, D), most of them close to the frame before."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_frames, num_tokens, width, generator=generator)
    repeats = torch.rand(num_frames, num_tokens, generator=generator) < 0.7
    for t in range(1, num_frames):
        features[t, repeats[t]] = features[t - 1, repeats[t]] + 0.1 * features[t, repeats[t]]
    return features


def plain_shares(total, weights, capacities):
    """Largest remainder with capacities, in exact numbers: shares are cut until none is above its capacity."""
    weights = [Fraction(weight) for weight in weights]
    full = set()
    while True:
        left = total - sum(capacities[i] for i in full)
        open_weight = sum(weight for i, weight in enumerate(weights) if i not in full)
        shares = [
            Fraction(capacities[i]) if i in full else left * weight / open_weight if open_weight else Fraction(0)
            for i, weight in enumerate(weights)
        ]
        above = {i for i, share in enumerate(shares) if share >= capacities[i]} - full
        if not above:
            break
        full |= above
    result = [math.floor(share) for share in shares]
    # Fractions of a token that differ by less than a rounding error are ties.
    by_remainder = sorted(range(len(shares)), key=lambda i: (-round((shares[i] - result[i]) * 2**32), i))
    for i in by_remainder[: total - sum(result)]:
        result[i] += 1
    return result


def reference(features, num_tokens, temperature=0.01):
    """Kept flat indices and the budget of every frame."""
    num_frames, tokens_per_frame, width = features.shape
    flat = features.double().view(-1, width)
    variances = [flat[:, channel].var(correction=0).item() for channel in range(width)]
    channels = sorted(sorted(range(width), key=lambda channel: variances[channel])[: max(1, width // 2)])
    units = [[features[t, n, channels].double() for n in range(tokens_per_frame)] for t in range(num_frames)]
    units = [[token / token.norm() for token in frame] for frame in units]
    video_mean = sum(token for frame in units for token in frame) / (num_frames * tokens_per_frame)

    def similarity(token, mean):
        distance = (token - mean).square().sum().item()
        return sum(math.exp(-distance / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    to_video = [[similarity(token, video_mean) for token in frame] for frame in units]
    mean_to_video = [sum(frame) / tokens_per_frame for frame in to_video]
    terms = [math.exp((min(mean_to_video) - mean) / temperature) for mean in mean_to_video]
    ratios = [1 + term / sum(terms) - 1 / num_frames for term in terms]
    if num_tokens < num_frames:
        budgets = plain_shares(num_tokens, ratios, [tokens_per_frame] * num_frames)
    else:
        above = [max(0.0, ratio * num_tokens / num_frames - 1) for ratio in ratios]
        budgets = plain_shares(num_tokens - num_frames, above, [tokens_per_frame - 1] * num_frames)
        budgets = [1 + budget for budget in budgets]
    indices = []
    for t, frame in enumerate(units):
        frame_mean = sum(frame) / tokens_per_frame
        scores = [to_video[t][n] + similarity(token, frame_mean) for n, token in enumerate(frame)]
        chosen = sorted(range(tokens_per_frame), key=lambda n, scores=scores: scores[n])[: budgets[t]]
        indices += [t * tokens_per_frame + n for n in sorted(chosen)]
    return indices, budgets


def compress(features, **settings):
    """Compress with an attention of NaN, because the attention must not matter."""
    return VidCom2(**settings).compress(features, torch.full(features.shape[:2], torch.nan))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_reference(size):
    for seed, ratio in enumerate(RATIOS):
        features, temperature = redundant_video(*size, seed), (0.01, 0.1)[seed % 2]
        num_tokens = VidCom2(retention_ratio=ratio).exact_num_tokens(*size[:2])
        video = compress(features, retention_ratio=ratio, temperature=temperature)
        if num_tokens < size[0] * size[1]:
            indices, budgets = reference(features, num_tokens, temperature)
            assert video.indices.tolist() == indices and sum(budgets) == num_tokens
        assert torch.equal(video.tokens, features.flatten(0, 1)[video.indices])
        assert video.selected.sum() == num_tokens


def test_long_videos_in_chunks(monkeypatch):
    features = redundant_video(7, 30, 8, seed=0)
    whole = compress(features).indices
    monkeypatch.setattr(frame_chunks, "_CHUNK_BYTES", 2 * 4 * 30 * 8)
    assert torch.equal(compress(features).indices, whole)


def odd_frame_out(num_frames=8, num_tokens=40, odd=5):
    """A scene that changes in one frame only. Just the first half of the channels show it; the others vary more."""
    generator = torch.Generator().manual_seed(3)
    features = 0.1 * torch.randn(num_frames, num_tokens, 16, generator=generator)
    features[:, :, 0] += 1
    features[odd, :, :2] = torch.tensor([-1.0, 0.5])
    features[:, :, 8:] = 100 * torch.randn(num_frames, num_tokens, 8, generator=generator)
    return features


def test_unlike_frame_gets_more():
    features = odd_frame_out()
    counts = torch.bincount(compress(features, retention_ratio=0.25).indices // 40, minlength=8)
    # p is 1 for it: R * N * (2 - 1 / T) = 18.75, and R * N * (1 - 1 / T) = 8.75 for all others.
    assert counts.tolist() == [9, 9, 9, 9, 9, 19, 8, 8]
    even = torch.bincount(compress(features, retention_ratio=0.25, temperature=1e6).indices // 40, minlength=8)
    assert even.tolist() == [10] * 8


def test_full_frame_leaves_the_rest_to_the_others():
    counts = torch.bincount(compress(odd_frame_out(), retention_ratio=0.75).indices // 40, minlength=8)
    assert counts[5] == 40 and counts.sum() == 240  # 0.75 * 40 * (2 - 1 / 8) would be 56
    assert counts.tolist() == [29, 29, 29, 29, 28, 40, 28, 28]


def test_every_frame_gets_a_token_if_there_are_enough():
    features = odd_frame_out()
    for num_tokens, expected in ((8, [1] * 8), (9, [1, 1, 1, 1, 1, 2, 1, 1])):
        counts = torch.bincount(compress(features, retention_ratio=num_tokens / 320).indices // 40, minlength=8)
        assert counts.tolist() == expected
    counts = torch.bincount(compress(features, retention_ratio=3 / 320).indices // 40, minlength=8)
    assert counts.tolist() == [1, 1, 0, 0, 0, 1, 0, 0]


def test_least_typical_tokens_are_kept():
    features = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(1, 10, 1)
    features[0, 3, :2] = torch.tensor([0.0, 1.0])
    features[0, 7, :2] = torch.tensor([0.8, 0.6])
    features[..., 2:] = torch.randn(1, 10, 2, generator=torch.Generator().manual_seed(0)) * 100
    assert compress(features, retention_ratio=0.2).indices.tolist() == [3, 7]


def test_constant_video_is_kept_evenly_from_the_start():
    features = torch.full((4, 10, 8), 0.3)
    assert compress(features, retention_ratio=0.25).indices.tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 30, 31]
    assert compress(torch.zeros(4, 10, 8), retention_ratio=0.1).indices.tolist() == [0, 10, 20, 30]


def test_one_channel_is_enough():
    features = torch.tensor([[1.0, 2.0, 3.0, -1.0], [1.0, 2.0, 3.0, 4.0]])[..., None]
    assert compress(features, retention_ratio=0.25).indices.tolist() == [3, 4]


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_extreme_temperatures(temperature):
    assert len(compress(odd_frame_out(), retention_ratio=0.3, temperature=temperature).indices) == 96


@pytest.mark.parametrize("temperature", [0, -1, math.inf, None])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="`temperature`"):
        VidCom2(temperature=temperature)


def test_share_out():
    assert share_out(10, torch.tensor([1, 1, 1]), 10).tolist() == [4, 3, 3]
    assert share_out(10, torch.tensor([6, 3, 1]), 4).tolist() == [4, 4, 2]
    assert share_out(7, torch.tensor([0.0, 2.0, 0.0, 1.5]), torch.tensor([9, 9, 0, 9])).tolist() == [0, 4, 0, 3]
    assert share_out(0, torch.tensor([0, 0]), 3).tolist() == [0, 0]
    assert share_out(6, torch.tensor([0, 5, 1]), torch.tensor([0, 2, 4])).tolist() == [0, 2, 4]


def test_share_out_is_exact():
    generator = torch.Generator().manual_seed(0)
    for case in range(400):
        size = int(torch.randint(1, 9, (), generator=generator))
        weights = torch.randint(1, 12, (size,), generator=generator)
        capacity = torch.randint(0, 20, (size,), generator=generator)
        if case % 2:
            weights = weights * torch.rand(size, generator=generator)
        total = int(torch.randint(0, int(capacity.sum()) + 1, (), generator=generator))
        shares = share_out(total, weights, capacity).tolist()
        assert shares == plain_shares(total, weights.tolist(), capacity.tolist())
        assert sum(shares) == total and all(0 <= s <= c for s, c in zip(shares, capacity.tolist(), strict=True))


def test_indices_of():
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.equal(indices_of(mask, int(mask.sum())), mask.flatten().nonzero()[:, 0])
