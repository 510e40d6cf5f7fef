"""The training videos of the demo model: frames, labels of the video tokens and questions, made from seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from flashvid_hf.evaluation.moving_shapes import Prompt, Scene, label_cells, make_prompts, make_scene, render
from flashvid_hf.evaluation.moving_shapes.rendering import NOISE

TEMPORAL_GRIDS, CELLS = 8, 8  # temporal grids of a video; cells from side to side
VIDEO_TOKENS = TEMPORAL_GRIDS * CELLS * CELLS
TEMPORAL_PATCH = 2  # frames of a temporal grid
FOREGROUND = 12  # how many times likelier a token that shows something is kept


def jitter(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change frames as another camera or codec would: brightness, contrast, blur and noise.

    Args:
        frames: with shape (T, H, W, 3), uint8; the result has the same form.
    """
    result = (frames.astype(np.float32) - 128) * rng.uniform(0.85, 1.15) + 128 + rng.uniform(-15, 15)
    part = np.float32(rng.uniform(0, 0.22))  # share of each neighbouring pixel
    if rng.integers(2):
        for axis in (1, 2):
            padded = np.pad(result, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode="edge")
            low, high = (
                np.take(padded, range(result.shape[axis]), axis),
                np.take(padded, range(2, result.shape[axis] + 2), axis),
            )
            result = (1 - 2 * part) * result + part * (low + high)
    return result.round().clip(0, 255).astype(np.uint8)


def look_up(scene: Scene) -> list[Prompt]:
    """Simple questions of the type `look`, which MovingShapes does not have: which colour a shape has, and the reverse.

    Most other questions ask for the colour or shape of what is small, comes first and so on. The simple ones teach the
    model to read a colour or a shape from a video token.
    """
    questions = []
    for thing in scene.things:
        colours = {other.colour for other in scene.things if other.shape == thing.shape}
        shapes = {other.shape for other in scene.things if other.colour == thing.colour}
        if len(colours) == 1:
            questions.append((f"What colour is the {thing.shape}?", thing.colour))
        if len(shapes) == 1:
            questions.append((f"What is the {thing.colour} shape?", thing.shape))
    return [
        Prompt("look", "open", f"{text} Answer with one word.", answer) for text, answer in dict.fromkeys(questions)
    ]


class Item(NamedTuple):
    """A video to learn from.

    Args:
        frames: with shape (T, 128, 128, 3), uint8.
        labels: for each name of `LABELS` the classes, with shape (grids * 64,).
        prompts: questions about the video.
        kept: numbers of the video tokens that the language model sees, in order.
    """

    frames: torch.Tensor
    labels: dict[str, torch.Tensor]
    prompts: list[Prompt]
    kept: torch.Tensor


class Videos(Dataset):
    """Frames, labels and prompts of videos.

    Args:
        seeds: one seed for each video.
        augment: for training: the frames are changed as another camera would (`jitter`), the labels stay true, and
            simple questions are added (`look_up`).
        choice_share: share of the questions that are also asked with options; all questions are asked openly.
        grids: number of temporal grids of a video, drawn at random; default: all. If it is lower, there are no
            questions.
        keep: number of video tokens that the language model sees; default: all. If it is lower, tokens that show
            something are `FOREGROUND` times as likely to be drawn as others.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        augment: bool = False,
        choice_share: float = 1.0,
        grids: int = TEMPORAL_GRIDS,
        keep: int = VIDEO_TOKENS,
    ):
        self.seeds, self.augment, self.choice_share = seeds, augment, choice_share
        self.grids, self.keep = grids, keep

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Item:
        seed = self.seeds[index]
        scene, rng = make_scene(seed), np.random.default_rng([seed, 3])
        grids = np.sort(rng.permutation(TEMPORAL_GRIDS)[: self.grids])
        numbers = [int(TEMPORAL_PATCH * grid + i) for grid in grids for i in range(TEMPORAL_PATCH)]
        frames = render(scene, noise=float(rng.uniform(0, 6)) if self.augment else NOISE, frames=numbers)
        if self.augment:
            frames = jitter(frames, rng)
        prompts = [p for p in make_prompts(scene) if p.form == "open" or rng.random() < self.choice_share]
        if self.augment:
            prompts += look_up(scene)
        if self.grids < TEMPORAL_GRIDS:
            prompts = []
        labels = {name: torch.from_numpy(cells[grids].reshape(-1)) for name, cells in label_cells(scene).items()}
        return Item(torch.from_numpy(frames), labels, prompts, self.choose(labels["shape"].numpy(), rng))

    def choose(self, shapes: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """Numbers of the tokens to keep."""
        if self.keep == VIDEO_TOKENS:
            return torch.arange(VIDEO_TOKENS)
        weights = np.where(shapes > 0, FOREGROUND, 1)
        kept = rng.choice(len(weights), self.keep, replace=False, p=weights / weights.sum())
        return torch.from_numpy(np.sort(kept))
