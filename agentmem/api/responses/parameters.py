"""The parameters of Responses and Conversations."""

from __future__ import annotations

from agentmem.api.surfaces import Parameter, Surface
from agentmem.api.surfaces import implemented as _yes
from agentmem.api.surfaces import refused as _no

NO_BACKGROUND = "Responses do not run in the background: stream them, and take the stream up again."
NO_IMAGES = "Images are not supported: send text."
NO_TIER = "There is one service tier: send 'auto' or 'default'."
NO_INCLUDE = "Stored items have nothing that could be included besides: leave it out."
_NOT_NEEDED = "not needed: pages are found by what they hold; kept with the response"
_OPTIONS = (
    "`ttl` chooses the retention class; `mode` is taken either way, since all of a prompt is kept; "
    "`comparison_response_id` is what the diagnostics compare with"
)
_LEGACY = "in_memory: ephemeral, 24h: persistent"
_TIERS = ("auto", "default")


def _tier() -> Parameter:
    return _no("service_tier", NO_TIER, *_TIERS)


RESPONSES_CREATE = Surface(
    "responses.create",
    "POST /v1/responses",
    (
        _no("access_programs", "There are no access programs."),
        _no("background", NO_BACKGROUND, False),
        _no("background_options", NO_BACKGROUND),
        _no("context_management", "Compaction is a call of its own: POST /v1/responses/compact."),
        _yes("conversation", "an id or {id}; not together with `previous_response_id`"),
        _no("image", NO_IMAGES),
        _yes("include", "reasoning.encrypted_content, message.output_text.logprobs; others are "
             "refused"),
        _yes("input", "text; images, files, audio and items of hosted tools are refused"),
        _yes("instructions", "hold for this response only"),
        _yes("max_output_tokens"),
        _yes("max_tool_calls", "limits hosted tools, of which there are none; shown again"),
        _yes("metadata", "kept with the response, and shown"),
        _yes("model", "a served model or an alias; may be left out where one is served or where a "
             "response or conversation is continued"),
        _no("moderation", "Moderation is not supported."),
        _yes("parallel_tool_calls"),
        _yes("previous_response_id"),
        _no("prompt", "Stored prompts are not supported: send input and instructions."),
        _yes("prompt_cache_key", _NOT_NEEDED),
        _yes("prompt_cache_options", _OPTIONS + "; `prewarm` is refused"),
        _yes("prompt_cache_retention", _LEGACY),
        _yes("reasoning", "`effort` is given to the model's template; summaries, `context` and "
             "`mode` other than the default are refused: thinking is shown as it is"),
        _yes("safety_identifier", "kept with the response"),
        _tier(),
        _yes("store", "true by default"),
        _yes("stream"),
        _yes("stream_options", "include_obfuscation (false by default)"),
        _yes("temperature"),
        _yes("text", "`format`: text, json_object, json_schema; `verbosity` other than medium is "
             "refused"),
        _yes("tool_choice", "none, auto, required, a function, allowed_tools"),
        _yes("tools", "functions; custom and hosted tools are refused"),
        _yes("top_logprobs", "with `include` message.output_text.logprobs"),
        _yes("top_p"),
        _yes("truncation", "auto drops the oldest exchanges after the stable beginning"),
        _yes("user", "kept with the response"),
    ),
    (
        _yes("context", "id of a context to begin with"),
        _yes("retention", "ephemeral, standard, persistent or archive"),
        _yes("top_k"),
        _yes("seed"),
        _yes("stop", "up to 16"),
        _yes("ignore_eos", "goes on to `max_output_tokens` whatever is sampled"),
        _yes("presence_penalty"),
        _yes("frequency_penalty"),
    ),
)  # fmt: skip
RESPONSES_RETRIEVE = Surface(
    "responses.retrieve",
    "GET /v1/responses/{id}",
    (
        _yes("response_id"),
        _yes("include", "as for create"),
        _yes("include_obfuscation", "of a stream"),
        _yes("starting_after", "of a stream: the events after this sequence number"),
        _yes("stream"),
    ),
)
RESPONSES_DELETE = Surface("responses.delete", "DELETE /v1/responses/{id}", (_yes("response_id"),))
RESPONSES_CANCEL = Surface(
    "responses.cancel",
    "POST /v1/responses/{id}/cancel",
    (_yes("response_id", "of a response that runs; one that is over is a 400"),),
)
RESPONSES_COMPACT = Surface(
    "responses.compact",
    "POST /v1/responses/compact",
    (
        _yes("model"),
        _no("image", NO_IMAGES),
        _yes("input"),
        _yes("instructions", "of the conversation that is compacted"),
        _yes("previous_response_id"),
        _yes("prompt_cache_key", "nothing of the summary's own turn is kept"),
        _yes("prompt_cache_options", "taken as for create; nothing of the summary's turn is kept"),
        _yes("prompt_cache_retention", "taken as for create; the same holds"),
        _tier(),
    ),
)
RESPONSES_INPUT_ITEMS = Surface(
    "responses.input_items.list",
    "GET /v1/responses/{id}/input_items",
    (
        _yes("response_id"),
        _yes("after"),
        _no("include", NO_INCLUDE),
        _yes("limit"),
        _yes("order", "desc by default"),
    ),
)
RESPONSES_INPUT_TOKENS = Surface(
    "responses.input_tokens.count",
    "POST /v1/responses/input_tokens",
    (
        _yes("conversation"),
        _yes("input"),
        _yes("instructions"),
        _yes("model"),
        _yes("parallel_tool_calls"),
        _no("personality", "Personalities are not supported: say it in the instructions."),
        _yes("previous_response_id"),
        _yes("reasoning", "as for create"),
        _yes("text", "as for create"),
        _yes("tool_choice"),
        _yes("tools"),
        _yes("truncation", "counted is what there is before anything is dropped"),
    ),
)
_NO_SOCKETS = "WebSockets are not supported: use POST /v1/responses with stream."
RESPONSES_CONNECT = Surface("responses.connect", "WS /v1/responses", (_no("model", _NO_SOCKETS),))
CONVERSATIONS_CREATE = Surface(
    "conversations.create",
    "POST /v1/conversations",
    (_yes("items", "up to 20"), _yes("metadata")),
    (_yes("retention", "ephemeral, standard, persistent or archive"),),
)
CONVERSATIONS_RETRIEVE = Surface(
    "conversations.retrieve", "GET /v1/conversations/{id}", (_yes("conversation_id"),)
)
CONVERSATIONS_UPDATE = Surface(
    "conversations.update",
    "POST /v1/conversations/{id}",
    (_yes("conversation_id"), _yes("metadata", "replaces all of it")),
)
CONVERSATIONS_DELETE = Surface(
    "conversations.delete",
    "DELETE /v1/conversations/{id}",
    (_yes("conversation_id", "its items, responses, log and KV are deleted, too"),),
)
_INCLUDE = _no("include", NO_INCLUDE)
ITEMS_CREATE = Surface(
    "conversations.items.create",
    "POST /v1/conversations/{id}/items",
    (_yes("conversation_id"), _yes("items", "up to 20"), _INCLUDE),
)
ITEMS_LIST = Surface(
    "conversations.items.list",
    "GET /v1/conversations/{id}/items",
    (
        _yes("conversation_id"),
        _yes("after"),
        _INCLUDE,
        _yes("limit"),
        _yes("order", "desc by default"),
    ),
)
ITEMS_RETRIEVE = Surface(
    "conversations.items.retrieve",
    "GET /v1/conversations/{id}/items/{item_id}",
    (_yes("conversation_id"), _yes("item_id"), _INCLUDE),
)
ITEMS_DELETE = Surface(
    "conversations.items.delete",
    "DELETE /v1/conversations/{id}/items/{item_id}",
    (_yes("conversation_id"), _yes("item_id")),
)

RESPONSES_SURFACES = (
    RESPONSES_CREATE,
    RESPONSES_RETRIEVE,
    RESPONSES_DELETE,
    RESPONSES_CANCEL,
    RESPONSES_COMPACT,
    RESPONSES_INPUT_ITEMS,
    RESPONSES_INPUT_TOKENS,
)
CONVERSATIONS_SURFACES = (
    CONVERSATIONS_CREATE,
    CONVERSATIONS_RETRIEVE,
    CONVERSATIONS_UPDATE,
    CONVERSATIONS_DELETE,
    ITEMS_CREATE,
    ITEMS_LIST,
    ITEMS_RETRIEVE,
    ITEMS_DELETE,
)
