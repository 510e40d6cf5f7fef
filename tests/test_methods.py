"""What every compression method keeps to, however it chooses; see `test_method_*.py` for what each of them chooses."""

import math
from dataclasses import dataclass

import pytest
import torch
from benchmarking import Operators

from flashvid_hf.method import SHARED_SETTINGS, CompressionMethod, Kept
from flashvid_hf.methods import METHODS, available_methods, make_method, register_method

KEEPS_ALL = {"none"}
# Methods that cannot go below some ratio, at 28 layers.
LEAST_RATIO = {"fastv": 0.05}
NUM_LAYERS = 28
# Frames and tokens of a frame.
SIZES = ((1, 1), (1, 7), (2, 1), (3, 5), (8, 16), (13, 11), (40, 3), (17, 49), (5, 200))

every_method = pytest.mark.parametrize("name", available_methods())


def make_video(num_frames: int, num_tokens: int, width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Scenes of eight frames in which half of the tokens hardly change, and attention."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    scenes = draw(1 + num_frames // 8, num_tokens, width) + draw(1 + num_frames // 8, 1, width)
    change = torch.linspace(0.05, 1.0, num_tokens)[torch.randperm(num_tokens, generator=generator)]
    features = scenes[torch.arange(num_frames) // 8] + change[:, None] * draw(num_frames, num_tokens, width)
    return features.to(dtype), torch.rand(num_frames, num_tokens, generator=generator).to(dtype)


def make(name: str, ratio: float, **settings) -> CompressionMethod:
    if ratio < LEAST_RATIO.get(name, 0):
        pytest.skip(f"{name} cannot go as low as {ratio}")
    return make_method(name, retention_ratio=ratio, num_layers=NUM_LAYERS, **settings)


def check_consistency(video, features, num_tokens: int) -> None:
    """Count, order and range of the indices, and that they agree with what the other fields say."""
    num_frames, per_frame, width = features.shape
    indices, rows = video.indices, torch.arange(num_tokens)
    assert video.tokens.shape == (num_tokens, width) and video.tokens.dtype == features.dtype
    assert indices.shape == (num_tokens,) and indices.dtype == torch.long
    assert bool((indices.diff() > 0).all()) and 0 <= indices[0] and indices[-1] < num_frames * per_frame
    assert video.tokens.isfinite().all()
    assert video.starts.shape == (num_frames,) and video.starts.dtype == torch.bool and video.starts[0]
    # Every kept token is in its row, those that were selected alone and unchanged.
    assert video.slots.shape == video.selected.shape == video.trees.shape == (num_frames, per_frame)
    assert bool(((video.slots >= -1) & (video.slots < num_tokens)).all())
    assert torch.equal(video.slots.flatten()[indices], rows)
    selected = video.selected.flatten()
    assert bool((video.slots.flatten()[selected] >= 0).all())
    own_row = video.slots.flatten()[selected]
    assert torch.equal(indices[own_row], selected.nonzero()[:, 0])
    assert torch.equal(video.tokens[own_row], features.flatten(0, 1)[selected])


@every_method
@pytest.mark.parametrize("ratio", [0.1, 0.15, 0.2, 0.25, 0.5])
def test_the_average_over_the_layers_is_the_budget(name, ratio):
    """Within 2 %; for FlashVID of the paper's budget, which is rounded up for every frame."""
    num_frames, num_tokens = 32, 196
    method = make(name, ratio)
    entered = len(method.compress(*make_video(num_frames, num_tokens)).indices)
    if name in KEEPS_ALL:
        assert entered == num_frames * num_tokens and method.pruning is None and not method.compresses
        return
    average = entered
    if method.pruning is not None:
        layer = method.pruning.layer
        left = math.ceil(method.pruning.ratio * entered)
        assert 1 <= layer < NUM_LAYERS and left <= entered
        average = (layer * entered + (NUM_LAYERS - layer) * left) / NUM_LAYERS
    budget = num_frames * (math.ceil(num_tokens * ratio) if name == "flashvid" else num_tokens * ratio)
    assert abs(average / budget - 1) <= 0.02


@every_method
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_exactly_as_many_tokens_as_announced(name, ratio):
    method = make(name, ratio)
    for size in SIZES:
        features, attention = make_video(*size)
        check_consistency(method.compress(features, attention), features, method.exact_num_tokens(*size))


@every_method
@pytest.mark.parametrize("num_layers", [2, 3, 6, 24, 36, 80])
def test_other_depths(name, num_layers):
    """The average over the layers is the ratio, or below it where everything may enter and still too little is seen."""
    method = make_method(name, retention_ratio=0.6, num_layers=num_layers)
    if name in KEEPS_ALL:
        return
    average = method.entering_ratio
    if method.pruning is not None and method.pruning.layer < num_layers:
        layer, ratio = method.pruning.layer, method.pruning.ratio
        average *= (layer + ratio * (num_layers - layer)) / num_layers
    assert average == pytest.approx(0.6, abs=1e-5) or (method.entering_ratio == 1 and average < 0.6)


@every_method
@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_deterministic_and_inputs_untouched(name, ratio):
    """Bit for bit, also of views that are not contiguous."""
    method = make(name, ratio)
    features, attention = make_video(9, 25)
    given = features.transpose(1, 2).contiguous().transpose(1, 2), attention.T.contiguous().T
    first, again = method.compress(features, attention), method.compress(features.clone(), attention.clone())
    of_views = method.compress(*given)
    for video in (again, of_views):
        assert torch.equal(first.indices, video.indices) and torch.equal(first.slots, video.slots)
        assert torch.equal(first.selected, video.selected) and torch.equal(first.starts, video.starts)
    assert torch.equal(first.tokens, again.tokens)
    torch.testing.assert_close(first.tokens, of_views.tokens)
    untouched = make_video(9, 25)
    assert torch.equal(features, untouched[0]) and torch.equal(attention, untouched[1])
    assert torch.equal(given[0], untouched[0]) and torch.equal(given[1], untouched[1])
    first.tokens.fill_(0.0)
    assert torch.equal(features, untouched[0])  # the result is no view of them


@every_method
def test_attention_counts_where_it_is_said_to(name):
    features, attention = make_video(9, 25)
    method = make(name, 0.3)
    one, other = method.compress(features, attention), method.compress(features, attention.flip(1))
    assert torch.equal(one.indices, other.indices) is not METHODS[name].needs_attention


@every_method
@pytest.mark.parametrize("kind", ["zero", "constant", "huge", "tiny", "repeated frames", "some zero", "no attention"])
def test_extreme_features(name, kind):
    features, attention = make_video(10, 24)
    if kind == "zero":
        features, attention = torch.zeros_like(features), torch.zeros_like(attention)
    elif kind == "constant":
        features, attention = torch.ones_like(features), torch.ones_like(attention)
    elif kind == "repeated frames":
        features, attention = features[:1].repeat(10, 1, 1), attention[:1].repeat(10, 1)
    elif kind == "some zero":
        features[3], features[:, 5] = 0.0, 0.0
    elif kind == "no attention":
        attention = torch.zeros_like(attention)
    else:
        features = features * {"huge": 1e4, "tiny": 1e-20}[kind]
    for ratio in (0.1, 0.4, 0.9):
        method = make(name, ratio)
        check_consistency(method.compress(features, attention), features, method.exact_num_tokens(10, 24))


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_stays(name, dtype):
    features, attention = make_video(9, 25, dtype=dtype)
    method = make(name, 0.25)
    check_consistency(method.compress(features, attention), features, method.exact_num_tokens(9, 25))


@every_method
def test_autocast_changes_nothing(name):
    method, video = make(name, 0.25), make_video(9, 25)
    expected = method.compress(*video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = method.compress(*video)
    assert torch.equal(expected.indices, result.indices) and torch.equal(expected.tokens, result.tokens)


@every_method
@pytest.mark.parametrize("size", [(1, 1), (9, 25), (40, 3)])
def test_ratio_one_keeps_all_tokens_as_they_are(name, size):
    features, attention = make_video(*size)
    method = make(name, 1.0)
    video = method.compress(features, attention)
    assert torch.equal(video.tokens, features.flatten(0, 1)) and video.selected.all()
    assert video.tokens.data_ptr() != features.data_ptr()
    assert not method.compresses or method.pruning is None or method.pruning.ratio == 1


@every_method
@pytest.mark.parametrize("ratio", [0.1, 0.5])
@pytest.mark.parametrize("size", [(1, 9), (32, 49)])
def test_waits_for_the_device_once_at_most(name, ratio, size):
    method, video = make(name, ratio), make_video(*size)
    with Operators() as seen:
        method.compress(*video)
    assert len(seen.waiting) <= (name == "fastvid")  # which looks how long its segments are


@every_method
def test_no_more_frames_no_more_operators(name):
    """No loop over frames or tokens; a few more where something doubles."""
    counts = []
    for num_frames in (16, 128):
        method, video = make(name, 0.25), make_video(num_frames, 25)
        with Operators() as seen:
            method.compress(*video)
        counts.append(seen.count)
    assert counts[1] <= counts[0] + 40


@every_method
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retention_ratio", 0),
        ("retention_ratio", 1.5),
        ("retention_ratio", float("nan")),
        ("retention_ratio", "0.25"),
        ("num_layers", 0),
        ("num_layers", 2.5),
        ("first_pruning_layer", 0),
    ],
)
def test_shared_settings_out_of_range_are_refused(name, field, value):
    with pytest.raises(ValueError, match=f"`{field}` is {value!r}: it must be"):
        make_method(name, **{field: value})


@every_method
def test_settings_are_validated(name):
    """Each of them, with an error that names it and the value."""
    settings = METHODS[name].settings()
    assert not settings.keys() & SHARED_SETTINGS
    assert make_method(name, retention_ratio=0.5, **settings) == make_method(name, retention_ratio=0.5)
    for field, default in settings.items():
        assert default is None or isinstance(default, (bool, int, float, str))
        for value in ("nonsense", float("nan")):
            with pytest.raises(ValueError, match=f"`{field}` is {value!r}"):
                make_method(name, **{field: value})


@every_method
def test_sizes_and_shapes_are_validated(name):
    method = make(name, 0.5)
    for field, sizes in (("num_frames", (0, 4)), ("tokens_per_frame", (4, 0)), ("num_frames", (2.0, 4))):
        with pytest.raises(ValueError, match=f"`{field}` is"):
            method.exact_num_tokens(*sizes)
    features, attention = make_video(4, 9)
    for given, field in (((features[0], attention), "video_features"), ((features, attention[:3]), "attention")):
        with pytest.raises(ValueError, match=f"`{field}` has shape"):
            method.compress(*given)


@every_method
def test_the_class_says_what_it_is(name):
    method = METHODS[name]
    assert method.name == name and method.__doc__.strip()
    with pytest.raises(AttributeError):  # settings cannot change under a model's feet
        make_method(name).retention_ratio = 0.5


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="`compression_method` is 'fastvdi': it must be one of 'flashvid', .*'none'"):
        make_method("fastvdi")
    with pytest.raises(ValueError, match="`method_settings` has 'speed': the method 'random' has 'seed'"):
        make_method("random", speed=3)
    with pytest.raises(ValueError, match="`method_settings` has 'speed': the method 'none' has no settings"):
        make_method("none", speed=3)


