"""AttentionResidual against Inkling 2 as in transformers: same weights, same numbers, same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from levada import AttentionResidual, Stack
from levada.connections.depth_attention import DepthAttention

pytest.importorskip("transformers", reason="needs transformers, which the test extra installs")
modeling = pytest.importorskip("transformers.models.inkling2.modeling_inkling2")
looped = pytest.importorskip("transformers.models.inkling2_loop.modeling_inkling2_loop")

pytestmark = pytest.mark.usefixtures("double")

DIM, VOCABULARY, BLOCK = 16, 23, 2
OPTIONS = {
    "vocab_size": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY,
    "eos_token_id": None,
    "hidden_size": DIM,
    "num_hidden_layers": 8,
    "layer_types": ["hybrid" if kind == "f" else "hybrid_sliding" for kind in "fsffssff"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 1,
    "swa_head_dim": 8,
    "sliding_window_size": 4,
    "d_rel": 4,
    "rel_extent": 8,
    "log_scaling_n_floor": 4,
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "route_scale": 1.0,
    "n_layers_per_attn_res_block": BLOCK,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-5,  # attention over depth has its own
    "attn_implementation": "eager",
    "experts_implementation": "eager",
}


def moved(model: nn.Module) -> nn.Module:
    """Move the queries off the start, where they are zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("query"):
                parameter.copy_(torch.randn_like(parameter))
    return model.train()


@pytest.fixture
def model(double) -> nn.Module:
    torch.manual_seed(0)
    return moved(modeling.Inkling2ForCausalLM(modeling.Inkling2TextConfig(**OPTIONS)).double())


@pytest.fixture
def model_with_a_loop(double) -> nn.Module:
    torch.manual_seed(0)
    options = {"loop_layer_index_start": 2, "loop_layer_index_end": 6, "loop_num_passes": 3, "loop_gate_rank": 3}
    return moved(looped.Inkling2LoopForCausalLM(looped.Inkling2LoopTextConfig(**OPTIONS, **options)).double())


class Attention(nn.Module):
    """Attention and the convolution after it; in a later pass of a loop, with the messages of the pass before."""

    def __init__(self, layer: nn.Module, given: dict) -> None:
        super().__init__()
        self.layer, self.given = layer, given

    def forward(self, *inputs: Tensor, messages: tuple[Tensor, ...] | None = None) -> Tensor:
        layer, several = self.layer, len(inputs) == 3
        inputs = inputs if several else inputs * 3
        if messages is not None:
            gates = layer.q_message_gate, layer.k_message_gate, layer.v_message_gate
            inputs = [gate(x, message) for gate, x, message in zip(gates, inputs, messages[:3], strict=True)]
        norms = [layer.input_layernorm] * 3 if not several else [getattr(layer, f"{n}_input_layernorm") for n in "qkv"]
        query, key, value = (norm(x) for norm, x in zip(norms, inputs, strict=True))
        out, _ = layer.self_attn(query, key_hidden_states=key, value_hidden_states=value, **self.given)
        return layer.post_attention_convolution(out, **self.given)


class Experts(nn.Module):
    def __init__(self, layer: nn.Module, given: dict) -> None:
        super().__init__()
        self.layer, self.given = layer, given

    def forward(self, x: Tensor, messages: tuple[Tensor, ...] | None = None) -> Tensor:
        layer = self.layer
        if messages is not None:
            x = layer.mlp_message_gate(x, messages[3])
        return layer.post_mlp_convolution(layer.mlp(layer.post_attention_layernorm(x)), **self.given)


def pairs(core: nn.Module, stack: Stack) -> list[tuple[Tensor, Tensor]]:
    """Our queries, and theirs."""
    theirs = [module for layer in core.layers for module in (layer.attention_input, layer.mlp_input)]
    found = [(stack.output.query, core.final_input.query)]
    for layer, module in zip(stack, theirs, strict=True):
        assert (module is None) == (layer.connection.attention is None)
        found += [] if module is None else [(layer.connection.attention.query, module.query)]
    return found


