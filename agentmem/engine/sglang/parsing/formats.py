"""Which of SGLang's formats a model speaks, and the detectors and grammars of that format.

Runs in the parsing server: this imports SGLang.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.srt.entrypoints.openai.protocol import Tool, ToolChoice
from sglang.srt.function_call.base_format_detector import BaseFormatDetector
from sglang.srt.function_call.core_types import StreamingParseResult
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.function_call.json_array_parser import JsonArrayParser
from sglang.srt.function_call.llama32_detector import Llama32Detector
from sglang.srt.function_call.mistral_detector import MistralDetector
from sglang.srt.function_call.utils import _get_tool_schema_defs, get_json_schema_constraint
from sglang.srt.parser.reasoning_parser import ReasoningParser
from sglang.srt.parser.template_detection import (
    REASONING_PARSER_RULES,
    TOOL_CALL_PARSER_RULES,
    TemplateDetectionContext,
    detect_reasoning_pattern,
    match_rules,
)
from tokenizers import Tokenizer

from agentmem.engine.base import Constraint
from agentmem.engine.output import OutputSpec
from agentmem.engine.sglang.parsing.calls import CallParser
from agentmem.engine.sglang.parsing.reply import ReplyParser
from agentmem.errors import ConfigurationInvalid, InvalidRequest

NONE = "none"
# Written into the prompt for models whose own template has no tools (sessions/templates.py).
OWN_TOOL_FORMAT = "hermes"

# What SGLang's rules do not tell: text that only templates of the format contain.
_TOOL_MARKS = (
    ("<｜tool▁calls▁begin｜>", "deepseekv3"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3"),
    ("Environment: ipython", "llama3"),
    ("<tool_call>", "hermes"),
)
# DeepSeek's newest models write their prompts in code, not in a template.
_ARCHITECTURES = (
    ("KimiK3", "kimi_k3", "kimi_k3"),
    ("DeepseekV4", "deepseekv4", "deepseek-v4"),
    ("DeepseekV32", "deepseekv32", "deepseek-v3"),
)


@dataclass(frozen=True, slots=True)
class Formats:
    """Names of SGLang's parsers; "" for none. `vocabulary` has the tokenizer's special strings."""

    tool_parser: str
    reasoning_parser: str
    vocabulary: frozenset[str] = frozenset()

    def parser(self, spec: OutputSpec) -> ReplyParser:
        """A parser for one reply. Raises InvalidRequest for tools that are none."""
        tools = _tools(spec)
        mode = spec.tool_choice.mode
        active = bool(tools) and (
            mode in ("required", "named") or (mode == "auto" and bool(self.tool_parser))
        )
        reasoning = self._reasoning(spec, calls_follow=active)
        if not active:
            return ReplyParser(reasoning, None)
        native = mode == "auto" or self._native(tools)
        at_most = None if spec.parallel_tool_calls else 1
        make = self._detector if native else JsonArrayParser
        return ReplyParser(reasoning, CallParser(make, tools, at_most=at_most))

    def constraint(self, spec: OutputSpec) -> Constraint | None:
        """The grammar that `spec.tool_choice` needs, by SGLang's rules.

        A call that is demanded has arguments that match its schema, whether `strict` or not.
        Raises InvalidRequest when the tools cannot be made a grammar.
        """
        tools = _tools(spec)
        mode = spec.tool_choice.mode
        if not tools or mode == "none":
            return None
        demanded = mode in ("required", "named")
        try:
            _get_tool_schema_defs(tools)
        except ValueError as error:
            raise InvalidRequest(
                f"These tools do not go together: {error}", param="tools"
            ) from error
        found = self._constraint(tools, spec, demanded=demanded)
        if found is None:
            return None
        kind, value = found
        return Constraint(kind, value, self.thinks(spec))

    def _constraint(
        self, tools: list[Any], spec: OutputSpec, *, demanded: bool
    ) -> tuple[Any, str] | None:
        choice: Any = "required" if demanded else "auto"
        if spec.tool_choice.mode == "named":
            choice = ToolChoice(function={"name": spec.tool_choice.name})
        parallel = spec.parallel_tool_calls
        if self.tool_parser:
            parser = self._function_parser(tools)
            if demanded:
                for tool in parser.tools:
                    tool.function.strict = True
            # The engine lets the model think before the grammar begins: see `after_thinking`.
            found = parser.get_structure_constraint(choice, parallel, thinking_mode=False)
            if found is None and not demanded and not parallel and _has_own_tags(parser.detector):
                found = ("structural_tag", parser.get_legacy_structural_tag())
            if found is not None:
                return _as_text(found, parallel=parallel)
            if parser.detector.parses_required_natively():
                return None
        if not demanded:
            return None
        schema = get_json_schema_constraint(tools, choice, parallel_tool_calls=parallel)
        return "json_schema", json.dumps(schema)

    def _reasoning(self, spec: OutputSpec, *, calls_follow: bool) -> Any:
        """SGLang's detector of thinking, begun where the template began; None: no thinking."""
        if not self.reasoning_parser:
            return None
        detector = ReasoningParser(
            self.reasoning_parser,
            stream_reasoning=True,
            force_reasoning=None,
            tokenizer=_Vocabulary(self.vocabulary),
            tool_call_parser_active=calls_follow,
        ).detector
        begun = _begun(detector, spec.opening)
        if begun is None:
            return detector
        if not begun and detector.think_end_token in spec.opening:
            return None
        # SGLang goes by the model's name; what the prompt says is certain.
        detector._in_reasoning = begun
        return detector

    def thinks(self, spec: OutputSpec) -> bool:
        """Whether the reply may begin with thoughts, which no grammar binds."""
        if not self.reasoning_parser:
            return False
        detector = ReasoningParser(self.reasoning_parser).detector
        begun = _begun(detector, spec.opening)
        if begun is False and detector.think_end_token in spec.opening:
            return False
        return begun is True or spec.reasoning

    def _detector(self) -> BaseFormatDetector:
        own = _OWN_DETECTORS.get(self.tool_parser)
        if own is not None:
            return own()
        parser = FunctionCallParser([], self.tool_parser, tokenizer=_Vocabulary(self.vocabulary))
        return parser.detector

    def _function_parser(self, tools: list[Any]) -> FunctionCallParser:
        vocabulary = _Vocabulary(self.vocabulary)
        return FunctionCallParser(
            [tool.model_copy(deep=True) for tool in tools], self.tool_parser, tokenizer=vocabulary
        )

    def _native(self, tools: list[Any]) -> bool:
        """Whether a demanded call comes in the model's own format, not as a JSON array."""
        if not self.tool_parser:
            return False
        detector = self._function_parser(tools).detector
        return bool(detector.supports_structural_tag() or detector.parses_required_natively())


class _Vocabulary:
    """As much of a tokenizer as SGLang's detectors look at."""

    def __init__(self, tokens: frozenset[str]) -> None:
        self._tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        """Ids are of no interest."""
        return dict.fromkeys(self._tokens, 0)


class _Llama32(Llama32Detector):  # type: ignore[misc]
    """Takes a brace for a call at the start of a reply only: SGLang's does so at the start of any
    piece, and would hold back whatever follows a brace in a text."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def has_tool_call(self, text: str) -> bool:
        """See the class."""
        if "<|python_tag|>" in text or self.current_tool_id > 0:
            return bool(super().has_tool_call(text))
        return not self._said and text.startswith("{")

    def parse_streaming_increment(self, new_text: str, tools: list[Any]) -> Any:
        """As the base class, noting whether anything was said yet."""
        result = super().parse_streaming_increment(new_text, tools)
        self._said = self._said or bool(result.normal_text.strip())
        return result


class _Mistral(MistralDetector):  # type: ignore[misc]
    """Goes on within an array of calls: SGLang's takes the second one of an array for text. And
    keeps brackets in texts: SGLang's removes each `]`, since that ends an array of calls."""

    _buffer: str

    def parse_streaming_increment(self, new_text: str, tools: list[Any]) -> Any:
        """See the class."""
        held: str = self._buffer + new_text
        if self.current_tool_id > 0 and self.tool_call_separator.startswith(held[:2]):
            return BaseFormatDetector.parse_streaming_increment(self, new_text, tools)
        if self.current_tool_id < 0 and self._tool_calls_marker not in held:
            if self._ends_with_partial_token(held, self._tool_calls_marker):
                self._buffer = held
                return StreamingParseResult()
            self._buffer = ""
            return StreamingParseResult(normal_text=held)
        return super().parse_streaming_increment(new_text, tools)


