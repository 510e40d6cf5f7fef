"""VisionZip against a plain reference, and its special properties."""

import math

import pytest
import torch

from flashvid_hf.compression import frame_chunks
from flashvid_hf.methods.visionzip import VisionZip

SIZES = ((1, 1, 4), (1, 17, 4), (5, 1, 4), (3, 2, 1), (2, 64, 8), (4, 50, 6), (9, 23, 16))
RATIOS = (0.02, 0.1, 0.25, 0.4, 0.6, 0.9)


def redundant_video(num_frames, num_tokens, width, seed):
    """Features (T, N, D), half of them close to the frame before, and attention (T, N)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_frames, num_tokens, width, generator=generator)
    repeats = torch.rand(num_frames, num_tokens, generator=generator) < 0.5
    for t in range(1, num_frames):
        features[t, repeats[t]] = features[t - 1, repeats[t]] + 0.1 * features[t, repeats[t]]
    return features, torch.rand(num_frames, num_tokens, generator=generator).softmax(-1)


def reference(features, attention, num_tokens, dominant_ratio):
    """Kept tokens, their flat indices, which are dominant, and the flat index that each token went to (-1: dropped)."""
    num_frames, tokens_per_frame, _ = features.shape
    tokens, indices, dominant_indices, went_to = [], [], [], {}
    for t in range(num_frames):
        budget = num_tokens // num_frames + (1 if t < num_tokens % num_frames else 0)
        num_dominant = round(budget * dominant_ratio)
        num_contextual = budget - num_dominant
        by_attention = sorted(range(tokens_per_frame), key=lambda n, t=t: (-attention[t, n].item(), n))
        dominant = by_attention[:num_dominant]
        rest = sorted(by_attention[num_dominant:])
        targets = rest[:: max(1, len(rest) // num_contextual)][:num_contextual] if num_contextual else []
        members = {target: [] for target in targets}
        for n in rest:
            if targets and n not in members:
                cosines = [torch.cosine_similarity(features[t, n], features[t, m], dim=0).item() for m in targets]
                best = targets[max(range(len(targets)), key=lambda i: (cosines[i], -i))]
                members[best].append(n)
                went_to[t * tokens_per_frame + n] = t * tokens_per_frame + best
        for n in sorted([*dominant, *targets]):
            token = features[t, n]
            if members.get(n):
                token = token + torch.stack([features[t, m] for m in members[n]]).mean(0)
            tokens.append(token)
            indices.append(t * tokens_per_frame + n)
            went_to[indices[-1]] = indices[-1]
        dominant_indices += [t * tokens_per_frame + n for n in sorted(dominant)]
    return torch.stack(tokens), indices, dominant_indices, [went_to.get(i, -1) for i in range(attention.numel())]


def check_against_reference(features, attention, **settings):
    method = VisionZip(**settings)
    num_tokens = method.exact_num_tokens(*attention.shape)
    video = method.compress(features, attention)
    if num_tokens == attention.numel():
        assert torch.equal(video.tokens, features.flatten(0, 1))
        return
    tokens, indices, dominant, went_to = reference(features, attention, num_tokens, method.dominant_ratio)
    assert video.indices.tolist() == indices and len(indices) == num_tokens
    torch.testing.assert_close(video.tokens, tokens)
    assert video.selected.flatten().nonzero()[:, 0].tolist() == dominant
    rows = {index: row for row, index in enumerate(indices)}
    assert video.slots.flatten().tolist() == [rows.get(index, -1) for index in went_to]
    assert torch.equal(video.tokens[video.slots[video.selected]], features[video.selected])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_reference(size):
    for seed, ratio in enumerate(RATIOS):
        for dominant_ratio in (54 / 64, 0.5, 0.0, 1.0):
            check_against_reference(*redundant_video(*size, seed), retention_ratio=ratio, dominant_ratio=dominant_ratio)


def test_long_videos_in_chunks(monkeypatch):
    features, attention = redundant_video(7, 30, 8, seed=0)
    whole = VisionZip(retention_ratio=0.4).compress(features, attention)
    monkeypatch.setattr(frame_chunks, "_CHUNK_BYTES", 2 * 4 * 30 * 8)
    check_against_reference(features, attention, retention_ratio=0.4)
    chunked = VisionZip(retention_ratio=0.4).compress(features, attention)
    assert torch.equal(chunked.indices, whole.indices) and torch.equal(chunked.tokens, whole.tokens)


def test_known_frame():
    """Eight tokens, two dominant and two contextual: a sum of the target and the mean of the tokens that go to it."""
    one, two, three = torch.eye(3)
    features = torch.stack([one, 5 * three, two, 2 * one, 3 * two, 6 * two, 7 * three, 4 * one])[None]
    attention = torch.tensor([[0.0, 0.9, 0.1, 0.2, 0.1, 0.0, 0.8, 0.2]])
    video = VisionZip(retention_ratio=0.5, dominant_ratio=0.5).compress(features, attention)
    # Tokens 1 and 6 are dominant. The others are 0, 2, 3, 4, 5, 7, and every third of them is a target: 0 and 4.
    assert video.indices.tolist() == [0, 1, 4, 6]
    expected = torch.stack([one + (2 * one + 4 * one) / 2, 5 * three, 3 * two + (two + 6 * two) / 2, 7 * three])
    torch.testing.assert_close(video.tokens, expected)
    assert video.selected.nonzero()[:, 1].tolist() == [1, 6]
    assert video.slots.tolist() == [[0, 1, 2, 0, 2, 2, 3, 0]]


def test_unlike_everything_goes_to_the_first_target():
    features = torch.eye(4)[None]
    features[0, 3] = 0
    video = VisionZip(retention_ratio=0.5, dominant_ratio=0.0).compress(features, torch.ones(1, 4))
    # The targets are 0 and 2; 1 is orthogonal to both, 3 is zero. No token goes to 2, so nothing is added to it.
    assert video.slots.tolist() == [[0, 0, 1, 0]]
    torch.testing.assert_close(video.tokens, torch.tensor([[1, 0.5, 0, 0], [0, 0, 1, 0]]))


def test_even_budgets():
    """The budgets of frames differ by at most one token, the first frames have more, and each is split 54 to 10."""
    features, attention = redundant_video(6, 196, 8, seed=1)
    for num_tokens in (5, 6, 20, 384, 385, 389, 700):
        video = VisionZip(retention_ratio=num_tokens / attention.numel()).compress(features, attention)
        counts = torch.bincount(video.indices // 196, minlength=6).tolist()
        assert sum(counts) == num_tokens
        assert counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1
        assert video.selected.sum(1).tolist() == [round(count * 54 / 64) for count in counts]
    assert VisionZip(retention_ratio=384 / 1176).compress(features, attention).selected.sum(1).tolist() == [54] * 6


def test_ties_in_attention_go_to_the_lower_index():
    features = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    video = VisionZip(retention_ratio=0.3, dominant_ratio=1.0).compress(features, torch.ones(2, 10))
    assert video.indices.tolist() == [0, 1, 2, 10, 11, 12]


def test_gradients_reach_the_merged_tokens():
    features, attention = redundant_video(2, 12, 4, seed=2)
    features.requires_grad_()
    video = VisionZip(retention_ratio=0.5, dominant_ratio=0.5).compress(features, attention)
    video.tokens.sum().backward()
    kept = torch.zeros(24).scatter(0, video.indices, 1.0)
    gradient = features.grad[..., 0].flatten()
    assert (gradient[kept == 1] == 1).all() and ((gradient[kept == 0] > 0) & (gradient[kept == 0] <= 1)).all()


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, "half", True])
def test_bad_dominant_ratio(ratio):
    with pytest.raises(ValueError, match="`dominant_ratio`"):
        VisionZip(dominant_ratio=ratio)
