"""Turns a GGUF file into a Hugging Face directory. A script of its own: it needs torch.

Usage: python -P convert_gguf.py FILE.gguf DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(gguf: Path, directory: Path) -> None:
    """Writes safetensors in bfloat16, config, tokenizer and chat template."""
    import torch
    from tokenizers import decoders
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The result must be the same on every machine.
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    print("reading the GGUF file and expanding its 4-bit weights", flush=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # What the GGUF says of special tokens disagrees with its model: `<|im_start|>` as the end of
    # a text, no padding. Follow the model, whose end of text is `<|im_end|>`.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = model.config.max_position_embeddings
    # transformers makes a decoder for several kinds of GGUF at once. This one's vocabulary is
    # byte-level: grammars go by what the decoder says (xgrammar would take no token for a blank).
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.backend_tokenizer.model.byte_fallback = False
    # Decoding must give back what was encoded.
    tokenizer.clean_up_tokenization_spaces = False
    print("writing weights and tokenizer", flush=True)
    model.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
