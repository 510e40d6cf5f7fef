"""PruneVID against loops written from its description, and on videos with known answers."""

from itertools import combinations, groupby

import pytest
import torch
from static_videos import RATIOS, SHAPES, cluster, compare, redundant_video, share

from flashvid_hf.methods.prunevid import PruneVID, longest_runs, segment_frames, share_over_sets
from flashvid_hf.methods.registry import make_method


def reference_segments(frame_features: torch.Tensor, num_segments: int) -> list[int]:
    num_frames = len(frame_features)
    _, ids = cluster(list(frame_features), num_segments)
    runs, at = [], 0
    for name, group in groupby(ids):
        length = len(list(group))
        runs.append((name, at, length))
        at += length
    longest = {}
    for name, at, length in runs:
        if length > 1 and length > longest.get(name, (0, 0))[1]:
            longest[name] = (at, length)
    stay = sorted(longest.values())
    if not stay:
        return [0]
    starts = [0]
    for (at, length), (next_at, next_length) in zip(stay, stay[1:], strict=False):
        starts.append(at + length if length < next_length else next_at)
    assert starts[-1] < num_frames
    return starts


def reference(features: torch.Tensor, method: PruneVID) -> tuple[dict, list[int]]:
    """For every kept index its token and the tokens that went into it; also where the segments start."""
    x = features.double()
    num_frames, tokens_per_frame, _ = x.shape
    num_tokens = method.exact_num_tokens(num_frames, tokens_per_frame)
    starts = reference_segments(x.mean(1), max(1, int(num_frames * method.segment_ratio)))
    segments = list(zip(starts, [*starts[1:], num_frames], strict=True))

    unit = x / x.norm(dim=-1, keepdim=True)
    cosines = torch.einsum("snd,tnd->nst", unit, unit).tolist()
    groups, leaving = {}, []  # members of every static group; those that may leave it, in that order
    for first, end in segments:
        pairs = list(combinations(range(first, end), 2))
        for n in range(tokens_per_frame):
            mean = sum(cosines[n][s][t] for s, t in pairs) / max(1, len(pairs))
            if pairs and mean > method.static_threshold:
                groups[first, n] = [*range(first, end)]
                leaving += [(mean, t, n, first) for t in range(first + 1, end)]
    excess = num_tokens - (num_frames * tokens_per_frame - len(leaving))
    # In float64 the mean of a group is the same number for all its members, so their order in time decides.
    for _, t, n, first in sorted(leaving)[: max(0, excess)]:
        groups[first, n].remove(t)

    static = {(t, n) for (_, n), frames in groups.items() for t in frames}
    sets = [[(n, groups[first, n]) for n in range(tokens_per_frame) if (first, n) in groups] for first, _ in segments]
    firsts = starts + [*range(num_frames)]
    sets += [[(n, [t]) for n in range(tokens_per_frame) if (t, n) not in static] for t in range(num_frames)]
    # Among equal remainders the sets of earlier segments come first, then those of earlier frames.
    sizes = [len(of_set) for of_set in sets]
    small = [size if size <= 14 else 0 for size in sizes]
    if sum(small) + sum(size > 14 for size in sizes) > num_tokens:
        small = [0] * len(sizes)
    counts = share(num_tokens - sum(small), [size - whole for size, whole in zip(sizes, small, strict=True)])

    expected = {}
    for first, of_set, count, whole in zip(firsts, sets, counts, small, strict=True):
        if count + whole == 0:
            continue
        means = [x[frames, n].mean(0) for n, frames in of_set]
        centers, nearest = cluster(means, count + whole)
        for center in centers:
            members = [i for i in range(len(means)) if nearest[i] == center]
            sources = [t * tokens_per_frame + of_set[i][0] for i in members for t in of_set[i][1]]
            index = first * tokens_per_frame + of_set[center][0]
            assert index not in expected
            expected[index] = (torch.stack([means[i] for i in members]).mean(0), sources)
    return expected, starts


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_does_what_the_description_says(shape):
    for seed, ratio in enumerate(RATIOS):
        features, attention = redundant_video(*shape, seed=seed)
        method = PruneVID(retention_ratio=ratio)
        if method.exact_num_tokens(*shape[:2]) < attention.numel():
            compare(method, features, attention, *reference(features, method))


