"""Turns over HTTP: the log, streams, usage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentmem.config import Settings
from agentmem.sessions.chat import Chat
from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from agentmem.testing.models import TRIMMING_TEMPLATE, write_tokenizer
from tests.integration.gateway.conftest import PAGE_TOKENS, settled, until


def joined(events: list[tuple[str, dict[str, Any]]], field: str) -> list[Any]:
    return [item for name, data in events if name == "turn.delta" for item in data[field]]


async def log_of(gateway: RunningGateway, client: Client, session_id: str) -> list[int]:
    """The log as the catalog has it, not as memory does."""
    async with gateway.catalog.reading() as tx:
        session = await tx.sessions.get(client.tenant_id, session_id)
        assert session.head_turn_id is not None
        chain = await tx.turns.chain(client.tenant_id, session.head_turn_id)
    ids: list[int] = []
    for turn in chain:
        ids = ids[: turn.keep] + turn.tokens.tolist()
    assert len(ids) == session.tokens
    return ids


class TestLog:
    async def test_a_turn_continues_the_log_as_it_was_sampled(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        first = await client.turn(session, "hello")
        second = await client.turn(session, "and now")
        prompt_1, prompt_2 = (list(call.token_ids) for call in gateway.engine.calls)
        old = prompt_1 + first["output_ids"]
        assert prompt_2[: len(old)] == old
        chat = Chat.load(gateway.gateway.settings.models_dir / "fake")
        # The default system prompt is there once, not again before the second message.
        text = chat.decode(prompt_2, special=True)
        assert text.count("You are a helpful AI assistant.") == 1
        assert text.endswith("<|im_start|>user\nand now<|im_end|>\n<|im_start|>assistant\n")
        assert await log_of(gateway, client, session) == prompt_2 + second["output_ids"]
        assert (await client.get(session))["rebases"] == 0

    async def test_a_reply_that_does_not_tokenize_to_itself_is_kept_as_sampled(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        chat = Chat.load(gateway.gateway.settings.models_dir / "fake")
        whole = chat.encode_now("the pages")
        pieces = tuple(chat.encode_now(c)[0] for c in "the pages")
        assert list(pieces) != whole
        assert chat.decode(pieces, special=False) == "the pages"
        gateway.engine.script.replies.append(pieces)
        session = await client.create()
        turn = await client.turn(session, "what?", max_tokens=50)
        assert turn["message"]["content"] == "the pages"
        assert turn["output_ids"] == list(pieces)
        again = await client.turn(session, "go on")
        prompt = list(gateway.engine.calls[1].token_ids)
        at = len(gateway.engine.calls[0].token_ids)
        assert prompt[at : at + len(pieces)] == list(pieces)
        assert not again["rebased"]

    async def test_a_reply_with_broken_characters_is_no_rebase(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        chat = Chat.load(gateway.gateway.settings.models_dir / "fake")
        broken = tuple(chat.encode_now("é🙂")[:-1])  # the last byte of the emoji is missing
        gateway.engine.script.replies.append(broken)
        session = await client.create()
        turn = await client.turn(session, "é", max_tokens=50)
        assert turn["message"]["content"].startswith("é")
        assert "\ufffd" in turn["message"]["content"]
        assert not (await client.turn(session, "ü"))["rebased"]

    async def test_restart_reads_the_log_back(self, settings: Settings) -> None:
        async with running_gateway(settings) as first, await first.client("acme") as client:
            session = await client.create()
            turns = [await client.turn(session, text) for text in ("one", "two")]
            log = await log_of(first, client, session)
        async with running_gateway(settings) as second, await second.client("acme") as client:
            await client.turn(session, "three")
            prompt = list(second.engine.calls[0].token_ids)
            assert prompt[: len(log)] == log
            listed = (await client.http.get(f"/v1/sessions/{session}/turns")).json()["data"]
            assert listed[:2] == turns
            assert not listed[2]["rebased"]


class TestRebase:
    async def test_a_reply_that_the_template_trims_stays_as_sampled(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        tokenizer = write_tokenizer(tmp_path / "trimming", template=TRIMMING_TEMPLATE)
        chat = Chat.load(tokenizer)
        async with (
            running_gateway(settings, tokenizer=tokenizer) as gateway,
            await gateway.client("acme") as client,
        ):
            reply = tuple(chat.encode_now("  spaced out  "))
            gateway.engine.script.replies.append(reply)
            session = await client.create()
            first = await client.turn(session, "hello", max_tokens=50)
            assert first["message"]["content"] == "  spaced out  "
            second = await client.turn(session, "again")
            assert not second["rebased"]
            prompts = [list(call.token_ids) for call in gateway.engine.calls]
            log = prompts[0] + first["output_ids"]
            assert prompts[1][: len(log)] == log
            assert await log_of(gateway, client, session) == prompts[1] + second["output_ids"]

    async def test_other_instructions_keep_the_beginning(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        first = await client.turn(session, "hello", instructions="Be brief, and kind.")
        second = await client.turn(session, "again")
        assert not second["rebased"], "instructions stay until others are given"
        third = await client.turn(session, "more", instructions="Be brief, and rude.")
        assert third["rebased"]
        prompts = [list(call.token_ids) for call in gateway.engine.calls]
        shared = sum(1 for a, b in zip(prompts[0], prompts[2], strict=False) if a == b)
        assert 0 < shared < first["usage"]["prompt_tokens"]
        shown = await client.get(session)
        assert shown["rebases"] == 1
        assert shown["tokens"] == len(prompts[2]) + len(third["output_ids"])

    async def test_a_stop_string_is_cut_from_the_reply_and_the_log_rebased(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        chat = Chat.load(gateway.gateway.settings.models_dir / "fake")
        gateway.engine.script.replies.append(tuple(chat.encode_now("the agent END of it")))
        session = await client.create()
        events = await client.stream(session, "hello", max_tokens=50, stop=" END")
        assert "".join(joined(events, "text")) == "the agent"
        assert events[-1][1]["message"]["content"] == "the agent"
        second = await client.turn(session, "again")
        assert second["rebased"]
        text = chat.decode(gateway.engine.calls[1].token_ids, special=True)
        assert "<|im_start|>assistant\nthe agent<|im_end|>" in text
        kept = len(gateway.engine.calls[0].token_ids) + len(chat.encode_now("the agent"))
        async with gateway.catalog.reading() as tx:
            row = await tx.sessions.get(client.tenant_id, session)
            assert row.head_turn_id is not None
            head = await tx.turns.numbered(client.tenant_id, row.head_turn_id, 2)
        assert head is not None
        assert head.keep == kept

    async def test_claims_of_pages_that_the_log_lost_are_given_up(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        beginning = "Be brief, and kind, and wise, as a good agent is. " * 3
        first = await client.turn(session, "hello " * 40, instructions=beginning)
        await until(lambda: bool(gateway.pages.claims.get(session)))
        before = set(gateway.pages.claims[session])
        second = await client.turn(session, "again", instructions=beginning + "And quick.")
        assert second["rebased"]
        await until(lambda: not before <= gateway.pages.claims[session])
        kept = len(before & gateway.pages.claims[session])
        assert 0 < kept < first["usage"]["prompt_tokens"] // PAGE_TOKENS


class TestStream:
    async def test_events_add_up_to_the_turn(self, gateway: RunningGateway, client: Client) -> None:
        session = await client.create()
        events = await client.stream(session, "hello", max_tokens=40, logprobs=True)
        assert events[0][0] == "turn.created"
        assert events[0][1]["number"] == 1
        name, turn = events[-1]
        assert name == "turn.completed"
        assert joined(events, "token_ids") == turn["output_ids"]
        assert joined(events, "logprobs") == turn["logprobs"]
        assert "".join(joined(events, "text")) == turn["message"]["content"]
        assert events[0][1]["id"] == turn["id"]

    async def test_text_comes_in_whole_characters(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        chat = Chat.load(gateway.gateway.settings.models_dir / "fake")
        gateway.engine.script.replies.append(tuple(chat.encode_now("aé🙂z漢")))
        session = await client.create()
        events = await client.stream(session, "hello", max_tokens=40)
        texts = [data["text"] for name, data in events if name == "turn.delta"]
        assert "".join(texts) == "aé🙂z漢"
        assert not any("\ufffd" in text for text in texts)
        assert len(texts) > 5  # ids are told as they come, also where they make no character yet

    async def test_engine_failure_is_an_event_and_leaves_the_log(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        await client.turn(session, "hello")
        before = await settled(client, session)
        gateway.engine.script.fail_after_tokens = 2
        events = await client.stream(session, "again", ignore_eos=True)
        assert [name for name, _ in events][-1] == "error"
        assert events[-1][1]["error"]["code"] == "engine_failed"
        assert await client.get(session) == before
        assert (await client.turn(session, "again"))["number"] == 2

    async def test_without_logprobs_there_are_none(self, client: Client) -> None:
        session = await client.create()
        events = await client.stream(session, "hello")
        assert all("logprobs" not in data for name, data in events if name == "turn.delta")
        assert events[-1][1]["logprobs"] is None


class TestUsage:
    async def test_tokens_are_counted_by_tier(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        first = await client.turn(session, "hello " * 30)
        assert first["usage"]["cached_tokens"] == {"hbm": 0, "dram": 0, "disk": 0, "object": 0}
        assert first["usage"]["recomputed_tokens"] == 0
        log = (await client.get(session))["tokens"]
        warm = await client.turn(session, "more")
        assert warm["usage"]["cached_tokens"]["hbm"] == (log - 1) // PAGE_TOKENS * PAGE_TOKENS
        assert warm["usage"]["recomputed_tokens"] == (log - 1) % PAGE_TOKENS
        assert 0 < warm["usage"]["ttft_seconds"] <= warm["usage"]["total_seconds"]

    async def test_after_a_restart_of_the_engine_the_tokens_come_from_disk(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        await client.turn(session, "hello " * 30)
        log = (await client.get(session))["tokens"]
        gateway.engine.flush()
        usage = (await client.turn(session, "more"))["usage"]
        assert usage["cached_tokens"] == {
            "hbm": 0,
            "dram": 0,
            "disk": (log - 1) // PAGE_TOKENS * PAGE_TOKENS,
            "object": 0,
        }

    async def test_lost_pages_count_as_recomputed(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        await client.turn(session, "hello " * 30)
        log = (await client.get(session))["tokens"]
        gateway.engine.flush()
        gateway.pages.pages.clear()
        usage = (await client.turn(session, "more"))["usage"]
        assert usage["recomputed_tokens"] == log - 1

    async def test_tenants_with_equal_prompts_share_nothing(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        await client.turn(await client.create(), "hello " * 100)
        async with await gateway.client("other") as other:
            usage = (await other.turn(await other.create(), "hello " * 100))["usage"]
        assert sum(usage["cached_tokens"].values()) == 0

    async def test_an_agent_that_is_down_fails_no_turn(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        gateway.pages.down = True
        await client.turn(session, "hello " * 30)
        assert (await client.get(session))["durable_position"] == 0
        metrics = (await client.http.get("/metrics")).text
        assert 'agentmem_node_failures_total{operation="sequence"} 1.0' in metrics
        gateway.pages.down = False
        assert (await settled(client, session))["durable_position"] > 0


@pytest.mark.parametrize("stream", [True, False])
async def test_default_max_tokens_is_cut_to_the_window(
    gateway: RunningGateway, client: Client, stream: bool
) -> None:
    session = await client.create()
    turn = await client.turn(session, "x y" * 650, max_tokens=1)
    left = 2_048 - turn["usage"]["prompt_tokens"]
    assert left < 256
    body = {"messages": [{"role": "user", "content": "x y" * 650}], "ignore_eos": True}
    other = await client.create()
    await client.http.post(f"/v1/sessions/{other}/turns", json={**body, "stream": stream})
    assert gateway.engine.calls[-1].sampling.max_tokens == left
