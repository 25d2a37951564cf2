"""How much time a hit saved: measured prefill speed against the time that it really took.

    saved = prompt_tokens / speed - ttft_seconds

`speed` is what the same worker was last seen to do, in tokens a second, over turns that had to
compute at least `_TOKENS_MIN` tokens. Until one has run there is no figure, and none is made up.
"""

from __future__ import annotations

from agentmem.core import WorkerId

_TOKENS_MIN = 256
# Weight of the newest turn; older ones fade.
_WEIGHT = 0.3


class PrefillSpeed:
    """Tokens a second by worker and start of it, as this gateway has seen them."""

    def __init__(self) -> None:
        self._speeds: dict[tuple[WorkerId, int], float] = {}

    def note(
        self, worker_id: WorkerId, generation: int, *, computed_tokens: int, seconds: float
    ) -> None:
        """A turn computed so many prompt tokens before its first token came."""
        if computed_tokens < _TOKENS_MIN or seconds <= 0:
            return
        speed = computed_tokens / seconds
        known = self._speeds.get((worker_id, generation))
        if known is None:
            for old in [key for key in self._speeds if key[0] == worker_id]:
                del self._speeds[old]
            self._speeds[worker_id, generation] = speed
        else:
            self._speeds[worker_id, generation] = known + _WEIGHT * (speed - known)

    def saved(
        self, worker_id: WorkerId, generation: int, *, prompt_tokens: int, ttft_seconds: float
    ) -> float | None:
        """Seconds that computing the whole prompt would have taken longer; None: not known."""
        speed = self._speeds.get((worker_id, generation))
        if speed is None:
            return None
        return max(0.0, prompt_tokens / speed - ttft_seconds)
