"""ManifoldHyperConnection against GLM-5.3-Flash as in transformers: same weights, same numbers, same gradients."""

import pytest
import torch
from torch import Tensor, nn

from levada.connections.manifold import ManifoldHyperConnection
from levada.stack import Stack

pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.glm5_next.modeling_glm5_next")

pytestmark = pytest.mark.usefixtures("double")

DIM, STREAMS, VOCABULARY = 16, 4, 23


@pytest.fixture
def model(double) -> nn.Module:
    torch.manual_seed(0)
    config = modeling.Glm5NextTextConfig(
        vocab_size=VOCABULARY,
        pad_token_id=0,
        hidden_size=DIM,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=3,
        layer_types=["linear_attention", "indexed_attention", "linear_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
        indexer_types=["full"] * 3,
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        q_lora_rank=8,
        v_head_dim=8,
        qk_nope_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        index_topk=4,
        index_kpool=2,
        index_head_dim=8,
        index_n_heads=2,
        linear_head_dim=8,
        linear_num_heads=2,
        hc_mult=STREAMS,
        max_position_embeddings=64,
        initializer_range=0.3,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = modeling.Glm5NextTextModel(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_hc" in name:  # off the start, where scales are 1 and biases 0
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model.train()


class Attention(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention = layer.input_layernorm, layer.self_attn

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        out = self.attention(hidden_states=self.norm(x), **kwargs)
        return out[0] if isinstance(out, tuple) else out


class FeedForward(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.network = layer.post_attention_layernorm, layer.mlp

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        return self.network(self.norm(x))


def paired(mine: nn.Module, released: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The projection, the bias and the scale of each."""
    return [*zip(mine.parameters(), released.parameters(), strict=True)]


def pairs(model: nn.Module, stack: Stack) -> list[tuple[Tensor, Tensor]]:
    """Our parameters of the hyper-connections, and theirs."""
    theirs = [m for layer in model.layers for m in (layer.attn_hc, layer.ffn_hc)]
    return [pair for layer, released in zip(stack, theirs, strict=True) for pair in paired(layer.connection, released)]


def rebuilt(model: nn.Module) -> Stack:
    branches = [branch(layer) for layer in model.layers for branch in (Attention, FeedForward)]
    stack = Stack(branches, ManifoldHyperConnection, dim=DIM, streams=STREAMS, form="glm5_next")
    with torch.no_grad():
        for mine, released in pairs(model, stack):
            mine.copy_(released)
    return stack


def test_coefficients_are_those_of_the_released_module(model, assert_same):
    module, state = model.layers[1].ffn_hc, torch.randn(2, 5, STREAMS, DIM)
    post, comb, collapsed = module(state)
    ours = rebuilt(model)[3].connection
    found = ours.coefficients(state)
    assert_same(ours.read(state), collapsed)
    assert_same(found.write, post)
    assert_same(found.mix, comb.mT)
    assert (comb - comb.mT).abs().max() > 0.01, "else a transposed matrix would pass"


@pytest.mark.parametrize("index", range(3))
def test_a_decoder_layer_gives_the_same_streams_and_gradients(model, index, ids, given_to, assert_same):
    layer, (first, second) = model.layers[index], [*rebuilt(model)][2 * index : 2 * index + 2]
    kwargs = given_to([layer], model, ids)[0]
    state = torch.randn(*ids.shape, STREAMS, DIM, requires_grad=True)
    found = second(first(state, **kwargs), **kwargs)
    same = [*paired(first.connection, layer.attn_hc), *paired(second.connection, layer.ffn_hc), (state, state)]
    assert_same(found, layer(state, **kwargs)[0], same)


def test_a_whole_model_gives_the_same_output_and_gradients(model, ids, given_to, assert_same):
    embedding, stack = model.embed_tokens, rebuilt(model)
    kwargs = given_to(model.layers[:1], model, ids)[0]
    found = model.norm(stack(embedding(ids), **kwargs))
    same = [*pairs(model, stack), (embedding.weight, embedding.weight)]
    assert_same(found, model(ids, use_cache=False).last_hidden_state, same)


def test_it_starts_from_the_distributions_of_the_released_code(model):
    fresh = modeling.Glm5NextTextModel(model.config)
    ours = Stack([nn.Identity()] * 6, ManifoldHyperConnection, dim=DIM, streams=STREAMS, form="glm5_next")
    for mine, released in pairs(fresh, ours):
        if mine.ndim == 1:
            assert torch.equal(mine, released.double())
        else:
            assert mine.std().item() == pytest.approx(released.std().item(), rel=0.2)