def rebuilt(core: nn.Module, given: list[dict]) -> Stack:
    def connection(dim: int, *, layer: int, depth: int) -> AttentionResidual:
        full = layer % 2 == 0 and OPTIONS["layer_types"][layer // 2] == "hybrid"
        options = {"form": "inkling2", "block_size": 2 * BLOCK, "inputs": 3 if full else 1}
        return AttentionResidual(dim, layer=layer, depth=depth, **options)

    layers = zip(core.layers, given, strict=True)
    stack = Stack([b(layer, g) for layer, g in layers for b in (Attention, Experts)], connection, dim=DIM)
    with torch.no_grad():
        for mine, released in pairs(core, stack):
            mine.copy_(released)
    return stack


@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("family", ["inkling2", "inkling2_loop"])
def test_attention_over_depth_gives_the_same_means_and_gradients(family, num_queries, assert_same):
    if family == "inkling2":
        module = modeling.Inkling2BlockAttentionResidual(modeling.Inkling2TextConfig(**OPTIONS), num_queries)
    else:
        module = looped.Inkling2LoopBlockAttentionResidual(looped.Inkling2LoopTextConfig(**OPTIONS), num_queries)
    ours = DepthAttention(DIM, num_queries=num_queries, form="inkling2")
    assert torch.equal(ours.query, module.query), "both start from zero"
    with torch.no_grad():
        module.query.copy_(torch.randn_like(module.query))
    ours.load_state_dict(module.state_dict())
    scale = torch.tensor([0.1, 1, 10, 0.01])  # of the sources, so that their normalisation shows
    state = (torch.randn(2, 5, 4, DIM) * scale[:, None]).requires_grad_()
    found, expected = ours(state.unbind(-2)), module(state[..., :-1, :], state[..., -1, :])
    found = found if num_queries > 1 else (found,)
    assert_same(torch.stack(found, -2), torch.stack(expected, -2), [(ours.query, module.query), (state, state)])


@pytest.mark.parametrize("index", range(1, 8))
def test_a_decoder_layer_gives_the_same_stream_and_gradients(model, index, ids, given_to, assert_same):
    layer, given = model.model.layers[index], given_to(model.model.layers, model, ids)
    first, second = [*rebuilt(model.model, given)][2 * index : 2 * index + 2]
    state = torch.randn(*ids.shape, 1 + -(-index // BLOCK), DIM, requires_grad=True)
    *blocks, found = second(first(state.unbind(-2)))
    assert len(blocks) == state.shape[-2] - (0 if index % BLOCK == 0 else 1)
    expected = layer(state[..., -1, :], state[..., :-1, :], **given[index])
    same = [(first.connection.attention.query, layer.attention_input.query)]
    same += [(second.connection.attention.query, layer.mlp_input.query), (state, state)]
    assert_same(found, expected, same)


def test_a_whole_model_gives_the_same_logits_and_gradients(model, ids, given_to, assert_same):
    core, embedding = model.model, model.model.embed_tokens
    stack = rebuilt(core, given_to(core.layers, model, ids))
    found = model.logit_softcap(model.lm_head(core.norm(stack(embedding(ids)))))
    same = [*pairs(core, stack), (embedding.weight, embedding.weight)]
    assert_same(found, model(ids, use_cache=False).logits, same)


def test_a_whole_model_with_a_loop_gives_the_same_logits_and_gradients(model_with_a_loop, ids, given_to, assert_same):
    model, core = model_with_a_loop, model_with_a_loop.model
    stack = rebuilt(core, given_to(core.layers, model, ids))
    message = DepthAttention(DIM, num_queries=4, form="inkling2")  # for queries, keys, values and experts
    layers, (start, end) = [*stack], (2 * core.config.loop_layer_index_start, 2 * core.config.loop_layer_index_end)
    before = state = stack[0].connection.begin(core.embed_tokens(ids))
    for layer in layers[:start]:
        before = state = layer(state)
    for step in range(core.config.loop_num_passes):
        done, state = state[len(before) :], before
        for index, layer in enumerate(layers[start:end]):
            query = core.message_input.query[index // 2]
            messages = torch.func.functional_call(message, {"query": query}, (done,)) if step else None
            state = layer(state, messages=messages)
    for layer in layers[end:]:
        state = layer(state)
    found = model.logit_softcap(model.lm_head(core.norm(stack.output(stack[-1].connection.end(state)))))
    shared = core.message_input.query, core.embed_tokens.weight
    same = [*pairs(core, stack), *zip(shared, shared, strict=True)]
    assert_same(found, model(ids, use_cache=False).logits, same)
