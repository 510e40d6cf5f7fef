"""FastVID against its description as loops in float64, and its special properties."""

import math
from fractions import Fraction

import pytest
import torch
from test_budget import share_exactly

from flashvid_hf.methods.registry import make_method


def compress(features, attention, method):
    """Kept tokens by flat index, the salient ones among them, and the first frames of the segments.

    Args:
        features: with shape (T, N, D), float64.
        attention: with shape (T, N).
        method: the method with its settings.
    """
    num_frames, num_tokens, width = features.shape
    budget = method.exact_num_tokens(num_frames, num_tokens)
    num_context = int(budget * method.contextual_ratio)
    segments = cut(features.mean(1), method)
    salient = share_exactly(budget - num_context, [Fraction(1)] * num_frames, [num_tokens] * num_frames)
    weights = [Fraction(0)] * num_frames
    for segment in segments:
        anchors = [t for t in segment if (segment[-1] - t) % method.anchor_interval == 0]
        for anchor in anchors:
            weights[anchor] = Fraction(len(segment), len(anchors))
    room = [num_tokens - s for s in salient]
    context = share_exactly(num_context, weights, room)
    room = [r - c for r, c in zip(room, context, strict=True)]
    left = share_exactly(num_context - sum(context), [Fraction(1)] * num_frames, room)
    salient = [s + extra for s, extra in zip(salient, left, strict=True)]

    everyone = range(num_tokens)
    unchanged = {
        (t, n)
        for t in range(num_frames)
        for n in sorted(everyone, key=lambda n: (-attention[t, n].item(), n))[: salient[t]]
    }
    kept = {(t, n): features[t, n] for t, n in unchanged}
    for segment in segments:
        free = [(t, n) for t in segment for n in everyone if (t, n) not in unchanged]
        for anchor in segment:
            if not context[anchor]:
                continue
            own = [n for t, n in free if t == anchor]
            score = peaks(features[anchor, own])
            best = sorted(range(len(own)), key=lambda i: (-score[i], i))[: context[anchor]]
            targets = sorted(own[i] for i in best)
            joined = {n: [] for n in targets}
            for t, n in free:
                joined[max(targets, key=lambda to: (cosine(features[t, n], features[anchor, to]), -to))].append((t, n))
            for to, members in joined.items():
                kept[anchor, to] = features[anchor, to]
                if members:
                    weight = max(1 / (len(members) + 1), method.target_weight)
                    mean = torch.stack([features[place] for place in members]).mean(0)
                    kept[anchor, to] = weight * features[anchor, to] + (1 - weight) * mean
    by_index = {t * num_tokens + n: token for (t, n), token in kept.items()}
    return by_index, {t * num_tokens + n for t, n in unchanged}, [segment[0] for segment in segments]


def cosine(a, b):
    norms = a.norm() * b.norm()
    return float(a @ b / norms) if norms > 0 else 0.0


