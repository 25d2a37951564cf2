"""What the demo claims, checked; and its report for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Pages that decoding had made and a prefill made again: see docs/sglang.md, "Exactness".
LOGPROB_TOLERANCE = 0.1
RATIO_TARGET = 0.06
_TOKENS_MIN = 4000
_TURNS_MIN = 3
_CORRUPTED_MIN = 3


def verdict(result: dict[str, Any]) -> list[str]:
    """The claims that did not hold, as sentences. The speed target is a figure, not a claim."""
    return [claim for holds, claim in _claims(result) if not holds]


def _claims(result: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    session, control, resume = result["session"], result["control"], result["resume"]
    fork, corruption, delete = result["fork"], result["corruption"], result["delete"]
    yield session["tokens"] >= _TOKENS_MIN, "the session has at least 4,000 tokens"
    yield session["turns"] >= _TURNS_MIN, "the session has at least 3 turns"
    yield control["next_pages_absent_before"], "pages of the next turn were absent before it"
    yield control["output_ids_equal"], "the resumed turn's ids equal the uninterrupted one's"
    yield control["logprob_max_abs_diff"] == 0.0, "log-probabilities equal, difference 0.0"
    tier = result["tier"]
    yield resume["cached_tokens"][tier] > 0, f"the resumed pages came from {tier}"
    allowed = resume["page_tokens"]
    yield (
        resume["recomputed_tokens"] <= allowed,
        f"at most one page ({allowed} tokens) of the log was recomputed",
    )
    yield sum(result["cold"]["cached_tokens"].values()) == 0, "the cold prompt was cold"
    yield (
        result["cold"]["prompt_tokens"] == resume["prompt_tokens"],
        "the cold prompt is as long as the resumed one",
    )
    yield fork["shared_pages"] > 0, "the fork shares pages with its parent"
    yield fork["copied_bytes"] == 0, "forking copied nothing"
    yield fork["parent_unchanged"], "the fork left its parent unchanged"
    yield corruption["pages_corrupted"] >= _CORRUPTED_MIN, "at least 3 pages were corrupted"
    yield corruption["corrupt_pages_found"] > 0, "a corrupt page was found"
    yield corruption["corrupt_pages_served"] == 0, "no corrupt page was served"
    yield corruption["output_ids_equal"], "after corruption the ids equal the control's"
    yield (
        corruption["logprob_max_abs_diff"] <= LOGPROB_TOLERANCE,
        f"after corruption log-probabilities differ by at most {LOGPROB_TOLERANCE}",
    )
    yield delete["bytes_before"] > 0, "before the deletion the session's pages were stored"
    yield delete["bytes_after"] == 0, "after the deletion none of its pages was stored"


def readable(result: dict[str, Any], failures: list[str]) -> str:
    """The report for people."""
    engine, session, resume = result["engine"], result["session"], result["resume"]
    control, fork = result["control"], result["fork"]
    corruption, delete = result["corruption"], result["delete"]
    ratio = result["resume_vs_cold_ttft"]
    met = "met" if ratio <= RATIO_TARGET else "missed"
    cached = [f"{count:,} from {tier}" for tier, count in resume["cached_tokens"].items() if count]
    sources = ", ".join([*cached, f"{resume['recomputed_tokens']} recomputed"])
    lines = [
        "",
        f"agentmem demo: {engine['model']} on SGLang {engine['version']} ({engine['device']}), "
        f"{result['seconds']:.0f} s",
        "",
        f"  session      {session['tokens']:,} tokens in {session['turns']} turns, "
        f"{session['pages']} pages, {session['bytes'] / 1e6:.1f} MB",
        f"  killed       {', '.join(result['killed'])}",
        "",
        "  first token of the next turn",
        f"    computed   {result['cold']['ttft_seconds']:8.3f} s",
        f"    resumed    {resume['ttft_seconds']:8.3f} s   {sources}",
        f"    ratio      {ratio:8.4f}     target {RATIO_TARGET}: {met}",
        "",
        f"  same as never interrupted: ids {control['output_ids_equal']}, "
        f"log-probability difference {control['logprob_max_abs_diff']}",
        f"  fork         {fork['shared_pages']} pages shared, {fork['copied_bytes']} bytes copied",
        f"  corruption   {corruption['pages_corrupted']} pages corrupted, "
        f"{corruption['corrupt_pages_served']} served",
        f"  deletion     {delete['bytes_before']:,} bytes before, {delete['bytes_after']} after",
        "",
    ]
    if not failures:
        return "\n".join([*lines, "Every claim held."])
    claims = [f"  - {failure}" for failure in failures]
    return "\n".join([*lines, f"{len(failures)} claims did not hold:", *claims])
