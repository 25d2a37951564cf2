"""Row of a real engine: what storing costs the turns that run meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentmem.bench.engines import Server, model_options, random_prompt
from agentmem.bench.report import Goal, Moved, Row, ratio_row
from agentmem.bench.store_system import BenchFailed, claim, running_node, wait_durable

ROWS = {"store_cost": Goal("tokens/s", 0.97)}
_PROMPT_TOKENS = 3000
_REPLY_TOKENS = 64


def run_engine(directory: Path, wanted: Sequence[str], rounds: int, model: str = "") -> list[Row]:
    """The row `store_cost`: a reply while its prompt's pages are stored, and one while nothing is.

    Both follow the same prompt: the first time it is computed, and its pages go to dram and disk
    as the reply begins; the second time it is in HBM. `model` empty: SmolLM2-135M.
    """
    assert list(wanted) == ["store_cost"], "there is no other row here"
    with running_node(directory / "cost", model=model) as node:
        options, vocabulary = model_options(node.settings)
        server = Server(
            options, directory / "cost-engine", "agentmem", file_dir=directory / "unused"
        )
        try:
            server.start()
            storing, idle, pages = [], [], 0
            for number in range(-1, rounds):
                tokens = _PROMPT_TOKENS if number >= 0 else _PROMPT_TOKENS // 10
                prompt = random_prompt(100 + number, tokens, vocabulary)
                keys = server.keys(prompt)
                claim(node, f"cost {number}", keys)
                busy = server.decode_rate(prompt, _REPLY_TOKENS)
                wait_durable(node, keys)
                if not all(one.durable for one in node.client.residency(keys)):
                    raise BenchFailed("pages of the prompt were not stored")
                free = server.decode_rate(prompt, _REPLY_TOKENS)
                if number >= 0:
                    storing.append(busy)
                    idle.append(free)
                    pages = len(keys)
        finally:
            server.kill()
    page_bytes = options.page_tokens * options.kv_bytes_per_token
    detail = (
        f"replies of {_REPLY_TOKENS} tokens of {options.model_name} to prompts of "
        f"{_PROMPT_TOKENS}, whose {pages} pages are stored and written to disk as the reply "
        "begins; beside it the same prompt again, from HBM, with nothing to store"
    )
    moved = Moved(pages * page_bytes, page_bytes=page_bytes)
    return [ratio_row("store_cost", storing, idle, ROWS["store_cost"], detail=detail, moved=moved)]
