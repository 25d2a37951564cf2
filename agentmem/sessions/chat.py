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
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from agentmem.errors import ConfigurationInvalid, InvalidRequest
from agentmem.sessions.messages import NO_FRAMING, Framing, Message
from agentmem.sessions.templates import ChatTemplate

# Longer texts are tokenized in a thread, so that other streams go on meanwhile.
_INLINE_CHARACTERS = 8_192
REPLACEMENT = "\ufffd"
# A character has at most four bytes, hence ids; more than these are not UTF-8 at all.
_INCOMPLETE_IDS_MAX = 32


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with, as GPT-2 began it."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in shown}
    hidden = (byte for byte in range(256) if byte not in shown)
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


class Chat:
    """A model's chat format. Thread-safe; load it once per model directory."""

    def __init__(self, tokenizer: Tokenizer, template: str, variables: Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        self.template_source = template
        self._template = ChatTemplate(template, variables)
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._opening = lru_cache(maxsize=8)(self._make_opening)

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

    @property
    def has_tools(self) -> bool:
        """Whether the model's own template shows tools; else they are written in Hermes' format."""
        return self._template.has_tools

    def is_special(self, token_id: int) -> bool:
        """Whether it is a special token, as turn markers are."""
        return token_id in self._special

    def render(
        self,
        messages: Iterable[Message],
        *,
        now: datetime,
        framing: Framing = NO_FRAMING,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as text, up to where the assistant is to go on.

        `now` is what the template's `strftime_now` shows: a conversation keeps the date of its
        start, else its beginning would change at midnight. Without the generation prompt, the text
        ends where the last message does. Raises InvalidRequest when the template refuses the
        messages.
        """
        return self._template.render(
            messages, framing, now=now, add_generation_prompt=add_generation_prompt
        )

    def opening(self, reasoning_effort: str | None = None) -> str:
        """What the template begins a reply with: it tells whether thinking has begun already.

        Empty where the template does not let itself be asked.
        """
        return self._opening(reasoning_effort)

    def _make_opening(self, reasoning_effort: str | None) -> str:
        messages = ({"role": "user", "content": "x"},)
        now = datetime(2026, 1, 1, tzinfo=UTC)
        framing = Framing(reasoning_effort=reasoning_effort)
        try:
            before = self.render(messages, now=now, framing=framing, add_generation_prompt=False)
            whole = self.render(messages, now=now, framing=framing)
        except InvalidRequest:
            return ""
        return whole[len(before) :] if whole.startswith(before) else ""

    async def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added: templates carry their own special tokens."""
        if len(text) <= _INLINE_CHARACTERS:
            return self.encode_now(text)
        return await asyncio.to_thread(self.encode_now, text)

    def encode_now(self, text: str) -> list[int]:
        """As `encode`, for callers that are in a thread already."""
        if len(text) <= _INLINE_CHARACTERS:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            return ids
        # A batch of one: unlike `encode` it lets other threads run, and it is twice as fast.
        (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return list(encoded.ids)

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        """The text of ids; `special` keeps special tokens. Broken UTF-8 becomes U+FFFD, and so
        does NUL: it cannot be stored, so that a client could not send it back."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=not special)
        return text.replace("\x00", REPLACEMENT)

    @cached_property
    def token_characters_max(self) -> int:
        """Most characters that one token stands for."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)))

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for; the parts of a character that several tokens make, too."""
        text = self.decode([token_id], special=True)
        if REPLACEMENT not in text:
            return text.encode()
        token = self._tokenizer.id_to_token(token_id) or ""
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:  # not a byte-level vocabulary
            return text.encode()


class TextStream:
    """Decodes sampled ids as they come, holding back characters that are not complete yet.

    The pieces joined are exactly what `Chat.decode(ids, special=special)` gives for all ids, cut
    before the first of the stop strings: a piece that may be the start of one is held back too.
    With `special`, special tokens are kept, as parsers of tool calls need it, but for one that is
    the very last id: the end of the turn.
    """

    def __init__(self, chat: Chat, stop: Sequence[str] = (), *, special: bool = False) -> None:
        self._chat = chat
        self._stop = tuple(stop)
        self._special = special
        self._last: list[int] = []
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
        if self._special and token_ids:
            token_ids, self._last = [*self._last, *token_ids], []
            if self._chat.is_special(token_ids[-1]):
                self._last.append(token_ids.pop())
        self._ids.extend(token_ids)
        context = self._chat.decode(self._ids[self._anchor : self._decoded], special=self._special)
        window = self._chat.decode(self._ids[self._anchor :], special=self._special)
        incomplete = len(window) <= len(context) or window.endswith(REPLACEMENT)
        if incomplete and len(self._ids) - self._decoded < _INCOMPLETE_IDS_MAX:
            return ""
        self._anchor, self._decoded = self._decoded, len(self._ids)
        return self._release(window[len(context) :], final=False)

    def finish(self) -> str:
        """The rest, broken characters and all. Nothing may be pushed afterwards."""
        context = self._chat.decode(self._ids[self._anchor : self._decoded], special=self._special)
        window = self._chat.decode(self._ids[self._anchor :], special=self._special)
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
