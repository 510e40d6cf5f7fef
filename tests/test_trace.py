"""The record and the picture of what the compression did with a video."""

import json
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from checkpoints import CLIP, build_pipeline, moving_frames, run_program
from PIL import Image

from flashvid_hf import read_video
from flashvid_hf.families import FAMILIES_BY_NAME
from flashvid_hf.tracing.picture import choose_frames, draw_trace, find_trees
from flashvid_hf.tracing.trace import Fate, VideoTrace, trace_report, trace_video
from flashvid_hf.video.batching import convert_to_tensors

ARRAYS = ("frames", "seconds", "fate", "trees", "went_to", "starts", "rows_entered", "rows_remained")
NUM_FRAMES = 12


@pytest.fixture(scope="module", params=FAMILIES_BY_NAME)
def family(request, tmp_path_factory) -> SimpleNamespace:
    pipe = build_pipeline(tmp_path_factory, request.param)
    return SimpleNamespace(name=request.param, model=pipe.model, processor=pipe.processor)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> SimpleNamespace:
    pipe = build_pipeline(tmp_path_factory, "qwen2_5_vl")
    return SimpleNamespace(model=pipe.model, processor=pipe.processor)


@pytest.fixture(scope="module")
def trace(qwen) -> VideoTrace:
    return trace_video(qwen.model, qwen.processor, CLIP, num_frames=32)


def make_inputs(processor, *clips) -> dict:
    """The inputs of one prompt for each clip."""
    content = [{"type": "video"}, {"type": "text", "text": "What happens in this video?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(
        text=[prompt] * len(clips),
        videos=[clip.frames for clip in clips],
        video_metadata=[clip.metadata for clip in clips],
        do_sample_frames=False,
        padding=True,
        padding_side="left",
    )
    return convert_to_tensors(inputs, "pt")


@torch.no_grad()
def call(model, inputs, **settings):
    return model(**inputs, logits_to_keep=1, use_cache=False, **settings)


@pytest.mark.parametrize("behavior", ["paper", "released"])
def test_fates_partition_the_tokens_and_agree_with_the_report(family, behavior):
    settings = {"behavior": behavior, "min_segment_num": 3}
    made = trace_video(family.model, family.processor, CLIP, num_frames=NUM_FRAMES, **settings)
    clip = read_video(CLIP, num_frames=NUM_FRAMES)
    inputs = make_inputs(family.processor, clip)
    outputs = call(family.model, inputs, **settings)
    report, (video,) = outputs.report, outputs.report.videos

    # Each token has one fate, as in the compressed video.
    num_frames, num_tokens = made.fate.shape
    assert num_tokens == made.height * made.width and made.fate.shape == video.selected.shape
    assert sum(made.count(fate) for fate in Fate) == made.fate.size
    kept, slots = np.zeros(made.fate.size, dtype=bool), video.slots.numpy()
    kept[video.indices.numpy()] = True
    kept = kept.reshape(made.fate.shape)
    np.testing.assert_array_equal(made.fate <= Fate.ROOT, kept)
    np.testing.assert_array_equal(made.fate == Fate.SELECTED, video.selected.numpy())
    np.testing.assert_array_equal(made.fate == Fate.DROPPED, slots < 0)
    assert all(made.count(fate) for fate in (Fate.SELECTED, Fate.ROOT, Fate.MERGED))

    # Where the tokens went.
    places = np.arange(made.fate.size).reshape(made.fate.shape)
    np.testing.assert_array_equal(made.went_to[kept], places[kept])
    merged = made.fate == Fate.MERGED
    assert kept.ravel()[made.went_to[merged]].all() and (made.went_to[made.fate == Fate.DROPPED] == -1).all()
    np.testing.assert_array_equal(made.trees, video.trees.numpy())
    assert tuple(np.bincount(made.segments)[1:]) == tuple(length for length in report.segment_lengths[0] if length)

    # The totals equal those of the report. The totals of tokens differ from them only by the newlines.
    assert (made.tokens, made.entered, made.remained) == (*report.tokens, *report.entered, *report.remained)
    assert made.rows_entered.sum() == len(video.indices) and made.settings["behavior"] == behavior
    rows = [made.rows_per_frame(fate).sum() for fate in (Fate.SELECTED, Fate.ROOT)]
    assert sum(rows) == len(video.indices) and (made.rows_remained <= made.rows_entered).all()

    # The tokens that remained, found by the input columns that the output names.
    columns = (inputs["input_ids"][0] == family.model.config.video_token_id).nonzero()[:, 0].tolist()
    left = np.array([columns.index(c) for c in outputs.token_index[0].tolist() if c in columns])
    newline_every = {"llava_onevision": made.fate.size, "llava_video": num_tokens}.get(family.name)
    if newline_every:
        left = left[left % (newline_every + 1) != newline_every]
        left = left - left // (newline_every + 1)
    np.testing.assert_array_equal(made.rows_remained.ravel(), np.bincount(left, minlength=made.fate.size))
    assert 0 < made.rows_remained.sum() < made.rows_entered.sum()


def test_the_videos_of_a_padded_batch(family):
    clips = [read_video(CLIP, num_frames=number) for number in (4, NUM_FRAMES)]
    inputs = make_inputs(family.processor, *clips)
    both = trace_report(call(family.model, inputs).report, inputs, clips, family.model.config)
    for clip, of_batch in zip(clips, both, strict=True):
        single = make_inputs(family.processor, clip)
        (alone,) = trace_report(call(family.model, single).report, single, [clip], family.model.config)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(of_batch, name), getattr(alone, name), err_msg=name)
        assert (of_batch.tokens, of_batch.entered, of_batch.remained) == (alone.tokens, alone.entered, alone.remained)


