"""Seeds in the sampler: repeatable, per row, and from the right distribution."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from agentmem.engine.sglang.seeding import multinomial_with_seed, seeds_of_batch


def draw(logprobs: torch.Tensor, seeds: list[int], positions: list[int]) -> list[int]:
    rows = multinomial_with_seed(logprobs, torch.tensor(seeds), torch.tensor(positions))
    assert rows.shape == (len(seeds), 1)
    return rows.view(-1).tolist()


def test_a_row_does_not_depend_on_its_batch() -> None:
    logprobs = torch.randn(3, 1000)
    together = draw(logprobs, [5, 6, 7], [10, 11, 12])
    alone = [draw(logprobs[row : row + 1], [5 + row], [10 + row])[0] for row in range(3)]
    assert together == alone


def test_follows_the_distribution_over_positions_and_seeds() -> None:
    weights = torch.tensor([0.7, 0.2, 0.1, 0.0]).log()
    drawn = draw(weights.expand(4000, 4), [-3] * 2000 + list(range(2000)), list(range(4000)))
    shares = [drawn.count(index) / 4000 for index in range(4)]
    assert shares[3] == 0
    assert abs(shares[0] - 0.7) < 0.04
    assert abs(shares[1] - 0.2) < 0.04


def test_batch_gets_one_seed_per_request() -> None:
    requests = [
        SimpleNamespace(sampling_params=SimpleNamespace(sampling_seed=seed)) for seed in (9, None)
    ]
    batch = SimpleNamespace(reqs=requests, device="cpu")
    info = seeds_of_batch(SimpleNamespace(sampling_seed=None), batch, 100)
    assert info.sampling_seed.tolist() == [9, 0]
