"""Makes the clips of examples/, drawn with numpy and encoded with PyAV.

    python scripts/demo_model/make_demo_clips.py

moving_shapes.mp4 is a video of MovingShapes' test split. clip.mp4 has eight seconds: four scenes with hard cuts.

The scenes: a red ball crosses a meadow, a blue square falls before a brick wall, a green triangle circles in the night
sky, a yellow disc and a purple square pass each other over sand. The backgrounds are textured and slightly noisy, and
two of them pan, so that there is something to compress. The same versions of numpy and PyAV give the same file.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from flashvid_hf.evaluation.moving_shapes import make_scene, video_seeds, write_clip

WIDTH, HEIGHT = 336, 252  # pixels; multiples of 28, the side that Qwen2.5-VL's video processor rounds to
FPS = 24
SECONDS_PER_SCENE = 2
MOVING_SHAPES = 6  # number of the video in the test split, in which a triangle turns blue
NOISE = 1.5  # standard deviation of the camera noise, of 255

X, Y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
Scene = Callable[[float], np.ndarray]  # from a time in [0, 1] to a picture with shape (H, W, 3), float, 0 to 255


def texture(rng: np.random.Generator, width: int, cell: int) -> np.ndarray:
    """Smooth noise in [-1, 1] with shape (H, width): random values every `cell` pixels, and blends between them."""
    grid = rng.uniform(-1, 1, (HEIGHT // cell + 2, width // cell + 2))
    y, x = np.arange(HEIGHT) / cell, np.arange(width) / cell
    i, j = y.astype(int)[:, None], x.astype(int)[None, :]
    v, u = (y % 1)[:, None], (x % 1)[None, :]
    v, u = v * v * (3 - 2 * v), u * u * (3 - 2 * u)
    top = grid[i, j] * (1 - u) + grid[i, j + 1] * u
    bottom = grid[i + 1, j] * (1 - u) + grid[i + 1, j + 1] * u
    return top * (1 - v) + bottom * v


def rough(rng: np.random.Generator, width: int) -> np.ndarray:
    """A texture with coarse and fine parts, in [-1, 1]."""
    return 0.5 * texture(rng, width, 42) + 0.3 * texture(rng, width, 14) + 0.2 * texture(rng, width, 5)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    """Signed distance in pixels to a disc, negative inside, with shape (H, W)."""
    return np.hypot(X - x, Y - y) - radius


def square(x: float, y: float, half: float, angle: float = 0.0) -> np.ndarray:
    """Signed distance to a square turned by `angle` (radians)."""
    dx, dy = X - x, Y - y
    u = np.abs(np.cos(angle) * dx + np.sin(angle) * dy) - half
    v = np.abs(np.cos(angle) * dy - np.sin(angle) * dx) - half
    return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0)


def triangle(x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """Distance to the nearest side of an equilateral triangle, negative inside; its inner circle has `radius`."""
    normals = angle + np.array([0, 2, 4]) * np.pi / 3
    return np.max([np.cos(a) * (X - x) + np.sin(a) * (Y - y) for a in normals], axis=0) - radius


def draw(picture: np.ndarray, distance: np.ndarray, colour: tuple[int, int, int], soft: float = 1.0) -> None:
    """Paints a shape onto the picture; its edge fades over `soft` pixels."""
    cover = np.clip(0.5 - distance / soft, 0, 1)[..., None]
    picture += cover * (np.array(colour) - picture)


def draw_shadow(picture: np.ndarray, x: float, y: float, radius: float) -> None:
    """Darkens the picture under a flat ellipse, as wide as a disc of `radius`, on the ground."""
    distance = np.hypot(X - x, 3.5 * (Y - y)) - radius
    picture *= 1 - 0.38 * np.clip(0.5 - distance / 12, 0, 1)[..., None]


def meadow(rng: np.random.Generator) -> Scene:
    pan = 96
    wide = np.arange(WIDTH + pan)
    hills = 108 + 14 * np.sin(wide / 47) + 8 * np.sin(wide / 19 + 1)
    grain = rough(rng, WIDTH + pan)[..., None]
    sky = np.array([150, 196, 236]) + 50 * (Y[:, :1, None] / HEIGHT) + 10 * grain
    grass = np.array([92, 150, 66]) - 24 * (Y[:, :1, None] / HEIGHT) + 34 * grain
    land = np.clip(np.arange(HEIGHT)[:, None] - hills + 0.5, 0, 1)[..., None]
    world = sky + land * (grass - sky)

    def picture(t: float) -> np.ndarray:
        offset = round(pan * t)
        result = world[:, offset : offset + WIDTH].copy()
        x, bounce = -30 + (WIDTH + 60) * t, abs(np.sin(3 * np.pi * t))
        y = 196 - 62 * bounce
        draw_shadow(result, x, 222, 26 - 8 * bounce)
        draw(result, disc(x, y, 24), (208, 38, 40))
        draw(result, disc(x - 8, y - 9, 5), (246, 140, 132), soft=9)
        return result

    return picture


def wall(rng: np.random.Generator) -> Scene:
    row = (Y // 18).astype(int)
    column = ((X + 21 * (row % 2)) // 42).astype(int)
    mortar = ((Y % 18) < 2) | (((X + 21 * (row % 2)) % 42) < 2)
    tone = rng.uniform(-1, 1, (row.max() + 1, column.max() + 1))[row, column]
    grain = rough(rng, WIDTH)[..., None]
    bricks = np.array([176, 98, 76]) + 16 * tone[..., None] + 18 * grain
    world = np.where(mortar[..., None], np.array([202, 194, 182]) + 10 * grain, bricks)

    def picture(t: float) -> np.ndarray:
        result = world.copy()
        y, angle = -24 + (HEIGHT + 68) * t**1.5, 1.3 * t
        cover = np.clip(0.5 - square(172, y + 8, 32, angle) / 14, 0, 1)[..., None]
        result *= 1 - 0.35 * cover
        draw(result, square(160, y, 32, angle), (34, 74, 196))
        draw(result, square(160, y, 22, angle), (62, 108, 226))
        return result

    return picture


def night(rng: np.random.Generator) -> Scene:
    pan = 72
    grain = rough(rng, WIDTH + pan)[..., None]
    world = np.array([24, 26, 58]) + 26 * (Y[:, :1, None] / HEIGHT) + np.array([12, 10, 22]) * grain
    wide_x, wide_y = np.meshgrid(np.arange(WIDTH + pan) + 0.5, np.arange(HEIGHT) + 0.5)
    for _ in range(90):
        x, y, size = rng.uniform(0, WIDTH + pan), rng.uniform(0, HEIGHT), rng.uniform(0.7, 1.7)
        glow = np.exp(-((wide_x - x) ** 2 + (wide_y - y) ** 2) / (2 * size**2))[..., None]
        world += glow * rng.uniform(90, 200) * np.array([1.0, 0.97, 0.86])

    def picture(t: float) -> np.ndarray:
        offset = round(pan * (1 - t))
        result = world[:, offset : offset + WIDTH].copy()
        draw(result, disc(262, 58, 26), (228, 226, 206))  # the moon
        draw(result, disc(254, 52, 6), (206, 204, 186), soft=4)
        draw(result, disc(270, 68, 4), (208, 206, 188), soft=3)
        angle = 2 * np.pi * t
        x, y = 168 + 84 * np.cos(angle), 132 + 70 * np.sin(angle)
        draw(result, triangle(x, y, 17, angle), (38, 176, 82))
        draw(result, triangle(x, y, 10, angle), (88, 214, 122))
        return result

    return picture


def sand(rng: np.random.Generator) -> Scene:
    grain = rough(rng, WIDTH)
    ripples = np.sin((Y + 14 * grain + 8 * np.sin(X / 40)) / 5)
    world = np.array([214, 186, 140]) + 12 * ripples[..., None] + 16 * grain[..., None]

    def picture(t: float) -> np.ndarray:
        result = world.copy()
        left, right = -30 + (WIDTH + 60) * t, WIDTH + 30 - (WIDTH + 60) * t
        draw_shadow(result, right, 176, 30)
        draw(result, square(right, 140, 25, -2 * t), (124, 48, 168))
        draw_shadow(result, left, 200, 28)
        draw(result, disc(left, 158, 27), (246, 196, 28))
        draw(result, disc(left - 8, 148, 6), (255, 234, 150), soft=10)
        return result

    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "examples"
    parser.add_argument("--output", type=Path, default=default, help="the folder to write to (default: examples)")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    seeds = video_seeds("test", MOVING_SHAPES + 1)
    shapes = write_clip(make_scene(seeds[MOVING_SHAPES]), folder / "moving_shapes.mp4")
    print(f"{shapes}: {shapes.stat().st_size / 1000:.0f} kB")

    output = folder / "clip.mp4"
    rng = np.random.default_rng(0)
    scenes = [make(rng) for make in (meadow, wall, night, sand)]
    frames_per_scene = FPS * SECONDS_PER_SCENE
    # One thread and no encoder names in the file: the result depends on nothing but the encoder's version.
    with av.open(str(output), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        options = {"crf": "21", "preset": "slow", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in tqdm(range(len(scenes) * frames_per_scene), unit="frame"):
            scene, step = divmod(index, frames_per_scene)
            picture = scenes[scene](step / (frames_per_scene - 1)) + rng.normal(0, NOISE, (HEIGHT, WIDTH, 1))
            picture = picture.round().clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    print(f"{output}: {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
