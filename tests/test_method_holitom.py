"""HoliTom against loops written from its description, and on videos with known answers."""

import pytest
import torch
from static_videos import RATIOS, SHAPES, cluster, compare, cosine, redundant_video, share

from flashvid_hf.methods import holitom as method_holitom
from flashvid_hf.methods.holitom import HoliTom, best_windows, last_still_frames, window_gains
from flashvid_hf.methods.registry import make_method


def reference_windows(still: list[list[bool]], num_frames: int, tokens_per_frame: int) -> tuple[int, list[int]]:
    """The largest total gain, and where the windows start. Among equal ones the longest last window wins, and so on."""

    def gain(a: int, b: int) -> int:
        return sum(all(still[t][n] for t in range(a, b)) for n in range(tokens_per_frame)) * (b - a)

    best, previous = [0], [0]
    for end in range(1, num_frames + 1):
        totals = [best[a] + gain(a, end - 1) for a in range(end)]
        best.append(max(totals))
        previous.append(totals.index(max(totals)))
    starts, at = [], num_frames
    while at > 0:
        at = previous[at]
        starts.insert(0, at)
    return best[-1], starts


def reference(features: torch.Tensor, attention: torch.Tensor, method: HoliTom) -> tuple[dict, list[int]]:
    """For every kept index its token and the tokens that went into it; also where the windows start."""
    x = features.double()
    num_frames, tokens_per_frame, _ = x.shape
    num_tokens = method.exact_num_tokens(num_frames, tokens_per_frame)
    threshold = method.static_threshold or (0.65 if method.retention_ratio <= 0.1 else 0.8)
    places = range(tokens_per_frame)
    similarity = [[cosine(x[t, n], x[t + 1, n]) for n in places] for t in range(num_frames - 1)]
    still = [[value > threshold for value in row] for row in similarity]
    gain, starts = reference_windows(still, num_frames, tokens_per_frame)

    groups, leaving = {}, []
    for first, end in zip(starts, [*starts[1:], num_frames], strict=True):
        for n in places:
            if end - first > 1 and all(still[t][n] for t in range(first, end - 1)):
                groups[first, n] = [*range(first, end)]
                leaving += [(similarity[t - 1][n], t, n, first) for t in range(first + 1, end)]
    assert len(leaving) == gain
    excess = num_tokens - (num_frames * tokens_per_frame - gain)
    for _, t, n, first in sorted(leaving)[: max(0, excess)]:
        groups[first, n].remove(t)

    merged = {(t, n) for (_, n), frames in groups.items() for t in frames}
    static = [[n for n in places if (t, n) in groups] for t in range(num_frames)]
    dynamic = [[n for n in places if (t, n) not in merged] for t in range(num_frames)]
    counts = share(num_tokens, [len(of_set) for of_set in static + dynamic])

    expected = {}
    for t in range(num_frames):
        best = sorted(dynamic[t], key=lambda n, t=t: (-float(attention[t, n]), n))
        for n in best[: counts[num_frames + t]]:
            expected[t * tokens_per_frame + n] = (x[t, n], [t * tokens_per_frame + n])
        if counts[t] == 0:
            continue
        means = [x[groups[t, n], n].mean(0) for n in static[t]]
        centers, nearest = cluster(means, counts[t])
        for center in centers:
            others = [i for i in range(len(means)) if nearest[i] == center and i != center]
            token = means[center]
            if others:
                token = 0.6 * token + 0.4 * torch.stack([means[i] for i in others]).mean(0)
            members = [static[t][i] for i in [center, *others]]
            sources = [s * tokens_per_frame + n for n in members for s in groups[t, n]]
            expected[t * tokens_per_frame + static[t][center]] = (token, sources)
    return expected, starts


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_does_what_the_description_says(shape):
    for seed, ratio in enumerate(RATIOS):
        features, attention = redundant_video(*shape, seed=seed)
        method = HoliTom(retention_ratio=ratio)
        if method.exact_num_tokens(*shape[:2]) < attention.numel():
            compare(method, features, attention, *reference(features, attention, method))


@pytest.mark.parametrize("threshold", [-0.5, 0.3, 0.99])
def test_it_follows_its_threshold(threshold):
    features, attention = redundant_video(12, 20, 16, seed=3)
    method = HoliTom(retention_ratio=0.2, static_threshold=threshold)
    compare(method, features, attention, *reference(features, attention, method))


