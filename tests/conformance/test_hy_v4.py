"""IdentityHyperConnection against Hunyuan V4 as in transformers: same weights, same numbers, same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from levada import IdentityHyperConnection, Stack

pytest.importorskip("transformers", reason="needs transformers, which the test extra installs")
modeling = pytest.importorskip("transformers.models.hy_v4.modeling_hy_v4")

pytestmark = pytest.mark.usefixtures("double")

DIM, STREAMS, VOCABULARY = 16, 4, 23


@pytest.fixture
def model(double) -> nn.Module:
    torch.manual_seed(0)
    config = modeling.HYV4Config(
        vocab_size=VOCABULARY,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=DIM,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=3,
        mlp_layer_types=["dense", "sparse", "sparse"],
        indexer_types=["full", "shared", "full"],
        num_attention_heads=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        index_topk=4,
        index_head_dim=8,
        index_n_heads=2,
        hc_mult=STREAMS,
        max_position_embeddings=64,
        initializer_range=0.3,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = modeling.HYV4ForCausalLM(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hc" in name:  # off the start, where scales are 0.01
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model.train()


class Attention(nn.Module):
    def __init__(self, layer: nn.Module, chosen: dict[str, Tensor]) -> None:
        super().__init__()
        self.norm, self.attention, self.chosen = layer.input_layernorm, layer.self_attn, chosen

    def forward(self, x: Tensor, *, prev_topk_indices: Tensor | None, **kwargs) -> Tensor:
        """Attend to the tokens that this layer chooses, or the one before it chose."""
        before = self.chosen.get("indices", prev_topk_indices)
        out, _, self.chosen["indices"] = self.attention(self.norm(x), prev_topk_indices=before, **kwargs)
        return out


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
    theirs = [m for layer in model.model.layers for m in (layer.attn_hc, layer.ffn_hc)]
    modules = zip([*(layer.connection for layer in stack), stack.output], [*theirs, model.model.hc_head], strict=True)
    return [pair for mine, released in modules for pair in paired(mine, released)]


def rebuilt(model: nn.Module) -> Stack:
    chosen = {}
    branches = [b for layer in model.model.layers for b in (Attention(layer, chosen), FeedForward(layer))]
    options = {"streams": STREAMS, "epsilon": model.config.hc_eps, "norm_epsilon": model.config.rms_norm_eps}
    stack = Stack(branches, IdentityHyperConnection, dim=DIM, **options)
    with torch.no_grad():
        for mine, released in pairs(model, stack):
            mine.copy_(released)
    return stack


def test_coefficients_are_those_of_the_released_module(model, assert_same):
    state = torch.randn(2, 5, STREAMS, DIM)
    write, read = model.model.layers[1].ffn_hc(state)
    ours = rebuilt(model)[3].connection
    assert_same(ours.read(state), read)
    assert_same(ours.coefficients(state).write, write)


@pytest.mark.parametrize("index", range(3))
def test_a_decoder_layer_gives_the_same_streams_and_gradients(model, index, ids, given_to, assert_same):
    layer, (first, second) = model.model.layers[index], [*rebuilt(model)][2 * index : 2 * index + 2]
    kwargs = given_to([layer], model, ids)[0]
    state = torch.randn(*ids.shape, STREAMS, DIM, requires_grad=True)
    found = second(first(state, **kwargs), **kwargs)
    same = [*paired(first.connection, layer.attn_hc), *paired(second.connection, layer.ffn_hc), (state, state)]
    assert_same(found, layer(state, **kwargs)[0], same)


def test_the_head_gives_the_same_sum_and_gradients(model, assert_same):
    head, ours = model.model.hc_head, rebuilt(model).output
    state = torch.randn(2, 5, STREAMS, DIM, requires_grad=True)
    assert_same(ours(state), head(state), [*paired(ours, head), (state, state)])


def test_a_whole_model_gives_the_same_logits_and_gradients(model, ids, given_to, assert_same):
    core, embedding, stack = model.model, model.model.embed_tokens, rebuilt(model)
    kwargs = given_to(core.layers[:1], model, ids)[0]
    found = model.lm_head(core.norm(stack(embedding(ids), **kwargs)))
    same = [*pairs(model, stack), (embedding.weight, embedding.weight)]
    assert_same(found, model(ids, use_cache=False).logits, same)


def test_it_starts_as_the_released_code_does(model):
    model.config.initializer_range = modeling.HYV4Config().initializer_range  # as in the released configuration
    fresh = modeling.HYV4ForCausalLM(model.config)
    ours = Stack([nn.Identity()] * 6, IdentityHyperConnection, dim=DIM, streams=STREAMS)
    for mine, released in pairs(fresh, ours):
        if mine.ndim == 1:
            torch.testing.assert_close(mine, released.double())
        else:
            assert mine.std().item() == pytest.approx(released.std().item(), rel=0.2)
    assert ours[0].connection.norm_epsilon == modeling.HYV4Config().rms_norm_eps
