"""What tests of stacked layers are given."""

import pytest
import torch
from tests.stacking.stacks import DIM
from torch import Tensor


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(3, DIM, generator=torch.Generator().manual_seed(7))
