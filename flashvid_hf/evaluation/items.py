"""The parts of a benchmark: videos with questions whose answers are known."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..video.reading import VideoClip

FORMS = ("choice", "open")  # forms in which a question is asked

_LETTER = re.compile(r"\b([A-Z])\b")


@dataclass(frozen=True)
class Question:
    """A question about a video.

    Args:
        id: unique within the benchmark.
        prompt: the text that the model gets, options and instruction included.
        answer: the right answer: the letter of an option, or words.
        type: what the question tests; results are also given for each type.
        form: "choice": the first letter of an option that the model writes counts. "open": the whole answer has to be
            right, except for case, articles and punctuation.
        letters: the letters of the options; "" if the options have none, so that the whole answer counts.
    """

    id: str
    prompt: str
    answer: str
    type: str
    form: str = "choice"
    letters: str = "ABCD"

    def is_correct(self, text: str) -> bool:
        """Whether the text that a model wrote is the right answer."""
        if self.form == "open" or not self.letters:
            return _normalize(text) == _normalize(self.answer)
        return next((letter for letter in _LETTER.findall(text) if letter in self.letters), None) == self.answer


@dataclass(frozen=True)
class VideoItem:
    """A video of a benchmark with all its questions.

    Args:
        id: unique within the benchmark, and not contained in another id.
        load: reads the given number of frames, spread evenly; called only when the video is needed.
        questions: at least one.
    """

    id: str
    load: Callable[[int], VideoClip]
    questions: tuple[Question, ...] = field(repr=False)


def _normalize(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
