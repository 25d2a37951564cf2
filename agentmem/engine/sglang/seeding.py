"""`seed` honoured: SGLang drops it unless it runs wholly in its deterministic mode.

That mode slows a GPU down and needs triton. But the sampler takes a seed per row whenever the
batch has them, so they are put there: the request's own, or a random one, which the gateway sends
for those that set none. (`sampling/sampling_batch_info.py` and `layers/sampler.py` of 0.5.20.)
"""

from __future__ import annotations

from typing import Any

Tensor = Any

_FROM_BATCH = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch"


def seeds_of_batch(info: Any, *args: Any, **kwargs: Any) -> Any:
    """After `from_schedule_batch`: one int64 seed per request, unless SGLang has put them there."""
    import torch

    batch = next(value for value in (*args, *kwargs.values()) if hasattr(value, "reqs"))
    if info.sampling_seed is None:
        seeds = [request.sampling_params.sampling_seed or 0 for request in batch.reqs]
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=batch.device)
    return info


def multinomial_with_seed(logprobs: Tensor, seed: Tensor, positions: Tensor) -> Tensor:
    """SGLang's function of this name on a CPU, where its hash is a triton kernel.

    `logprobs` (n, vocabulary); `seed`, `positions` (n,). Returns (n, 1) indexes, the same for the
    same row, seed and position whatever else is in the batch.
    """
    import torch

    rows = []
    for row in range(logprobs.shape[0]):
        generator = torch.Generator()
        # Mixed, since consecutive seeds give a Mersenne Twister similar first numbers.
        generator.manual_seed(hash((int(seed[row]), int(positions[row]))) & (2**63 - 1))
        weights = torch.softmax(logprobs[row].to(torch.float64), dim=-1)
        rows.append(torch.multinomial(weights, num_samples=1, generator=generator))
    return torch.stack(rows)


def install(*, cpu: bool) -> None:
    """Registers the hook; on a CPU it replaces the kernel, too."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_FROM_BATCH, seeds_of_batch, HookType.AFTER)
    if cpu:
        from sglang.srt.layers import sampler

        sampler.multinomial_with_seed = multinomial_with_seed
