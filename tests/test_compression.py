"""The compression on any video: what must hold for all settings, and a comparison with a plain reference."""

import math
from collections import Counter
from dataclasses import fields, replace

import pytest
import reference
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from measuring import Operators, PeakMemory

from flashvid_hf.compression import frame_chunks
from flashvid_hf.compression.compress_video import CompressionConfig, compress_video, cosine_distances, exact_num_tokens
from flashvid_hf.compression.compressed_video import CompressedVideo
from flashvid_hf.compression.density_peaks import cluster_tokens
from flashvid_hf.compression.released_deviations import released_segment_lengths
from flashvid_hf.compression.segmentation import frame_similarity, segment_video
from flashvid_hf.compression.token_merging import link_tokens
from flashvid_hf.compression.token_selection import TOKEN_SELECTION_METHODS, select_tokens

BEHAVIORS = ("paper", "released")
KINDS = ("random", "scenes", "static", "repeated tokens", "repeated frames", "zero", "some zero", "opposite", "one hot")
any_video = settings(max_examples=120, deadline=None, derandomize=True)


def make_video(kind, num_frames, num_tokens, width, seed, scale=1.0):
    """Features (T, N, D) and attention (T, N)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    features = normal(num_frames, num_tokens, width)
    attention = torch.rand(num_frames, num_tokens, generator=generator).softmax(-1)
    if kind == "scenes":
        scenes = normal(3, num_tokens, width)
        features = scenes[torch.arange(num_frames) * 3 // num_frames] + 0.3 * features
    elif kind == "static":
        features, attention = features[:1].expand_as(features).clone(), attention[:1].expand_as(attention).clone()
    elif kind == "repeated tokens":
        features = features[:, torch.randint(num_tokens, (num_tokens,), generator=generator)]
        attention = torch.full_like(attention, 1 / num_tokens)
    elif kind == "repeated frames":
        features = features[torch.randint(num_frames, (num_frames,), generator=generator)]
    elif kind == "zero":
        features, attention = torch.zeros_like(features), torch.zeros_like(attention)
    elif kind == "some zero":
        features[torch.rand(num_frames, num_tokens, generator=generator) < 0.5] = 0
        attention[torch.rand(num_frames, num_tokens, generator=generator) < 0.5] = 0
    elif kind == "opposite":  # each frame negates the one before: the event relevance of half of the tokens is negative
        features = features[:1] * torch.tensor([1.0, -1.0]).repeat(num_frames)[:num_frames, None, None]
    elif kind == "one hot":
        features = torch.eye(width)[torch.randint(width, (num_frames, num_tokens), generator=generator)]
    return features * scale, attention


sizes = st.tuples(st.integers(1, 12), st.integers(1, 24), st.integers(1, 16))
videos = st.builds(
    lambda kind, size, seed, scale: make_video(kind, *size, seed, scale),
    st.sampled_from(KINDS),
    sizes,
    st.integers(0, 2**31 - 1),
    st.sampled_from([1.0, 1e-6, 1e4]),
)
configs = st.builds(
    CompressionConfig,
    retention_ratio=st.floats(0, 1, exclude_min=True) | st.sampled_from([0.1, 0.25, 0.5]),
    expansion=st.floats(1, 3) | st.just(1.25),
    alpha=st.floats(0, 1) | st.sampled_from([0, 0.7, 1]),
    token_selection_method=st.sampled_from(TOKEN_SELECTION_METHODS),
    temporal_threshold=st.floats(-1, 1.5) | st.sampled_from([0.8, 1.0]),
    do_segment=st.booleans(),
    segment_threshold=st.floats(-1, 1.5) | st.just(0.9),
    min_segment_num=st.integers(1, 16),
    complementary_segment=st.booleans(),
)
released_configs = configs.map(lambda config: replace(config, behavior="released"))


def assert_same(video, other):
    """Assert that two results are equal, bit for bit, in every field."""
    for field in fields(video):
        a, b = getattr(video, field.name), getattr(other, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def is_whole(video) -> bool:
    return len(video.indices) == video.selected.numel()


# Behavior "paper"


@any_video
@given(videos, configs)
def test_paper_keeps_the_promised_tokens(inputs, config):
    features, attention = inputs
    originals = features.clone(), attention.clone()
    video = compress_video(features, attention, config)
    assert torch.equal(features, originals[0]) and torch.equal(attention, originals[1])
    num_kept = exact_num_tokens(*attention.shape, config)
    assert video.indices.shape == (num_kept,) and video.indices.dtype == torch.long
    assert (video.indices.diff() > 0).all()
    assert 0 <= video.indices[0] and video.indices[-1] < attention.numel()
    assert video.tokens.shape == (num_kept, features.shape[-1]) and video.tokens.dtype == features.dtype
    assert torch.isfinite(video.tokens).all()
    assert_same(video, compress_video(features, attention, config))


@any_video
@given(videos, configs)
def test_paper_segments_the_frames(inputs, config):
    features, attention = inputs
    video = compress_video(features, attention, config)
    lengths = video.segment_lengths
    assert video.starts.shape == (len(features),) and video.starts[0]
    assert lengths.sum() == len(features) and (lengths > 0).all()
    assert len(lengths) == video.starts.sum()
    if not is_whole(video):
        if not config.do_segment:
            assert lengths.tolist() == [len(features)]
        elif config.complementary_segment:
            assert len(lengths) >= min(config.min_segment_num, len(features))


@any_video
@given(videos, configs)
def test_paper_tokens_are_means_of_disjoint_sets(inputs, config):
    features, attention = inputs
    video = compress_video(features, attention, config)
    num_frames, num_tokens, width = features.shape
    rows = features.reshape(-1, width)
    if is_whole(video):
        assert video.selected.all()
        assert video.slots.flatten().tolist() == video.trees.flatten().tolist() == list(range(len(rows)))
        assert torch.equal(video.tokens, rows)
        return
    budget = math.ceil(num_tokens * config.retention_ratio * config.expansion)
    num_selected = math.ceil(budget * config.alpha)
    selected, roots, slots = (t.flatten().tolist() for t in (video.selected, video.trees, video.slots))
    indices = video.indices.tolist()
    assert video.selected.sum(1).tolist() == [num_selected] * num_frames

    # A selected token is kept unchanged, in its own row.
    merged_rows = set(range(len(indices)))
    for place in (p for p, chosen in enumerate(selected) if chosen):
        row = slots[place]
        assert indices[row] == place and roots[place] == place and slots.count(row) == 1
        assert torch.equal(video.tokens[row], rows[place])
        merged_rows.remove(row)
    assert len(merged_rows) == num_frames * (budget - num_selected)

    # The other tokens form trees. A tree begins at one root, covers consecutive frames of its segment, and is never
    # split.
    trees = {}
    for place, root in enumerate(roots):
        if not selected[place]:
            trees.setdefault(root, []).append(place)
    segment = (video.starts.cumsum(0) - 1).tolist()
    for root, members in trees.items():
        frames = sorted({member // num_tokens for member in members})
        assert root == members[0] and roots[root] == root
        assert frames == list(range(frames[0], frames[-1] + 1))
        assert len({segment[frame] for frame in frames}) == 1
        assert [member // num_tokens for member in members].count(frames[0]) == 1
        assert len({slots[member] for member in members}) == 1
    num_links = Counter(segment[p // num_tokens] for p, root in enumerate(roots) if p != root)
    for index, length in enumerate(video.segment_lengths.tolist()):
        assert num_links[index] <= (num_tokens - budget) * length
    if config.temporal_threshold >= 1:
        assert not num_links

    # A merged token is the mean of its trees' means. The roots of all these trees lie in its frame, and it has the
    # place of one of them.
    clusters = {}
    for root, members in trees.items():
        clusters.setdefault(slots[root], {})[root] = rows[members].double().mean(0)
    clusters.pop(-1, None)
    assert set(clusters) == merged_rows
    tolerance = 1e-5 * rows.abs().max().item()
    for row, means in clusters.items():
        assert indices[row] in means
        assert {root // num_tokens for root in means} == {indices[row] // num_tokens}
        expected = torch.stack(list(means.values())).mean(0)
        torch.testing.assert_close(video.tokens[row].double(), expected, rtol=0, atol=tolerance)


@any_video
@given(videos, configs)
def test_gradients_flow_to_the_kept_tokens(inputs, config):
    features, attention = inputs
    features.requires_grad_()
    video = compress_video(features, attention, config)
    weight = torch.arange(1.0, len(video.tokens) + 1)  # a different weight for each kept token
    (video.tokens * weight[:, None]).sum().backward()
    slots, roots = video.slots.flatten().tolist(), video.trees.flatten().tolist()
    members = Counter(roots)
    trees = Counter(slot for place, slot in enumerate(slots) if roots[place] == place)
    share = [0.0 if slot < 0 else float(weight[slot]) / members[roots[p]] / trees[slot] for p, slot in enumerate(slots)]
    expected = torch.tensor(share).view(*attention.shape, 1).expand_as(features)
    torch.testing.assert_close(features.grad, expected)


# Behavior "released"


@any_video
@given(videos, released_configs)
@example(make_video("static", 1, 3, 4, 0), CompressionConfig(alpha=0.5, behavior="released"))
@example(make_video("opposite", 4, 9, 8, 0), CompressionConfig(temporal_threshold=1, behavior="released"))
def test_released_never_fails(inputs, config):
    features, attention = inputs
    originals = features.clone(), attention.clone()
    video = compress_video(features, attention, config)
    assert torch.equal(features, originals[0]) and torch.equal(attention, originals[1])
    assert len(video.tokens) == len(video.indices)
    assert (video.indices.diff() >= 0).all()
    assert 0 <= video.indices[0] and video.indices[-1] < attention.numel()
    assert torch.isfinite(video.tokens).all() and video.tokens.dtype == features.dtype
    assert video.segment_lengths.sum() == len(features)
    assert_same(video, compress_video(features, attention, config))


def test_released_chooses_again_where_the_relevance_is_negative():
    features, attention = make_video("random", 3, 8, 6, seed=0)
    unit = torch.nn.functional.normalize(features, dim=-1)
    relevance = -torch.ones_like(attention)
    repeated, distinct = (
        select_tokens(1 - unit @ unit.mT, attention, 4, event_relevance=relevance, released=released)
        for released in (True, False)
    )
    assert (distinct.diff() > 0).all()
    assert (repeated.diff() == 0).all()  # at distance 0 from itself, the first token is still the farthest
    assert (distinct == repeated[:, :1]).any(1).all()

    # Through the compression: a faint second frame, turned away from the mean of both.
    features = torch.cat([features[:1] + 2, -0.1 * (features[1:2] + 2)])
    config = CompressionConfig(retention_ratio=0.4, alpha=1, do_segment=False)
    repeated = compress_video(features, attention[:2], replace(config, behavior="released")).indices.tolist()
    distinct = compress_video(features, attention[:2], config).indices.tolist()
    assert repeated[:4] == distinct[:4] and len(set(repeated[4:])) == 1 and len(set(distinct)) == 8


def choose_as_released(distance, attention, relevance, count, method) -> list[int]:
    """Tokens of one frame as the released code chooses them: without `attn_div_v2`, a chosen one gets the value -1."""
    everyone = range(len(attention))
    weight = torch.ones_like(attention) if method == "div" else attention * 1e6
    weight = weight * relevance if method == "attn_div_v2" else weight
    calibrated = (distance * weight).tolist()
    chosen = [max(everyone, key=lambda j: (sorted(calibrated[i][j] for i in everyone)[1], -j))]
    while len(chosen) < count:
        worth = [min(calibrated[i][j] for i in chosen) for j in everyone]
        if method != "attn_div_v2":
            worth = [-1.0 if j in chosen else worth[j] for j in everyone]
        chosen.append(max(everyone, key=lambda j: (worth[j], -j)))
    return sorted(chosen)


@pytest.mark.parametrize("kind", ["random", "identical", "zero", "some zero", "opposite", "repeated tokens"])
@pytest.mark.parametrize("method", ["div", "attn_div", "attn_div_v2"])
def test_released_chooses_again_in_attn_div_v2_alone(method, kind):
    features, attention = make_video("random" if kind == "identical" else kind, 5, 24, 8, seed=0)
    if kind == "identical":
        features = features[:, :1].expand_as(features).contiguous()
    if kind == "zero":
        attention = make_video("random", 5, 24, 8, seed=0)[1]
    config = CompressionConfig(
        retention_ratio=0.5, alpha=1, token_selection_method=method, do_segment=False, behavior="released"
    )
    count = config.frame_budget(24)[1]
    video = compress_video(features, attention, config)
    relevance = features @ features.mean((0, 1))
    distance = cosine_distances(features)[0]
    chosen = [choose_as_released(*frame, count, method) for frame in zip(distance, attention, relevance, strict=True)]
    assert video.indices.tolist() == [24 * t + n for t in range(5) for n in chosen[t]]
    repeats = any(len(set(of_frame)) < count for of_frame in chosen)
    assert repeats == (method == "attn_div_v2" and kind != "repeated tokens") or kind in ("random", "repeated tokens")
    assert not (repeats and method != "attn_div_v2")


# Both


def test_distances_are_symmetric():
    """Bit for bit and for all norms, so that two tokens that are each other's nearest stay tied."""
    features = make_video("random", 5, 40, 16, seed=0)[0] * torch.logspace(-3, 3, 40)[:, None]
    distance, inverse_norm = cosine_distances(features)
    assert torch.equal(distance, distance.mT)
    torch.testing.assert_close(inverse_norm, 1 / features.norm(dim=-1))
    torch.testing.assert_close(distance, 1 - torch.cosine_similarity(features[:, :, None], features[:, None], dim=-1))


