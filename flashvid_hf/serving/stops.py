"""The text of an answer, up to the first stop text."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


def cut_at_stop(text: str, stops: str | Sequence[str] | None) -> tuple[str, bool]:
    """The text before the stop text that begins first, and whether there is one.

    Args:
        stops: the stop texts; `None` for none.
    """
    places = [place for stop in _listed(stops) if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))], bool(places)


class AnswerText:
    """The text of an answer that comes token by token, in pieces that are sure to stand before the first stop text.

    Args:
        tokenizer: of the `tokenizers` library.
        stops: the stop texts; `None` for none.
        skip_special_tokens: whether the text lacks the special tokens.
    """

    def __init__(self, tokenizer: Any, stops: str | Sequence[str] | None, skip_special_tokens: bool = True):
        self._tokenizer, self._stops = tokenizer, _listed(stops)
        self._skips = skip_special_tokens
        self._decoder = DecodeStream([], skip_special_tokens=skip_special_tokens)
        self._undecoded: list[int] = []  # the newest tokens: the bytes of a character that is not whole
        self._undecided = ""  # the end of the text, with which a stop text may begin
        self.is_stopped = False

    def take(self, token: int) -> str:
        """What is sure after the next token; empty if nothing is."""
        self._undecoded.append(token)
        piece = self._decoder.step(self._tokenizer, token)
        if not piece:
            return ""
        self._undecoded = []
        return self._decide(piece)

    def finish(self) -> str:
        """What is left, once the last token has come."""
        piece = self._tokenizer.decode(self._undecoded, skip_special_tokens=self._skips)
        self._undecoded = []
        return self._decide(piece) + self._undecided

    def _decide(self, piece: str) -> str:
        if self.is_stopped:
            return ""
        text, self.is_stopped = cut_at_stop(self._undecided + piece, self._stops)
        # Each step of the loop makes a character sure. So long stop texts cost no more for each character.
        begin = len(text) if self.is_stopped or not self._stops else 0
        while begin < len(text) and not any(stop.startswith(text[begin:]) for stop in self._stops):
            begin += 1
        self._undecided = text[begin:]
        return text[:begin]


def _listed(stops: str | Sequence[str] | None) -> Sequence[str]:
    return [stops] if isinstance(stops, str) else stops or ()
