"""MovingShapes: synthetic videos of moving shapes, with questions whose answers are known.

A video is 8 seconds of 16 frames with 128 x 128 pixels, or an mp4 file of the same. Everything follows from a whole
number, the seed. Eight types of questions (`TYPES`) are about what a compression of video tokens may lose: what moves,
what flashes up, what is small, what follows, what changes, what stays still, what is before and after a scene cut, and
how many dots a square has. A square has one to four dots, few enough to see at a glance without counting.

    scene = make_scene(seed)
    frames = render(scene)  # uint8, shape (16, 128, 128, 3)
    prompts = make_prompts(scene)  # with `text` and `answer`
    table = moving_shapes("test", 200)  # the prompts of 200 videos, as a datasets.Dataset
"""

from ..items import FORMS
from .dataset import SPLITS, moving_shapes, video_seeds
from .questions import ANSWERS, NUMBERS, TYPES, Prompt, Question, ask, make_prompts
from .rendering import LABELS, label_cells, render, write_clip
from .scenes import COLOURS, DIRECTIONS, FPS, KINDS, NUM_FRAMES, SHAPES, SIDE, TEXTURES, Scene, Thing, make_scene

__all__ = [
    "ANSWERS",
    "COLOURS",
    "DIRECTIONS",
    "FORMS",
    "FPS",
    "KINDS",
    "LABELS",
    "NUMBERS",
    "NUM_FRAMES",
    "SHAPES",
    "SIDE",
    "SPLITS",
    "TEXTURES",
    "TYPES",
    "Prompt",
    "Question",
    "Scene",
    "Thing",
    "ask",
    "label_cells",
    "make_prompts",
    "make_scene",
    "moving_shapes",
    "render",
    "video_seeds",
    "write_clip",
]
