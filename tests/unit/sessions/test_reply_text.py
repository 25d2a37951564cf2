"""What a model may sample and nobody could store or send back."""

from __future__ import annotations

from agentmem.sessions.chat import Chat, TextStream


def test_nul_becomes_the_replacement_character(chat: Chat) -> None:
    nul = chat.encode_now("\x00")
    ids = [*chat.encode_now("before"), *nul, *chat.encode_now("after")]
    assert chat.decode(ids, special=False) == "before\ufffdafter"
    stream = TextStream(chat)
    assert "".join([*(stream.push([one]) for one in ids), stream.finish()]) == "before\ufffdafter"
    assert chat.token_bytes(nul[0]) == b"\x00"
