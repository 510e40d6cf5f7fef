"""Questions about a scene, each with one right answer from a closed set.

Every question comes in two forms. `open` asks for one word. `choice` lists four options before the question and asks
for one of them; the wrong options also appear in the video as far as possible. All answers of a set are equally likely.
So an open guess without the video is right once in as many cases as the set has answers, and a guess among options once
in four.
"""

from dataclasses import dataclass

import numpy as np

from .scenes import COLOURS, DIRECTIONS, SHAPES, TEXTURES, Scene

TYPES = ("motion", "needle", "small", "count", "order", "change", "still", "cut")
NUM_OPTIONS = 4  # of a question in the form `choice`
NUMBERS = ("one", "two", "three", "four")
ANSWERS = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "direction": tuple(DIRECTIONS),
    "texture": TEXTURES,
    "number": NUMBERS,
}


@dataclass(frozen=True)
class Question:
    """A question with its answer, before it is put in a form.

    Args:
        type: one of `TYPES`: what one has to see in order to answer.
        text: the question, which ends with a question mark.
        answer_set: a name in `ANSWERS`: the set of possible answers.
        answer: the right answer.
        seen: answers of this set that the video shows, the right one included.
    """

    type: str
    text: str
    answer_set: str
    answer: str
    seen: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """A question in one of its forms.

    Args:
        type, form: one of `TYPES` and one of `FORMS`.
        text: the text that the model gets.
        answer: the word that it should answer.
    """

    type: str
    form: str
    text: str
    answer: str


def ask(scene: Scene) -> list[Question]:
    """All questions about a scene, seven to nine."""
    questions: list[Question] = []
    seen = {
        "shape": tuple(dict.fromkeys(thing.shape for thing in scene.things)),
        "colour": tuple(dict.fromkeys(thing.colour for thing in scene.things)),
        "texture": tuple(background.texture for background in scene.backgrounds),
        "direction": tuple(DIRECTIONS),
        "number": NUMBERS,
    }

    def add(type: str, text: str, answer_set: str, answer: str) -> None:
        questions.append(Question(type, text, answer_set, answer, seen[answer_set]))

    def add_looks(type: str, subject: str, role: str, name: str = "shape") -> None:
        thing = scene.with_role(role)
        add(type, f"What colour is the {name} {subject}?", "colour", thing.colour)
        add(type, f"What is the {name} {subject}?", "shape", thing.shape)

    for thing in scene.things:
        if thing.direction:  # no two moving things look alike
            add("motion", f"Which way does the {thing.colour} {thing.shape} move?", "direction", thing.direction)
    roles = {thing.role for thing in scene.things}
    if "flash" in roles:
        flash = scene.with_role("flash")
        add("needle", f"What colour is the {flash.shape} that flashes up?", "colour", flash.colour)
        add("needle", f"What is the {flash.colour} shape that flashes up?", "shape", flash.shape)
    if "small" in roles:
        add_looks("small", "that is small", "small")
    if scene.kind == "parade":
        add_looks("still", "that stays still", "still")
    elif scene.kind == "story":
        add_looks("order", "that comes first", "first", "big shape")
        add_looks("order", "that comes last", "last", "big shape")
    elif scene.kind == "change":
        recoloured, reshaped = scene.with_role("recoloured to"), scene.with_role("reshaped to")
        add("change", f"What colour does the {recoloured.shape} turn into?", "colour", recoloured.colour)
        add("change", f"What shape does the {reshaped.colour} shape turn into?", "shape", reshaped.shape)
    elif scene.kind == "cut":
        for background, role in zip(scene.backgrounds, ("before", "after"), strict=True):
            add("cut", f"What is the background {role} the cut?", "texture", background.texture)
            add_looks("cut", f"{role} the cut", role)
    else:
        for die in scene.things:
            if die.role == "die":
                add("count", f"How many dots are on the {die.colour} square?", "number", NUMBERS[die.dots - 1])
    return questions


def put_openly(question: Question) -> Prompt:
    """The question in the form that asks for a word."""
    return Prompt(question.type, "open", f"{question.text} Answer with one word.", question.answer)


def put_as_choice(question: Question, rng: np.random.Generator) -> Prompt:
    """The question with four options, drawn and shuffled by `rng`."""
    wrong = [answer for answer in ANSWERS[question.answer_set] if answer != question.answer]
    wrong = [wrong[i] for i in rng.permutation(len(wrong))]
    wrong.sort(key=lambda answer: answer not in question.seen)  # answers that the video shows come first
    options = [question.answer, *wrong[: NUM_OPTIONS - 1]]
    options = [options[i] for i in rng.permutation(len(options))]
    text = f"Options: {', '.join(options)}.\n{question.text} Answer with one option."
    return Prompt(question.type, "choice", text, question.answer)


def make_prompts(scene: Scene) -> list[Prompt]:
    """All questions about a scene in both forms, the two forms of a question after each other."""
    rng = np.random.default_rng([scene.seed, 2])
    return [prompt for question in ask(scene) for prompt in (put_as_choice(question, rng), put_openly(question))]
