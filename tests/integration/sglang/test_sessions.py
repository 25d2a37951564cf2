"""Sessions on the real engine: isolation, page boundaries, many resumes, disconnects, faults."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from agentmem.demo.log import session_pages, the_worker
from agentmem.demo.steps import compare, flush_engine
from agentmem.demo.system import Client, System
from agentmem.engine.sglang.client import SglangEngine

from .texts import prompt, say

pytestmark = pytest.mark.sglang


def flush(system: System) -> None:
    flush_engine(SglangEngine(the_worker(system.settings).url))


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def test_equal_prompts_of_two_tenants_share_nothing(
    system: System, new_tenant: Callable[[], Client]
) -> None:
    words = prompt(1200)
    one, other = new_tenant(), new_tenant()
    first = one.turn(one.create(), words, 4)
    assert first["usage"]["prompt_tokens"] >= 2000
    again = one.turn(one.create(), words, 4)
    assert sum(again["usage"]["cached_tokens"].values()) > 1900, (
        "the first tenant's own cache works"
    )
    stranger = other.turn(other.create(), words, 4)
    assert stranger["usage"]["cached_tokens"] == {"hbm": 0, "dram": 0, "disk": 0, "object": 0}
    assert stranger["output_ids"] == first["output_ids"]


def test_resume_after_flush_loads_from_the_node_agent(system: System, client: Client) -> None:
    session = client.create()
    client.turn(session, prompt(400), 8)
    client.post(session, "hibernate")
    flush(system)
    resumed = client.post(session, "resume")
    pages = session_pages(system.settings, client.tenant_id, session)
    loaded = len(pages.keys) * pages.page_tokens
    assert resumed["cached_tokens"]["dram"] + resumed["cached_tokens"]["disk"] == loaded
    assert resumed["recomputed_tokens"] <= 64, "the tail of the log after its last full page"
    turn = client.turn(session, say("Go on."), 4)
    assert turn["usage"]["cached_tokens"]["hbm"] >= loaded


def test_log_of_a_multiple_of_the_page_size_is_durable_to_its_end(
    system: System, client: Client
) -> None:
    session = client.create()
    prompt_tokens = client.turn(session, prompt(150), 1)["usage"]["prompt_tokens"]
    client.delete(session)
    session = client.create()
    reply = 64 - prompt_tokens % 64
    turn = client.turn(session, prompt(150), reply)
    if turn["finish_reason"] != "length":
        pytest.fail("the tiny model ended its reply early: choose another prompt")
    tokens = prompt_tokens + reply
    assert tokens % 64 == 0
    answer = client.post(session, "hibernate")
    assert answer["tokens"] == tokens
    assert answer["pages"] == tokens // 64, "the last page was made by a request of no tokens"


def test_four_sessions_resume_at_once_and_whole(system: System, client: Client) -> None:
    sessions = [client.create() for _ in range(4)]
    for number, session in enumerate(sessions):
        client.turn(session, prompt(900, start=number * 700), 4)
        client.post(session, "hibernate")
    flush(system)
    with ThreadPoolExecutor(4) as pool:
        turns = list(pool.map(lambda session: client.turn(session, say("More?"), 4), sessions))
    for session, turn in zip(sessions, turns, strict=True):
        log_tokens = turn["usage"]["prompt_tokens"]
        cached = turn["usage"]["cached_tokens"]
        assert cached["dram"] + cached["disk"] > 1500, (session, turn["usage"])
        assert turn["usage"]["recomputed_tokens"] <= 64, (log_tokens, turn["usage"])


def test_disconnect_in_mid_stream_leaves_the_log_where_it_was(
    system: System, client: Client
) -> None:
    session = client.create()
    client.turn(session, prompt(100), 4)
    before = client.get(session)
    body = {"messages": say("Tell me all."), "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with client._http.stream("POST", f"/v1/sessions/{session}/turns", json=body) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("event: turn.delta"):
                break
    worker = the_worker(system.settings)
    wait_until(lambda: running(worker.url) == 0, 10, "the engine aborts the turn")
    wait_until(lambda: client.get(session)["state"] != "running", 10, "the lease is let go of")
    after = client.get(session)
    assert (after["turns"], after["tokens"]) == (before["turns"], before["tokens"])
    assert client.turn(session, say("Again."), 4)["number"] == before["turns"] + 1


def test_listens_on_loopback_only(system: System) -> None:
    listening = {
        connection.laddr.ip
        for pids in system.pids().values()
        for pid in pids
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def running(url: str) -> int:
    loads = httpx2.get(f"{url}/v1/loads", trust_env=False).json()["loads"]
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)


def test_agent_killed_under_a_running_engine_loses_nothing(system: System, client: Client) -> None:
    session = client.create()
    client.turn(session, prompt(300), 4)
    agent = system.pids()["node agent"][0]
    os.kill(agent, signal.SIGKILL)
    turn = client.turn(session, prompt(300, start=300), 4)
    assert turn["finish_reason"] in ("length", "stop"), "turns go on without the agent"
    wait_until(lambda: system.pids()["node agent"][0] != agent, 20, "the agent is started again")
    answer = client.post(session, "hibernate")
    assert answer["pages"] == (answer["tokens"] - 1) // 64
    flush(system)
    resumed = client.post(session, "resume")
    assert resumed["recomputed_tokens"] <= 64, "the tail of the log after its last full page"


def test_stopped_agent_is_a_miss_not_a_stall(system: System, client: Client) -> None:
    session = client.create()
    client.turn(session, prompt(300, start=600), 4)
    client.post(session, "hibernate")
    flush(system)
    agent = system.pids()["node agent"][0]
    os.kill(agent, signal.SIGSTOP)
    try:
        started = time.monotonic()
        turn = client.turn(session, say("Are you there?"), 4)
        seconds = time.monotonic() - started
    finally:
        os.kill(agent, signal.SIGCONT)
    assert turn["usage"]["cached_tokens"]["disk"] == 0
    assert seconds < 20, "deadlines of the plugin and of the gateway bound the wait"


def test_worker_killed_in_mid_turn_leaves_the_log_and_comes_back(
    system: System, client: Client
) -> None:
    session = client.create()
    first = client.turn(session, prompt(400), 8)
    client.post(session, "hibernate")
    scheduler = next(pid for pid in system.pids()["worker"] if "scheduler" in title(pid))
    body = {"messages": say("Tell me all."), "max_tokens": 4000, "ignore_eos": True, "stream": True}
    lines: list[str] = []
    with client._http.stream("POST", f"/v1/sessions/{session}/turns", json=body) as response:
        for line in response.iter_lines():
            lines.append(line)
            if line.startswith("event: turn.delta") and scheduler:
                os.kill(scheduler, signal.SIGKILL)
                scheduler = 0
    assert "event: error" in lines, lines[-4:]
    killed = time.monotonic()
    assert client.get(session)["turns"] == first["number"]
    with pytest.raises(Exception, match="503"):
        client.turn(session, say("Too early."), 4)
    # The gateway hears of the worker's state within half a second.
    wait_until(lambda: not ready(system), 10, "the death is known")
    wait_until(lambda: ready(system), 120, "the worker is started again")
    print(f"worker back after {time.monotonic() - killed:.0f} s")
    turn = client.turn(session, say("Again."), 4)
    assert turn["number"] == first["number"] + 1
    cached = turn["usage"]["cached_tokens"]
    assert cached["dram"] + cached["disk"] > 0
    assert turn["usage"]["recomputed_tokens"] <= 64, "the tail after the last full page"


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def ready(system: System) -> bool:
    return httpx2.get(f"{system.url}/readyz", trust_env=False).status_code == 200


def test_everything_killed_resumes_bit_exact(
    system: System, new_tenant: Callable[[], Client]
) -> None:
    control, subject = new_tenant(), new_tenant()
    script = [(prompt(500), 12), (prompt(300, start=500), 12), (say("And then?"), 12)]
    uninterrupted = control.create()
    expected = [control.turn(uninterrupted, messages, length) for messages, length in script]
    session = subject.create()
    for messages, length in script[:2]:
        subject.turn(session, messages, length)
    hibernated = subject.post(session, "hibernate")
    system.kill_everything()
    system.start()
    turn = subject.turn(session, *script[2])
    equality = compare(turn, expected[2])
    assert equality.ids_equal
    assert equality.logprob_max_abs_diff == 0.0
    assert turn["usage"]["cached_tokens"]["disk"] == hibernated["pages"] * 64, "all of it"
    assert turn["usage"]["recomputed_tokens"] <= 64, "the tail after the last full page"


def test_pages_that_only_the_engine_still_holds_are_made_again(
    system: System, client: Client
) -> None:
    """A deleted session's pages stay in HBM; SGLang would not offer them for storage again."""
    first = client.create()
    client.turn(first, prompt(300, start=200), 4)
    client.post(first, "hibernate")
    client.delete(first)
    second = client.create()
    turn = client.turn(second, prompt(300, start=200), 4)
    assert turn["usage"]["cached_tokens"]["hbm"] > 0, "the case that this test is about"
    answer = client.post(second, "hibernate")
    assert answer["pages"] == (answer["tokens"] - 1) // 64
    flush(system)
    assert client.post(second, "resume")["recomputed_tokens"] <= 64


def test_a_seed_makes_sampling_repeatable_and_its_absence_does_not(client: Client) -> None:
    def sample(**options: object) -> list[int]:
        body = {"messages": prompt(50), "max_tokens": 16, "ignore_eos": True, **options}
        path = f"/v1/sessions/{client.create()}/turns"
        return list(client._call("POST", path, body)["output_ids"])

    assert sample(seed=7) == sample(seed=7)
    assert sample(seed=7, top_p=0.9) == sample(seed=7, top_p=0.9)
    assert sample(seed=7) != sample(seed=8)
    assert sample() != sample()