def cut(frames, method):
    similarity = [cosine(a, b) for a, b in zip(frames[:-1], frames[1:], strict=True)]
    by_similarity = sorted(range(len(similarity)), key=lambda t: (similarity[t], t))
    cuts = {t for t, s in enumerate(similarity) if s < method.segment_threshold}
    cuts |= set(by_similarity[: method.min_segment_num - 1])
    ends = [*(t + 1 for t in sorted(cuts)), len(frames)]
    return [list(range(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def peaks(tokens):
    """Density times separation for each of the tokens (N, D)."""
    count, width = tokens.shape
    distance = [[math.dist(a, b) / width**0.5 for b in tokens.tolist()] for a in tokens.tolist()]
    density = []
    for row in distance:
        nearest = sorted(row)[:4]
        density.append(math.exp(-sum(d * d for d in nearest) / len(nearest)))
    farthest = max(max(row) for row in distance)
    separation = [
        min([distance[i][j] for j in range(count) if density[j] > density[i]], default=farthest) for i in range(count)
    ]
    return [d * s for d, s in zip(density, separation, strict=True)]


def make_video(num_frames, num_tokens, width=12, seed=0, scene=5):
    """Features of scenes of `scene` frames that change slowly, and attention."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    scenes = [draw(num_tokens, width) + draw(width) for _ in range(1 + num_frames // scene)]
    frames = [scenes[t // scene] + 0.4 * draw(num_tokens, width) for t in range(num_frames)]
    return torch.stack(frames), torch.rand(num_frames, num_tokens, generator=generator)


def check_against_loops(features, attention, method):
    video = method.compress(features, attention)
    tokens, unchanged, starts = compress(features.double(), attention, method)
    assert video.indices.tolist() == sorted(tokens)
    assert set(video.selected.flatten().nonzero()[:, 0].tolist()) == unchanged
    assert video.starts.nonzero()[:, 0].tolist() == starts
    expected = torch.stack([tokens[index] for index in sorted(tokens)]).float()
    torch.testing.assert_close(video.tokens, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(
    ("num_frames", "num_tokens"), [(1, 1), (1, 9), (6, 1), (2, 3), (5, 8), (9, 12), (17, 10), (30, 4)]
)
def test_equals_the_description(num_frames, num_tokens, ratio):
    check_against_loops(*make_video(num_frames, num_tokens), make_method("fastvid", retention_ratio=ratio))


@pytest.mark.parametrize(
    "settings",
    [
        {"min_segment_num": 1, "segment_threshold": -1.0},
        {"segment_threshold": 1.5},
        {"anchor_interval": 1},
        {"anchor_interval": 100, "min_segment_num": 2},
        {"target_weight": 0.0},
        {"target_weight": 1.0},
        {"contextual_ratio": 0.0},
        {"contextual_ratio": 1.0},
        {"contextual_ratio": 1.0, "retention_ratio": 0.8, "min_segment_num": 2},
    ],
    ids=str,
)
def test_equals_the_description_with_other_settings(settings):
    check_against_loops(*make_video(13, 11, seed=1, scene=4), make_method("fastvid", **settings))


def test_videos_of_several_chunks_are_the_same(monkeypatch):
    features, attention = make_video(17, 10)
    method = make_method("fastvid")
    whole = method.compress(features, attention)
    monkeypatch.setattr("flashvid_hf.methods.fastvid.frames_per_chunk", lambda features: 3)
    chunked = method.compress(features, attention)
    assert torch.equal(whole.indices, chunked.indices) and torch.equal(whole.slots, chunked.slots)
    torch.testing.assert_close(whole.tokens, chunked.tokens)


def test_anchors_are_counted_from_the_end_of_a_segment():
    """Segments of 6, 1 and 5 frames: frames 1, 5, 6, 7 and 11 have context, in shares of 3, 3, 1, 2.5 and 2.5."""
    features, attention = make_video(12, 40)
    features[:6, :, 0] += 100
    features[6, :, 1] += 100
    features[7:, :, 2] += 100
    method = make_method("fastvid", min_segment_num=3, retention_ratio=0.25, segment_threshold=0.5)
    video = method.compress(features, attention)
    assert video.segment_lengths.tolist() == [6, 1, 5]
    frame = video.indices // 40
    merged = ~video.selected.flatten()[video.indices]
    # Context has 48 of 120 tokens.
    assert frame[merged].bincount(minlength=12).tolist() == [0, 12, 0, 0, 0, 12, 4, 10, 0, 0, 0, 10]
    assert frame[~merged].bincount(minlength=12).tolist() == [6] * 12


def test_a_token_goes_into_every_anchor_of_its_segment():
    """One segment of eight frames. Frames 3 and 7 have a single target each, so these two take all other tokens."""
    features, attention = make_video(8, 10, scene=8)
    method = make_method("fastvid", retention_ratio=0.1, contextual_ratio=0.25, min_segment_num=1, segment_threshold=-1)
    video = method.compress(features, attention)
    merged = ~video.selected.flatten()[video.indices]
    assert merged.sum() == 2 and (video.indices[merged] // 10).tolist() == [3, 7]
    mean = features[~video.selected].mean(0)
    for row in merged.nonzero()[:, 0]:
        own = features.flatten(0, 1)[video.indices[row]]
        torch.testing.assert_close(video.tokens[row], 0.6 * own + 0.4 * mean)
    first, second = merged.nonzero()[:, 0].tolist()
    went = video.slots[~video.selected]
    assert (went == first).sum() == len(went) - 1 and (went == second).sum() == 1  # the second target itself


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"segment_threshold": -1.5}, "segment_threshold"),
        ({"min_segment_num": 0}, "min_segment_num"),
        ({"contextual_ratio": 1.1}, "contextual_ratio"),
        ({"anchor_interval": 0}, "anchor_interval"),
        ({"anchor_interval": 2.0}, "anchor_interval"),
        ({"target_weight": -0.1}, "target_weight"),
    ],
)
def test_settings_out_of_range_are_refused(settings, field):
    with pytest.raises(ValueError, match=f"`{field}` is {next(iter(settings.values()))}"):
        make_method("fastvid", **settings)
