from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.core import TenantId
from agentmem.errors import InvalidRequest
from agentmem.sessions.sealing import Sealer
from agentmem.sessions.secrets import Secrets

SEALER = Sealer(Secrets(b"p" * 32, b"s" * 32, b"r" * 32))
ONE, OTHER = TenantId("ten_1"), TenantId("ten_2")


@given(st.text(max_size=200))
def test_what_was_sealed_opens_and_seals_the_same_again(text: str) -> None:
    sealed = SEALER.seal(ONE, "compaction", text)
    assert SEALER.open(ONE, "compaction", sealed, param="x") == text
    assert SEALER.seal(ONE, "compaction", text) == sealed


@given(st.text(max_size=50), st.integers(0, 10**6), st.sampled_from("AZaz09-_=!\u00e9"))
def test_a_changed_character_is_noticed(text: str, place: int, character: str) -> None:
    sealed = SEALER.seal(ONE, "reasoning", text)
    place %= len(sealed)
    changed = sealed[:place] + character + sealed[place + 1 :]
    if changed == sealed:
        return
    with pytest.raises(InvalidRequest) as caught:
        SEALER.open(ONE, "reasoning", changed, param="input[3].encrypted_content")
    assert caught.value.param == "input[3].encrypted_content"
    assert caught.value.code == "invalid_encrypted_content"


def test_nobody_else_can_open_it() -> None:
    sealed = SEALER.seal(ONE, "reasoning", "secret")
    assert "secret" not in sealed
    other_gateway = Sealer(Secrets(b"p" * 32, b"s" * 32, b"R" * 32))
    for sealer, tenant, purpose in (
        (SEALER, OTHER, "reasoning"),
        (SEALER, ONE, "compaction"),
        (other_gateway, ONE, "reasoning"),
    ):
        with pytest.raises(InvalidRequest):
            sealer.open(tenant, purpose, sealed, param="x")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        SEALER.open(ONE, "reasoning", "gAAAAABforeign", param="x")


def test_there_is_one_spelling() -> None:
    sealed = SEALER.seal(ONE, "reasoning", "")
    assert sealed.endswith("=="), "four bits of the last character say nothing"
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet[alphabet.index(sealed[-3]) + 1]
    with pytest.raises(InvalidRequest):
        SEALER.open(ONE, "reasoning", f"{sealed[:-3]}{last}==", param="x")
