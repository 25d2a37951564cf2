"""The one version of SGLang that agentmem is made for; see docs/sglang.md."""

SGLANG_VERSION = "0.5.20"
