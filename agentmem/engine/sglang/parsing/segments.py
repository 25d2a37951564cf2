"""Cuts a growing text in places that depend on the text alone, not on how it came in.

SGLang's streaming detectors give other results for other cuts: some need a marker in one piece,
some look at the beginning of what they are given. Behind this, a reply is parsed alike however its
tokens were batched: character by character, but each marker whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPECIAL = re.compile(r"<([|｜])[^<>|｜\n]{1,48}\1>")
_SPECIAL_START = re.compile(r"<(?:[|｜](?:[^<>|｜\n]{0,48}[|｜]?)?)?\Z")
# What was taken is cut off once it is this long.
_TAKEN_MAX = 4_096


class Segments:
    """`markers` are strings that are never cut; what looks like a special token is none either."""

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = sorted({mark for mark in markers if len(mark) > 1}, key=len, reverse=True)
        self._starts = {mark[0] for mark in self._markers} | {"<"}
        self._start = re.compile("|".join(re.escape(start) for start in sorted(self._starts)))
        self._text = ""
        self._at = 0

    def push(self, text: str) -> None:
        """More text."""
        if self._at > _TAKEN_MAX:
            self._text, self._at = self._text[self._at :], 0
        self._text += text

    def take(self, size: int = 1, *, final: bool = False) -> str:
        """The next marker, or `size` characters without any; "" when more text is needed.

        With `final`, no more comes.
        """
        left = len(self._text) - self._at
        if not left:
            return ""
        if self._text[self._at] in self._starts:
            length = self._marker(final)
        elif left < size and not final and self._plain(left) == left:
            return ""
        else:
            length = self._plain(min(size, left))
        taken = self._text[self._at : self._at + length]
        self._at += length
        return taken

    def _plain(self, size: int) -> int:
        """How many of the next `size` characters begin no marker."""
        found = self._start.search(self._text, self._at, self._at + size)
        return size if found is None else found.start() - self._at

    def _marker(self, final: bool) -> int:
        """Length of the marker here, 1 where there is none, 0 where that is not certain yet."""
        special = _SPECIAL.match(self._text, self._at)
        found = [mark for mark in self._markers if self._text.startswith(mark, self._at)]
        length = max((len(found[0]) if found else 0, special.end() - self._at if special else 0))
        if not final:
            rest = self._text[self._at : self._at + 64]
            longer = any(len(mark) > len(rest) and mark.startswith(rest) for mark in self._markers)
            if longer or (not special and _SPECIAL_START.match(rest)):
                return 0
        return length or 1
