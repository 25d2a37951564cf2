"""Fields that bodies are made of, as strict as the OpenAPI document says."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1
_RETENTION_SECONDS_MAX = 10 * 365 * 86_400
_METADATA_ENTRIES_MAX = 16
_JSON_DEPTH_MAX = 64


def _storable(text: str) -> str:
    # PostgreSQL's text cannot hold NUL; half a character is in no encoding at all.
    if "\x00" in text:
        raise ValueError("the character NUL (U+0000) is not allowed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from error
    return text


def _storable_json(value: dict[str, Any]) -> dict[str, Any]:
    """Every text in it storable, every number finite, and no deeper than templates can follow."""
    level: list[Any] = [value]
    for _ in range(_JSON_DEPTH_MAX):
        if not level:
            return value
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one)
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
            elif isinstance(one, str):
                _storable(one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise ValueError("a number in it is not finite")
            elif isinstance(one, int) and not -_INT64_MAX - 1 <= one <= _INT64_MAX:
                raise ValueError("a number in it does not fit in 64 bits")
        level = below
    raise ValueError(f"it is nested deeper than {_JSON_DEPTH_MAX} levels")


def as_list(value: Any) -> Any:
    """A single text as a list of one, for fields that take both."""
    return [value] if isinstance(value, str) else value


def bias_by_token(bias: dict[str, float] | None) -> dict[int, float]:
    """`logit_bias` as the engine takes it; JSON has text for keys only."""
    return {int(token): value for token, value in (bias or {}).items()}


def _boolean(value: Any) -> Any:
    if value is not None and not isinstance(value, bool):
        raise ValueError("a boolean is wanted")  # 0 equals False, and would pass for it
    return value


Text = Annotated[str, AfterValidator(_storable)]
Off = Annotated[Literal[False], BeforeValidator(_boolean)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_storable_json)]
MetadataKey = Annotated[str, AfterValidator(_storable), Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, AfterValidator(_storable), Field(max_length=512)]
Metadata = Annotated[
    dict[MetadataKey, MetadataValue],
    Field(max_length=_METADATA_ENTRIES_MAX, description="Up to 16 pairs of your own."),
]
StopString = Annotated[str, AfterValidator(_storable), Field(min_length=1, max_length=256)]
ModelName = Annotated[str, AfterValidator(_storable), Field(min_length=1, max_length=200)]
TokenCount = Annotated[int, Field(ge=1, le=INT32_MAX)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=1, le=INT32_MAX)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-_INT64_MAX - 1, le=_INT64_MAX)]
LogitBias = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[0-9]{1,9}$", description="A token's id.")],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    Field(max_length=1_024, description="What is added to the logits of these tokens."),
]
Retention = Annotated[int, Field(ge=0, le=_RETENTION_SECONDS_MAX)]


class Body(BaseModel):
    """A body, or a part of one: strict, and without a field that is not in it."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
