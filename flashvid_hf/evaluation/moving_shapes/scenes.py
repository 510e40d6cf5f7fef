"""What is in a video of MovingShapes, sampled from a seed.

A scene is a list of flat shapes in front of a textured background. Each shape has one look, one place or one straight
path, and the range of frames in which it is visible. The picture is divided into four lanes of 32 pixels, rows or
columns, and nothing leaves its lane, so nothing is ever hidden. Coordinates are pixels of a 128 x 128 picture, x to the
right and y downwards. There are five kinds of scene:

* `parade`: three big shapes, of which two move and one stays still; a small one that moves; one that flashes up.
* `story`: three big shapes, one after another; a small one moves all the time.
* `change`: one shape turns into another colour, one into another shape; a small one moves; one flashes up.
* `cut`: a scene cut; each of the two shots has a background and one big moving shape.
* `dice`: three squares that stay still, with one to four dots; a small shape; one that flashes up.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_FRAMES = 16
FPS = 2  # frames a second
SIDE = 128  # pixels, width and height of a frame
CELL = 16  # pixels; a video token covers CELL x CELL pixels of FRAMES_PER_GRID frames
FRAMES_PER_GRID = 2  # frames of a temporal grid, as in Qwen's vision towers
LANE = 32  # pixels; four lanes in a picture

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = {
    "red": (225, 25, 30),
    "green": (25, 165, 45),
    "blue": (35, 60, 230),
    "yellow": (245, 220, 20),
    "pink": (245, 60, 200),
    "cyan": (20, 215, 230),
}
TEXTURES = ("stripes", "checks", "dots", "waves", "bricks", "plain")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
KINDS = ("parade", "story", "change", "cut", "dice")
MOST_DOTS = 4  # on a die: few enough to see at a glance


@dataclass(frozen=True)
class Thing:
    """One shape, with one look.

    Args:
        role: its part in the scene; unique within a scene, except `mover` and `die`.
        shape, colour: names in `SHAPES` and `COLOURS`.
        size: pixels from side to side: 24 to 28 if big, 12 if small.
        x, y: pixels; the centre in frame 0, even if the thing is not visible in that frame.
        direction: a name in `DIRECTIONS`, or None if it stays still.
        speed: pixels a frame.
        first, end: it is visible from frame `first` to the frame before `end`.
        dots: black dots on it, arranged as on a die: 1 to 4, or 0 for none.
    """

    role: str
    shape: str
    colour: str
    size: int
    x: float
    y: float
    direction: str | None = None
    speed: float = 0.0
    first: int = 0
    end: int = NUM_FRAMES
    dots: int = 0

    @property
    def is_small(self) -> bool:
        return self.size < 20

    def centre(self, frame: int) -> tuple[float, float]:
        """Its x and y in a frame, in pixels."""
        dx, dy = DIRECTIONS[self.direction] if self.direction else (0, 0)
        return self.x + dx * self.speed * frame, self.y + dy * self.speed * frame


@dataclass(frozen=True)
class Background:
    """A texture in two muted colours, visible from frame `first` to the frame before `end`.

    Args:
        light, dark: colours, red, green and blue from 0 to 255.
        period: pixels after which the texture repeats.
        phase: pixels by which it is shifted, to the right and down.
    """

    texture: str
    light: tuple[int, int, int]
    dark: tuple[int, int, int]
    period: int
    phase: tuple[int, int]
    first: int = 0
    end: int = NUM_FRAMES


@dataclass(frozen=True)
class Scene:
    """Everything that determines a video. Backgrounds follow one another; things do not overlap.

    Args:
        seed: the seed of the scene and of its camera noise.
    """

    seed: int
    kind: str
    backgrounds: tuple[Background, ...]
    things: tuple[Thing, ...]

    def with_role(self, role: str) -> Thing:
        """The only thing that has this role."""
        (thing,) = (thing for thing in self.things if thing.role == role)
        return thing


def as_colour(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(float(value)) for value in values)
    return red, green, blue


class Sampler:
    """Draws the parts of one scene.

    Args:
        rng: the source of all choices.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.is_horizontal = bool(rng.integers(2))  # lanes are rows, otherwise columns
        self.lanes = [int(lane) for lane in rng.permutation(SIDE // LANE)]
        self.shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))]  # one colour each: looks differ in both
        self.colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))]

    def grid(self, least: int, most: int) -> int:
        """The first frame of a random temporal grid, numbered from `least` to `most`."""
        return FRAMES_PER_GRID * int(self.rng.integers(least, most + 1))

    def background(self, texture: str, first: int = 0, end: int = NUM_FRAMES) -> Background:
        grey = self.rng.uniform(85, 165)
        light = grey + 24 + self.rng.uniform(-14, 14, 3)
        dark = grey - 24 + self.rng.uniform(-14, 14, 3)
        period = int(self.rng.choice([8, 10, 12]))
        phase = self.rng.integers(0, 2 * period, 2)
        x, y = (int(value) for value in phase)
        return Background(texture, as_colour(light), as_colour(dark), period, (x, y), first, end)

    def textures(self, number: int) -> list[str]:
        return [TEXTURES[i] for i in self.rng.permutation(len(TEXTURES))[:number]]

    def place(
        self, lane: int, *, small: bool = False, moves: bool = False, low: float = 0.0, high: float = float(SIDE)
    ) -> dict[str, Any]:
        """A size, and a place or a path in a lane, as fields of a `Thing`.

        Args:
            lane: number of the lane.
            low, high: pixels along the lane between which the thing stays.
        """
        size = 12 if small else int(self.rng.integers(12, 15)) * 2
        margin = size / 2 + 2
        low, high = low + margin, high - margin
        across = LANE * lane + LANE / 2 + self.rng.integers(-1, 2) * (4 if small else 1)
        direction, speed, sign = None, 0.0, 1
        if moves:
            sign = 2 * int(self.rng.integers(2)) - 1
            direction = [("up", "left"), ("down", "right")][sign > 0][self.is_horizontal]
            speed = float(self.rng.uniform(3, min(5, (high - low) / (NUM_FRAMES - 1))))
        path = speed * (NUM_FRAMES - 1)
        start = low + self.rng.uniform(0, high - low - path)
        along = start if sign > 0 else start + path
        x, y = (along, across) if self.is_horizontal else (across, along)
        return dict(size=size, x=round(float(x), 2), y=round(float(y), 2), direction=direction, speed=round(speed, 2))

    def small_and_flash(self, lane: int, looks: list[tuple[str, str]], moves: bool) -> list[Thing]:
        """A small thing in one half of a lane and one that flashes up in the other half."""
        halves = [(0.0, 72.0), (SIDE - 48.0, float(SIDE))]
        if self.rng.integers(2):
            halves = [(SIDE - high, SIDE - low) for low, high in halves]
        flash = self.grid(1, 6)
        return [
            Thing("small", *looks[0], **self.place(lane, small=True, moves=moves, low=halves[0][0], high=halves[0][1])),
            Thing(
                "flash",
                *looks[1],
                **self.place(lane, low=halves[1][0], high=halves[1][1]),
                first=flash,
                end=flash + FRAMES_PER_GRID,
            ),
        ]

    def parade(self) -> tuple[list[Background], list[Thing]]:
        looks = list(zip(self.shapes, self.colours, strict=True))
        things = [Thing("mover", *looks[i], **self.place(self.lanes[i], moves=True)) for i in range(2)]
        things.append(Thing("still", *looks[2], **self.place(self.lanes[2])))
        things += self.small_and_flash(self.lanes[3], looks[3:5], moves=True)
        return [self.background(self.textures(1)[0])], things

    def story(self) -> tuple[list[Background], list[Thing]]:
        looks = list(zip(self.shapes, self.colours, strict=True))
        moments = [0, self.grid(2, 3), self.grid(5, 6), NUM_FRAMES]
        things = [
            Thing(role, *looks[i], **self.place(self.lanes[i]), first=moments[i], end=moments[i + 1])
            for i, role in enumerate(("first", "middle", "last"))
        ]
        things.append(Thing("small", *looks[3], **self.place(self.lanes[3], small=True, moves=True)))
        return [self.background(self.textures(1)[0])], things

    def change(self) -> tuple[list[Background], list[Thing]]:
        shapes, colours = self.shapes, self.colours
        recolour, reshape = self.grid(3, 5), self.grid(3, 5)
        places = [self.place(lane) for lane in self.lanes[:2]]
        things = [
            Thing("recoloured", shapes[0], colours[0], **places[0], end=recolour),
            Thing("recoloured to", shapes[0], colours[1], **places[0], first=recolour),
            Thing("reshaped", shapes[1], colours[2], **places[1], end=reshape),
            Thing("reshaped to", shapes[2], colours[2], **places[1], first=reshape),
        ]
        looks = list(zip(shapes[3:5], colours[3:5], strict=True))
        return [self.background(self.textures(1)[0])], things + self.small_and_flash(self.lanes[3], looks, moves=True)

    def cut(self) -> tuple[list[Background], list[Thing]]:
        frame = self.grid(3, 5)
        before, after = self.textures(2)
        backgrounds = [self.background(before, end=frame), self.background(after, first=frame)]
        spans: dict[str, dict[str, Any]] = {"before": dict(end=frame), "after": dict(first=frame)}
        things = [
            Thing(role, self.shapes[i], self.colours[i], **self.place(self.lanes[i], moves=True), **spans[role])
            for i, role in enumerate(spans)
        ]
        return backgrounds, things

    def dice(self) -> tuple[list[Background], list[Thing]]:
        things = [
            Thing(
                "die",
                "square",
                self.colours[i],
                **self.place(self.lanes[i]),
                dots=int(self.rng.integers(1, MOST_DOTS + 1)),
            )
            for i in range(3)
        ]
        shapes = [shape for shape in self.shapes if shape != "square"]
        looks = list(zip(shapes[:2], self.colours[3:5], strict=True))
        return [self.background(self.textures(1)[0])], things + self.small_and_flash(self.lanes[3], looks, moves=False)


def make_scene(seed: int, kind: str | None = None) -> Scene:
    """The scene of a seed.

    Args:
        seed: 0 or more.
        kind: one of `KINDS`; default: drawn from the seed. Another kind gives another scene.

    Raises:
        ValueError: the seed is negative or the kind unknown.
    """
    if seed < 0:
        raise ValueError(f"`seed` is {seed}, but must be 0 or more; `video_seeds` gives the seeds of a split")
    if kind is not None and kind not in KINDS:
        raise ValueError(
            f"`kind` is {kind!r}, but must be one of {', '.join(KINDS)}; leave it out to let the seed decide"
        )
    rng = np.random.default_rng(seed)
    drawn = KINDS[rng.integers(len(KINDS))]
    chosen = kind or drawn
    backgrounds, things = getattr(Sampler(rng), chosen)()
    return Scene(seed, chosen, tuple(backgrounds), tuple(things))
