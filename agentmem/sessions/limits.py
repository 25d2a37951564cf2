"""What the sessions service may take: numbers out of Settings, handed over by `app`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, tokens and bytes; see docs/settings.md for each."""

    turn_seconds_max: float = 600.0
    turn_tokens_default: int = 256
    hibernate_seconds_max: float = 60.0
    idle_hibernate_seconds: float = 600.0
    lease_seconds: float = 15.0
    kv_retention_seconds: int = 43_200
    log_retention_seconds: int = 2_592_000
    log_cache_bytes: int = 64 << 20
    default_model: str = ""
    retry_grace_seconds: float = 30.0
    disk_encrypted: bool = False
    model_aliases: tuple[str, ...] = ()
