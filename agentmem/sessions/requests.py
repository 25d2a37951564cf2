"""What a caller asks of a turn, checked for shape by the API already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentmem.engine.base import Sampling


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """New messages and how to sample the reply.

    `max_tokens` None means the service's default, cut to what the window has left.
    `expected_turn` is the number that this turn should get: it makes repeating safe.
    """

    messages: tuple[dict[str, str], ...]
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    expected_turn: int | None = None

    def sampling(self, max_tokens: int) -> Sampling:
        """For the engine, with the number of tokens that the turn may have."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
        )

    def sampling_fields(self) -> Mapping[str, Any]:
        """As asked for: what is stored with the turn."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "stop": list(self.stop),
            "ignore_eos": self.ignore_eos,
            "logprobs": self.logprobs,
        }

    def body_hash(self) -> str:
        """Hex SHA-256 of everything that makes this turn another one. How it is delivered
        (streamed or not) does not; nor does `expected_turn`, which the number stands for."""
        body = {"messages": self.messages, **self.sampling_fields()}
        encoded = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        return hashlib.sha256(encoded).hexdigest()