# Directions of length exactly 1, and the cosine of the second with the first. None of them is rounded.
EXACT = {0.0: [0.0, 1.0, 0.0, 0.0], 0.5: [0.5, 0.5, 0.5, 0.5], 1.0: [1.0, 0.0, 0.0, 0.0], -0.5: [-0.5, 0.5, 0.5, 0.5]}


@pytest.mark.parametrize("cosine", EXACT)
def test_a_transition_at_the_threshold_is_no_cut(cosine):
    frames = torch.tensor([[1.0, 0.0, 0.0, 0.0], EXACT[cosine]])
    assert frame_similarity(frames).tolist() == [cosine]
    for threshold, lengths in ((cosine, [2]), (cosine + 1e-6, [1, 1])):
        settings = {"segment_threshold": threshold, "min_segment_num": 1, "complementary_segment": False}
        assert segment_video(frames, **settings).tolist() == [True, len(lengths) == 2]
        assert released_segment_lengths(frame_similarity(frames), **settings).tolist() == lengths
        for behavior in BEHAVIORS:
            config = CompressionConfig(retention_ratio=0.5, expansion=1, behavior=behavior, **settings)
            video = compress_video(frames[:, None].expand(2, 4, 4).contiguous(), torch.ones(2, 4), config)
            assert video.segment_lengths.tolist() == lengths


