"""Operators' passwords: argon2id with the parameters that OWASP names: 19 MiB, 2 passes, 1 lane."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from agentmem.errors import InvalidRequest

CHARACTERS_MIN = 12
CHARACTERS_MAX = 200
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# Two at a time: each takes 19 MiB, and a core while it works.
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="passwords")


def check_password(password: str) -> None:
    """Raises InvalidRequest for one that is too short or too long."""
    if not CHARACTERS_MIN <= len(password) <= CHARACTERS_MAX:
        raise InvalidRequest(
            f"A password has {CHARACTERS_MIN} to {CHARACTERS_MAX} characters.", param="password"
        )


async def hash_password(password: str) -> str:
    """What is stored instead of the password. Raises InvalidRequest as `check_password`."""
    check_password(password)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, _HASHER.hash, password)


async def verify_password(stored: str | None, password: str) -> bool:
    """Whether it is the one. Where there is none, it takes as long, and it is not."""
    if len(password) > CHARACTERS_MAX:
        return False
    loop = asyncio.get_running_loop()
    good = await loop.run_in_executor(_THREADS, _verify, stored or _ABSENT, password)
    return good and stored is not None


def _verify(stored: str, password: str) -> bool:
    try:
        return _HASHER.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


# Of a password that nobody knows: to compare with where an account has none, or is none.
_ABSENT = (
    "$argon2id$v=19$m=19456,t=2,p=1$6k6QQTBsrxvzyC5/7ubN+A$"
    "mPfAfeYCbMd0qVIRvyC+5r+qElDo1WCs/NPGyHRjB5c"
)
