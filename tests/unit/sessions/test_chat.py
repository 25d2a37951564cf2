from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.errors import ConfigurationInvalid, InvalidRequest
from agentmem.sessions.chat import Chat, TextStream
from agentmem.testing.models import DEFAULT_SYSTEM_TEMPLATE, write_tokenizer

NOW = datetime(2026, 1, 2, tzinfo=UTC)
HELLO = [{"role": "user", "content": "hi"}]


def with_template(tmp_path: Path, template: object) -> Path:
    folder = write_tokenizer(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": template}))
    return folder


class TestLoad:
    def test_needs_no_torch_and_no_transformers(self, tmp_path: Path) -> None:
        folder = write_tokenizer(tmp_path)
        program = (
            "import sys; from pathlib import Path; import agentmem.app\n"
            "from agentmem.sessions.chat import Chat; Chat.load(Path(sys.argv[1]))\n"
            "print(sorted({'torch', 'transformers', 'sglang'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "[]\n"

    def test_renders_and_tokenizes_as_transformers_does(self, tmp_path: Path) -> None:
        folder = write_tokenizer(tmp_path)
        program = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
messages = json.loads(sys.argv[2])
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, add_special_tokens=False).input_ids
print(json.dumps([text, ids, tokenizer.decode(ids, skip_special_tokens=True)]))
"""
        messages = [
            {"role": "system", "content": "Sei knapp. <|im_end|> é"},
            {"role": "user", "content": " {{ 7*7 }} 🙂\n"},
            {"role": "assistant", "content": "49\u2028"},
            {"role": "user", "content": "漢字"},
        ]
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), json.dumps(messages)],
            check=True,
            capture_output=True,
            text=True,
        )
        text, ids, decoded = json.loads(done.stdout.splitlines()[-1])
        chat = Chat.load(folder)
        assert chat.render(messages, now=NOW) == text
        assert chat.encode_now(text) == ids
        assert chat.decode(ids, special=False) == decoded

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationInvalid, match=r"has no tokenizer\.json"):
            Chat.load(tmp_path)

    @pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
    def test_broken_files(self, tmp_path: Path, name: str) -> None:
        folder = write_tokenizer(tmp_path)
        (folder / name).write_text("{")
        with pytest.raises(ConfigurationInvalid, match=name):
            Chat.load(folder)

    def test_no_template(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationInvalid, match="no chat template"):
            Chat.load(with_template(tmp_path, None))

    def test_a_template_that_does_not_parse(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationInvalid, match="chat template cannot be read"):
            Chat.load(with_template(tmp_path, "{% if %}"))

    def test_named_templates(self, tmp_path: Path) -> None:
        named = [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "yes{{ bos_token }}"},
        ]
        assert Chat.load(with_template(tmp_path, named)).render(HELLO, now=NOW) == "yes<s>"

    def test_a_template_file_comes_first(self, tmp_path: Path) -> None:
        folder = write_tokenizer(tmp_path)
        (folder / "chat_template.jinja").write_text("from the file")
        assert Chat.load(folder).render(HELLO, now=NOW) == "from the file"


class TestRender:
    def test_the_date_is_the_conversations(self, tmp_path: Path) -> None:
        folder = with_template(tmp_path, "{{ strftime_now('%d %b %Y') }}")
        assert Chat.load(folder).render(HELLO, now=NOW) == "02 Jan 2026"

    def test_a_refusal_is_the_callers(self, tmp_path: Path) -> None:
        folder = with_template(tmp_path, "{{ raise_exception('roles must alternate') }}")
        with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
            Chat.load(folder).render(HELLO, now=NOW)
        assert caught.value.param == "messages"

    def test_templates_are_sandboxed(self, tmp_path: Path) -> None:
        folder = with_template(tmp_path, "{{ messages.__class__.__mro__ }}")
        with pytest.raises(InvalidRequest, match="unsafe"):
            Chat.load(folder).render(HELLO, now=NOW)

    def test_extensions(self, tmp_path: Path) -> None:
        template = (
            "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}"
            "{% break %}{% endfor %}"
        )
        folder = with_template(tmp_path, template)
        text = Chat.load(folder).render([{"role": "user", "content": "é<"}] * 2, now=NOW)
        assert text == '{"role": "user", "content": "é<"}'

    def test_default_system_prompt_once(self, chat: Chat) -> None:
        assert "loop.first" in DEFAULT_SYSTEM_TEMPLATE
        text = chat.render(HELLO * 3, now=NOW)
        assert text.count("You are a helpful AI assistant.") == 1


def streamed(chat: Chat, ids: list[int], sizes: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(chat, stop)
    pieces, at, turn = [], 0, 0
    while at < len(ids):
        size = sizes[turn % len(sizes)]
        pieces.append(stream.push(ids[at : at + size]))
        at, turn = at + size, turn + 1
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text
    return pieces


class TestTextStream:
    @given(
        text=st.text(max_size=60),
        sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    )
    def test_any_text_in_any_pieces(self, chat: Chat, text: str, sizes: list[int]) -> None:
        ids = chat.encode_now(text)
        pieces = streamed(chat, ids, sizes)
        assert "".join(pieces) == chat.decode(ids, special=False)
        if "\ufffd" not in text and "\x00" not in text:
            assert not any("\ufffd" in piece for piece in pieces)

    @given(data=st.data(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
    def test_any_ids(self, chat: Chat, data: st.DataObject, sizes: list[int]) -> None:
        size = chat.vocabulary_size
        ids = data.draw(st.lists(st.integers(0, size - 1), max_size=25))
        assert "".join(streamed(chat, ids, sizes)) == chat.decode(ids, special=False)

    def test_no_end_of_broken_characters_is_waited_for(self, chat: Chat) -> None:
        broken = chat.encode_now("é")[-1]
        stream = TextStream(chat)
        pieces = [stream.push([broken]) for _ in range(200)]
        assert any(pieces)
        assert max(len(stream._ids) - stream._decoded, 0) <= 32

    @given(
        text=st.lists(
            st.sampled_from(["END", "EN", "D", "E", "ba a", "ba ", "a", " b"]), max_size=8
        ).map("".join),
        sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    )
    def test_stop_strings_never_show(self, chat: Chat, text: str, sizes: list[int]) -> None:
        stop = ("END", "ba a")
        pieces = streamed(chat, chat.encode_now(text), sizes, stop)
        cuts = [at for at in (text.find(s) for s in stop) if at >= 0]
        assert "".join(pieces) == (text[: min(cuts)] if cuts else text)
        shown = ""
        for piece in pieces:
            shown += piece
            assert not any(s in shown for s in stop)

    @given(data=st.data(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
    def test_special_tokens_are_kept_but_for_the_last(
        self, chat: Chat, data: st.DataObject, sizes: list[int]
    ) -> None:
        # A third of them special.
        token = st.one_of(st.integers(0, 4), st.integers(5, chat.vocabulary_size - 1))
        ids = data.draw(st.lists(token, max_size=25))
        stream = TextStream(chat, special=True)
        pieces, at, turn = [], 0, 0
        while at < len(ids):
            size = sizes[turn % len(sizes)]
            pieces.append(stream.push(tuple(ids[at : at + size])))
            at, turn = at + size, turn + 1
        pieces.append(stream.finish())
        shown = ids[:-1] if ids and chat.is_special(ids[-1]) else ids
        assert "".join(pieces) == chat.decode(shown, special=True)