def test_equal_transitions_are_cut_from_the_first_one_on():
    """Complementary cuts take the least similar transitions, and the earlier one of two that are equally similar."""
    still = torch.ones(6, 4)
    settings = {"segment_threshold": -1.0, "min_segment_num": 3, "complementary_segment": True}
    assert segment_video(still, **settings).tolist() == [True, True, True, False, False, False]
    turned = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0]])  # transitions 1, 1, 0, 1, 0
    assert segment_video(turned, **{**settings, "min_segment_num": 2}).tolist() == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    assert segment_video(turned, **settings).tolist() == [True, False, False, True, False, True]
    starts = segment_video(turned, **{**settings, "min_segment_num": 4})
    assert starts.tolist() == [True, True, False, True, False, True]


@pytest.mark.parametrize("strict_limit", [False, True])
@pytest.mark.parametrize("cosine", [0.0, 0.5, -0.5])
def test_a_link_needs_more_than_the_threshold(cosine, strict_limit):
    features = torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [EXACT[cosine]]])
    for threshold, parents in ((cosine, [0, 1]), (cosine - 1e-6, [0, 0])):
        parent = link_tokens(
            features,
            torch.ones(2, 1),
            torch.zeros(2, 1, dtype=torch.bool),
            torch.zeros(2, dtype=torch.long),
            torch.arange(2),
            max_links=torch.tensor([2, 2]),
            temporal_threshold=threshold,
            strict_limit=strict_limit,
        )
        assert parent.tolist() == parents


@pytest.mark.parametrize("behavior", BEHAVIORS)
@given(videos, configs, st.data())
@any_video
def test_the_whole_video_stays_where_the_budget_reaches_it(behavior, inputs, config, data):
    retention_ratio = data.draw(st.floats(0.01, 1), "retention_ratio")
    expansion = data.draw(st.floats(1 / retention_ratio, 1000), "expansion")
    features, attention = inputs
    originals = features.clone()
    config = replace(config, retention_ratio=retention_ratio, expansion=expansion, behavior=behavior)
    video = compress_video(features, attention, config)
    assert torch.equal(video.tokens, features.flatten(0, 1))
    assert video.indices.tolist() == list(range(attention.numel()))
    assert video.segment_lengths.sum() == len(features)
    video.tokens.fill_(7)
    assert torch.equal(features, originals)


@pytest.mark.parametrize("behavior", BEHAVIORS)
@given(videos, configs, st.sampled_from([torch.float16, torch.bfloat16, torch.float64]))
@any_video
def test_other_dtypes_compute_in_float32(behavior, inputs, config, dtype):
    features, attention = (t.to(dtype) for t in inputs)
    config = replace(config, behavior=behavior)
    video = compress_video(features, attention, config)
    exact = compress_video(features.float(), attention.float(), config)
    assert video.tokens.dtype == dtype and torch.isfinite(exact.tokens).all()
    assert torch.equal(video.tokens, exact.tokens.to(dtype) if not is_whole(exact) else features.flatten(0, 1))
    assert_same(replace(video, tokens=exact.tokens), exact)


