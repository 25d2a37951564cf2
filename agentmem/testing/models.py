"""A tiny tokenizer with a chat template, made on the fly and without torch."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 1_024
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
EOS_TOKEN = "<|im_end|>"  # noqa: S105 - a token of text, not a secret
TURN_TOKEN = "<|im_start|>"  # noqa: S105 - a token of text, not a secret
FIRST_TEXT_ID = len(SPECIAL_TOKENS)
# Before it come the 256 single bytes: half a character has no text to show yet.
FIRST_WORD_ID = FIRST_TEXT_ID + 256

# As SmolLM2's: a conversation without a system message gets a default one, so that rendering new
# messages alone would insert it again in the middle.
DEFAULT_SYSTEM_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Trims what the assistant said, so that a reply with spaces around it re-bases the log.
TRIMMING_TEMPLATE = DEFAULT_SYSTEM_TEMPLATE.replace(
    "message['content'] +", "message['content'] | trim +"
)

# Knows tools itself, in Hermes' format, as Qwen's templates do; thinking is dropped from history.
TOOLS_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ '# Tools\n<tools>' }}{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif not (tools and loop.first and message.role == 'system') %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "{% if message.content or not loop.first %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \''
    " + (call.function.arguments | tojson) + '}\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The same, keeping what was thought in history, and with a switch: `enable_thinking` false begins
# the reply with thoughts that are over already, as Qwen3's does.
THINKING_TEMPLATE = TOOLS_TEMPLATE.replace(
    "{{ '<|im_start|>' + message.role + '\n' + message.content }}",
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.reasoning_content %}"
    "{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}"
    "{{ message.content }}",
).replace(
    "{{ '<|im_start|>assistant\n' }}",
    "{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}",
)

_TEXT = """
A session keeps the tokens of a conversation, and the pages that were computed from them. The agent
comes back after an hour, a day or a month, and goes on where it was: what it said and what it was
told is still there, word for word. Pages lie in the memory of the device, in the memory of the
host, on a disk or in an object store. Losing one costs time and never data, since every page can be
computed again from the tokens. The quick brown fox jumps over the lazy dog, 0123456789 times.
"""


def write_tokenizer(folder: Path, *, template: str = DEFAULT_SYSTEM_TEMPLATE) -> Path:
    """Writes `tokenizer.json` and `tokenizer_config.json` into `folder`; the same bytes each time.

    Byte-level BPE, so that every text has ids and broken UTF-8 can be sampled.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT.split("\n"), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<s>",
        "eos_token": EOS_TOKEN,
        "pad_token": "<pad>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder
