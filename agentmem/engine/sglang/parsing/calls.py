"""Takes tool calls out of a reply's text with one of SGLang's detectors, and loses nothing.

SGLang's streaming detectors keep what they cannot read, or drop it. Here, what turns out to be no
call becomes text when the reply ends, a call that was announced keeps what was written of its
arguments, and a call of a tool that does not exist is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from agentmem.engine.output import Piece, TextPiece, ToolCallPiece
from agentmem.engine.sglang.parsing.segments import Segments

Detector = Any
"""sglang.srt.function_call.base_format_detector.BaseFormatDetector"""

_NAME = re.compile(r'"name"\s*:\s*"')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
_MARKER_NAME = re.compile("token|marker|separator|prefix|tag")
_MARKER_MAX = 64
# A detector reads all that it holds again for each piece, so that pieces grow with what it holds:
# the work stays linear in the length of a call, and a piece is at most this part of it.
_HELD_PER_CHARACTER = 32
_HELD_FREELY = 256
# A reply of nothing but broken calls is read once for each of them: up to so many characters.
_READ_AGAIN_MAX = 16_384


class CallParser:
    """`make` makes a fresh detector, `tools` are SGLang's, `at_most` bounds the calls told."""

    def __init__(
        self, make: Callable[[], Detector], tools: list[Any], *, at_most: int | None = None
    ) -> None:
        self._make = make
        self._detector = make()
        self._tools = tools
        self._at_most = at_most
        self._segments = Segments(markers_of(self._detector))
        self._pieces: list[Piece] = []
        self._calls = 0
        # A call's name is told with the first of its arguments: until then it may be none.
        self._announced: str | None = None
        self._open = False
        self._arguments = ""
        self._blank = ""
        # What was fed since the detector last gave text.
        self._unsaid = ""
        # Within a call of no known tool: the text up to its end is taken as it stands.
        self._raw = False
        self._read_again = 0

    def push(self, text: str) -> list[Piece]:
        """More text; returns what became certain."""
        self._segments.push(text)
        while segment := self._segments.take(self._step()):
            self._feed(segment)
        return self._taken()

    def finish(self) -> list[Piece]:
        """The rest."""
        while segment := self._segments.take(final=True):
            self._feed(segment)
        result = self._detector.finish(self._tools)
        if result.normal_text:
            self._unsaid = ""
        self._take(result.normal_text, result.calls)
        while stuck := self._stuck():
            self._salvage(stuck)
        self._say(str(getattr(self._detector, "_normal_text_buffer", "")))
        self._end_call()
        if self._blank and not self._calls:
            self._pieces.append(TextPiece(self._blank))
        return self._taken()

    def _held(self) -> str:
        return str(getattr(self._detector, "_buffer", ""))

    def _step(self) -> int:
        """How many characters the detector gets next."""
        return 1 + max(0, len(self._held()) - _HELD_FREELY) // _HELD_PER_CHARACTER

    def _stuck(self) -> str:
        """What the detector holds and has not given; some hold what they gave as well."""
        held = self._held()
        return held if held in self._unsaid else self._unsaid

    def _feed(self, segment: str) -> None:
        if self._raw:
            self._say(segment)
            end = str(self._detector.eot_token).strip()
            self._raw = not (end and segment.strip() == end)
            return
        held = self._held()
        self._unsaid += segment
        try:
            result = self._detector.parse_streaming_increment(segment, self._tools)
        # plugin edge: SGLang's detectors; what one cannot take is text.
        except Exception:  # noqa: BLE001
            self._fail()
            return
        if result.normal_text:
            self._unsaid = ""
        self._take(result.normal_text, result.calls)
        silent = not result.normal_text and not result.calls
        if silent and held and not self._held() and _NAME.search(held + segment):
            # It was a call of no known tool, which SGLang forgets.
            self._announced, self._raw = None, True
            self._say(held + segment)

    def _fail(self) -> None:
        """The detector raised: what it was given since it last gave text is text."""
        unsaid, self._unsaid = self._unsaid, ""
        self._detector, self._announced, self._open = self._make(), None, False
        self._say(unsaid)

    def _take(self, text: str, calls: list[Any]) -> None:
        self._say(text)
        for call in calls:
            if call.name:
                self._end_call()
                self._announced, self._open, self._arguments = call.name, True, ""
            if call.parameters:
                self._argue(call.parameters)

    def _argue(self, arguments: str) -> None:
        if not self._open or not arguments:
            return
        self._arguments += arguments
        if self._announced is not None:
            self._tell(ToolCallPiece(self._calls, self._announced, ""))
            self._announced = None
            self._calls += 1
        self._tell(ToolCallPiece(self._calls - 1, None, arguments))

    def _tell(self, piece: ToolCallPiece) -> None:
        if self._at_most is None or piece.index < self._at_most:
            self._blank = ""
            self._pieces.append(piece)

    def _end_call(self) -> None:
        """A call that ends without arguments has none."""
        if self._announced is not None:
            self._argue("{}")
        self._open = False

    def _say(self, text: str) -> None:
        """Text; blanks around calls separate them and are none."""
        if not text:
            return
        if text.strip():
            self._end_call()
        text = self._blank + text
        said = text.rstrip()
        self._blank = text[len(said) :]
        if said:
            self._pieces.append(TextPiece(said))

    def _taken(self) -> list[Piece]:
        taken, self._pieces = self._pieces, []
        return taken

    def _salvage(self, stuck: str) -> None:
        """The reply is over and the detector holds text that it never made sense of."""
        block, rest = _first_block(stuck, self._detector.bot_token, self._detector.eot_token)
        if self._open and self._announced is None and not _is_json(self._arguments):
            self._argue(_rest_of_arguments(self._detector, block))
        else:
            self._announced, self._open = None, False
            if not self._detector.has_tool_call(block):
                self._say(_without(block, self._detector.eot_token))
            elif not self._read_whole(block):
                self._say(block)
        self._open = False
        # What comes after it may hold calls yet; a detector that failed is not asked again.
        self._detector, self._unsaid = self._make(), ""
        self._read_again += len(rest)
        if self._read_again > _READ_AGAIN_MAX:
            self._say(rest)
            return
        segments = Segments(markers_of(self._detector))
        segments.push(rest)
        while segment := segments.take(self._step(), final=True):
            self._feed(segment)

    def _read_whole(self, block: str) -> bool:
        """Some calls are understood as a whole only, such as those that have no arguments."""
        try:
            calls = self._make().detect_and_parse(block, self._tools).calls
        # plugin edge: SGLang's detectors; what one cannot take is text.
        except Exception:  # noqa: BLE001
            return False
        for call in calls:
            self._take("", [call])
            self._end_call()
        return bool(calls)


