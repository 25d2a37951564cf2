"""SGLang asks for no alternatives of a request that it refused before it computed any."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentmem.engine.sglang.aborts import without_missing_alternatives

# Has a list of that name itself, as SGLang's state of a request does.
STATE = SimpleNamespace(input_top_logprobs_val=[])
REFUSED = SimpleNamespace(input_top_logprobs_val=None, output_top_logprobs_val=None)
COMPUTED = SimpleNamespace(input_top_logprobs_val=[], output_top_logprobs_val=[[]])


@pytest.mark.parametrize(("answer", "asked"), [(REFUSED, 0), (COMPUTED, 5)])
def test_by_position_and_by_name(answer: Any, asked: int) -> None:
    args, kwargs = without_missing_alternatives("self", {}, STATE, 5, None, False, answer, 0)
    assert args == ("self", {}, STATE, asked, None, False, answer, 0)
    assert kwargs == {}
    named = {"top_logprobs_num": 5, "recv_obj": answer}
    args, kwargs = without_missing_alternatives("self", {}, STATE, **named)
    assert args == ("self", {}, STATE)
    assert kwargs == {"top_logprobs_num": asked, "recv_obj": answer}
