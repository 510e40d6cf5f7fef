"""MovingShapes: equal on every machine, balanced, and right by an independent count and by the pixels."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from flashvid_hf.evaluation import moving_shapes as ms
from flashvid_hf.evaluation.moving_shapes.questions import NUM_OPTIONS, NUMBERS
from flashvid_hf.evaluation.moving_shapes.scenes import CELL, FRAMES_PER_GRID

SCENES = [ms.make_scene(seed) for seed in range(1000)]
EXAMPLES = [ms.make_scene(seed, kind) for kind in ms.KINDS for seed in range(3)]


def near(frame: np.ndarray, colour: str) -> np.ndarray:
    """Which pixels have about this colour, with shape (H, W)."""
    return np.abs(frame.astype(int) - np.array(ms.COLOURS[colour])).max(-1) < 45


def test_a_seed_says_everything():
    for scene in EXAMPLES:
        again = ms.make_scene(scene.seed, scene.kind)
        assert again == scene
        assert ms.make_prompts(again) == ms.make_prompts(scene)
        np.testing.assert_array_equal(ms.render(again), ms.render(scene))


def test_scenes_do_not_drift():
    """Published numbers depend on exactly these videos."""
    first = ms.make_scene(ms.video_seeds("test", 1)[0])
    assert first.kind == "dice"
    assert asdict(first.things[0]) == {
        "role": "die",
        "shape": "square",
        "colour": "yellow",
        "size": 24,
        "x": 79.0,
        "y": 33.28,
        "direction": None,
        "speed": 0.0,
        "first": 0,
        "end": 16,
        "dots": 3,
    }
    answers = ["red", "diamond", "green", "triangle", "three", "one", "four"]
    assert [prompt.answer for prompt in ms.make_prompts(first)] == [answer for answer in answers for _ in ms.FORMS]


def test_splits_have_no_seed_in_common():
    seeds = [ms.video_seeds(split, 10**9) for split in ms.SPLITS]
    for one, other in zip(seeds, seeds[1:], strict=False):
        assert one[-1] < other[0]


def test_a_guess_is_near_chance():
    """For every text of a question, the most frequent answer is about as frequent as the others."""
    answers: dict[tuple, Counter] = {}
    for scene in SCENES:
        for question, prompt in zip(
            [question for question in ms.ask(scene) for _ in ms.FORMS], ms.make_prompts(scene), strict=True
        ):
            answers.setdefault((question.type, prompt.form, question.answer_set), Counter())[prompt.answer] += 1
    assert {key[0] for key in answers} == set(ms.TYPES)
    for (kind, form, answer_set), counter in answers.items():
        possible = ms.ANSWERS[answer_set]
        assert set(counter) == set(possible)
        total = counter.total()
        chance = 1 / len(possible)
        spread = (chance * (1 - chance) / total) ** 0.5
        # Questions about one video depend on each other, so the limit is wider than the usual three.
        assert max(counter.values()) / total < chance + 4.5 * spread, (kind, form, answer_set, counter)


def test_options_are_four_with_the_answer_once():
    positions: Counter = Counter()
    for scene in SCENES[:200]:
        questions = ms.ask(scene)
        assert 6 <= len(questions) <= 12
        choices = [prompt for prompt in ms.make_prompts(scene) if prompt.form == "choice"]
        for question, prompt in zip(questions, choices, strict=True):
            line, text = prompt.text.split("\n")
            assert text == f"{question.text} Answer with one option."
            options = line.removeprefix("Options: ").removesuffix(".").split(", ")
            assert len(options) == len(set(options)) == NUM_OPTIONS
            assert prompt.answer == question.answer and set(options) <= set(ms.ANSWERS[question.answer_set])
            positions[options.index(prompt.answer)] += 1
    # A guess at the options is right in one of four cases.
    assert max(positions.values()) / positions.total() < 0.29


def answer_from_things(scene: ms.Scene, text: str) -> set[str]:
    """All answers that follow from the list of things, found without their roles."""
    things, words = scene.things, text.rstrip("?").split()
    always = {t for t in things if t.end - t.first == ms.NUM_FRAMES}

    def look(some) -> set[str]:
        return {thing.colour if "colour" in words[1] else thing.shape for thing in some}

    if text.startswith("Which way"):
        return {t.direction for t in things if t.colour == words[4] and t.shape == words[5]}
    if "flashes" in words:
        brief = [t for t in things if t.end - t.first == FRAMES_PER_GRID]
        return look(t for t in brief if {t.colour, t.shape} & set(words))
    if "small" in words:
        return look(t for t in things if t.size < 20)
    if "still" in words:
        return look(t for t in always if t.direction is None)
    if words[:2] == ["How", "many"]:
        return {NUMBERS[t.dots - 1] for t in things if (t.colour, t.shape) == (words[-2], words[-1])}
    if "first" in words or "last" in words:
        big = sorted((t for t in things if t.size >= 20), key=lambda t: t.first)
        return look([big[0] if "first" in words else big[-1]])
    if "turn" in words:
        named = [t for t in things if words[3] in (t.shape, t.colour) or words[4] in (t.shape, t.colour)]
        return look(t for t in named if t.first > 0)
    shot = 0 if "before" in words else 1
    if "background" in words:
        return {scene.backgrounds[shot].texture}
    return look(t for t in things if t.first == scene.backgrounds[shot].first)


def test_each_question_has_one_answer():
    for scene in SCENES[:300]:
        for question in ms.ask(scene):
            assert answer_from_things(scene, question.text) == {question.answer}, (scene, question)


def test_things_stay_apart_and_inside():
    for scene in SCENES[:300]:
        for frame in range(ms.NUM_FRAMES):
            there = [t for t in scene.things if t.first <= frame < t.end]
            places = [(*t.centre(frame), t.size / 2) for t in there]
            for i, (x, y, half) in enumerate(places):
                assert half <= min(x, y) and max(x, y) <= ms.SIDE - half
                for u, v, other in places[:i]:
                    assert max(abs(x - u), abs(y - v)) > half + other - 2


@pytest.mark.parametrize("scene", EXAMPLES, ids=lambda scene: f"{scene.kind}-{scene.seed}")
def test_pixels_show_the_things(scene):
    """A colour is visible where its thing is, and nowhere while no thing has it."""
    frames = ms.render(scene)
    assert frames.shape == (ms.NUM_FRAMES, ms.SIDE, ms.SIDE, 3) and frames.dtype == np.uint8
    for index, frame in enumerate(frames):
        there = [t for t in scene.things if t.first <= index < t.end]
        for colour in ms.COLOURS:
            seen = near(frame, colour)
            named = [t for t in there if t.colour == colour]
            if not named:
                assert seen.sum() < 5
            for t in named:
                x, y = t.centre(index)
                half = t.size / 2
                box = seen[int(y - half) : int(y + half) + 1, int(x - half) : int(x + half) + 1]
                assert 0.25 * t.size**2 < box.sum() < 0.95 * t.size**2


def test_dots_are_in_the_pixels():
    for scene in (scene for scene in EXAMPLES if scene.kind == "dice"):
        dark = ms.render(scene, scale=4, noise=0)[0].max(-1) < 60
        for t in (t for t in scene.things if t.role == "die"):
            left, top = int(4 * (t.x - t.size / 2)), int(4 * (t.y - t.size / 2))
            box = dark[top : top + 4 * t.size, left : left + 4 * t.size]
            one = np.pi * (2 * round(0.24 * t.size)) ** 2  # the area of a dot
            assert box.sum() / one == pytest.approx(t.dots, abs=0.4)


def test_motion_is_in_the_pixels():
    """The centre of the pixels of a colour moves in the named direction."""
    for scene in EXAMPLES:
        frames = ms.render(scene)
        for t in (t for t in scene.things if t.direction):
            places = [np.argwhere(near(frames[i], t.colour)).mean(0)[::-1] for i in (t.first, t.end - 1)]
            moved = places[1] - places[0]
            dx, dy = ms.DIRECTIONS[t.direction]
            steps = t.end - 1 - t.first
            assert moved @ np.array([dx, dy]) == pytest.approx(steps * t.speed, abs=2)
            assert abs(moved @ np.array([dy, dx])) < 2


def test_textures_differ():
    """All backgrounds look different: the standard deviations of differences of neighbouring pixels show it."""
    scenes = [scene for scene in SCENES[:200] if scene.kind == "parade"]
    assert {scene.backgrounds[0].texture for scene in scenes} == set(ms.TEXTURES)
    for scene in scenes[:20]:
        background = scene.backgrounds[0]
        frame = ms.rendering.draw_background(background).mean(-1)
        contrast = frame.std()
        assert (contrast < 12) == (background.texture == "plain")


def test_labels_of_cells():
    for scene in EXAMPLES:
        labels = ms.label_cells(scene)
        grids, cells = ms.NUM_FRAMES // FRAMES_PER_GRID, ms.SIDE // CELL
        for name, classes in ms.LABELS.items():
            assert labels[name].shape == (grids, cells, cells)
            assert 0 <= labels[name].min() and labels[name].max() < classes
        empty = labels["shape"] == 0
        for name in ("colour", "direction", "size"):
            np.testing.assert_array_equal(labels[name] == 0, empty)
        for thing in scene.things:
            if thing.role == "die":
                assert (
                    labels["number"][labels["colour"] == 1 + list(ms.COLOURS).index(thing.colour)] == thing.dots
                ).all()
        for grid in range(grids):
            there = [t for t in scene.things if t.first <= grid * FRAMES_PER_GRID < t.end]
            assert labels["centre"][grid].sum() == len(there)
            assert {list(ms.COLOURS)[c - 1] for c in np.unique(labels["colour"][grid]) if c} == {
                t.colour for t in there
            }


def test_clip_shows_the_frames(tmp_path):
    av = pytest.importorskip("av")
    scene = EXAMPLES[3]
    path = ms.write_clip(scene, tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == ms.FPS
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    side = 3 * ms.SIDE
    assert decoded.shape == (ms.NUM_FRAMES, side, side, 3)
    small = decoded.reshape(ms.NUM_FRAMES, ms.SIDE, 3, ms.SIDE, 3, 3).mean((2, 4))
    difference = np.abs(small - ms.render(scene, noise=0))
    assert difference.mean() < 3


def test_table(tmp_path):
    pytest.importorskip("datasets")
    table = ms.moving_shapes("validation", 3, cache_dir=str(tmp_path))
    seeds = ms.video_seeds("validation", 3)
    prompts = [prompt for seed in seeds for prompt in ms.make_prompts(ms.make_scene(seed))]
    assert table["prompt"] == [prompt.text for prompt in prompts]
    assert table["answer"] == [prompt.answer for prompt in prompts]
    assert [table.features["type"].int2str(number) for number in table["type"]] == [p.type for p in prompts]
    assert sorted(set(table["seed"])) == list(seeds)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ms.make_scene(-1), "`seed` is -1"),
        (lambda: ms.make_scene(0, "parody"), "`kind` is 'parody'"),
        (lambda: ms.video_seeds("dev", 3), "`split` is 'dev'"),
        (lambda: ms.video_seeds("test", 0), "`size` is 0"),
        (lambda: ms.render(SCENES[0], scale=0), "`scale` is 0"),
    ],
)
def test_errors_name_the_field(call, message):
    with pytest.raises(ValueError, match=message):
        call()
