"""Prompts for the real engine."""

from __future__ import annotations

from agentmem.demo.corpus import documentation

Messages = list[dict[str, str]]


def prompt(words: int, start: int = 0) -> Messages:
    """One user message of so many words of real text."""
    text = documentation().split(" ")[start : start + words]
    assert len(text) == words, "the documentation is too short for this test"
    return [{"role": "user", "content": " ".join(text)}]


def say(text: str) -> Messages:
    """One short user message."""
    return [{"role": "user", "content": text}]
