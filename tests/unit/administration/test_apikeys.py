from __future__ import annotations

import pytest

from agentmem.administration.apikeys import key_prefix, new_api_key


def test_new_keys() -> None:
    key, prefix = new_api_key()
    assert key_prefix(key) == prefix
    assert len(prefix) == 27
    assert len({new_api_key()[0] for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "text", ["", "am_", "am_" + "0" * 24, "AM_" + "0" * 24 + "_" + "0" * 64,
             "am_" + "0" * 24 + "_" + "0" * 63, "am_" + "0" * 24 + "_" + "0" * 64 + "\n",
             "am_" + "0" * 24 + "_" + "g" * 64]
)  # fmt: skip
def test_what_is_no_key(text: str) -> None:
    assert key_prefix(text) is None
