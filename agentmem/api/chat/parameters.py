"""The parameters of Chat Completions."""

from __future__ import annotations

from agentmem.api.surfaces import Surface
from agentmem.api.surfaces import implemented as _yes
from agentmem.api.surfaces import refused as _no

CHAT = Surface(
    "chat.completions.create",
    "POST /v1/chat/completions",
    (
        _yes("messages", "text; content of type image_url, input_audio or file is refused"),
        _yes("model", "a served model or an alias; may be left out where one is served"),
        _no("audio", "Audio is not supported: send text."),
        _yes("frequency_penalty"),
        _yes("function_call", "as `tool_choice` with `functions`; answered as `function_call`"),
        _yes("functions", "as `tools`; not together with them"),
        _yes("logit_bias", "up to 1,024 token ids"),
        _yes("logprobs"),
        _yes("max_completion_tokens"),
        _yes("max_tokens", "the same as `max_completion_tokens`"),
        _yes("metadata", "kept with a stored completion, and shown"),
        _no("modalities", "Only text can be answered: send ['text'] or nothing.", ["text"]),
        _no("moderation", "Moderation is not supported."),
        _yes("n", "1 to 8; choice i is sampled with seed + i where there is a seed"),
        _yes("parallel_tool_calls"),
        _no("prediction", "Predicted outputs are not supported."),
        _yes("presence_penalty"),
        _yes("prompt_cache_key", "not needed: pages are found by what they hold; kept with a "
             "stored completion"),
        _yes("prompt_cache_options", "`ttl` chooses the retention class; `mode` is taken either "
             "way, since all of a prompt is kept"),
        _yes("prompt_cache_retention", "in_memory: ephemeral, 24h: persistent"),
        _yes("reasoning_effort", "given to the model's template"),
        _yes("response_format", "text, json_object, json_schema"),
        _yes("safety_identifier", "kept with a stored completion"),
        _yes("seed"),
        _no("service_tier", "There is one service tier: send 'auto' or 'default'.",
            "auto", "default"),
        _yes("stop", "up to 16"),
        _yes("store", "see docs/api.md: what is kept"),
        _yes("stream"),
        _yes("stream_options", "include_usage, include_obfuscation"),
        _yes("temperature"),
        _yes("tool_choice", "none, auto, required, a function, allowed_tools"),
        _yes("tools", "functions; custom tools are refused"),
        _yes("top_logprobs", "with `logprobs`"),
        _yes("top_p"),
        _yes("user", "kept with a stored completion"),
        _no("verbosity", "Verbosity is not supported: send 'medium' or nothing.", "medium"),
        _no("web_search_options", "Hosted tools are not supported: bring your own as functions."),
    ),
    (
        _yes("top_k", "samples from so many of the likeliest tokens"),
        _yes("ignore_eos", "goes on to `max_tokens` whatever is sampled"),
        _yes("context", "id of a context to begin with"),
        _yes("retention", "ephemeral, standard, persistent or archive"),
    ),
)  # fmt: skip
CHAT_RETRIEVE = Surface(
    "chat.completions.retrieve", "GET /v1/chat/completions/{id}", (_yes("completion_id"),)
)
CHAT_DELETE = Surface(
    "chat.completions.delete", "DELETE /v1/chat/completions/{id}", (_yes("completion_id"),)
)
CHAT_MESSAGES = Surface(
    "chat.completions.messages.list",
    "GET /v1/chat/completions/{id}/messages",
    (_yes("completion_id"), _yes("after"), _yes("limit"), _yes("order")),
)
_NO_LIST = "Listing stored completions is not supported: keep their ids."
CHAT_LIST = Surface(
    "chat.completions.list",
    "GET /v1/chat/completions",
    tuple(_no(name, _NO_LIST) for name in ("after", "limit", "metadata", "model", "order")),
)
_NO_UPDATE = "A stored completion cannot be changed."
CHAT_UPDATE = Surface(
    "chat.completions.update",
    "POST /v1/chat/completions/{id}",
    (_no("completion_id", _NO_UPDATE), _no("metadata", _NO_UPDATE)),
)

CHAT_SURFACES = (CHAT, CHAT_RETRIEVE, CHAT_DELETE, CHAT_MESSAGES, CHAT_LIST, CHAT_UPDATE)