@pytest.mark.parametrize("behavior", BEHAVIORS)
@given(videos, configs)
@any_video
def test_strides_do_not_matter(behavior, inputs, config):
    features, attention = inputs
    config = replace(config, behavior=behavior)
    strided = features.permute(2, 0, 1).contiguous().permute(1, 2, 0), attention.mT.contiguous().mT
    assert_same(compress_video(*strided, config), compress_video(features, attention, config))
    wide = torch.cat([features, features], -1)[..., : features.shape[-1]]
    assert_same(compress_video(wide, attention, config), compress_video(features, attention, config))


@pytest.mark.parametrize("behavior", BEHAVIORS)
@given(videos, configs)
@any_video
def test_autocast_does_not_matter(behavior, inputs, config):
    config = replace(config, behavior=behavior)
    expected = compress_video(*inputs, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(compress_video(*inputs, config), expected)


@pytest.mark.parametrize("method", TOKEN_SELECTION_METHODS)
def test_long_static_video_keeps_its_norms(method):
    """The released code scales long trees up; the mean of equal tokens is the token."""
    features, attention = make_video("static", 32, 20, 16, seed=0)
    config = CompressionConfig(retention_ratio=0.1, alpha=0.4, token_selection_method=method, do_segment=False)
    video = compress_video(features, attention, config)
    largest = features.norm(dim=-1).max()
    assert video.tokens.norm(dim=-1).max() <= largest * (1 + 1e-6)
    released = compress_video(features, attention, replace(config, behavior="released"))
    assert released.tokens.norm(dim=-1).max() > 2 * largest


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("method", TOKEN_SELECTION_METHODS)
def test_one_token_a_frame(behavior, method):
    features, attention = make_video("random", 5, 1, 8, seed=0)
    config = CompressionConfig(retention_ratio=0.1, token_selection_method=method, behavior=behavior)
    video = compress_video(features, attention, config)
    assert torch.equal(video.tokens, features[:, 0]) and video.indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", TOKEN_SELECTION_METHODS)
def test_one_frame(method):
    features, attention = make_video("random", 1, 40, 8, seed=0)
    config = CompressionConfig(retention_ratio=0.4, alpha=0.6, token_selection_method=method)
    video = compress_video(features, attention, config)
    assert video.indices.unique().numel() == 20 and video.selected.sum() == 12
    assert video.trees.flatten().tolist() == list(range(40))
    assert video.segment_lengths.tolist() == [1]


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_zero_features_are_similar_to_nothing(behavior):
    features, attention = make_video("zero", 4, 12, 8, seed=0)
    config = CompressionConfig(
        token_selection_method="attn",
        temporal_threshold=-0.5,
        segment_threshold=-0.5,
        min_segment_num=1,
        behavior=behavior,
    )
    video = compress_video(features, attention, config)
    assert video.segment_lengths.tolist() == [4]
    assert torch.equal(video.tokens, torch.zeros_like(video.tokens))
    # Cosine 0 is above the threshold: the 9 tokens of every frame that are not selected link to the frame before.
    assert (video.trees.flatten() != torch.arange(48)).sum() == 3 * 9


# The plain reference


@pytest.mark.slow
@pytest.mark.parametrize("method", TOKEN_SELECTION_METHODS)
def test_plain_reference(method):
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)

        def draw(*choices, generator=generator):
            return choices[torch.randint(len(choices), (), generator=generator)]

        features, attention = make_video(
            draw("random", "scenes"), draw(1, 2, 5, 7), draw(6, 9, 14), draw(5, 8, 16), seed
        )
        config = CompressionConfig(
            retention_ratio=draw(0.1, 0.25, 0.4, 0.55),
            alpha=draw(0, 0.3, 0.7, 0.7, 1),
            token_selection_method=method,
            temporal_threshold=draw(0.1, 0.4, 0.8, 0.9, 1),
            do_segment=draw(True, True, False),
            segment_threshold=draw(0.5, 0.9, 0.97),
            min_segment_num=draw(1, 2, 4, 8),
            complementary_segment=draw(True, False),
        )
        tokens, indices, lengths = reference.compress(features, attention, config)
        video = compress_video(features, attention, config)
        assert video.segment_lengths.tolist() == lengths
        assert video.indices.tolist() == indices
        tolerance = 1e-5 * tokens.abs().max().item()
        torch.testing.assert_close(video.tokens.double(), tokens, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_clusters", [1, 2, 3])
def test_ties_between_clusters_go_to_the_lower_index(num_clusters):
    """Four equal pairs of neighbours, with distances that are not rounded."""
    features = torch.zeros(1, 8, 4)
    for pair in range(4):
        features[0, 2 * pair : 2 * pair + 2, pair] = 8
        features[0, 2 * pair + 1, (pair + 1) % 4] = 1
    candidates = torch.ones(1, 8, dtype=torch.bool)
    centers, joined = cluster_tokens(
        features, candidates, torch.tensor([num_clusters]), torch.tensor([min(num_clusters, 7)])
    )
    assert centers[0].nonzero()[:, 0].tolist() == list(range(num_clusters))
    clusters = reference.density_peaks(list(features[0].double()), num_clusters)
    assert sorted(clusters) == list(range(num_clusters))
    assert {c: [i for i in range(8) if joined[0, i] == c] for c in clusters} == clusters


# What it costs


def operators(num_frames, **kwargs) -> Operators:
    features, attention = make_video("scenes", num_frames, 36, 32, seed=0)
    config = CompressionConfig(retention_ratio=0.1, **kwargs)
    with Operators() as seen:
        video = compress_video(features.bfloat16(), attention, config)
    assert seen.count > 20 and not is_whole(video)
    return seen


@pytest.mark.parametrize("method", TOKEN_SELECTION_METHODS)
@pytest.mark.parametrize("do_segment", [True, False])
def test_paper_waits_for_no_device_and_grows_with_no_frame(method, do_segment):
    short, long = (operators(t, token_selection_method=method, do_segment=do_segment) for t in (32, 160))
    assert short.waiting == long.waiting == []
    assert long.count <= 1.2 * short.count


@pytest.mark.parametrize("method", TOKEN_SELECTION_METHODS)
def test_at_most_220_operators(method):
    """32 frames of 196 tokens at 10 %: 18 greedy steps of three operators each, and all other operators."""
    video = [tensor.bfloat16() for tensor in make_video("scenes", 32, 196, 32, seed=0)]
    config = CompressionConfig(retention_ratio=0.1, token_selection_method=method)
    with Operators() as seen:
        compress_video(*video, config)
    assert seen.count <= 220


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("alpha", [0, 0.7, 1])
@pytest.mark.parametrize("kind", ["scenes", "static"])
@pytest.mark.slow
def test_a_long_video_in_chunks_is_the_same(monkeypatch, kind, alpha, behavior, dtype):
    """The result is equal bit for bit, with at most two waits more; behavior "released" always has waits of its own."""
    features, attention = make_video(kind, 11, 12, 16, seed=0)
    features = features.to(dtype)
    for method in TOKEN_SELECTION_METHODS:
        config = CompressionConfig(
            retention_ratio=0.25, alpha=alpha, behavior=behavior, token_selection_method=method, temporal_threshold=0.3
        )
        expected = compress_video(features, attention, config)
        for num_frames in (1, 2, 4, 10):
            monkeypatch.setattr(frame_chunks, "_CHUNK_BYTES", num_frames * 4 * 12 * 16)
            with Operators() as seen:
                found = compress_video(features, attention, config)
            for field in fields(CompressedVideo):
                ours, theirs = getattr(found, field.name), getattr(expected, field.name)
                same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
                assert same, (field.name, method, num_frames)
            assert behavior == "released" or len(seen.waiting) <= 2
        monkeypatch.undo()


def test_gradients_in_chunks_are_the_same(monkeypatch):
    features, attention = make_video("scenes", 11, 12, 16, seed=0)
    gradients = []
    for num_bytes in (2**20, 3 * 4 * 12 * 16):
        monkeypatch.setattr(frame_chunks, "_CHUNK_BYTES", num_bytes)
        leaf = features.clone().requires_grad_()
        compress_video(leaf, attention, CompressionConfig()).tokens.square().sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("kind", ["scenes", "static"])
@pytest.mark.parametrize("frames_per_chunk", [64, 16, 5])
@pytest.mark.slow
def test_memory_holds_the_input_and_a_chunk(monkeypatch, frames_per_chunk, kind, behavior):
    """Beyond the input, memory holds at most its size once more and one chunk in float32, including the result."""
    features, attention = make_video(kind, 64, 196, 256, seed=0)
    chunk = frames_per_chunk * 4 * 196 * 256
    monkeypatch.setattr(frame_chunks, "_CHUNK_BYTES", chunk)
    for dtype in (torch.bfloat16, torch.float32):
        video = features.to(dtype)
        for retention_ratio in (0.1, 0.25):
            with PeakMemory() as memory:
                compress_video(video, attention, CompressionConfig(retention_ratio=retention_ratio, behavior=behavior))
            assert memory.bytes <= video.nbytes + chunk


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("method", TOKEN_SELECTION_METHODS)
def test_steps_and_blocks_of_columns_change_nothing(monkeypatch, method, behavior):
    """Bit for bit. For bfloat16 features, which are summed in blocks, the tokens are the rounded tokens of float32."""
    features, attention = make_video("scenes", 60, 49, 160, seed=0)
    features = features.bfloat16()
    config = CompressionConfig(
        retention_ratio=0.2, token_selection_method=method, behavior=behavior, temporal_threshold=0.6
    )
    assert frame_chunks.frames_per_step(60, 49, 160) < 60
    video, exact = (compress_video(given, attention, config) for given in (features, features.float()))
    assert_same(video, replace(exact, tokens=exact.tokens.bfloat16()))
    monkeypatch.setattr(frame_chunks, "_STEP_BYTES", 2**30)
    assert frame_chunks.frames_per_step(60, 49, 160) == 60
    assert_same(exact, compress_video(features.float(), attention, config))


def test_memory_does_not_grow_with_copies(monkeypatch):
    """For a long video with bfloat16 features, the additional memory is much less than a float32 copy."""
    features, attention = make_video("scenes", 200, 16, 256, seed=0)
    features = features.bfloat16()
    monkeypatch.setattr(frame_chunks, "_CHUNK_BYTES", 10 * 4 * 16 * 256)
    with PeakMemory() as memory:
        compress_video(features, attention, CompressionConfig(retention_ratio=0.1))
    assert memory.bytes < 4 * features.numel() / 2


def test_operators_that_wait_are_noticed():
    assert operators(32, behavior="released").waiting
    with Operators() as seen:
        mask = torch.tensor([True, False])
        (torch.ones(2)[mask], mask.nonzero(), mask.any().item(), torch.ones(2).masked_select(mask))
        torch.arange(2).repeat_interleave(torch.tensor([1, 2]))
    assert len(seen.waiting) == 5


# What is refused


WRONG = {
    "retention_ratio": [0, -0.1, 1.01, math.nan, math.inf, "0.1", None, True],
    "expansion": [0.99, 0, -1, math.nan, math.inf, "1", None],
    "alpha": [-0.01, 1.01, math.nan, "0.7", None, False],
    "token_selection_method": ["", "best", "ATTN", None, 1],
    "temporal_threshold": [-1.01, math.nan, -math.inf, math.inf, "0.8", None],
    "do_segment": [0, 1, None, "yes"],
    "segment_threshold": [-1.01, math.nan, math.inf, "0.9", None],
    "min_segment_num": [0, -1, 1.0, 2.5, "8", None, True],
    "complementary_segment": [0, 1, None, "no"],
    "behavior": ["", "Paper", "upstream", None, 0],
}


def test_every_field_has_wrong_values():
    assert set(WRONG) == {field.name for field in fields(CompressionConfig)}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_wrong_settings_are_named(field, value):
    with pytest.raises(ValueError) as error:
        CompressionConfig(**{field: value})
    assert f"`{field}`" in str(error.value) and repr(value) in str(error.value)


@pytest.mark.parametrize("field", WRONG)
def test_wrong_settings_are_refused_in_copies(field):
    with pytest.raises(ValueError, match=f"`{field}`"):
        replace(CompressionConfig(), **{field: WRONG[field][0]})


@pytest.mark.parametrize(
    ("features", "attention", "message"),
    [
        ((3, 4), (3, 4), r"`video_features` has shape \(3, 4\)"),
        ((1, 3, 4, 5), (3, 4), r"`video_features` has shape \(1, 3, 4, 5\)"),
        ((0, 4, 5), (0, 4), r"`video_features` has shape \(0, 4, 5\)"),
        ((3, 0, 5), (3, 0), r"`video_features` has shape \(3, 0, 5\)"),
        ((3, 4, 0), (3, 4), r"`video_features` has shape \(3, 4, 0\)"),
        ((3, 4, 5), (4, 3), r"`attention` has shape \(4, 3\)"),
        ((3, 4, 5), (3, 5), r"`attention` has shape \(3, 5\)"),
        ((3, 4, 5), (12,), r"`attention` has shape \(12,\)"),
        ((3, 4, 5), (1, 3, 4), r"`attention` has shape \(1, 3, 4\)"),
    ],
)
def test_wrong_shapes_are_named(features, attention, message):
    with pytest.raises(ValueError, match=message):
        compress_video(torch.ones(features), torch.ones(attention), CompressionConfig())


@pytest.mark.parametrize("attention", [None, [[1.0] * 3] * 2])
def test_the_attention_must_be_a_tensor(attention):
    with pytest.raises(ValueError, match="`attention` is .* it must be a tensor"):
        compress_video(torch.ones(2, 3, 4), attention, CompressionConfig())


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.uint8])
def test_features_must_be_floating_point(dtype):
    with pytest.raises(ValueError, match=f"`video_features` has dtype {dtype}"):
        compress_video(torch.ones(2, 3, 4, dtype=dtype), torch.ones(2, 3), CompressionConfig())


