"""The CPU versions of SGLang's kernels against plain loops."""

from __future__ import annotations

import torch

from agentmem.engine.sglang.cpu import allocation, attention, copies

LAYERS, PAGES, PAGE, HEADS, SIZE = 3, 5, 4, 2, 8


def layer_first(tokens: int) -> list[torch.Tensor]:
    """K layers, then V layers, each (tokens, heads, size)."""
    return [torch.randn(tokens, HEADS, SIZE) for _ in range(2 * LAYERS)]


def test_backup_and_load_are_inverse_and_page_first() -> None:
    source = layer_first(PAGES * PAGE)
    host = [torch.zeros(PAGES, LAYERS, PAGE, HEADS, SIZE) for _ in range(2)]
    device_tokens = torch.randperm(PAGES * PAGE)[: 2 * PAGE]
    host_tokens = torch.arange(PAGE, 3 * PAGE)
    copies.transfer_kv_all_layer_direct_lf_pf(source, host, device_tokens, host_tokens, PAGE)
    for at, (device, slot) in enumerate(zip(device_tokens, host_tokens, strict=True)):
        for layer in range(LAYERS):
            expected = source[layer][device]
            assert torch.equal(host[0][slot // PAGE, layer, slot % PAGE], expected), (at, layer)
    target = [torch.zeros_like(part) for part in source]
    for layer in range(LAYERS):
        copies.transfer_kv_per_layer_direct_pf_lf(
            host, [target[layer], target[LAYERS + layer]], host_tokens, device_tokens, layer, PAGE
        )
    for was, now in zip(source, target, strict=True):
        assert torch.equal(was[device_tokens], now[device_tokens])


def test_layer_first_copy() -> None:
    source, target = layer_first(8), [torch.zeros(8, HEADS, SIZE) for _ in range(2 * LAYERS)]
    copies.transfer_kv_direct(source, target, torch.tensor([1, 5]), torch.tensor([7, 0]), PAGE)
    assert torch.equal(target[0][7], source[0][1])
    assert torch.equal(target[5][0], source[5][5])


def test_decode_takes_a_page_only_at_a_page_start() -> None:
    out = torch.zeros(3, dtype=torch.int64)
    allocation.alloc_decode(
        seq_lens=torch.tensor([5, 6, 9]),  # the 5th and the 9th token start a page of 4
        last_loc=torch.tensor([3, 40, 7]),
        free_pages=torch.tensor([11, 12]),
        out_indices=out,
        batch_size=4,
        page_size=4,
    )
    assert out.tolist() == [44, 41, 48]


def test_new_rows_equal_the_rows_of_the_whole() -> None:
    """With a cached prefix, each new row sees the prefix and the new rows up to itself."""
    torch.manual_seed(0)
    length, prefix, query_heads = 11, 6, 4
    k_cache, v_cache = torch.randn(32, HEADS, SIZE), torch.randn(32, HEADS, SIZE)
    slots = torch.randperm(32)[:length]
    table = torch.zeros(1, 16, dtype=torch.int64)
    table[0, :length] = slots
    query = torch.randn(length - prefix, query_heads, SIZE)
    output = torch.zeros_like(query)
    attention.extend(
        None,
        query,
        output,
        k_cache,
        v_cache,
        table,
        torch.tensor([0]),
        torch.tensor([length]),
        torch.tensor([prefix]),
        torch.tensor([length - prefix]),
        scaling=SIZE**-0.5,
        enable_gqa=True,
        causal=True,
    )
    for row in range(length - prefix):
        seen = slots[: prefix + row + 1]
        for head in range(query_heads):
            shared = head // (query_heads // HEADS)
            scores = (k_cache[seen, shared] @ query[row, head]) * SIZE**-0.5
            expected = torch.softmax(scores, 0) @ v_cache[seen, shared]
            torch.testing.assert_close(output[row, head], expected)


def attend(rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The last rows of a sequence whose cache is k, v."""
    slots = torch.arange(k.shape[0])
    return attention._attend(rows, k, v, slots, SIZE**-0.5, True)


def test_a_token_does_not_depend_on_chunks_or_on_who_computes_it() -> None:
    """What lets recomputed KV stand for the original: equal to the last bit, in bfloat16."""
    torch.manual_seed(0)
    length, query_heads = 1300, 4
    query = torch.randn(length, query_heads, SIZE).bfloat16() * 3
    k = torch.randn(length, HEADS, SIZE).bfloat16() * 3
    v = torch.randn(length, HEADS, SIZE).bfloat16()
    whole = attend(query, k, v)
    for start, end in [(0, 700), (64, 1300), (640, 1000), (1290, 1300), (511, 512), (1299, 1300)]:
        part = attend(query[start:end], k[:end], v[:end])
        assert torch.equal(part, whole[start:end]), (start, end)