@pytest.mark.parametrize(
    "settings", [{"segment_ratio": 1.0}, {"segment_ratio": 0.1}, {"static_threshold": -1.0}], ids=str
)
def test_it_follows_its_settings(settings):
    features, attention = redundant_video(12, 20, 16, seed=3)
    method = PruneVID(retention_ratio=0.2, **settings)
    compare(method, features, attention, *reference(features, method))


def test_a_still_video_is_one_frame():
    frame = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0))
    method = PruneVID(retention_ratio=0.1, llm_retention_ratio=1.0)
    video = method.compress(frame.expand(10, -1, -1), torch.zeros(10, 40))
    assert video.starts.sum() == 1 and torch.equal(video.indices, torch.arange(40))
    torch.testing.assert_close(video.tokens, frame[0])


def test_it_merges_less_where_it_would_fall_below_the_budget():
    frame = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0))
    features = frame.repeat(10, 1, 1)
    features[5:, 7] += 0.3 * frame[0, 8]  # the least similar place
    video = PruneVID(retention_ratio=0.1125, llm_retention_ratio=1.0).compress(features, torch.zeros(10, 40))
    assert video.indices.tolist() == [*range(40), *range(47, 240, 40)]


@pytest.mark.parametrize(
    "clusters, starts",
    [
        ([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2], [0, 3, 6]),
        ([0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2], [0, 4]),  # a run of one frame joins the longer neighbour
        ([0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2], [0, 8]),
        ([0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1], [0, 8]),  # the longest run of each; among equal ones the earlier
        ([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1], [0]),  # none
        ([1], [0]),
        ([0, 0, 1, 1, 2, 1, 2, 1, 2, 1, 2, 1], [0, 2]),  # the first of the longest runs
    ],
)  # fmt: skip
def test_segments_are_runs_of_frames(clusters, starts):
    assert longest_runs(torch.tensor(clusters)).nonzero().flatten().tolist() == starts


def test_segments_are_scenes():
    noise = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    scenes = torch.eye(16)[torch.arange(5).repeat_interleave(4)] * 10
    assert segment_frames(scenes + 0.01 * noise, 5).nonzero().flatten().tolist() == [0, 4, 8, 12, 16]


def test_small_sets_stay_whole_where_that_leaves_something():
    sizes = torch.tensor([100, 14, 0, 60, 15])
    assert share_over_sets(sizes, 49).tolist() == [20, 14, 0, 12, 3]
    assert share_over_sets(sizes, 17).tolist() == [2, 14, 0, 1, 0]
    assert share_over_sets(sizes, 16).tolist() == share(16, sizes.tolist())
    assert share_over_sets(sizes, 189).tolist() == sizes.tolist()


def test_the_language_model_makes_up_for_what_enters():
    method = make_method("prunevid", retention_ratio=0.2)
    assert (method.pruning.layer, method.pruning.ratio, method.pruning.scored_by) == (10, 0.4, "text_tokens")
    assert method.entering_ratio == pytest.approx(0.2 * 28 / (10 + 0.4 * 18))
    method = make_method("prunevid", retention_ratio=0.8)
    assert method.entering_ratio == pytest.approx(1) and 10 + method.pruning.ratio * 18 == pytest.approx(0.8 * 28)
    assert make_method("prunevid", num_layers=36).pruning.layer == 13
    assert make_method("prunevid", num_layers=2).pruning.layer == 1
    assert make_method("prunevid", num_layers=1).pruning is None
    assert make_method("prunevid", num_layers=8, first_pruning_layer=4).pruning.layer == 4
    assert make_method("prunevid", num_layers=4, first_pruning_layer=4).pruning is None
    assert make_method("prunevid", llm_retention_ratio=1.0).pruning is None


@pytest.mark.parametrize(
    "settings",
    [
        {"segment_ratio": 0},
        {"segment_ratio": 1.1},
        {"static_threshold": -1.1},
        {"pruning_layer": 0},
        {"llm_retention_ratio": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is "):
        make_method("prunevid", **settings)