def markers_of(detector: Detector) -> list[str]:
    """What a format marks calls with: detectors keep it under many names."""
    values = [value for name, value in vars(detector).items() if _MARKER_NAME.search(name)]
    marks = [value for value in values if isinstance(value, str) and len(value) <= _MARKER_MAX]
    return [*marks, *(mark.strip() for mark in marks)]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _first_block(text: str, begin: str, end: str) -> tuple[str, str]:
    """The text up to its first end marker, and what follows."""
    if not end.strip():
        return text, ""
    start = max(0, text.find(begin))
    at = text.find(end.strip(), start + len(begin.strip()))
    if at < 0:
        return text, ""
    at += len(end.strip())
    return text[:at], text[at:]


def _without(text: str, marker: str) -> str:
    return text.replace(marker.strip(), "") if marker.strip() else text


def _rest_of_arguments(detector: Detector, block: str) -> str:
    """What the model wrote of a call's arguments after what was told of them already."""
    found = _ARGUMENTS.search(block)
    streamed = getattr(detector, "streamed_args_for_tool", [])
    if found is None or not streamed:
        return ""
    written, told = block[found.end() :], streamed[-1]
    end = str(detector.eot_token or "").strip()
    if end and written.rstrip().endswith(end):
        # The last brace closes the object around the arguments.
        written = written.rstrip().removesuffix(end).rstrip().removesuffix("}")
    at = _after(written, told)
    return written[at:] if at is not None else ""


def _after(written: str, told: str) -> int | None:
    """Where `told` ends in `written`, which may have other blanks and escapes; None: nowhere."""
    place = count = 0
    while count < len(told):
        if place >= len(written):
            return None
        if written[place] == told[count]:
            place, count = place + 1, count + 1
        elif written[place].isspace():
            place += 1
        elif told[count].isspace():
            count += 1
        elif written[place] == "\\" and (escaped := _escape(written, place)) is not None:
            if escaped[0] != told[count]:
                return None
            place, count = place + escaped[1], count + 1
        else:
            return None
    return place


def _escape(text: str, at: int) -> tuple[str, int] | None:
    """The character that a JSON escape stands for, and the escape's length."""
    length = 6 if text[at + 1 : at + 2] == "u" else 2
    try:
        return str(json.loads(f'"{text[at : at + length]}"')), length
    except ValueError:
        return None