def test_flashvid_comes_first():
    assert available_methods()[0] == "flashvid" and len(set(available_methods())) == len(available_methods())


@dataclass(frozen=True, kw_only=True)
class LastTokens(CompressionMethod):
    """Keep the last tokens of the video."""

    name = "last_tokens_of_a_test"
    needs_attention = False

    def keep(self, features: torch.Tensor, attention: torch.Tensor, num_tokens: int) -> Kept:
        indices = torch.arange(attention.numel() - num_tokens, attention.numel())
        return Kept(features.flatten(0, 1)[indices].flip(0), indices.flip(0))  # in any order


@pytest.fixture
def registered():
    yield register_method(LastTokens)
    METHODS.pop(LastTokens.name)


def test_a_method_of_a_user(registered):
    assert registered is LastTokens and available_methods()[-1] == LastTokens.name
    assert register_method(LastTokens) is LastTokens  # once more changes nothing
    features, attention = make_video(5, 8)
    video = make_method(LastTokens.name, retention_ratio=0.25).compress(features, attention)
    check_consistency(video, features, 10)
    assert video.indices.tolist() == [*range(30, 40)] and video.selected.sum() == 10


def test_registered_methods_go_away():
    assert LastTokens.name not in available_methods()
    with pytest.raises(ValueError, match="`compression_method` is 'last_tokens_of_a_test'"):
        make_method(LastTokens.name)


