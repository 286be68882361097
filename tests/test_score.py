import pytest
import torch
from torch import nn

from lmbench.score import ScoreSums


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_sums_are_exact_whatever_the_model_is_cast_to(dtype: torch.dtype):
    """As by ``trainer.precision=bf16-true``, which casts all that a Lightning module has."""
    module = nn.Module()
    module.sums = sums = ScoreSums()
    module.to(dtype=dtype)
    for _ in range(2):
        for _ in range(500):
            sums.update(torch.tensor(331.25, dtype=dtype), 70)
        nats, num_tokens = sums.compute()
        assert nats.dtype == torch.float64
        assert (nats.item(), num_tokens.item()) == (
            500 * float(torch.tensor(331.25, dtype=dtype)),
            35_000,
        )
        sums.reset()
