"""From tokens to text as it grows: no half characters, and nothing of a stop text or behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

Decode: TypeAlias = Callable[[Sequence[int]], str]

CONTEXT = 5  # tokens before, so that SentencePiece knows whether a word begins
HALF = "\ufffd"  # what tokenizers write for bytes that are no whole character yet


class Words:
    """The text of one answer.

    decode: what ids say, without special tokens.  before: the prompt's ids.  stops: texts that end the answer.

    Attributes:
        text: all that may be shown so far.
        is_stopped: whether a stop text has come.
    """

    def __init__(self, decode: Decode, before: Sequence[int], stops: Sequence[str]) -> None:
        self.text = ""
        self.is_stopped = False
        self._decode, self._stops = decode, stops
        self._ids = list(before[-CONTEXT:])
        self._start, self._said = 0, len(self._ids)  # ids from start on are decoded; those before `said` are in _whole
        self._whole = ""

    def add(self, token: int) -> str:
        """What may be shown more with one more token."""
        self._ids.append(token)
        known = self._decode(self._ids[self._start : self._said])
        now = self._decode(self._ids[self._start :])
        if now.endswith(HALF) or len(now) <= len(known):
            return ""
        self._whole += now[len(known) :]
        self._start, self._said = self._said, len(self._ids)
        return self._shown(is_end=False)

    def end(self) -> str:
        """What may be shown more when no token follows."""
        if not self.is_stopped:
            known = self._decode(self._ids[self._start : self._said])
            self._whole += self._decode(self._ids[self._start :])[len(known) :]
            self._said = len(self._ids)
        return self._shown(is_end=True)

    def _shown(self, *, is_end: bool) -> str:
        places = [place for stop in self._stops if (place := self._whole.find(stop)) >= 0]
        stop_at = len(self._whole)
        if places:
            self.is_stopped = True
            stop_at = min(places)
        elif not is_end:
            stop_at -= max((_beginning(self._whole, stop) for stop in self._stops), default=0)
        new = self._whole[len(self.text) : stop_at]
        self.text += new
        return new


def _beginning(text: str, stop: str) -> int:
    """How many characters at the end of the text may be the beginning of a stop text."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