def test_what_can_be_registered():
    class NoDataclass(CompressionMethod):
        """A setting of it would be ignored."""

        name = "no_dataclass"
        speed: int = 3

    @dataclass(frozen=True, kw_only=True)
    class OtherBase:
        name = "other_base"

    @dataclass(frozen=True, kw_only=True)
    class Nameless(CompressionMethod):
        """It has no name."""

    @dataclass(frozen=True, kw_only=True)
    class Taken(CompressionMethod):
        """It has another's name."""

        name = "evs"

    for wrong in (NoDataclass, OtherBase, LastTokens(), "evs"):
        with pytest.raises(ValueError, match="`method` is .*derives from `CompressionMethod`"):
            register_method(wrong)
    with pytest.raises(ValueError, match="`name` of `Nameless` is None: it must be a string"):
        register_method(Nameless)
    with pytest.raises(ValueError, match="`name` of `Taken` is 'evs': .*taken are 'flashvid', "):
        register_method(Taken)
    assert METHODS["evs"] is not Taken and "no_dataclass" not in METHODS


@pytest.mark.parametrize("ratio", [0.02, 2 / 28])
def test_fastv_cannot_go_below_its_whole_layers(ratio):
    with pytest.raises(ValueError, match=r"`retention_ratio` is .* it must be above 0.0714286"):
        make_method("fastv", retention_ratio=ratio, pruning_layer=2, num_layers=28)
    assert make_method("fastv", retention_ratio=0.08, pruning_layer=2, num_layers=28).pruning.ratio > 0


