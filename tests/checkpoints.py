"""Small checkpoints in folders, as users would download them, and fresh interpreters that load them.

This module does not import `flashvid_hf`, because programs that run without the package import it too.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import PreTrainedModel, pipeline, set_seed
from transformers.cache_utils import Cache

TESTS = Path(__file__).resolve().parent

# A short clip with four scenes.
CLIP = TESTS.parent / "examples" / "clip.mp4"
CLIP_HEIGHT, CLIP_WIDTH = 252, 336  # pixels
# Two of the six tokens of a frame of `moving_frames` enter, and three of eight that entered remain. So the counts of
# the stages differ.
RETENTION_RATIO = 0.25


def build_flashvid_folder(folder: Path, family: str = "qwen2_5_vl", **flashvid: Any) -> Path:
    """Write a complete FlashVID folder as on the Hub: configuration, weights, code, processor, card."""
    from flashvid_hf.tiny_models import build_small_folder

    # The seed among the first ones with the most different answers, so that a comparison of answers means something.
    return build_small_folder(folder, family, seed=2, **{"retention_ratio": RETENTION_RATIO, **flashvid})


def build_upstream_folder(folder: Path, family: str = "qwen2_5_vl", seed: int = 0, **fields: Any) -> Path:
    """Write a checkpoint saved by upstream's class, and its processor."""
    from flashvid_hf.families import family_named
    from flashvid_hf.tiny_models import build_processor, upstream_fields

    processor = build_processor(family)
    if family_named(family).has_upstream_checkpoints:
        processor.__class__ = upstream_class(type(processor))
    upstream = family_named(family).upstream_model
    set_seed(seed)
    model = upstream(upstream.config_class(**{**upstream_fields(processor.tokenizer, family), **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # also in norms and biases: no two are equal
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def upstream_class(model_class: type) -> Any:
    """The class of transformers from which a FlashVID model or processor derives."""
    return next(c for c in model_class.__mro__ if c.__module__.startswith("transformers.models."))


def moving_frames(num_frames: int = 8, height: int = 56, width: int = 84, seed: int = 0) -> np.ndarray:
    """A smooth random picture that moves sideways, with shape (T, H, W, 3), uint8. By default six tokens a frame."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (height // 14, width // 14, 3))
    picture = np.kron(coarse, np.ones((14, 14, 1))).astype(np.uint8)
    return np.stack([np.roll(picture, 5 * t, axis=1) for t in range(num_frames)])


def count_clip_tokens(config: Any, *num_frames: int) -> dict[str, int]:
    """The pipeline's `video_tokens` for a prompt with the clip, once for each number of frames, and a small model."""
    from flashvid_hf.families import family_of_config

    geometry = family_of_config(config).geometry
    rows, columns = geometry.grid_of_pixels(config, CLIP_HEIGHT, CLIP_WIDTH)
    tokens = rows * columns
    grids = [math.ceil(number / geometry.frames_per_grid(config)) for number in num_frames]
    newlines = sum(geometry.num_newlines(config, number, rows) for number in grids)  # all of them enter and remain
    entered = sum(config.method.exact_num_tokens(number, tokens) for number in grids)
    remained = math.ceil(config.llm_retention_ratio * entered)
    counts = {"total": sum(grids) * tokens, "entered": entered, "remained": remained}
    return {stage: count + newlines for stage, count in counts.items()}


def video_inputs(processor: Any) -> dict[str, torch.Tensor]:
    """The inputs for one question about one video."""
    content = [{"type": "video"}, {"type": "text", "text": "What moves?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(
        text=[prompt],
        videos=[moving_frames()],
        video_metadata=[{"total_num_frames": 8, "fps": 4.0, "frames_indices": list(range(8))}],
        do_sample_frames=False,
        return_tensors="pt",
    )
    return {name: torch.as_tensor(value) for name, value in inputs.items()}


@torch.no_grad()
def observe(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The results of a generative model for `video_inputs`: logits, greedy ids, and the counts of its reports."""
    outputs = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    cache = next((value for value in outputs.values() if isinstance(value, Cache)), None)  # found without the package
    reports = getattr(cache, "reports", ())
    return {
        "logits": model(**inputs).logits,
        "ids": outputs.sequences,
        "reports": [(r.tokens, r.entered, r.remained, r.segment_lengths) for r in reports if r.videos],
    }


def state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of the weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found: Any, expected: Any) -> None:
    """Assert that containers of tensors are equal, bit for bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def once(tmp_path_factory: Any, name: str, build: Callable[[Path], Any]) -> Path:
    """The folder that `build` fills, built once for all processes of a test run."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the folder that all worker processes share
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        done = root / f"{name}.done"
        if not done.exists():
            build(folder)
            done.touch()
    return folder


_PREAMBLE = """\
import sys

package, tests, num_threads, *arguments = sys.argv[1:]
if package:
    sys.path.insert(0, package)
else:
    class Blocked:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.partition(".")[0] == "flashvid_hf":
                raise ImportError("flashvid_hf is blocked")

    sys.meta_path.insert(0, Blocked)
sys.path.append(tests)

import torch

torch.set_num_threads(int(num_threads))
"""


def run_program(program: str, *arguments: Any, home: Path, with_package: bool | Path = False) -> None:
    """Run a program in a fresh interpreter that has no network and a cache of its own.

    Args:
        program: Python code. It has the `arguments` as strings in a variable of that name, and can import this module.
        home: the interpreter's HF_HOME.
        with_package: whether the program can import `flashvid_hf`, or the folder from which it imports the package.

    Raises:
        AssertionError: the program fails; the message is its output.
    """
    # Not at the top, because this module is also imported where the package is missing.
    from flashvid_hf.publishing.clean_process import PACKAGE_ROOT, shared_interpreter

    package = str(PACKAGE_ROOT if with_package is True else with_package or "")
    ended = shared_interpreter().run(
        _PREAMBLE + program,
        *(package, str(TESTS), str(torch.get_num_threads()), *map(str, arguments)),
        home=home,
        directory=home.parent,
    )
    assert ended.status == 0, ended.output + ended.errors


def untimed(answers: Any) -> Any:
    """The pipeline's answers without their `seconds`, which differ between calls."""
    if isinstance(answers, dict):
        return {name: value for name, value in answers.items() if name != "seconds"}
    return [untimed(answer) for answer in answers]


def device_map(model, offloaded: str) -> dict[str, str]:
    """A device map of a model, with some parts on disk."""
    if offloaded == "everything":
        return {"": "disk"}
    if offloaded == "the base model":
        return {"model": "disk", "lm_head": "cpu"}
    base = model.base_model
    parts = [*base.named_children(), *base.named_parameters(recurse=False)]
    places = {f"model.{name}": "disk" if "vis" in name else "cpu" for name, _ in parts if name != "language_model"}
    for name, child in base.language_model.named_children():
        if name == "layers":
            places |= {f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(len(child))}
        else:
            places[f"model.language_model.{name}"] = "cpu"
    return {**places, "lm_head": "cpu"}


def build_pipeline(tmp_path_factory: Any, family: str) -> Any:
    """The pipeline of a demo model; all tests of a run share the model's folder."""
    from flashvid_hf import find_family, load_processor

    folder = once(tmp_path_factory, f"pipeline-{family}", lambda folder: build_flashvid_folder(folder, family))
    model = find_family(folder).generative_model.from_pretrained(folder)
    return pipeline("video-text-to-text", model=model, processor=load_processor(folder), device="cpu")
