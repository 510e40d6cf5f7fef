"""The fate of every token of a video as plain arrays, from the report of the call that compressed it.

    trace = trace_video(model, processor, "clip.mp4", num_frames=32)
    print(trace.count(Fate.SELECTED), trace.remained)
    trace.save_npz("clip.npz")

The legend of letters is in `__init__.py`.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image

from ..compression.compress_video import CompressionConfig
from ..compression.compressed_video import CompressedVideo
from ..families import family_of_config
from ..models.family import VideoGeometry
from ..models.report import CompressionReport
from ..video.batching import convert_to_tensors
from ..video.pipeline_flashvid import media_arguments
from ..video.reading import VideoClip, read_video

# The longer side of the frames in a trace, in pixels; it bounds the size of a saved trace.
_THUMBNAIL = 256
# Fields of the configuration that a trace records.
_SETTINGS = (
    "compression_method",
    "method_settings",
    *(field.name for field in fields(CompressionConfig)),
    "pruning_layer",
    "llm_retention_ratio",
)


class Fate(IntEnum):
    """What the compression before the language model did with a token.

    - `SELECTED`: kept unchanged (ADTS).
    - `ROOT`: a tree root that is replaced by the mean of its cluster: its own tree and the trees close to it (TSTM).
    - `MERGED`: part of the mean at a root.
    - `DROPPED`: not part of any kept token.
    """

    SELECTED = 0
    ROOT = 1
    MERGED = 2
    DROPPED = 3


@dataclass(frozen=True, eq=False)
class VideoTrace:
    """One compressed video.

    Args:
        frames: a small picture of the part of each frame that its tokens see, with shape (T, h, w, 3), uint8 RGB; for
            Qwen the first frame of each temporal grid.
        seconds: time of each of these frames, with shape (T,); NaN if the frame rate of the source is unknown.
        frames_per_grid: frames of the video in each temporal grid: 2 for Qwen, otherwise 1.
        height, width: number of rows and columns of tokens in a frame; the N tokens are stored row by row.
        fate: a `Fate` for each token, with shape (T, N).
        trees: flat index of the root of the tree that each token joined, with shape (T, N); its own if it joined none.
        went_to: flat index of the kept token that each token went into, with shape (T, N); -1 if it was dropped.
        starts: True at the first frame of every segment, with shape (T,).
        rows_entered: how often each token's place entered the language model, with shape (T, N); above 1 only in
            behavior "released", which repeats places.
        rows_remained: how often the layers from the pruning layer on see each token's place, with shape (T, N).
        tokens, entered, remained: number of video tokens at the three stages of the report, newlines included.
        settings: the settings of the call by name, and the `model_type`.
    """

    frames: np.ndarray
    seconds: np.ndarray
    frames_per_grid: int
    height: int
    width: int
    fate: np.ndarray
    trees: np.ndarray
    went_to: np.ndarray
    starts: np.ndarray
    rows_entered: np.ndarray
    rows_remained: np.ndarray
    tokens: int
    entered: int
    remained: int
    settings: dict[str, Any]

    @property
    def segments(self) -> np.ndarray:
        """The segment of each frame, with shape (T,), counted from 1."""
        return self.starts.cumsum()

    def count(self, fate: Fate) -> int:
        """The number of tokens with a fate."""
        return int((self.fate == fate).sum())

    def rows_per_frame(self, fate: Fate) -> np.ndarray:
        """How many rows entered at places with a fate, for each frame, with shape (T,)."""
        return (self.rows_entered * (self.fate == fate)).sum(1, dtype=np.int64)

    def save_npz(self, path: str | os.PathLike) -> None:
        """Write all fields, the pictures included; `load` reads them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        with open(path, "wb") as file:  # given a path, numpy would add a suffix
            np.savez_compressed(file, **{**values, "settings": np.array(json.dumps(self.settings))})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "VideoTrace":
        """The trace that `save_npz` wrote.

        Raises:
            ValueError: the file is no such trace.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {field.name: file[field.name] for field in fields(cls)}
        except (KeyError, ValueError, AttributeError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(f"`path` is {str(path)!r}: it is no trace that `save_npz` wrote ({error}).") from error
        numbers = {name: int(value) for name, value in values.items() if value.ndim == 0 and name != "settings"}
        return cls(**{**values, **numbers, "settings": json.loads(str(values["settings"]))})

    def save_json(self, path: str | os.PathLike) -> None:
        """Write everything but the pictures as readable JSON.

        For each frame, `fate` has one string for each row of tokens, with one letter for each token.
        """
        letters = np.array(list("SRMD"))[self.fate]
        letters = np.where(self.rows_remained < self.rows_entered, np.char.lower(letters), letters)
        rows = letters.reshape(len(self.fate), self.height, self.width)
        counts = {fate.name.lower(): (self.fate == fate).sum(1) for fate in Fate}
        counts |= {"entered": self.rows_entered.sum(1), "remained": self.rows_remained.sum(1)}
        frames = [
            {
                "frame": t,
                "seconds": None if np.isnan(self.seconds[t]) else round(float(self.seconds[t]), 3),
                "segment": int(self.segments[t]),
                **{name: int(values[t]) for name, values in counts.items()},
                "fate": ["".join(row) for row in rows[t]],
            }
            for t in range(len(rows))
        ]
        record = {
            "tokens": self.tokens,
            "entered": self.entered,
            "remained": self.remained,
            "grid": [len(rows), self.height, self.width],
            "frames_per_grid": self.frames_per_grid,
            "segments": np.bincount(self.segments)[1:].tolist(),
            "settings": self.settings,
            "letters": {
                "S": "selected", "R": "tree root, the mean of a cluster", "M": "merged into a root", "D": "dropped",
                "s, r": "the same, but not seen from the pruning layer on",
            },
            "frames": frames,
            "trees": self.trees.tolist(),
            "went_to": self.went_to.tolist(),
        }  # fmt: skip
        Path(path).write_text(_to_json(record) + "\n", encoding="utf-8")


def trace_report(
    report: CompressionReport, inputs: Mapping[str, Any], clips: Sequence[VideoClip], config: Any
) -> list[VideoTrace]:
    """A trace of every video of a call.

    Args:
        report: `outputs.report` of the call.
        inputs: the inputs of the call. In some families, such as Qwen's, they state the rows and columns of tokens in a
            frame.
        clips: the videos, with the frames that the model saw, in the order of the prompts.
        config: the model's configuration, with the settings of the call (`model.config.override(...)`).

    Raises:
        ValueError: nothing was compressed, or `clips` or `inputs` are not those of the call.
    """
    if not report.compressed:
        raise ValueError(
            f"`report` is of a call that compressed nothing ({report}). Trace a call that has a video, with a "
            "`retention_ratio` whose product with `expansion` is below 1."
        )
    if len(clips) != len(report.videos):
        raise ValueError(
            f"`clips` has {len(clips)} videos and `report` {len(report.videos)}: pass every video of the call once, "
            "and trace a call without beams and with one returned sequence."
        )
    geometry = family_of_config(config).geometry
    sizes = _token_grids(report.videos, inputs, geometry, config)
    settings = {"model_type": config.model_type, **{name: getattr(config, name) for name in _SETTINGS}}
    stages = zip(report.tokens, report.entered, report.remained, report.kept_tokens_remained, strict=True)
    return [
        _trace(video, clip, size, counts, remained.numpy(), geometry, config, settings)
        for video, clip, size, (*counts, remained) in zip(report.videos, clips, sizes, stages, strict=True)
    ]


def trace_video(
    model: Any,
    processor: Any,
    video: Any,
    question: str = "What happens in this video?",
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    **settings: Any,
) -> VideoTrace:
    """Run the prefill of one question about one video, and return the trace of the video.

    Args:
        model: a FlashVID model with its language modeling head.
        processor: the model's processor.
        video, num_frames, fps: what `read_video` takes.
        question: asked about the video. It decides which video tokens remain inside the language model.
        settings: FlashVID's fields that replace those of the configuration (`retention_ratio=0.2`).

    Raises:
        ValueError: the model is no FlashVID model, a setting is out of range, the video cannot be read, or nothing was
            compressed.
    """
    if not hasattr(model.config, "retention_ratio"):
        raise ValueError(
            f"`model` is a `{type(model).__name__}`, which compresses nothing. Pass a FlashVID model, for example "
            "`flashvid(model)`."
        )
    config = model.config.override(**settings)
    if not config.compresses:  # checked before the video is read and encoded
        raise ValueError(
            f"`retention_ratio` is {config.retention_ratio!r} and `expansion` {config.expansion!r}: all tokens enter, "
            "and there is nothing to trace. Choose a `retention_ratio` whose product with `expansion` is below 1."
        )
    clip = read_video(video, num_frames=num_frames, fps=fps)
    content = [{"type": "video"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], **media_arguments([clip], [], model.device, processor))
    inputs = convert_to_tensors(inputs, "pt").to(model.device)
    with torch.no_grad():
        outputs = model(**inputs, logits_to_keep=1, use_cache=False, **settings)
    return trace_report(outputs.report, inputs, [clip], config)[0]


def _trace(
    video: CompressedVideo,
    clip: VideoClip,
    size: tuple[int, int],
    counts: list[int],
    remained: np.ndarray,
    geometry: VideoGeometry,
    config: Any,
    settings: dict[str, Any],
) -> VideoTrace:
    """The trace of one video; `remained`, with shape (M,), says which kept tokens the upper layers see."""
    selected, trees, slots, starts, indices = (
        tensor.cpu().numpy() for tensor in (video.selected, video.trees, video.slots, video.starts, video.indices)
    )
    rows_entered, rows_remained = (
        np.bincount(places, minlength=selected.size).reshape(selected.shape).astype(np.uint8)
        for places in (indices, indices[remained])
    )
    fate = np.full(selected.shape, Fate.MERGED, dtype=np.uint8)
    fate[slots < 0] = Fate.DROPPED
    fate[rows_entered > 0] = Fate.ROOT
    fate[selected] = Fate.SELECTED
    per_grid = _frames_per_grid(clip, len(selected), geometry.frames_per_grid(config))
    shown = range(0, len(clip.frames), per_grid)
    rates = clip.metadata is not None and clip.metadata.fps and clip.metadata.frames_indices is not None
    seconds = [clip.metadata.timestamps[i] if rates else math.nan for i in shown]
    tokens, entered, left = counts
    return VideoTrace(
        frames=np.stack([_thumbnail(clip.frames[i], geometry.seen_part(config)) for i in shown]),
        seconds=np.array(seconds, dtype=np.float64),
        frames_per_grid=per_grid,
        height=size[0],
        width=size[1],
        fate=fate,
        trees=trees,
        went_to=np.where(slots < 0, -1, indices[slots]),
        starts=starts,
        rows_entered=rows_entered,
        rows_remained=rows_remained,
        tokens=tokens,
        entered=entered,
        remained=left,
        settings=settings,
    )


def _token_grids(
    videos: Sequence[CompressedVideo], inputs: Mapping[str, Any], geometry: VideoGeometry, config: Any
) -> list[tuple[int, int]]:
    """Rows and columns of tokens in the frames of each video."""
    sizes = geometry.grids_of_call(config, inputs, len(videos))
    for video, (height, width) in zip(videos, sizes, strict=True):
        if height * width != video.selected.shape[1]:
            raise ValueError(
                f"`inputs` describes frames of {height} x {width} tokens, and the compressed ones have "
                f"{video.selected.shape[1]}: pass the inputs that the model was called with."
            )
    return sizes


def _frames_per_grid(clip: VideoClip, num_grids: int, per_grid: int) -> int:
    """`per_grid`, the frames of a temporal grid; a `ValueError` unless the clip fills `num_grids` grids with these."""
    if math.ceil(len(clip.frames) / per_grid) != num_grids:
        raise ValueError(
            f"`clips` has a video of {len(clip.frames)} frames, and the model saw {num_grids} times {per_grid}: pass "
            "the frames that the processor was given, with `do_sample_frames=False`."
        )
    return per_grid


def _thumbnail(frame: np.ndarray, seen_part: float) -> np.ndarray:
    """A small picture of what the tokens of a frame see: the upper left part, `seen_part` of its height and width."""
    height, width = (round(side * seen_part) for side in frame.shape[:2])
    scale = min(1.0, _THUMBNAIL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(frame[:height, :width]).resize(size, Image.Resampling.LANCZOS))


def _to_json(value: Any, depth: int = 0) -> str:
    """JSON with lists of plain values on one line."""
    if isinstance(value, dict):
        pairs = [(json.dumps(name) + ": ", item) for name, item in value.items()]
        brackets, nested = "{}", True
    elif isinstance(value, list):
        pairs = [("", item) for item in value]
        brackets, nested = "[]", any(isinstance(item, (dict, list)) for item in value)
    else:
        return json.dumps(value)
    inner, outer = ("\n" + "  " * level if nested and pairs else "" for level in (depth + 1, depth))
    separator = "," + (inner or " ")
    texts = (name + _to_json(item, depth + 1) for name, item in pairs)
    return brackets[0] + inner + separator.join(texts) + outer + brackets[1]
