"""The demo: start, talk, hibernate, kill everything, resume, fork, corrupt, delete; then report."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from agentmem.config import Settings
from agentmem.demo import log, steps
from agentmem.demo.report import readable, verdict
from agentmem.demo.steps import Conversation
from agentmem.demo.system import Client, System
from agentmem.engine.sglang.client import SglangEngine
from agentmem.engine.sglang.launch import cuda_is_there
from agentmem.engine.sglang.model.smollm2 import ensure_smollm2
from agentmem.engine.sglang.version import SGLANG_VERSION

Say = Callable[[str], None]


def run_demo(
    *, as_json: bool, model: str | None, keep: bool, tier: Literal["disk", "object"] = "disk"
) -> int:
    """Runs the demo in a temporary directory. Returns 0 only if every claim held.

    With `as_json` one JSON object goes to stdout and progress to stderr. `tier` "object": the
    session hibernates into an object store (a directory), and everything on the host is lost.
    """
    output = sys.stderr if as_json else sys.stdout

    def say(text: str) -> None:
        print(text, file=output, flush=True)

    started = time.monotonic()
    path = Path(model) if model else ensure_smollm2(Settings().models_dir, say)
    directory = Path(tempfile.mkdtemp(prefix="agentmem-demo-"))
    object_url = f"file://{directory / 'object-store'}" if tier == "object" else ""
    system = System.below(directory, path, say, object_url=object_url)
    try:
        result = Demo(system, say, tier).run()
    finally:
        system.stop()
        if keep:
            say(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    result["seconds"] = round(time.monotonic() - started, 1)
    failures = verdict(result)
    result = {"ok": not failures, **result}
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        say(readable(result, failures))
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


class Demo:
    """The run, step by step; `run` returns the report."""

    def __init__(self, system: System, say: Say, tier: Literal["disk", "object"] = "disk") -> None:
        self._system = system
        self._tier = tier
        self._say = say
        self._script = steps.write_script()
        self._result: dict[str, Any] = {"tier": tier}

    def run(self) -> dict[str, Any]:
        """All steps in order."""
        script = self._script
        control, subject = self._tenant("control"), self._tenant("subject")
        self._start()
        self._say("A control session, never interrupted:")
        control_run = Conversation.begin(control, script)
        control_run.run_until(len(script.turns), self._say)
        self._say("The session that will be interrupted, under a tenant of its own:")
        run = Conversation.begin(subject, script)
        run.run_until(script.before_kill, self._say)
        self._hibernate(subject, run, control_run)
        self._kill()
        self._start()
        self._warm_up()
        self._resume(run, control_run)
        self._cold(control_run)
        fork = self._fork(subject, run)
        self._corrupt(subject, run, control_run)
        self._delete(subject, run, fork)
        return self._result

    def _tenant(self, name: str) -> Client:
        return self._system.tenant(name)

    def _start(self) -> None:
        self._say("Starting gateway, node agent and SGLang …")
        seconds = self._system.start()
        self._say(f"  ready after {seconds:.0f} s")
        worker = log.the_worker(self._system.settings)
        self._result["engine"] = {
            "name": "sglang",
            "version": SGLANG_VERSION,
            "device": "cuda" if cuda_is_there() else "cpu",
            "model": worker.model,
        }

    def _hibernate(self, client: Client, run: Conversation, control: Conversation) -> None:
        before = [
            steps.compare(ours, theirs)
            for ours, theirs in zip(run.answers, control.answers, strict=False)
        ]
        if not all(equality.ids_equal for equality in before):
            raise AssertionError("two sessions with equal input differ before any interruption")
        answer = client.post(run.session, "hibernate", {"tier": self._tier})
        self._say(
            f"Hibernated: {answer['pages']} pages, {answer['bytes'] / 1e6:.1f} MB durable "
            f"({self._tier}) after {answer['seconds']:.2f} s"
        )
        self._result["session"] = {
            "tokens": answer["tokens"],
            "turns": len(run.answers),
            "pages": answer["pages"],
            "bytes": answer["bytes"],
        }

    def _kill(self) -> None:
        killed = self._system.kill_everything()
        if self._tier == "object":
            killed += self._system.lose_disk()
        self._result["killed"] = killed
        self._say(f"Killed with SIGKILL, all at once: {', '.join(self._result['killed'])}")

    def _warm_up(self) -> None:
        """Text of another tenant, so that neither figure below pays for first uses in torch."""
        warm = self._tenant("warm-up")
        session = warm.create()
        for messages in (self._script.turns[0], self._script.turns[-1]):
            warm.turn(session, messages, 2)

    def _resume(self, run: Conversation, control: Conversation) -> None:
        system, script = self._system, self._script
        pages = log.session_pages(system.settings, *self._ids(run))
        where = steps.tier_counts(system, pages.keys)
        self._say(f"The session's pages now: {where}")
        # Pages of the next turn that only the control run has computed: if this tenant had
        # them, the equality below would prove nothing.
        theirs = log.session_pages(system.settings, *self._ids(control))
        worker = log.the_worker(system.settings)
        ahead = log.keys_of(system.settings, worker, self._ids(run)[0], theirs.token_ids)
        # A log that ends on a page's edge has its last page, too: hibernating made it.
        new = ahead[len(pages.token_ids) // pages.page_tokens :]
        absent = sum(steps.tier_counts(system, new).values()) == 0 and len(new) > 0
        turn = script.before_kill
        answer = run.next_turn()
        equality = steps.compare(answer, control.answers[turn])
        usage = answer["usage"]
        log_tokens = len(pages.token_ids)
        self._result["control"] = {
            "output_ids_equal": equality.ids_equal,
            "logprob_max_abs_diff": equality.logprob_max_abs_diff,
            "next_pages": len(new),
            "next_pages_absent_before": absent,
        }
        self._result["resume"] = {
            "ttft_seconds": usage["ttft_seconds"],
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": usage["cached_tokens"],
            "recomputed_tokens": usage["recomputed_tokens"],
            "new_tokens": usage["prompt_tokens"] - log_tokens,
            "page_tokens": pages.page_tokens,
            "pages_before": where,
        }
        self._say(
            f"Resumed: first token after {usage['ttft_seconds']:.3f} s, "
            f"{usage['cached_tokens']} of {usage['prompt_tokens']} tokens"
        )

    def _cold(self, control: Conversation) -> None:
        turn = self._script.before_kill
        system = self._system
        theirs = log.session_pages(system.settings, *self._ids(control))
        prompt = theirs.token_ids[: control.answers[turn]["usage"]["prompt_tokens"]]
        self._say("The same prompt, cold, under a salt of its own on the same worker:")
        url = log.the_worker(system.settings).url
        answer = steps.cold_turn(SglangEngine(url), prompt, self._script.tokens[turn])
        equality = steps.compare(answer, control.answers[turn])
        self._result["cold"] = {
            "ttft_seconds": answer["ttft_seconds"],
            "prompt_tokens": len(prompt),
            "cached_tokens": answer["cached_tokens"],
            "output_ids_equal": equality.ids_equal,
            "logprob_max_abs_diff": equality.logprob_max_abs_diff,
        }
        resumed = self._result["resume"]["ttft_seconds"]
        self._result["resume_vs_cold_ttft"] = round(resumed / answer["ttft_seconds"], 4)
        self._say(f"  first token after {answer['ttft_seconds']:.2f} s")

    def _fork(self, client: Client, run: Conversation) -> str:
        system = self._system
        tenant, session = self._ids(run)
        client.post(session, "hibernate")
        before = log.session_pages(system.settings, tenant, session)
        stored = steps.stored_bytes(system, before)
        fork = str(client.post(session, "fork")["id"])
        ours = log.session_pages(system.settings, tenant, fork)
        both = replace(before, keys=tuple({*before.keys, *ours.keys}))
        copied = steps.stored_bytes(system, both) - stored
        client.turn(fork, [{"role": "user", "content": "Answer in French, please."}], 8)
        after = log.session_pages(system.settings, tenant, session)
        self._result["fork"] = {
            "shared_pages": len(set(before.keys) & set(ours.keys)),
            "copied_bytes": copied,
            "parent_unchanged": before.token_ids == after.token_ids,
        }
        self._say(f"Forked: {self._result['fork']}")
        return fork

    def _corrupt(self, client: Client, run: Conversation, control: Conversation) -> None:
        system = self._system
        tenant, session = self._ids(run)
        client.post(session, "hibernate")
        pages = log.session_pages(system.settings, tenant, session)
        prefill = pages.first_prompt_tokens // pages.page_tokens
        indexes = steps.corrupt_pages(system, pages, prefill)
        steps.flush_engine(SglangEngine(log.the_worker(system.settings).url))
        corrupted = [pages.keys[index] for index in indexes]
        sequence = system.nodes.loads().seq
        resumed = client.post(session, "resume")
        answer = run.next_turn()
        equality = steps.compare(answer, control.answers[len(run.answers) - 1])
        self._result["corruption"] = {
            "pages_corrupted": len(indexes),
            "corrupt_pages_served": steps.pages_loaded(system, corrupted, sequence),
            "corrupt_pages_found": steps.corrupt_pages_found(system),
            "output_ids_equal": equality.ids_equal,
            "logprob_max_abs_diff": equality.logprob_max_abs_diff,
            "resumed": {key: resumed[key] for key in ("cached_tokens", "recomputed_tokens")},
        }
        self._say(f"Corrupted pages {indexes} on disk: {self._result['corruption']}")

    def _delete(self, client: Client, run: Conversation, fork: str) -> None:
        system = self._system
        tenant, session = self._ids(run)
        client.delete(fork)
        pages = log.session_pages(system.settings, tenant, session)
        steps.wait_until_stored(system, pages.keys)
        before = steps.stored_bytes(system, pages)
        client.delete(session)
        self._result["delete"] = {
            "bytes_before": before,
            "bytes_after": steps.stored_bytes(system, pages),
        }
        self._say(f"Deleted: {self._result['delete']}")

    def _ids(self, run: Conversation) -> tuple[str, str]:
        return run.client.tenant_id, run.session
