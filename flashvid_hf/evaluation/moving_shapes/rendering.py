"""Turns a scene into frames, into an mp4 file, and into labels of what each video token shows."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from .scenes import (
    CELL,
    COLOURS,
    DIRECTIONS,
    FPS,
    FRAMES_PER_GRID,
    MOST_DOTS,
    NUM_FRAMES,
    SHAPES,
    SIDE,
    TEXTURES,
    Background,
    Scene,
    Thing,
)

BLACK = (20, 20, 20)
DOTS = (  # offsets of the dots, to the right and down, by the number of dots
    (),
    ((0, 0),),
    ((-1, -1), (1, 1)),
    ((-1, -1), (0, 0), (1, 1)),
    ((-1, -1), (1, -1), (-1, 1), (1, 1)),
)
NOISE = 4.0  # standard deviation of the camera noise, of 255
LEAST_COVER = 0.08  # share of a cell that a thing has to cover so that the cell shows it
LABELS = {  # number of classes of each label
    "shape": 1 + len(SHAPES),  # 0: nothing
    "colour": 1 + len(COLOURS),  # 0: nothing
    "direction": 2 + len(DIRECTIONS),  # 0: nothing, 1: stays still
    "size": 3,  # 0: nothing, 1: small, 2: big
    "texture": len(TEXTURES),
    "number": 1 + MOST_DOTS,  # dots on the thing; 0: none
    "centre": 2,  # 1: the centre of a thing lies in this cell
}


def draw_background(background: Background, scale: int = 1) -> np.ndarray:
    """The background alone, with shape (SIDE * scale, SIDE * scale, 3), float32 from 0 to 255."""
    axis = (np.arange(SIDE * scale, dtype=np.float32) + 0.5) / scale
    x, y = axis[None, :] + background.phase[0], axis[:, None] + background.phase[1]
    period = background.period
    u, v = x % period / period - 0.5, y % period / period - 0.5  # within a tile, from -0.5 to 0.5
    edge = 0.5 * period  # the edges of a texture fade over two pixels
    if background.texture == "stripes":
        mix = np.clip(0.5 + edge * (0.25 - np.abs((x + y) % period / period - 0.5)), 0, 1)
    elif background.texture == "checks":
        mix = np.clip(0.5 + 2 * edge * (np.abs(u) - 0.25), 0, 1)
        down = np.clip(0.5 + 2 * edge * (np.abs(v) - 0.25), 0, 1)
        mix = mix + down - 2 * mix * down
    elif background.texture == "dots":
        mix = np.clip(0.5 + edge * (0.28 - np.hypot(u, v)), 0, 1)
    elif background.texture == "waves":
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * (y + 3 * np.sin(2 * np.pi * x / 32)) / period)
    elif background.texture == "bricks":
        shifted = (x + (y // period % 2) * period) % (2 * period)
        mortar = np.minimum(period * (0.5 - np.abs(v)), period - np.abs(shifted - period))
        mix = np.clip(mortar - 0.5, 0, 1)
    else:
        mix = (0.5 + 0.25 * np.sin(2 * np.pi * (x + y) / 256)) * np.ones_like(y)
    light, dark = np.array(background.light, np.float32), np.array(background.dark, np.float32)
    return (dark + mix[..., None] * (light - dark)).astype(np.float32)


def distance(shape: str, dx: np.ndarray, dy: np.ndarray, half: float) -> np.ndarray:
    """Approximate distance of a point from the edge of a shape in pixels; negative inside.

    Args:
        dx, dy: pixels from the centre to the point.
        half: half of the shape's size in pixels.
    """
    if shape == "circle":
        return np.hypot(dx, dy) - half
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * half
    if shape == "triangle":  # points upwards
        return np.maximum(dy - 0.85 * half, 0.894 * np.abs(dx) - 0.447 * (dy + half))
    if shape == "cross":
        across, along = np.maximum(np.abs(dx), np.abs(dy)), np.minimum(np.abs(dx), np.abs(dy))
        return np.maximum(across - half, along - 0.34 * half)
    if shape == "ring":
        return np.abs(np.hypot(dx, dy) - 0.74 * half) - 0.26 * half
    return (np.abs(dx) + np.abs(dy) - 1.12 * half) * 0.707  # diamond


def cover_of(thing: Thing, frame: int, scale: int = 1) -> tuple[slice, slice, np.ndarray]:
    """The place of a thing in a frame: rows, columns, and the share of each pixel there that it covers, 0 to 1."""
    x, y = thing.centre(frame)
    half, reach = thing.size / 2, 0.62 * thing.size
    limits = [(max(int((c - reach) * scale), 0), min(int((c + reach) * scale) + 2, SIDE * scale)) for c in (y, x)]
    rows, columns = (slice(low, high) for low, high in limits)
    py, px = ((np.arange(low, high) + 0.5) / scale for low, high in limits)
    return rows, columns, np.clip(0.5 - scale * distance(thing.shape, px[None] - x, py[:, None] - y, half), 0, 1)


def dots_of(thing: Thing) -> list[Thing]:
    """The dots on a thing, each as a thing."""
    step, size = 0.24 * thing.size, round(0.24 * thing.size)
    return [
        replace(thing, shape="circle", size=size, x=thing.x + step * dx, y=thing.y + step * dy, dots=0)
        for dx, dy in DOTS[thing.dots]
    ]


def render(scene: Scene, scale: int = 1, noise: float = NOISE, frames: Sequence[int] = range(NUM_FRAMES)) -> np.ndarray:
    """The frames of a scene.

    Args:
        scene: from `make_scene`.
        scale: pixels of a frame for each pixel of the scene, at least 1.
        noise: standard deviation of the camera noise, of 255.
        frames: numbers of the wanted frames; default: all. The noise depends on this choice.

    Returns:
        frames with shape (len(frames), SIDE * scale, SIDE * scale, 3), uint8.

    Raises:
        ValueError: `scale` is below 1.
    """
    if scale < 1:
        raise ValueError(f"`scale` is {scale}, but must be 1 or more; 1 makes frames of {SIDE} x {SIDE} pixels")
    pictures = np.empty((len(frames), SIDE * scale, SIDE * scale, 3), np.float32)
    for background in scene.backgrounds:
        pictures[[background.first <= frame < background.end for frame in frames]] = draw_background(background, scale)
    for thing in scene.things:
        painted = [(thing, COLOURS[thing.colour])] + [(dot, BLACK) for dot in dots_of(thing)]
        for picture, frame in zip(pictures, frames, strict=True):
            if thing.first <= frame < thing.end:
                for part, colour in painted:
                    rows, columns, cover = cover_of(part, frame, scale)
                    patch = picture[rows, columns]
                    patch += cover[..., None].astype(np.float32) * (np.array(colour, np.float32) - patch)
    if noise > 0:
        rng = np.random.default_rng([scene.seed, 1])
        pictures += np.float32(noise) * rng.standard_normal(pictures.shape, np.float32)
    return pictures.round().clip(0, 255).astype(np.uint8)


def label_cells(scene: Scene) -> dict[str, np.ndarray]:
    """What each video token shows: the truth for a loss on the vision tower's tokens.

    Returns:
        for each name of `LABELS` the classes, with shape (temporal grids, SIDE // CELL, SIDE // CELL), int64. A cell
        shows the thing that covers most of it in the two frames of the grid, if it covers `LEAST_COVER` or more.
    """
    grids, cells = NUM_FRAMES // FRAMES_PER_GRID, SIDE // CELL
    labels = {name: np.zeros((grids, cells, cells), np.int64) for name in LABELS}
    for background in scene.backgrounds:
        span = slice(background.first // FRAMES_PER_GRID, background.end // FRAMES_PER_GRID)
        labels["texture"][span] = TEXTURES.index(background.texture)
    most = np.full((grids, cells, cells), LEAST_COVER)
    for thing in scene.things:
        classes = {
            "shape": 1 + SHAPES.index(thing.shape),
            "colour": 1 + list(COLOURS).index(thing.colour),
            "direction": 2 + list(DIRECTIONS).index(thing.direction) if thing.direction else 1,
            "size": 1 if thing.is_small else 2,
            "number": thing.dots,
        }
        for grid in range(thing.first // FRAMES_PER_GRID, thing.end // FRAMES_PER_GRID):
            cover = np.zeros((SIDE, SIDE))
            for frame in range(FRAMES_PER_GRID * grid, FRAMES_PER_GRID * (grid + 1)):
                rows, columns, part = cover_of(thing, frame)
                cover[rows, columns] += part / FRAMES_PER_GRID
            share = cover.reshape(cells, CELL, cells, CELL).mean((1, 3))
            shown = share >= most[grid]
            most[grid] = np.where(shown, share, most[grid])
            for name, value in classes.items():
                labels[name][grid][shown] = value
            middle = FRAMES_PER_GRID * grid + (FRAMES_PER_GRID - 1) / 2
            x, y = thing.centre(middle)  # type: ignore[arg-type]
            labels["centre"][grid, int(y // CELL), int(x // CELL)] = 1
    return labels


def write_clip(scene: Scene, path: str | Path, scale: int = 3) -> Path:
    """Write a scene as an mp4 file (H.264, 2 frames a second) and return its path.

    Args:
        path: path of the file; an existing file is replaced.
        scale: pixels of the file for each pixel of the scene; 3 makes 384 x 384.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: `scale` is below 1.
    """
    import av  # not at the top: frames alone do not need it

    path = Path(path)
    frames = render(scene, scale)
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        options = {"crf": "16", "preset": "fast", "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
