"""Text to token ids and back: one model's tokenizer and chat template.

Reads `tokenizer.json` with the `tokenizers` library and renders the template as transformers does,
without importing transformers: that pulls in torch, four seconds and 200 MB that a gateway does
not need.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_eval_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from agentmem.errors import ConfigurationInvalid, InvalidRequest

Message = Mapping[str, str]

# Longer texts are tokenized in a thread, so that other streams go on meanwhile.
_INLINE_CHARACTERS = 8_192
REPLACEMENT = "\ufffd"
# A character has at most four bytes, hence ids; more than these are not UTF-8 at all.
_INCOMPLETE_IDS_MAX = 32


class Chat:
    """A model's chat format. Thread-safe; load it once per model directory."""

    def __init__(self, tokenizer: Tokenizer, template: str, variables: Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        self._environment = _environment()
        self._template = self._compile(template)
        self._variables = dict(variables)

    @classmethod
    def load(cls, folder: Path) -> Chat:
        """Reads a model directory. Raises ConfigurationInvalid, saying what is amiss."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigurationInvalid(
                f"{folder} has no tokenizer.json.",
                hint="Write one: AutoTokenizer.from_pretrained(dir).save_pretrained(dir).",
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise ConfigurationInvalid(f"{path} cannot be read: {error}.") from error
        config = _read_json(folder / "tokenizer_config.json")
        template = _read_template(folder, config)
        return cls(tokenizer, template, _special_tokens(config, folder))

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The id of a token as it is written in the vocabulary."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def render(self, messages: Iterable[Message], *, now: datetime) -> str:
        """The conversation as text, up to where the assistant is to go on.

        `now` is what the template's `strftime_now` shows: a conversation keeps the date of its
        start, else its beginning would change at midnight. Raises InvalidRequest when the template
        refuses the messages.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                strftime_now=now.astimezone(UTC).strftime,
                tools=None,
                documents=None,
                **self._variables,
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error.message}.",
                param="messages",
            ) from error

    async def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added: templates carry their own special tokens."""
        if len(text) <= _INLINE_CHARACTERS:
            return self.encode_now(text)
        return await asyncio.to_thread(self.encode_now, text)

    def encode_now(self, text: str) -> list[int]:
        """As `encode`, for callers that are in a thread already."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        """The text of ids; `special` keeps special tokens. Broken UTF-8 becomes U+FFFD."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=not special)
        return text

    def _compile(self, template: str) -> Template:
        try:
            return self._environment.from_string(template)
        except TemplateError as error:
            raise ConfigurationInvalid(
                f"The model's chat template cannot be read: {error.message}."
            ) from error


class TextStream:
    """Decodes sampled ids as they come, holding back characters that are not complete yet.

    The pieces joined are exactly what `Chat.decode(ids, special=False)` gives for all ids, cut
    before the first of the stop strings: a piece that may be the start of one is held back too.
    """

    def __init__(self, chat: Chat, stop: Sequence[str] = ()) -> None:
        self._chat = chat
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Decoding begins a few ids back, since some tokenizers write a word's first token
        # differently at the start of a text. [anchor, decoded) is context that was already given.
        self._anchor = 0
        self._decoded = 0
        self._held = ""
        self._parts: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything given so far."""
        return "".join(self._parts)

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes new ids, returns the text that became certain."""
        self._ids.extend(token_ids)
        context = self._chat.decode(self._ids[self._anchor : self._decoded], special=False)
        window = self._chat.decode(self._ids[self._anchor :], special=False)
        incomplete = len(window) <= len(context) or window.endswith(REPLACEMENT)
        if incomplete and len(self._ids) - self._decoded < _INCOMPLETE_IDS_MAX:
            return ""
        self._anchor, self._decoded = self._decoded, len(self._ids)
        return self._release(window[len(context) :], final=False)

    def finish(self) -> str:
        """The rest, broken characters and all. Nothing may be pushed afterwards."""
        context = self._chat.decode(self._ids[self._anchor : self._decoded], special=False)
        window = self._chat.decode(self._ids[self._anchor :], special=False)
        return self._release(window[len(context) :], final=True)

    def _release(self, piece: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        cuts = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if cuts:
            self.stopped = True
            released, self._held = text[: min(cuts)], ""
        else:
            kept = 0 if final else self._possible_stop(text)
            released, self._held = text[: len(text) - kept], text[len(text) - kept :]
        self._parts.append(released)
        return released

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string could begin."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render", [])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    @pass_eval_context
    def _render(self, _context: nodes.EvalContext, caller: Macro) -> str:
        return str(caller())


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that transformers renders chat templates in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigurationInvalid(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigurationInvalid(f"{path} is not a JSON object.")
    return content


def _read_template(folder: Path, config: Mapping[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # named templates: the unnamed use is "default"
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str):
        raise ConfigurationInvalid(
            f"{folder} has no chat template: sessions need a chat model.",
            hint="Add chat_template.jinja or use the model's instruct variant.",
        )
    return template


def _special_tokens(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """`bos_token` and its like, which templates refer to by name."""
    described = {**_read_json(folder / "special_tokens_map.json"), **config}
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = described.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens
