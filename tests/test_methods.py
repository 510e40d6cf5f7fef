"""Rules that hold for every compression method; `test_method_*.py` test what each of them chooses."""

import math
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import pytest
import torch
from measuring import Operators

from flashvid_hf.compression import finite_checks as finite
from flashvid_hf.compression.compressed_video import CompressedVideo
from flashvid_hf.compression.token_selection import TOKEN_SELECTION_METHODS
from flashvid_hf.methods.compression_method import SHARED_SETTINGS, CompressionMethod, Kept, Signals
from flashvid_hf.methods.registry import METHODS, available_methods, make_method, register_method

KEEPS_ALL = {"none"}
# Methods that cannot go below some ratio, with 28 layers.
LEAST_RATIO = {"fastv": 0.05}
NUM_LAYERS = 28
# Numbers of frames, and of tokens of a frame.
SIZES = ((1, 1), (1, 7), (2, 1), (3, 5), (8, 16), (13, 11), (40, 3), (17, 49), (5, 200))

every_method = pytest.mark.parametrize("name", available_methods())


def make_video(num_frames: int, num_tokens: int, width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Features of scenes of eight frames in which half of the tokens hardly change, and attention."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    scenes = draw(1 + num_frames // 8, num_tokens, width) + draw(1 + num_frames // 8, 1, width)
    change = torch.linspace(0.05, 1.0, num_tokens)[torch.randperm(num_tokens, generator=generator)]
    features = scenes[torch.arange(num_frames) // 8] + change[:, None] * draw(num_frames, num_tokens, width)
    return features.to(dtype), torch.rand(num_frames, num_tokens, generator=generator).to(dtype)


def still(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A video that hardly changes, with more frames than bfloat16 can count one by one."""
    features, attention = make_video(1, 4)
    noise = 1e-2 * torch.randn(300, 4, 16, generator=torch.Generator().manual_seed(0))
    return (features + noise).to(dtype), attention.expand(300, -1).to(dtype)


def assert_same(video: CompressedVideo, expected: CompressedVideo) -> None:
    """Assert that two results are equal, bit for bit, in every field."""
    for field in fields(CompressedVideo):
        ours, theirs = getattr(video, field.name), getattr(expected, field.name)
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), field.name
        else:
            assert ours == theirs, field.name


def make(name: str, ratio: float, **settings) -> CompressionMethod:
    if ratio < LEAST_RATIO.get(name, 0):
        pytest.skip(f"{name} cannot go as low as {ratio}")
    return make_method(name, retention_ratio=ratio, num_layers=NUM_LAYERS, **settings)


def check_consistency(video, features, num_tokens: int) -> None:
    """Check count, order and range of the indices, and that the other fields agree with them."""
    num_frames, per_frame, width = features.shape
    indices, rows = video.indices, torch.arange(num_tokens)
    assert video.tokens.shape == (num_tokens, width) and video.tokens.dtype == features.dtype
    assert indices.shape == (num_tokens,) and indices.dtype == torch.long
    assert bool((indices.diff() > 0).all()) and 0 <= indices[0] and indices[-1] < num_frames * per_frame
    assert video.tokens.isfinite().all()
    assert video.starts.shape == (num_frames,) and video.starts.dtype == torch.bool and video.starts[0]
    # Every kept token is in its row; selected tokens are unchanged and alone in theirs.
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
    """Within 2 %. For FlashVID it is the paper's budget, which is rounded up for every frame."""
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
    """The average over the layers is the ratio; it is lower if all tokens may enter and that is still too few."""
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
    """Bit for bit, also for views that are not contiguous."""
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
    assert torch.equal(features, untouched[0])  # the result is no view of the inputs


@every_method
def test_attention_counts_where_it_is_said_to(name):
    features, attention = make_video(9, 25)
    method = make(name, 0.3)
    one, other = method.compress(features, attention), method.compress(features, attention.flip(1))
    assert torch.equal(one.indices, other.indices) is not bool(METHODS[name].signals)


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


NOT_FINITE = {
    # dtype, value, and its name in the error
    "nan": (torch.float32, float("nan"), "nan"),
    "infinite": (torch.float32, float("inf"), "inf"),
    "minus infinite": (torch.bfloat16, float("-inf"), "-inf"),
    "float16 overflow": (torch.float16, 1e5, "inf"),
    "squares overflow": (torch.float32, 1e25, r"1e\+25"),
    "beyond float32": (torch.float64, -1e300, "-inf"),
    "large": (torch.bfloat16, -(2.0**41), r"-2.19902e\+12"),
}


@pytest.fixture
def other_device(monkeypatch):
    """Make the package treat the CPU as a device whose values are not read."""
    monkeypatch.setattr(finite, "must_wait", lambda device: True)


@every_method
@pytest.mark.parametrize("kind", NOT_FINITE)
@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_features_that_cannot_be_computed_with_are_named(name, kind, ratio):
    dtype, value, called = NOT_FINITE[kind]
    features, attention = make_video(9, 25, dtype=dtype)
    features[4, 7, 3] = value
    with pytest.raises(ValueError, match=f"^`video_features` has the value {called}: all of its values must be finite"):
        make(name, ratio).compress(features, attention)


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**41])
def test_attention_that_cannot_be_computed_with_is_named(name, value):
    features, attention = make_video(9, 25)
    method, changed = make(name, 0.25), attention.clone()
    changed[3, 5] = value
    if METHODS[name].signals:
        with pytest.raises(ValueError, match=r"^`attention` has the value (nan|inf|2.19902e\+12): all of its values"):
            method.compress(features, changed)
    else:  # the result may be anything
        assert_same(method.compress(features, changed), method.compress(features, attention))


def test_selection_without_attention_does_not_look_at_it():
    features, attention = make_video(9, 25)
    method = make("flashvid", 0.25, token_selection_method="div")
    assert_same(method.compress(features, attention * float("nan")), method.compress(features, attention))


@every_method
@pytest.mark.parametrize("where", ["features", "a frame", "all features", "attention", "all attention"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e25, -3e38])
def test_where_the_device_is_not_waited_for(name, where, value, other_device):
    """The indices are still in order, nothing waits, and an error is raised when the result is read."""
    selections = TOKEN_SELECTION_METHODS if name == "flashvid" else (None,)
    for selection in selections:
        method = make(name, 0.25, **({"token_selection_method": selection} if selection else {}))
        features, attention = make_video(9, 25)
        if "attention" in where:
            attention[... if "all" in where else (4, slice(3, 9))] = value
        else:
            features[{"features": (4, 7, 3), "a frame": 4, "all features": ...}[where]] = value
        with Operators() as seen:
            video = method.compress(features, attention)
        assert len(seen.waiting) <= (name == "fastvid")
        num_tokens = method.exact_num_tokens(9, 25)
        assert video.indices.shape == (num_tokens,) and len(video.tokens) == num_tokens
        assert bool((video.indices.diff() > 0).all()) and 0 <= video.indices[0] and video.indices[-1] < 9 * 25
        assert bool(((video.slots >= -1) & (video.slots < num_tokens)).all())
        if "attention" in where and (not METHODS[name].signals or selection == "div"):
            video.check()
            continue
        named = "attention" if "attention" in where else "video_features"
        for look in (video.check, lambda video=video: video.segment_lengths):
            with pytest.raises(ValueError, match=f"`{named}` has the value"):
                look()


@every_method
@pytest.mark.parametrize("behavior", ["paper", "released"])
def test_the_largest_values_that_are_taken(name, behavior):
    features, attention = make_video(10, 24)
    features = features / features.abs().max() * finite.LARGEST
    settings = {"behavior": behavior} if name == "flashvid" else {}
    for selection in TOKEN_SELECTION_METHODS if name == "flashvid" else (None,):
        method = make(name, 0.25, **settings, **({"token_selection_method": selection} if selection else {}))
        video = method.compress(features, attention / attention.sum(-1, keepdim=True))
        assert video.tokens.isfinite().all() and video.indices[-1] < 240
        assert behavior == "released" or bool((video.indices.diff() > 0).all())
        if selection == "attn_div_v2":  # the scale of the features does not change the selection
            scaled = method.compress(features * 2.0**-40, attention / attention.sum(-1, keepdim=True))
            assert torch.equal(video.selected, scaled.selected) and torch.equal(video.trees, scaled.trees)


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_stays(name, dtype):
    features, attention = make_video(9, 25, dtype=dtype)
    method = make(name, 0.25)
    check_consistency(method.compress(features, attention), features, method.exact_num_tokens(9, 25))


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def other_default_dtype(request):
    """A context manager that changes the default dtype."""

    @contextmanager
    def change():
        before = torch.get_default_dtype()
        torch.set_default_dtype(request.param)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    return change


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_default_dtype_changes_nothing(name, dtype, other_default_dtype):
    """Bit for bit; also with more tokens in a frame than bfloat16 can count one by one."""
    method = make(name, 0.25)
    for features, attention in (make_video(12, 25, dtype=dtype), make_video(3, 300, dtype=dtype)):
        expected = method.compress(features, attention)
        with other_default_dtype():
            assert_same(method.compress(features, attention), expected)


@pytest.mark.parametrize("behavior", ["paper", "released"])
@pytest.mark.parametrize("selection", TOKEN_SELECTION_METHODS)
@pytest.mark.slow
def test_the_default_dtype_changes_nothing_in_flashvid(selection, behavior, other_default_dtype):
    """Also with more frames in a segment, and more tokens in a tree, than bfloat16 can count one by one."""
    settings = {"token_selection_method": selection, "behavior": behavior, "min_segment_num": 1}
    for alpha in (0.0, 0.7, 1.0):
        method = make("flashvid", 0.25, alpha=alpha, **settings)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for features, attention in (make_video(12, 25, dtype=dtype), still(dtype)):
                expected = method.compress(features, attention)
                with other_default_dtype():
                    assert_same(method.compress(features, attention), expected)


@every_method
def test_float64_computes_in_float32(name):
    features, attention = make_video(12, 25, dtype=torch.float64)
    method = make(name, 0.25)
    video, exact = method.compress(features, attention), method.compress(features.float(), attention.float())
    assert video.tokens.dtype == torch.float64
    if method.compresses and method.entering_ratio < 1:
        assert_same(replace(video, tokens=video.tokens.float()), exact)


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
    assert len(seen.waiting) <= (name == "fastvid")  # which reads the lengths of its segments


@every_method
def test_no_more_frames_no_more_operators(name):
    """There is no loop over frames or tokens; the number may grow by a few operators when the size doubles."""
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
    """Each setting, with an error that names the setting and the value."""
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
    with pytest.raises(AttributeError):  # settings of a method cannot be changed
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
    signals = ()

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        num_all = len(features.flatten(0, 1))
        indices = torch.arange(num_all - num_tokens, num_all)
        return Kept(features.flatten(0, 1)[indices].flip(0), indices.flip(0))  # in any order


@pytest.fixture
def registered():
    yield register_method(LastTokens)
    METHODS.pop(LastTokens.name)


def test_a_method_of_a_user(registered):
    assert registered is LastTokens and available_methods()[-1] == LastTokens.name
    assert register_method(LastTokens) is LastTokens  # registering it again changes nothing
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
    """In Qwen3-VL no method takes a token from a layer below the third."""
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
    assert video.indices.tolist() == [0, 1, 2, 3, 4, 5, 13, 19, 22]  # token 1 changes twice, token 4 once
    assert make_method("evs", retention_ratio=0.1).exact_num_tokens(4, 6) == 6
