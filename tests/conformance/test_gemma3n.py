"""LearnedAugmentedResidual against Gemma 3n as in transformers: same weights, same numbers, same gradients.

Gemma 3n wires its block otherwise than the paper, `(x + f(r) + block(r)) / sqrt(2)` with r the normalised stream, amid
streams of AltUp, which levada does not have: our connection is put in the place of the block.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from levada import LearnedAugmentedResidual

pytest.importorskip("transformers", reason="needs transformers, which the test extra installs")
modeling = pytest.importorskip("transformers.models.gemma3n.modeling_gemma3n")

pytestmark = pytest.mark.usefixtures("double")

DIM, RANK, VOCABULARY = 16, 3, 23


@pytest.fixture
def model(double) -> nn.Module:
    torch.manual_seed(0)
    config = modeling.Gemma3nTextConfig(
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size=DIM,
        hidden_size_per_layer_input=4,
        intermediate_size=16,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        num_kv_shared_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
        altup_num_inputs=2,
        laurel_rank=RANK,
        max_position_embeddings=64,
        initializer_range=0.3,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
    )
    model = modeling.Gemma3nForCausalLM(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "post_laurel_norm" in name:  # off the start, where gains are 1
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model.train()


class Block(nn.Module):
    """Our connection where the model has a block: around a branch that adds nothing."""

    def __init__(self, released: nn.Module) -> None:
        super().__init__()
        epsilon = released.config.rms_norm_eps
        self.connection = LearnedAugmentedResidual(DIM, rank=RANK, norm=True, epsilon=epsilon)
        with torch.no_grad():
            for mine, theirs in pairs(self, released):
                mine.copy_(theirs)

    def forward(self, x: Tensor) -> Tensor:
        return self.connection.write(x, torch.zeros_like(x))


def pairs(block: Block, released: nn.Module) -> list[tuple[Tensor, Tensor]]:
    down, up, gain = released.linear_left.weight, released.linear_right.weight, released.post_laurel_norm.weight
    return [(block.connection.down, down), (block.connection.up, up), (block.connection.gain, gain)]


def test_the_skip_is_that_of_the_released_block(model, assert_same):
    released = model.model.layers[1].laurel
    block, x = Block(released), torch.randn(2, 5, DIM, requires_grad=True)
    assert_same(block(x), released(x), [*pairs(block, released), (x, x)])


def test_a_whole_model_gives_the_same_logits_and_gradients(model, ids, assert_same):
    ours = copy.deepcopy(model)
    same = [(ours.model.embed_tokens.weight, model.model.embed_tokens.weight)]
    for mine, released in zip(ours.model.layers, model.model.layers, strict=True):
        mine.laurel = Block(released.laurel)
        same += pairs(mine.laurel, released.laurel)
    assert_same(ours(ids, use_cache=False).logits, model(ids, use_cache=False).logits, same)
