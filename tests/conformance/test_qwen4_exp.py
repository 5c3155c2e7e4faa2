"""GatedResidual against Qwen3.8 as in transformers: same weights, same numbers, same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from levada import GatedResidual, Stack

pytest.importorskip("transformers", reason="needs transformers, which the test extra installs")
modeling = pytest.importorskip("transformers.models.qwen4_exp.modeling_qwen4_exp")

pytestmark = pytest.mark.usefixtures("double")

DIM, STREAMS, RANK, VOCABULARY = 16, 4, 3, 23


@pytest.fixture
def model(double, request) -> nn.Module:
    """A model; with `param`, with embeddings of n-grams that are added to the streams before these layers, from 1."""
    torch.manual_seed(0)
    config = modeling.Qwen4ExpTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        num_hidden_layers=3,
        layer_types=["linear_attention", "indexed_attention", "linear_attention"],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=4,
        indexer_compress_ratio=2,
        hc_count=STREAMS,
        hc_lowrank=RANK,
        ple_layer_ids=getattr(request, "param", None),
        heads_per_ngram=2,
        ngram_vocab_size_base=50,
        eos_token_id=0,
        max_position_embeddings=64,
        initializer_range=0.3,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = modeling.Qwen4ExpForCausalLM(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hc_norm" in name or "ple.conv1d" in name:  # off the start, where gains are 1 and n-grams stay apart
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model.train()


class Attention(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.linear = layer.layer_type == "linear_attention"
        self.attention = layer.linear_attn if self.linear else layer.self_attn

    def forward(self, x: Tensor, *, position_embeddings, attention_mask, conv_mask, ple_input_ids, **kwargs) -> Tensor:
        if self.linear:
            return self.attention(x, attention_mask=conv_mask, **kwargs)
        return self.attention(x, position_embeddings, attention_mask=attention_mask, **kwargs)[0]


class Experts(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.experts = layer.mlp

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        return self.experts(x)


def paired(read: nn.Module, released: nn.Module) -> list[tuple[Tensor, Tensor]]:
    down, up = released.input_mix_weight_down, released.input_mix_weight_up
    return [(read.gain, released.hc_norm.weight), (read.down, down.weight), (read.up, up.weight)]


def paired_layer(connection: nn.Module, released: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [*paired(connection.gated, released), (connection.projection, released.block_inject_weight.weight)]


def pairs(model: nn.Module, stack: Stack) -> list[tuple[Tensor, Tensor]]:
    """Our parameters of the gated residuals, and theirs."""
    theirs = [m for layer in model.model.layers for m in (layer.attn_hyper_connection, layer.mlp_hyper_connection)]
    found = paired(stack.output, model.model.hyper_connection_mixer)
    for layer, module in zip(stack, theirs, strict=True):
        found += paired_layer(layer.connection, module)
    return found


def rebuilt(model: nn.Module) -> Stack:
    branches = [branch(layer) for layer in model.model.layers for branch in (Attention, Experts)]
    options = {"streams": STREAMS, "rank": RANK, "norm_epsilon": model.config.rms_norm_eps}
    stack = Stack(branches, GatedResidual, dim=DIM, **options)
    with torch.no_grad():
        for mine, released in pairs(model, stack):  # their gain is stored less one
            mine.copy_(released.view_as(mine) + (1 if released.ndim == 1 else 0))
    return stack


def test_coefficients_are_those_of_the_released_module(model, assert_same):
    state = torch.randn(2, 5, STREAMS, DIM)
    read, kept, write = model.model.layers[1].mlp_hyper_connection(state.flatten(-2))
    ours = rebuilt(model)[3].connection
    assert_same(ours.read(state), read)
    assert_same(ours.coefficients(state).write, write)
    assert torch.equal(kept, state.flatten(-2)), "no stream is mixed"


@pytest.mark.parametrize("index", range(3))
def test_a_decoder_layer_gives_the_same_streams_and_gradients(model, index, ids, given_to, assert_same):
    layer, (first, second) = model.model.layers[index], [*rebuilt(model)][2 * index : 2 * index + 2]
    kwargs = given_to([layer], model, ids)[0]
    state = torch.randn(*ids.shape, STREAMS, DIM, requires_grad=True)
    found = second(first(state, **kwargs), **kwargs)
    expected = layer(state.flatten(-2), **kwargs).view_as(state)
    same = paired_layer(first.connection, layer.attn_hyper_connection)
    same += paired_layer(second.connection, layer.mlp_hyper_connection)
    assert_same(found, expected, [*same, (state, state)])


def test_the_mixer_gives_the_same_mean_and_gradients(model, assert_same):
    mixer, ours = model.model.hyper_connection_mixer, rebuilt(model).output
    state = torch.randn(2, 5, STREAMS, DIM, requires_grad=True)
    assert_same(ours(state), mixer(state.flatten(-2)), [*paired(ours, mixer), (state, state)])


def test_a_whole_model_gives_the_same_logits_and_gradients(model, ids, given_to, assert_same):
    embedding, stack = model.model.embed_tokens, rebuilt(model)
    kwargs = given_to(model.model.layers[:1], model, ids)[0]
    found = model.lm_head(stack(embedding(ids), **kwargs))
    same = [*pairs(model, stack), (embedding.weight, embedding.weight)]
    assert_same(found, model(ids, use_cache=False).logits, same)


@pytest.mark.parametrize("model", [[1, 3]], indirect=True)
def test_a_whole_model_with_ngrams_gives_the_same_logits_and_gradients(model, ids, given_to, assert_same):
    core, stack = model.model, rebuilt(model)
    kwargs = given_to(core.layers[:1], model, ids)[0]
    state = stack[0].connection.begin(core.embed_tokens(ids))
    for index, layer in enumerate(stack):
        ngrams = core.layers[index // 2].ple if index % 2 == 0 else None
        if ngrams is not None:
            state = state + ngrams(state.flatten(-2), ids, None).view_as(state)
        state = layer(state, **kwargs)
    found = model.lm_head(stack.output(stack[-1].connection.end(state)))
    shared = core.embed_tokens.weight, core.layers[2].ple.key_proj.weight
    same = [*pairs(model, stack), *zip(shared, shared, strict=True)]
    assert_same(found, model(ids, use_cache=False).logits, same)


def test_it_starts_from_the_distributions_of_the_released_code(model):
    model.config.initializer_range = 0.02  # as in the released configuration
    fresh = modeling.Qwen4ExpForCausalLM(model.config)
    ours = Stack([nn.Identity()] * 6, GatedResidual, dim=DIM, streams=STREAMS, rank=RANK)
    for mine, released in pairs(fresh, ours):
        if released.ndim == 1:
            assert torch.equal(mine, 1 + released.double().view_as(mine))
        else:
            assert mine.std().item() == pytest.approx(released.std().item(), rel=0.2)