@every_method
def test_layers_that_take_in_vision_features_are_whole(name):
    """Those of Qwen3-VL: whatever the method, no layer below the third loses a token."""
    method = make_method(name, retention_ratio=0.5, num_layers=28, first_pruning_layer=3)
    assert method.pruning is None or method.pruning.layer >= 3


def test_random_tokens_differ_by_seed():
    video = make_video(8, 40)
    kept = [make_method("random", seed=seed).compress(*video).indices.tolist() for seed in (0, 0, 1, 2)]
    assert kept[0] == kept[1] and kept[1] != kept[2] != kept[3] != kept[0]
    state = torch.get_rng_state()
    make_method("random").compress(*video)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3, 0.5, 0.9])
def test_frame_dropping_keeps_whole_frames(ratio):
    video = make_method("frame_dropping", retention_ratio=ratio).compress(*make_video(40, 9))
    counts = (video.indices // 9).bincount(minlength=40)
    whole = [t for t in range(40) if counts[t] == 9]
    assert ((counts > 0) & (counts < 9)).sum() <= 1 and len(whole) == len(video.indices) // 9
    gaps = {b - a for a, b in zip(whole[:-1], whole[1:], strict=True)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.25, 0.5, 0.9])
def test_uniform_tokens_are_spread_over_the_frames(ratio):
    for num_frames, num_tokens in SIZES:
        video = make_method("uniform", retention_ratio=ratio).compress(*make_video(num_frames, num_tokens))
        counts = (video.indices // num_tokens).bincount(minlength=num_frames)
        assert counts.max() - counts.min() <= 1


def test_evs_keeps_the_first_frame_and_what_changes():
    features, attention = torch.ones(4, 6, 3), torch.zeros(4, 6)
    features[2, 1], features[3, 4] = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    video = make_method("evs", retention_ratio=9 / 24).compress(features, attention)
    assert video.indices.tolist() == [0, 1, 2, 3, 4, 5, 13, 19, 22]  # token 1 changes and changes back, token 4 once
    assert make_method("evs", retention_ratio=0.1).exact_num_tokens(4, 6) == 6
