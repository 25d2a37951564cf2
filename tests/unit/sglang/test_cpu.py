"""The CPU versions of SGLang's kernels against plain loops."""

from __future__ import annotations

import torch

from agentmem.engine.sglang.cpu import allocation, attention, copies, linear

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


def test_a_token_does_not_depend_on_chunks_or_on_who_computes_it() -> None:
    """What lets recomputed KV stand for the original: equal to the last bit, in bfloat16.

    Shapes are SmolLM2's: the kernels in question are chosen by shape.
    """
    torch.manual_seed(0)
    length, query_heads, kv_heads, size = 2600, 9, 3, 64
    query = torch.randn(length, query_heads, size).bfloat16() * 2
    k = torch.randn(length, kv_heads, size).bfloat16() * 2
    v = torch.randn(length, kv_heads, size).bfloat16()

    def attend(start: int, end: int) -> torch.Tensor:
        slots = torch.arange(end)
        return attention._attend(query[start:end], k, v, slots, size**-0.5, True)

    whole = attend(0, length)
    chunks = [
        (0, 700),
        (64, 1300),
        (640, 2600),
        (2048, 2600),
        (511, 513),
        (1300, 1303),
        (7, 40),
        (1000, 1193),
    ]
    decoded = [(at, at + 1) for at in [0, 1, 511, 512, 1024, *range(1000, 2600, 13)]]
    for start, end in chunks + decoded:
        assert torch.equal(attend(start, end), whole[start:end]), (start, end)


def test_a_single_row_goes_through_linear_layers_as_one_of_many() -> None:
    class Method:
        def _agentmem_apply(
            self, layer: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None
        ) -> torch.Tensor:
            return torch.nn.functional.linear(x, layer, bias)

    torch.manual_seed(0)
    weight, rows = torch.randn(576, 1536).bfloat16() * 0.05, torch.randn(200, 1536).bfloat16()
    whole = torch.nn.functional.linear(rows, weight)
    for row in range(200):
        assert torch.equal(
            linear.apply(Method(), weight, rows[row : row + 1]), whole[row : row + 1]
        )
    assert torch.equal(linear.apply(Method(), weight, rows), whole)
