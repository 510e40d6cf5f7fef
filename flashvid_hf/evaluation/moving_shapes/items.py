"""MovingShapes for `flashvid-hf evaluate`: the videos of the test split with their questions."""

from functools import partial

from ...video.reading import VideoClip, read_video
from ..items import Question, VideoItem
from .dataset import video_seeds
from .questions import make_prompts
from .rendering import render
from .scenes import FPS, make_scene

DEFAULT_SIZE = 200  # videos


def load_moving_shapes(source: str | None = None, limit: int | None = None) -> list[VideoItem]:
    """The videos of a split.

    Args:
        source: the split; "test" by default.
        limit: how many videos; 200 by default.

    Raises:
        ValueError: the split is unknown, or the number of videos is below 1 or more than the split has.
    """
    seeds = video_seeds(source or "test", limit or DEFAULT_SIZE)
    return [VideoItem(f"{seed:010}", partial(_load, seed), _questions(seed)) for seed in seeds]


def _load(seed: int, num_frames: int) -> VideoClip:
    return read_video(render(make_scene(seed)), num_frames=num_frames, video_metadata={"fps": FPS})


def _questions(seed: int) -> tuple[Question, ...]:
    prompts = make_prompts(make_scene(seed))
    return tuple(
        Question(f"{seed:010}-{i:02}", prompt.text, prompt.answer, prompt.type, prompt.form, letters="")
        for i, prompt in enumerate(prompts)
    )
