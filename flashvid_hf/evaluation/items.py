"""What a benchmark is made of: videos with questions whose answers are known."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..video.reading import VideoClip

FORMS = ("choice", "open")  # of questions

_LETTER = re.compile(r"\b([A-Z])\b")


@dataclass(frozen=True)
class Question:
    """A question about a video.

    Args:
        id: unique within the benchmark.
        prompt: what the model is asked, options and instruction included.
        answer: the right answer: the letter of an option, or words.
        type: what the question tests, by which results are broken down.
        form: "choice", where the first letter of the options that the model writes counts, or "open", where its whole
            answer has to be the right one up to case, articles and punctuation.
        letters: the letters of the options; "" if they have none, and the whole answer counts.
    """

    id: str
    prompt: str
    answer: str
    type: str
    form: str = "choice"
    letters: str = "ABCD"

    def is_correct(self, text: str) -> bool:
        """Whether what a model wrote answers the question."""
        if self.form == "open" or not self.letters:
            return _normalize(text) == _normalize(self.answer)
        return next((letter for letter in _LETTER.findall(text) if letter in self.letters), None) == self.answer


@dataclass(frozen=True)
class VideoItem:
    """A video of a benchmark with all its questions.

    Args:
        id: unique within the benchmark, and part of no other id's.
        load: reads so many frames, spread evenly; called only when the video is needed.
        questions: at least one.
    """

    id: str
    load: Callable[[int], VideoClip]
    questions: tuple[Question, ...] = field(repr=False)


def _normalize(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
