"""Random calls of the models and random damage to video files.

A test run takes the same few examples each time; `make fuzz` takes new ones until its time is over (`fuzz.py`).
"""

import copy
import functools
import math
import multiprocessing
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, VIDEO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_model import generate
from test_video_io import numbers_of, write_clip

from flashvid_hf import read_video
from flashvid_hf.compression.compress_video import BEHAVIORS
from flashvid_hf.compression.token_selection import TOKEN_SELECTION_METHODS
from flashvid_hf.models.configuration import default_llm_retention_ratio, default_pruning_layer
from flashvid_hf.models.upstream import CACHE
from flashvid_hf.video.reading import _choose_frames, available_backends

DEPTH = 6  # layers of the language models
DEEPSTACK = 3  # number of these layers that take in deepstack features
ATOL = 1e-4  # for logits of about 1 in float32, which another order of summation changes

IS_LONG = "FLASHVID_FUZZ" in os.environ  # set by `fuzz.py`
examples = functools.partial(
    settings,
    deadline=None,
    derandomize=not IS_LONG,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


# --- calls of the models ---

sides = st.integers(1, 5).map(lambda half: 2 * half)  # patches; two a side make a token: odd numbers of tokens occur
videos = st.tuples(st.integers(1, 7), sides, sides)
images = st.tuples(st.just(1), sides, sides)
parts = st.one_of(
    st.just(("text",)), st.tuples(videos), st.tuples(st.just("image"), images), st.tuples(st.just("text"), videos)
)
prompts = st.lists(parts, min_size=1, max_size=3).map(lambda chosen: [part for run in chosen for part in run])
batches = st.lists(prompts, min_size=1, max_size=3)
padding_sides = st.sampled_from(["left", "right"])
shares = st.one_of(st.sampled_from([1e-9, 0.1, 0.25, 0.5, 1.0]), st.floats(0, 1, exclude_min=True))
cosines = st.floats(-1, 1.5)

some_settings = st.fixed_dictionaries(
    {"retention_ratio": shares},
    optional={
        "expansion": st.one_of(st.sampled_from([1, 1.25, 1.9999999, 4]), st.floats(1, 4)),
        "alpha": st.one_of(st.sampled_from([0, 1]), st.floats(0, 1)),
        "token_selection_method": st.sampled_from(TOKEN_SELECTION_METHODS),
        "temporal_threshold": cosines,
        "do_segment": st.booleans(),
        "segment_threshold": cosines,
        "min_segment_num": st.integers(1, 12),
        "complementary_segment": st.booleans(),
        "behavior": st.sampled_from(BEHAVIORS),
        "pruning_layer": st.none() | st.integers(1, DEPTH + 3),
        "llm_retention_ratio": st.none() | shares,
    },
)


@functools.cache
def tiny(family, attention="sdpa", dtype=torch.float32):
    return family.model(attention).to(dtype)


@functools.cache
def configured(family):
    """A copy of the family's model with the same weights, whose configuration may be changed."""
    return family.model()


@functools.cache
def upstream(family):
    return family.upstream(tiny(family))


def is_refused(config, chosen):
    """Whether a documented restriction excludes these settings."""
    expansion = chosen.get("expansion", config.expansion)
    layer = chosen.get("pruning_layer", config.pruning_layer)
    if layer is None:
        layer = default_pruning_layer(DEPTH, expansion, config.pruning_depth)
    ratio = chosen.get("llm_retention_ratio", config.llm_retention_ratio)
    if ratio is None:
        try:
            ratio = default_llm_retention_ratio(DEPTH, layer, expansion)
        except ValueError:
            return True
    prunes = chosen["retention_ratio"] * expansion < 1 and layer < DEPTH and ratio < 1
    return prunes and hasattr(config.vision_config, "deepstack_visual_indexes") and layer < DEEPSTACK


def configure(config, chosen):
    """The configuration with these settings; `None` if it refuses them, as it must."""
    if not is_refused(config, chosen):
        return config.override(**chosen)
    with pytest.raises(ValueError, match="`pruning_layer` is"):
        config.override(**chosen)
    return None


def run(model, inputs, **chosen):
    with torch.no_grad():
        return model(**inputs, **chosen)


def rows_left(outputs, inputs, row):
    """The columns of a sample that are left, counted without padding, and their logits."""
    mask = inputs["attention_mask"][row].bool()
    index = torch.where(mask, torch.arange(len(mask)), -1) if outputs.token_index is None else outputs.token_index[row]
    return (mask.cumsum(0) - 1)[index[index >= 0]], outputs.logits[row][index >= 0]


def grids(prompt):
    """The grids of the videos of a prompt."""
    return [part for i, part in enumerate(prompt) if isinstance(part, tuple) and prompt[i - 1 : i] != ["image"]]


def decisions(report):
    """The decisions of the compression about each video, in a form that can be compared."""
    return [(video.indices.tolist(), video.selected.tolist(), video.slots.tolist()) for video in report.videos]


def check_counts(family, batch, outputs, config):
    """The report against the sizes alone, and `token_index` against the report."""
    report, of_videos = outputs.report, [part for prompt in batch for part in grids(prompt)]
    assert report.num_samples == len(batch)
    assert report.tokens == tuple(family.placeholders(part) for part in of_videos)
    assert report.samples == tuple(row for row, prompt in enumerate(batch) for _ in grids(prompt))
    if not of_videos or not config.compresses:
        assert report.tokens == report.entered == report.remained and not report.videos
        return
    if config.behavior == "paper":
        share = config.retention_ratio * config.expansion
        for entered, part in zip(report.entered, of_videos, strict=True):
            num_frames, num_tokens = family.tokens(part)
            assert entered == family.entered(part, config)
            kept = (entered - family.newlines(part)) / num_frames  # whole tokens of every frame
            assert kept in (math.ceil(num_tokens * share), math.ceil(num_tokens * share - 1e-9))
    assert [sum(lengths) for lengths in report.segment_lengths] == [part[0] for part in of_videos]
    # In the released code newlines count as tokens, except a single one after the video.
    prunes_newlines = config.behavior == "released" and getattr(config, "mm_newline_position", "one_token") == "frame"
    for row in range(len(batch)):
        of_sample = [i for i, sample in enumerate(report.samples) if sample == row]
        prunable = sum(
            report.entered[i] - (0 if prunes_newlines else family.newlines(of_videos[i]))
            for i in of_sample
            if len(report.videos[i].indices) < report.videos[i].selected.numel()
        )
        entered, remained = (sum(stage[i] for i in of_sample) for stage in (report.entered, report.remained))
        left = math.ceil(prunable * config.llm_retention_ratio) if config.pruning else prunable
        assert remained == entered - prunable + left
        steps = outputs.token_index[row][outputs.token_index[row] >= 0].diff()
        assert (steps > 0).all() if config.behavior == "paper" else (steps >= 0).all()


@every_family
@examples(max_examples=30)
@given(
    batch=batches,
    padding_side=padding_sides,
    chosen=some_settings,
    attention=st.sampled_from(["sdpa", "eager"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    use_cache=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_call(family, batch, padding_side, chosen, attention, dtype, use_cache, seed):
    """Only documented refusals; finite logits; the promised counts; unchanged inputs."""
    model = tiny(family, attention, dtype)
    inputs = family.inputs(*batch, padding_side=padding_side, seed=seed)
    before = copy.deepcopy(inputs)
    config = configure(model.config, chosen)
    if config is None:
        with pytest.raises(ValueError, match="`pruning_layer` is"):
            run(model, inputs, **chosen)
        return
    outputs = run(model, inputs, **chosen, use_cache=use_cache)
    assert (outputs.get(CACHE) is not None) == use_cache
    check_counts(family, batch, outputs, config)
    columns = inputs["input_ids"].shape[1]
    for row in range(len(batch)):
        left, of_row = rows_left(outputs, inputs, row)
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        assert len(left) == 0 or left[-1] < len(ids)
        assert int((ids[left] == VIDEO).sum()) == outputs.report.of_sample(row)[-1]
        assert of_row.isfinite().all() and of_row.dtype == dtype
    if use_cache:
        assert outputs[CACHE].get_seq_length() == columns
    for name, value in inputs.items():
        pairs = zip(value, before[name], strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs), f"`{name}` has changed"


@every_family
@examples(max_examples=25)
@given(batch=batches, padding_side=padding_sides, chosen=some_settings)
def test_a_sample_does_not_depend_on_its_batch(family, batch, padding_side, chosen):
    """Every sample gives the same as alone; a sample without videos gives the same as upstream."""
    model = tiny(family)
    if configure(model.config, chosen) is None:
        return
    inputs = family.inputs(*batch, padding_side=padding_side)
    together = run(model, inputs, **chosen)
    decided = decisions(together.report)
    for row, prompt in enumerate(batch):
        single = family.inputs(prompt, seed=row)
        alone = run(model, single, **chosen)
        if decided:
            of_sample = [i for i, sample in enumerate(together.report.samples) if sample == row]
            assert [decided[i] for i in of_sample] == decisions(alone.report)
        (columns, ours), (expected, theirs) = rows_left(together, inputs, row), rows_left(alone, single, 0)
        assert columns.tolist() == expected.tolist()
        torch.testing.assert_close(ours, theirs, atol=ATOL, rtol=ATOL)
        if not grids(prompt):
            torch.testing.assert_close(ours, run(upstream(family), single).logits[0], atol=ATOL, rtol=ATOL)


@every_family
@examples(max_examples=10)
@given(batch=batches, padding_side=padding_sides, chosen=some_settings)
def test_answers_with_and_without_a_cache(family, batch, padding_side, chosen):
    model = tiny(family)
    if configure(model.config, chosen) is None:
        return
    inputs = family.inputs(*batch, padding_side=padding_side)
    cached, whole = (generate(model, inputs, max_new_tokens=3, use_cache=use, **chosen) for use in (True, False))
    assert decisions(cached.report) == decisions(whole.report) and str(cached.report) == str(whole.report)
    start = inputs["input_ids"].shape[1]
    for row in range(len(batch)):
        for step in range(3):  # until rounding may choose another token
            torch.testing.assert_close(cached.logits[step][row], whole.logits[step][row], atol=ATOL, rtol=ATOL)
            if cached.sequences[row, start + step] != whole.sequences[row, start + step]:
                break


@every_family
@examples(max_examples=10)
@given(batch=batches, chosen=some_settings)
def test_settings_of_a_call_and_of_the_configuration(family, batch, chosen):
    model, other = tiny(family), configured(family)
    config = configure(model.config, chosen)
    if config is None:
        return
    other.config = other.model.config = config
    inputs = family.inputs(*batch)
    ours, theirs = run(model, inputs, **chosen), run(other, inputs)
    for row in range(len(batch)):
        (columns, logits), (expected, expected_logits) = rows_left(ours, inputs, row), rows_left(theirs, inputs, row)
        assert torch.equal(columns, expected)
        torch.testing.assert_close(logits, expected_logits, atol=ATOL, rtol=ATOL)
    assert str(ours.report) == str(theirs.report) and decisions(ours.report) == decisions(theirs.report)


# --- damaged files ---

FRAMES, FPS = 24, 24
SOURCES = {  # small files, so that decoding is fast
    "index at the end.mp4": dict(),
    "index in front.mp4": dict(container_options={"movflags": "faststart"}),
    "fragmented.mp4": dict(container_options={"movflags": "frag_keyframe+empty_moov"}),
    "a.mov": dict(),
    "a.mkv": dict(),
    "a.webm": dict(codec="libvpx", options={"deadline": "realtime", "g": "8"}),
    "a.avi": dict(),
    "a.ts": dict(),
    "a.mpg": dict(codec="mpeg2video"),
    "a.flv": dict(),
    "a.h264": dict(),
}
# Formats that say where they end. A fragmented file is complete after each fragment; the others after each packet.
SIZED = ["index at the end.mp4", "index in front.mp4", "a.mov", "a.mkv", "a.webm", "a.avi"]
ENDINGS = [".mp4", ".mkv", ".avi", ".ts", ".txt", ".jpg", ".mp3", ""]
TIME_LIMIT = 30  # seconds for a file of a second
# MB above those of the first imports. A file that claims the largest frames that are allowed may take several of them.
MEMORY_LIMIT = 1500


@functools.cache
def source(name):
    """The content of a file."""
    if name == "clip.mp4":
        return (Path(__file__).parents[1] / "examples" / name).read_bytes()
    small = dict(num_frames=FRAMES, fps=FPS, size=(64, 96), seed=0, options={"g": "8"})
    with tempfile.TemporaryDirectory() as folder:
        return write_clip(Path(folder, name), **{**small, **SOURCES[name]}).read_bytes()


class Reader:
    """`read_video` in a separate process, because a damaged file may crash it or make it hang."""

    def __init__(self):
        self.process = None

    def __call__(self, content, ending=".mp4", **kwargs):
        """The clip, or the message of the `ValueError` with the file's name."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
            assert self.pipe.recv() == "ready"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "damaged" + ending)
            path.write_bytes(content)
            self.pipe.send((str(path), kwargs))
            try:
                assert self.pipe.poll(TIME_LIMIT), f"`read_video` takes more than {TIME_LIMIT} s"
                result, peak = self.pipe.recv()
                assert peak < MEMORY_LIMIT, f"`read_video` takes {peak} MB"
            except (AssertionError, EOFError):
                self.close()
                raise
        if isinstance(result, Exception):
            assert type(result) is ValueError, repr(result)
            assert str(path) in str(result)
            return str(result)
        return result

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def serve(pipe):
    pipe.send("ready")
    before = peak_memory()
    while True:
        path, kwargs = pipe.recv()
        try:
            result = read_video(path, **kwargs)
        except Exception as error:
            result = error
        pipe.send((result, peak_memory() - before))


def peak_memory():
    """MB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.fixture(scope="session")
def reader():
    reader = Reader()
    yield reader
    reader.close()


def check_clip(clip, sampling):
    metadata = clip.metadata
    total, fps, indices = metadata.total_num_frames, metadata.fps, metadata.frames_indices
    assert total >= 1 and (fps is None or 0 < fps < math.inf)
    assert indices == _choose_frames(total, fps, sampling.get("num_frames"), sampling.get("fps"))
    assert clip.frames.shape == (len(indices), metadata.height, metadata.width, 3)
    assert clip.frames.dtype == np.uint8
    assert metadata.duration == (total / fps if fps else None)


samplings = st.one_of(
    st.just({}),
    st.builds(lambda count: {"num_frames": count}, st.integers(1, 40)),
    st.builds(lambda fps: {"fps": fps}, st.floats(0.1, 60)),
)
# Places as parts of the length: anywhere, and where headers and indices are. Floats would mostly be 0, 1 and the like.
places = st.one_of(
    st.integers(0, 1000).map(lambda place: place / 1000),
    st.integers(0, 1000).map(lambda place: place / 50_000),
    st.integers(0, 1000).map(lambda place: 1 - place / 50_000),
)
damages = st.tuples(
    st.sampled_from(["overwrite", "insert", "remove", "repeat", "cut"]),
    places,
    st.binary(min_size=1, max_size=8) | st.integers(1, 4000).map(lambda size: np.random.default_rng(size).bytes(size)),
)


def damage(content, kind, place, noise):
    start = int(place * len(content))
    before, after = content[:start], content[start:]
    return {
        "overwrite": before + noise + after[len(noise) :],
        "insert": before + noise + after,
        "remove": before + after[len(noise) :],
        "repeat": before + after[: len(noise)] + after,
        "cut": before,
    }[kind]


@examples(max_examples=40)
@given(
    name=st.sampled_from([*SOURCES, "clip.mp4"]),
    harm=st.lists(damages, min_size=1, max_size=3),
    ending=st.sampled_from(ENDINGS),
    sampling=samplings,
    backend=st.sampled_from([None, None, *available_backends()]),
)
def test_damaged_files(reader, name, harm, ending, sampling, backend):
    """All frames that were asked for, or a `ValueError` that names the file."""
    content = source(name)
    for of_harm in harm:
        content = damage(content, *of_harm)
    clip = reader(content, ending, backend=backend, **sampling)
    if not isinstance(clip, str):
        check_clip(clip, sampling)


@examples(max_examples=40)
@given(name=st.sampled_from(SIZED), place=places, ending=st.sampled_from(ENDINGS), sampling=samplings)
def test_files_that_are_cut_short(reader, name, place, ending, sampling):
    """The frames of the whole file, or a `ValueError`."""
    content = source(name)
    clip = reader(content[: int(place * len(content))], ending, **sampling)
    if not isinstance(clip, str):
        check_clip(clip, sampling)
        assert clip.metadata.total_num_frames == FRAMES
        assert numbers_of(clip.frames) == clip.metadata.frames_indices


# Tables and headers of MP4, and numbers that they may claim. A place is counted in words of 4 bytes after the name.
TABLES = [b"mvhd", b"tkhd", b"mdhd", b"elst", b"hdlr", b"avc1", b"stsz", b"stts", b"ctts", b"stsc", b"stco", b"trun"]
claims = st.tuples(
    st.sampled_from(TABLES), st.integers(0, 12), st.sampled_from([0, 1, 2**16, 2**24, 8 * 10**7, 2**31 - 1, 2**32 - 1])
)


@examples(max_examples=40)
@given(
    name=st.sampled_from([name for name in SOURCES if name.endswith((".mp4", ".mov"))]),
    lies=st.lists(claims, min_size=1, max_size=5),
    sampling=samplings,
)
def test_headers_that_claim_too_much(reader, name, lies, sampling):
    """Time and memory are bounded whatever a header claims; otherwise as above."""
    content = bytearray(source(name))
    for table, word, number in lies:
        place = content.find(table)
        if place >= 0:
            start = place + 4 + 4 * word
            content[start : start + 4] = number.to_bytes(4, "big")
    clip = reader(bytes(content), ".mp4", **sampling)
    if not isinstance(clip, str):
        check_clip(clip, sampling)


@examples(max_examples=15)
@given(name=st.sampled_from(list(SOURCES)), ending=st.sampled_from(ENDINGS), sampling=samplings)
def test_files_with_any_name(reader, name, ending, sampling):
    clip = reader(source(name), ending, **sampling)
    if isinstance(clip, str):  # if the content is ambiguous, FFmpeg decides by the name
        assert (name, ending) == ("a.mpg", ".jpg"), clip
        return
    check_clip(clip, sampling)
    assert clip.metadata.total_num_frames == FRAMES
    assert numbers_of(clip.frames) == clip.metadata.frames_indices