def test_frames_and_times(family):
    clip = read_video(CLIP, num_frames=7)
    made = trace_video(family.model, family.processor, CLIP, num_frames=7)
    step = 2 if family.name.startswith("qwen") else 1
    assert made.seconds.tolist() == clip.metadata.timestamps[::step] and made.frames_per_grid == step
    assert made.frames.dtype == np.uint8 and len(made.frames) == len(made.fate) == -(-7 // step)
    # LLaVA-Video's demo pools 9 x 9 patches of 14 pixels in twos: its tokens see 112 of 130 pixels.
    share = {"llava_onevision": 126 / 130, "llava_video": 112 / 130}.get(family.name, 1)
    height, width = (round(side * share) for side in clip.frames.shape[1:3])
    size = tuple(round(side * min(1, 256 / max(height, width))) for side in (width, height))
    picture = Image.fromarray(clip.frames[step, :height, :width]).resize(size, Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(made.frames[1], np.asarray(picture))


def test_decoded_frames_without_times(qwen, tmp_path):
    made = trace_video(qwen.model, qwen.processor, moving_frames())
    assert np.isnan(made.seconds).all() and made.fate.shape == (4, 6)
    made.save_json(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["frames"][0]["seconds"] is None
    pytest.importorskip("matplotlib")
    assert draw_trace(made, tmp_path / "trace.png").exists()


def test_npz_round_trip(trace, tmp_path):
    trace.save_npz(tmp_path / "trace")  # the name is not changed
    loaded = VideoTrace.load(tmp_path / "trace")
    for name in ARRAYS:
        found, expected = getattr(loaded, name), getattr(trace, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, err_msg=name)
    for name in ("frames_per_grid", "height", "width", "tokens", "entered", "remained", "settings"):
        assert getattr(loaded, name) == getattr(trace, name)
    assert type(loaded.tokens) is int


def test_loading_something_else(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "array.npy", np.arange(3))
    (tmp_path / "short.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:-30])
    for name in ("other.npz", "text.npz", "empty.npz", "array.npy", "short.npz"):
        with pytest.raises(ValueError, match=f"`path` is .*{name}.*no trace"):
            VideoTrace.load(tmp_path / name)


def test_json_has_the_numbers(trace, tmp_path):
    trace.save_json(tmp_path / "trace.json")
    record = json.loads((tmp_path / "trace.json").read_text())
    assert (record["tokens"], record["entered"], record["remained"]) == (trace.tokens, trace.entered, trace.remained)
    assert record["grid"] == [len(trace.fate), trace.height, trace.width]
    assert sum(record["segments"]) == len(record["frames"]) == len(trace.fate)
    assert record["settings"] == trace.settings and record["settings"]["retention_ratio"] == 0.25
    assert record["trees"] == trace.trees.tolist() and record["went_to"] == trace.went_to.tolist()
    for name in ("entered", "remained"):
        assert sum(frame[name] for frame in record["frames"]) == record[name]  # this family has no newlines
    letters = "".join(row for frame in record["frames"] for row in frame["fate"])
    assert len(letters) == trace.fate.size
    for fate, letter in zip(Fate, "SRMD", strict=True):
        count = sum(frame[fate.name.lower()] for frame in record["frames"])
        assert letters.upper().count(letter) == count == trace.count(fate)
    kept = sum(letter in "SR" for letter in letters)
    assert kept == trace.remained < kept + sum(letter in "sr" for letter in letters) == trace.entered


def test_png(trace, tmp_path):
    pytest.importorskip("matplotlib")
    paths = [draw_trace(trace, tmp_path / name, width=width) for name, width in (("a.png", 1600), ("b.PNG", 800))]
    large, small = (Image.open(path) for path in paths)
    assert large.width == 1600 and small.width == 800 and large.height == pytest.approx(2 * small.height, abs=2)
    assert paths[0].stat().st_size < 2**20
    pixels = np.asarray(large.convert("RGB")).reshape(-1, 3)
    for colour in ((0xE6, 0x9F, 0x00), (0x00, 0x72, 0xB2)):  # of selected tokens and of roots
        assert (pixels == colour).all(1).sum() > 1000


def test_svg(trace, tmp_path):
    pytest.importorskip("matplotlib")
    path = draw_trace(trace, tmp_path / "trace.svg")
    text = " ".join(ElementTree.parse(path).getroot().itertext())
    for fate, words in zip(Fate, ("selected, ", "tree root, ", "merged into a root", "dropped"), strict=True):
        assert words in text and f": {trace.count(fate):,}" in text
    for words in (
        f"{trace.tokens:,} video tokens",
        f"{trace.entered:,} entered",
        f"{trace.remained:,} seen from layer",
    ):
        assert words in text
    assert all(f"segment {number}" in text for number in range(1, trace.starts.sum() + 1))
    assert path.stat().st_size < 2 * 2**20


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_trace_gives_the_same_bytes(trace, tmp_path, suffix):
    matplotlib = pytest.importorskip("matplotlib")
    first = draw_trace(trace, tmp_path / f"first.{suffix}").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):  # the user's own style
        second = draw_trace(trace, tmp_path / f"second.{suffix}").read_bytes()
    assert first == second


# Runs in a fresh interpreter, which has other hash values.
DRAW = """
import sys
from pathlib import Path

from flashvid_hf.tracing.trace import VideoTrace
from flashvid_hf.tracing.picture import draw_trace

folder = Path(arguments[0])
trace = VideoTrace.load(folder / "trace.npz")
assert "matplotlib" not in sys.modules  # before it is needed
for suffix in ("png", "svg"):
    draw_trace(trace, folder / f"there.{suffix}")
assert "matplotlib.pyplot" not in sys.modules
"""


def test_another_interpreter_draws_the_same(trace, tmp_path):
    pytest.importorskip("matplotlib")
    trace.save_npz(tmp_path / "trace.npz")
    run_program(DRAW, tmp_path, home=tmp_path / "home", with_package=True)
    for suffix in ("png", "svg"):
        here = draw_trace(trace, tmp_path / f"here.{suffix}")
        assert here.read_bytes() == (tmp_path / f"there.{suffix}").read_bytes()


def test_a_picture_of_whole_trees_and_of_none(trace, tmp_path):
    pytest.importorskip("matplotlib")
    alone = np.arange(trace.fate.size).reshape(trace.fate.shape)
    values = {name: getattr(trace, name) for name in trace.__dataclass_fields__}
    path = draw_trace(VideoTrace(**{**values, "trees": alone}), tmp_path / "none.svg")
    assert "Trees over time: none" in path.read_text()
    alone[1, 0] = alone[0, 0]
    path = draw_trace(VideoTrace(**{**values, "trees": alone}), tmp_path / "one.svg")
    assert "Trees over time, all 1." in path.read_text()


def test_trees_are_found():
    trees = np.arange(12).reshape(4, 3)
    trees[1, 0] = trees[2, 0] = trees[2, 1] = 0  # three frames, four tokens
    trees[3, 2] = 8
    first, second = find_trees(trees)
    assert (first.root, first.first, first.last, first.members.tolist()) == (0, 0, 2, [1, 1, 2])
    assert (second.root, second.first, second.members.tolist()) == (8, 2, [1, 1])


def test_shown_frames():
    starts = np.zeros(40, dtype=bool)
    starts[[0, 7, 30]] = True
    chosen = choose_frames(starts, 12)
    assert {0, 7, 30} < set(chosen) and len(chosen) == 12 and chosen == sorted(chosen)
    assert max(np.diff([*chosen, 40])) <= 6
    assert choose_frames(starts[:5], 12) == [0, 1, 2, 3, 4]
    many = choose_frames(np.ones(40, dtype=bool), 12)
    assert len(set(many)) == 12 and many[0] == 0 and many[-1] == 39


def test_a_call_that_compressed_nothing(qwen):
    with pytest.raises(ValueError, match="`retention_ratio` is 1.0 .*nothing to trace"):
        trace_video(qwen.model, qwen.processor, "missing.mp4", retention_ratio=1.0)
    clip = read_video(CLIP, num_frames=4)
    inputs = make_inputs(qwen.processor, clip)
    report = call(qwen.model, inputs, retention_ratio=1.0).report
    with pytest.raises(ValueError, match="`report` .*compressed nothing"):
        trace_report(report, inputs, [clip], qwen.model.config)
    upstream = SimpleNamespace(config=SimpleNamespace())
    with pytest.raises(ValueError, match="`model` is a .*compresses nothing"):
        trace_video(upstream, qwen.processor, CLIP)


def test_inputs_of_another_call(qwen):
    clip = read_video(CLIP, num_frames=4)
    inputs = make_inputs(qwen.processor, clip)
    report = call(qwen.model, inputs).report
    with pytest.raises(ValueError, match="`clips` has 2 videos and `report` 1"):
        trace_report(report, inputs, [clip, clip], qwen.model.config)
    with pytest.raises(ValueError, match="`clips` has a video of 8 frames, and the model saw 2 times 2"):
        trace_report(report, inputs, [read_video(CLIP, num_frames=8)], qwen.model.config)
    grid = {"video_grid_thw": inputs["video_grid_thw"] * torch.tensor([1, 2, 1])}
    with pytest.raises(ValueError, match="`inputs` describes frames of"):
        trace_report(report, grid, [clip], qwen.model.config)


def test_pictures_that_cannot_be_drawn(trace, tmp_path, monkeypatch):
    for name in ("trace.jpg", "trace"):
        with pytest.raises(ValueError, match="`path` is .*png or an .svg"):
            draw_trace(trace, tmp_path / name)
    with pytest.raises(ValueError, match="`width` is 100"):
        draw_trace(trace, tmp_path / "trace.png", width=100)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "flashvid-hf\[trace\]"'):
        draw_trace(trace, tmp_path / "trace.png")
    assert not list(tmp_path.iterdir())
