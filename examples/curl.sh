#!/usr/bin/env bash
# The API with curl. Run it with AGENTMEM_API_KEY set (and AGENTMEM_URL, where it is not
# http://127.0.0.1:8700). It needs jq.
set -euo pipefail
URL=${AGENTMEM_URL:-http://127.0.0.1:8700}

call() { # METHOD PATH [BODY]
    curl --silent --show-error --fail-with-body --request "$1" "$URL/v1/$2" \
        --header "Authorization: Bearer $AGENTMEM_API_KEY" \
        --header 'Content-Type: application/json' ${3:+--data "$3"}
}

# What is served; OpenAI's names, such as gpt-4.1, are aliases of the default model.
call GET models | jq -r '.data[].id'

# Responses: the second one goes on from the first, and sends only what is new.
first=$(call POST responses '{"model": "gpt-4.1", "input": "Who wrote Faust?", "max_output_tokens": 40}')
second=$(call POST responses "$(jq -n --arg id "$(jq -r .id <<<"$first")" \
    '{model: "gpt-4.1", input: "When?", previous_response_id: $id, max_output_tokens: 40}')")
jq -r '"responses: \(.usage.input_tokens) tokens, \(.usage.input_tokens_details.cached_tokens) from the cache"' \
    <<<"$second"

# A conversation: named state.
talk=$(call POST conversations '{"metadata": {"topic": "books"}}' | jq -r .id)
call POST responses "$(jq -n --arg id "$talk" \
    '{model: "gpt-4.1", input: "Who wrote Faust?", conversation: $id, max_output_tokens: 40}')" >/dev/null
call GET "conversations/$talk/items?order=asc" | jq -r '.data[] | "\(.role): \(.content[0].text)"'

# Deleting deletes: text, token log and KV.
call DELETE "conversations/$talk" | jq -r '"deleted: \(.deleted)"'

# A stream, as it comes.
call POST responses '{"model": "gpt-4.1", "input": "And now?", "max_output_tokens": 16, "stream": true}'