_OWN_DETECTORS: Mapping[str, Any] = {"llama3": _Llama32, "mistral": _Mistral}


def detect_formats(
    model_path: Path, template: str, *, has_tools: bool, tool_parser: str, reasoning_parser: str
) -> Formats:
    """The formats of a model: as set, else by its chat template ("none" switches off).

    Raises ConfigurationInvalid for names that SGLang does not know.
    """
    tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
    added = (token.content for token in tokenizer.get_added_tokens_decoder().values())
    always, toggle = detect_reasoning_pattern(template)
    context = TemplateDetectionContext(template, toggle, always, set(tokenizer.get_vocab()))
    architecture = _read_architecture(model_path)
    known = next((row for row in _ARCHITECTURES if row[0] in architecture), None)
    if not tool_parser:
        tool_parser = known[1] if known else _detect_tools(context, has_tools=has_tools)
    if not reasoning_parser:
        found = known[2] if known else match_rules(context, REASONING_PARSER_RULES, "reasoning")
        reasoning_parser = found or NONE
    _check(tool_parser, FunctionCallParser.ToolCallParserEnum, "AGENTMEM_TOOL_PARSER")
    _check(reasoning_parser, ReasoningParser.DetectorMap, "AGENTMEM_REASONING_PARSER")
    return Formats(
        "" if tool_parser == NONE else tool_parser,
        "" if reasoning_parser == NONE else reasoning_parser,
        frozenset(added),
    )


def _detect_tools(context: TemplateDetectionContext, *, has_tools: bool) -> str:
    if not has_tools:
        return OWN_TOOL_FORMAT
    found = match_rules(context, TOOL_CALL_PARSER_RULES, "tool calls")
    if found:
        return str(found)
    return next((name for mark, name in _TOOL_MARKS if mark in context.template), NONE)


def _check(name: str, known: Mapping[str, Any], variable: str) -> None:
    if name != NONE and name not in known:
        raise ConfigurationInvalid(
            f"{variable} is {name!r}, which SGLang does not know.",
            hint=f"One of: {', '.join(sorted(known))}, or none.",
        )


def _read_architecture(model_path: Path) -> str:
    path = model_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return " ".join(config.get("architectures") or ())


def _tools(spec: OutputSpec) -> list[Any]:
    """The tools that may be called, as SGLang's. Raises InvalidRequest for what is no tool."""
    tools = []
    for tool in spec.tools:
        function = {key: value for key, value in tool["function"].items() if value is not None}
        if spec.tool_choice.mode == "named" and function.get("name") != spec.tool_choice.name:
            continue
        try:
            tools.append(Tool.model_validate({"type": "function", "function": function}))
        except ValueError as error:
            raise InvalidRequest(f"This is no tool: {error}", param="tools") from error
    return tools


def _begun(detector: Any, opening: str) -> bool | None:
    """Whether the prompt's end has begun the thinking; None where nothing is known of it."""
    if not opening:
        return None
    return opening.rfind(detector.think_start_token) > opening.rfind(detector.think_end_token)


def _has_own_tags(detector: Any) -> bool:
    return bool(detector.supports_structural_tag()) and detector.get_structural_tag_name() is None


def _as_text(found: tuple[str, Any], *, parallel: bool) -> tuple[str, str]:
    """SGLang's constraint as its sampling parameters take it."""
    kind, value = found
    if kind == "full_assistant_ebnf":
        return "ebnf", str(value)
    if kind == "json_schema":
        return kind, value if isinstance(value, str) else json.dumps(value)
    tag = value.model_dump(by_alias=True) if hasattr(value, "model_dump") else dict(value)
    if "structures" in tag:
        tag = _new_tag(tag, stop_after_first=not parallel)
    return kind, json.dumps(tag)


def _new_tag(tag: Mapping[str, Any], *, stop_after_first: bool) -> dict[str, Any]:
    """An old structural tag as a new one: only that can end after one call."""
    tags = [
        {
            "type": "tag",
            "begin": structure["begin"],
            "content": {
                "type": "json_schema",
                "json_schema": structure.get("schema") or {"type": "object"},
            },
            "end": structure["end"],
        }
        for structure in tag["structures"]
    ]
    return {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": list(tag["triggers"]),
            "tags": tags,
            "at_least_one": bool(tag.get("at_least_one")),
            "stop_after_first": stop_after_first,
        },
    }