def test_both_inputs_must_be_on_one_device():
    with pytest.raises(ValueError, match="`attention` is on meta and `video_features` on cpu"):
        compress_video(torch.ones(2, 3, 4), torch.ones(2, 3, device="meta"), CompressionConfig())


@pytest.mark.parametrize(
    ("num_frames", "tokens_per_frame", "expected", "kwargs"),
    [
        (32, 196, 32 * 25, {"retention_ratio": 0.1}),  # 196 * 0.125 = 24.5
        (64, 169, 64 * 22, {"retention_ratio": 0.1}),  # 21.125
        (32, 196, 32 * 62, {"retention_ratio": 0.25}),  # 61.25
        (5, 7, 5 * 1, {"retention_ratio": 0.01}),
        (5, 7, 5 * 7, {"retention_ratio": 0.8}),
        (5, 7, 5 * 7, {"retention_ratio": 1}),
        (5, 7, 5 * 7, {"retention_ratio": 0.5, "expansion": 3}),
        (1, 1, 1, {}),
    ],
)
def test_exact_num_tokens(num_frames, tokens_per_frame, expected, kwargs):
    assert exact_num_tokens(num_frames, tokens_per_frame, CompressionConfig(**kwargs)) == expected


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, "3", None, True])
@pytest.mark.parametrize("name", ["num_frames", "tokens_per_frame"])
def test_exact_num_tokens_needs_sizes(name, value):
    sizes = {"num_frames": 4, "tokens_per_frame": 4, name: value}
    with pytest.raises(ValueError) as error:
        exact_num_tokens(**sizes, config=CompressionConfig())
    assert f"`{name}`" in str(error.value) and repr(value) in str(error.value)


def test_exact_num_tokens_needs_the_papers_behavior():
    with pytest.raises(ValueError, match="`behavior` is 'released'"):
        exact_num_tokens(4, 4, CompressionConfig(behavior="released"))


def test_equal_attention_keeps_the_first_tokens():
    """In behavior "paper". The released code leaves the choice to `torch.topk`."""
    attention = torch.tensor([[0.1, 0.3, 0.3, 0.3, 0.3, 0.1], [0.2] * 6])
    kept = select_tokens(None, attention, 3, method="attn")
    assert kept.tolist() == [[1, 2, 3], [0, 1, 2]]
