"""How a reply was cut into events, kept beside its turn so that a stream can be told once more.

The texts, ids and log-probabilities are the turn's; what is kept are the cuts only: for each delta
the number of its ids, and the kind and length of each of its pieces. As msgpack, deflated:

    delta   [ids, piece, piece, ...]
    piece   (0, characters) text | (1, characters) thinking | (2, call, named, characters) a call
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from agentmem.catalog.records import Turn
from agentmem.engine.output import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from agentmem.sessions.runs import TurnCompleted, TurnCreated, TurnDelta, TurnRun

_TEXT, _REASONING, _CALL = range(3)
_decoder = msgspec.msgpack.Decoder(list[list[int]])


def pack_deltas(deltas: Sequence[TurnDelta]) -> bytes:
    """The cuts of a whole reply, first delta to last."""
    cuts: list[list[int]] = []
    for delta in deltas:
        cut = [len(delta.token_ids)]
        for piece in delta.pieces:
            cut.extend(_cut(piece))
        cuts.append(cut)
    return zlib.compress(msgspec.msgpack.encode(cuts), level=1)


def unpack_deltas(turn: Turn, blob: bytes) -> list[TurnDelta]:
    """The deltas that `pack_deltas` was given when `turn` was committed."""
    source = _Source(turn)
    return [source.delta(cut) for cut in _decoder.decode(zlib.decompress(blob))]


def replayed_run(turn: Turn, blob: bytes, response_id: str) -> TurnRun:
    """A committed turn as a run that is over, with the very events that it had."""
    run = TurnRun(turn.number, turn.body_hash, retryable=True, response_id=response_id)
    run.publish(
        TurnCreated(turn.id, turn.number, turn.session_id, turn.created_at, turn.prompt_tokens)
    )
    for delta in unpack_deltas(turn, blob):
        run.publish(delta)
    run.publish(TurnCompleted(turn))
    return run


def _cut(piece: Piece) -> tuple[int, ...]:
    if isinstance(piece, TextPiece):
        return (_TEXT, len(piece.text))
    if isinstance(piece, ReasoningPiece):
        return (_REASONING, len(piece.text))
    return (_CALL, piece.index, int(piece.name is not None), len(piece.arguments))


class _Source:
    """A turn's texts and ids, and how far they were told."""

    def __init__(self, turn: Turn) -> None:
        reply = turn.reply or {}
        self._turn = turn
        self._ids = turn.output_ids
        self._texts = {
            (_TEXT, 0): reply.get("content") or "",
            (_REASONING, 0): reply.get("reasoning_content") or "",
        }
        self._names: list[str] = []
        for index, call in enumerate(reply.get("tool_calls") or ()):
            self._texts[_CALL, index] = call["function"]["arguments"]
            self._names.append(call["function"]["name"])
        self._told = dict.fromkeys(self._texts, 0)
        self._ids_told = 0

    def delta(self, cut: list[int]) -> TurnDelta:
        """The next delta."""
        first, last = self._ids_told, self._ids_told + cut[0]
        self._ids_told = last
        turn = self._turn
        return TurnDelta(
            pieces=self._pieces(cut),
            token_ids=tuple(self._ids[first:last]),
            logprobs=tuple((turn.logprobs or ())[first:last]),
            top_logprobs=tuple(
                tuple((token, logprob) for token, logprob in one)
                for one in (turn.top_logprobs or ())[first:last]
            ),
        )

    def _pieces(self, cut: list[int]) -> tuple[Piece, ...]:
        pieces: list[Piece] = []
        at = 1
        while at < len(cut):
            if cut[at] == _CALL:
                _, index, named, length = cut[at : at + 4]
                name = self._names[index] if named else None
                pieces.append(ToolCallPiece(index, name, self._next(_CALL, index, length)))
                at += 4
            else:
                kind, length = cut[at : at + 2]
                text = self._next(kind, 0, length)
                pieces.append(TextPiece(text) if kind == _TEXT else ReasoningPiece(text))
                at += 2
        return tuple(pieces)

    def _next(self, kind: int, index: int, length: int) -> str:
        first = self._told[kind, index]
        self._told[kind, index] = first + length
        return self._texts[kind, index][first : first + length]
