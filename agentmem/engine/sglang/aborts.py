"""A request that SGLang refuses ends alone: with `top_logprobs` it would end the whole server.

SGLang aborts a request whose schema it cannot compile, or whose grammar took too long, before it
has computed anything. Where such a request asked for alternatives, SGLang 0.5.20 looks for lists
that nobody made (`TokenizerManager.convert_logprob_style`), and its main process ends itself: any
client could stop the engine with one bad schema.
"""

from __future__ import annotations

from typing import Any

_CONVERT = "sglang.srt.managers.tokenizer_manager.TokenizerManager.convert_logprob_style"
# What it would look into, and the argument that makes it do so.
_LISTS = ("input_top_logprobs_val", "output_top_logprobs_val")
_TOP_POSITION = 3
_ANSWER_POSITION = 6


def without_missing_alternatives(
    *args: Any, **kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before `convert_logprob_style(self, meta_info, state, top_logprobs_num, token_ids_logprob,
    return_text_in_logprobs, recv_obj, ...)`: asks for no alternatives where there are none."""
    answer = args[_ANSWER_POSITION] if len(args) > _ANSWER_POSITION else kwargs["recv_obj"]
    if all(getattr(answer, name) is not None for name in _LISTS):
        return args, kwargs
    if len(args) > _TOP_POSITION:
        return (*args[:_TOP_POSITION], 0, *args[_TOP_POSITION + 1 :]), kwargs
    return args, {**kwargs, "top_logprobs_num": 0}


def install() -> None:
    """Registers the hook."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_CONVERT, without_missing_alternatives, HookType.BEFORE)
