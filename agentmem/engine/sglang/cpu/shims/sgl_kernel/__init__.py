"""Stand-in for `sgl_kernel` (PyPI has CUDA builds only).

`convert_weight_packed` is deliberately not registered under `torch.ops.sgl_kernel`: SGLang then
sees no AMX and its layers keep to native torch. Any kernel that is called raises with its name.
"""

__version__ = "0.0.0+agentmem.cpu"


def assign_req_to_token_pool_cpu(req_pool_indices, req_to_token, start, end, out_cache_loc, pool_len):
    """Writes each request's new cache slots into its row of `req_to_token`."""
    offset = 0
    rows = zip(req_pool_indices.tolist(), start.tolist(), end.tolist(), strict=True)
    for row, first, last in rows:
        count = last - first
        slots = out_cache_loc[offset : offset + count]
        req_to_token[row, first:last] = slots.to(req_to_token.dtype)
        offset += count


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU version here")

    missing.__name__ = name
    return missing
