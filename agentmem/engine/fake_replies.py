"""What the fake engine says: by directive, by constraint, or by hash.

A test in another process scripts a reply through the prompt. In the last message (the user's or a
tool's) these directives are obeyed in order, and then the reply ends:

    [[think: some thoughts]]         thinks so, in the fake's format: <think>...</think>
    [[reply: some text]]             says exactly this, raw: any family's format can be written
    [[call: name {"json": "args"}]]  calls a tool, in Hermes' format; several in a row are parallel

`[[pace: 0.01]]` makes the reply take so many seconds per token, whatever it says.

Without a directive, a constraint gets the smallest instance of its schema, and a reply that must
call a tool calls the first one so. Everything else is a hash of the prompt.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from agentmem.engine.base import Alternatives, Constraint, Sampling
from agentmem.engine.output import OutputSpec

_DIRECTIVE = re.compile(r"\[\[(think|reply|call):[ \t]?")
# The last `]]` of a row of brackets: a JSON array may end right before it.
_END = re.compile(r"\]\](?!\])")
_NAME = re.compile(r"\s*([\w.-]+)\s*")
_DEPTH_MAX = 16

_PACE = re.compile(r"\[\[pace:[ \t]?([0-9]{1,2}(?:\.[0-9]{1,6})?)\]\]")

_EOS_ONE_IN = 64
_CANDIDATES = 24
_CANDIDATE_STEP = 0.25
# How far a token that only a bias names lies below the likeliest one.
_UNLIKELY = 20.0


def scripted_text(message: str) -> str | None:
    """What the directives of a message say to reply; None where there are none."""
    parts: list[str] = []
    at, after_call = 0, False
    while found := _DIRECTIVE.search(message, at):
        kind, start = found[1], found.end()
        if kind == "call":
            read = _read_call(message, start)
            if read is None:
                at = start
                continue
            text, at = read
            parts.append("\n" * after_call + text)
            after_call = True
            continue
        end = _END.search(message, start)
        if end is None:
            break
        body, at = message[start : end.start()], end.end()
        parts.append(f"<think>{body}</think>" if kind == "think" else body)
        after_call = False
    return "".join(parts) if parts else None


def paced(message: str) -> float | None:
    """Seconds per token that a message asks for; None where it does not."""
    found = _PACE.search(message)
    return float(found[1]) if found else None


def _read_call(message: str, start: int) -> tuple[str, int] | None:
    name = _NAME.match(message, start)
    if name is None:
        return None
    try:
        arguments, end = json.JSONDecoder().raw_decode(message, name.end())
    except ValueError:
        # Malformed on purpose: written as it stands.
        closing = _END.search(message, name.end())
        if closing is None:
            return None
        return hermes_call(name[1], message[name.end() : closing.start()]), closing.end()
    closing = _END.search(message, end)
    if closing is None:
        return None
    return hermes_call(name[1], json.dumps(arguments, ensure_ascii=False)), closing.end()


def hermes_call(name: str, arguments: str) -> str:
    """One call as Hermes' format writes it; `arguments` is JSON text."""
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'


def fake_tool_constraint(spec: OutputSpec) -> Constraint | None:
    """The fake's structural tag: the tools that may be called, the first of them being taken."""
    if spec.tool_choice.mode not in ("required", "named"):
        return None
    wanted = spec.tool_choice.name
    functions = [tool["function"] for tool in spec.tools]
    functions = [one for one in functions if wanted is None or one["name"] == wanted]
    return Constraint("structural_tag", json.dumps(functions)) if functions else None


def constrained_text(constraint: Constraint | None) -> str | None:
    """The smallest text that satisfies it; None where it asks for nothing that is known here."""
    if constraint is None or constraint.kind not in ("json_schema", "structural_tag"):
        return None
    wanted = json.loads(constraint.value)
    if constraint.kind == "structural_tag":
        parameters = wanted[0].get("parameters") or {"type": "object"}
        return hermes_call(wanted[0]["name"], json.dumps(instance(parameters), ensure_ascii=False))
    return json.dumps(instance(wanted or {"type": "object"}), ensure_ascii=False)