@pytest.mark.parametrize("chunk", [None, 1])
def test_windows_have_the_largest_gain(chunk, monkeypatch):
    if chunk is not None:
        monkeypatch.setattr(method_holitom, "_PATHS_BYTES", chunk)
    generator = torch.Generator().manual_seed(0)
    for num_frames in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 30]:
        for probability in [0.0, 0.5, 0.8, 0.95, 1.0]:
            still = torch.rand(num_frames - 1, 6, generator=generator) < probability
            gains = window_gains(last_still_frames(still))
            starts = best_windows(gains).nonzero().flatten().tolist()
            gain, expected = reference_windows(still.tolist(), num_frames, 6)
            assert starts == expected
            ends = [*starts[1:], num_frames]
            assert sum(gains[a, end - 1] for a, end in zip(starts, ends, strict=True)) == gain


def test_windows_end_where_the_scene_does():
    still = torch.ones(9, 10, dtype=torch.bool)
    still[3] = still[4] = False  # frame 4 is like none
    assert best_windows(window_gains(last_still_frames(still))).nonzero().flatten().tolist() == [0, 4, 5]
    still[3, 0] = still[4, 0] = True  # one place is always static: 9 tokens, fewer than a cut saves
    assert best_windows(window_gains(last_still_frames(still))).nonzero().flatten().tolist()[0] == 0
    still = torch.zeros(9, 10, dtype=torch.bool)  # nothing is static: no reason to cut
    assert best_windows(window_gains(last_still_frames(still))).nonzero().flatten().tolist() == [0]


def test_a_still_video_is_one_frame():
    frame = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0))
    method = HoliTom(retention_ratio=0.1, llm_retention_ratio=1.0)
    video = method.compress(frame.expand(10, -1, -1), torch.zeros(10, 40))
    assert video.starts.sum() == 1 and torch.equal(video.indices, torch.arange(40))
    torch.testing.assert_close(video.tokens, frame[0])


def test_moving_tokens_are_chosen_by_attention():
    features = torch.eye(40).view(4, 10, 40)
    attention = torch.rand(4, 10, generator=torch.Generator().manual_seed(0))
    video = HoliTom(retention_ratio=0.3, llm_retention_ratio=1.0).compress(features, attention)
    best = attention.topk(3, dim=1).indices.sort().values + torch.arange(4)[:, None] * 10
    assert torch.equal(video.indices, best.flatten()) and torch.equal(video.tokens, torch.eye(40)[best.flatten()])
    assert video.selected.sum() == 12


def test_the_threshold_depends_on_the_ratio():
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.7, 0.51**0.5])  # cosine 0.7
    features = torch.stack([x, y])[:, None].repeat(1, 20, 1)
    merged = {}
    for ratio in [0.1, 0.11]:
        video = HoliTom(retention_ratio=ratio, llm_retention_ratio=1.0).compress(features, torch.zeros(2, 20))
        merged[ratio] = bool((~video.selected[video.slots >= 0]).any())
    assert merged == {0.1: True, 0.11: False}


def test_the_language_model_makes_up_for_what_enters():
    method = make_method("holitom", retention_ratio=0.2)
    assert (method.pruning.layer, method.pruning.ratio, method.pruning.merges) == (18, 0.5, True)
    assert method.pruning.scored_by == "last_token"
    assert method.entering_ratio == pytest.approx(0.2 * 28 / (18 + 0.5 * 10))
    method = make_method("holitom", retention_ratio=0.9)
    assert method.entering_ratio == pytest.approx(1) and 18 + method.pruning.ratio * 10 == pytest.approx(0.9 * 28)
    assert make_method("holitom", num_layers=36).pruning.layer == 23
    assert make_method("holitom", num_layers=2).pruning.layer == 1
    assert make_method("holitom", num_layers=1).pruning is None
    assert make_method("holitom", num_layers=4, first_pruning_layer=4).pruning is None
    assert make_method("holitom", llm_retention_ratio=1.0).pruning is None


@pytest.mark.parametrize(
    "settings", [{"static_threshold": -1.1}, {"pruning_layer": 0}, {"llm_retention_ratio": 1.1}], ids=str
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is "):
        make_method("holitom", **settings)