def instance(schema: Any, root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """The smallest value of a JSON schema; patterns and formats are not looked at."""
    if not isinstance(schema, Mapping) or depth > _DEPTH_MAX:
        return None
    root = schema if root is None else root
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    simpler = _simpler(schema, root)
    if simpler is not None:
        return instance(simpler, root, depth + 1)
    return _of_type(schema, root, depth)


def _simpler(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """The schema with one reference followed or one choice made; None where it has neither."""
    if "$ref" in schema:
        return _referred(schema["$ref"], root)
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            rest = {name: value for name, value in schema.items() if name != key}
            return {**rest, **schema[key][0]}
    return _merged(schema["allOf"], root) if schema.get("allOf") else None


def _of_type(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or (kind is None and "properties" in schema):
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        return {name: instance(properties.get(name, {}), root, depth + 1) for name in required}
    if kind == "array":
        items = schema.get("items", {})
        return [instance(items, root, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        return min(low, schema.get("maximum", low))
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    return False if kind == "boolean" else None


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    value: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            value = value[part]
    return value


def _merged(schemas: Sequence[Any], root: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for schema in schemas:
        one = _referred(schema["$ref"], root) if "$ref" in schema else schema
        properties = {**merged.get("properties", {}), **one.get("properties", {})}
        required = [*merged.get("required", ()), *one.get("required", ())]
        merged = {**merged, **one}
        if properties:
            merged |= {"properties": properties, "required": required}
    return merged


class Sampler:
    """Samples from the hash of the whole prefix, in constant time per token.

    Each position has its candidates, `_CANDIDATE_STEP` apart; biases and penalties reorder them.
    """

    def __init__(
        self,
        prompt: array[int],
        sampling: Sampling,
        vocabulary: tuple[int, int],
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self._prefix = hashlib.blake2b(prompt.tobytes(), digest_size=16)
        # Greedy sampling ignores the seed, as a real engine's does.
        seeded = sampling.temperature > 0 and sampling.seed is not None
        self._seed = str(sampling.seed).encode() if seeded else b""
        self._first, self._last = vocabulary
        self._eos = () if sampling.ignore_eos else eos_token_ids
        self._sampling = sampling
        self._said: Counter[int] = Counter()
        self._plain = not (
            sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty
        )

    def next(self, forced: int | None = None, top: int = 0) -> tuple[int, float, Alternatives]:
        """The next id, its log-probability and the `top` likeliest at its place.

        `forced` replaces the id (a scripted reply).
        """
        state = self._prefix.copy()
        state.update(self._seed)
        digest = int.from_bytes(state.digest(), "little")
        token = self._first + (digest >> 32) % (self._last - self._first)
        if self._eos and digest % _EOS_ONE_IN == 0:
            token = self._eos[0]
        logprob = -((digest >> 64) % 4096) / 1024
        if forced is not None:
            token = forced
        alternatives: Alternatives = ()
        if top or not (self._plain or forced is not None):
            ranked = self._ranked(token, digest, fixed=forced is not None)
            token = ranked[0][0]
            best = ranked[0][1]
            alternatives = tuple((one, logprob + score - best) for one, score in ranked[:top])
        self._prefix.update(array("I", [token]).tobytes())
        self._said[token] += 1
        return token, logprob, alternatives

    def _ranked(self, token: int, digest: int, *, fixed: bool) -> list[tuple[int, float]]:
        """Candidates and their scores, best first; a `fixed` token stays the first one."""
        size = self._last - self._first
        scores: dict[int, float] = {token: 0.0}
        for place in range(1, _CANDIDATES):
            other = self._first + (digest // (place + 1) + place) % size
            scores.setdefault(other, -_CANDIDATE_STEP * place)
        for biased in self._sampling.logit_bias:
            scores.setdefault(biased, -_UNLIKELY)
        for one in scores:
            scores[one] += self._sampling.logit_bias.get(one, 0.0)
            scores[one] -= self._said[one] * self._sampling.frequency_penalty
            scores[one] -= (self._said[one] > 0) * self._sampling.presence_penalty
        if fixed:
            scores[token] = max(scores.values()) + _CANDIDATE_STEP
        return sorted(scores.items(), key=lambda item: -item[1])
