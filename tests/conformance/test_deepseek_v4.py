"""ManifoldHyperConnection against DeepSeek-V4 as in transformers: same weights, same numbers, same gradients."""

import pytest
import torch
from torch import Tensor, nn

import levada
from levada.connections.manifold import ManifoldHyperConnection
from levada.stack import Stack

pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")

pytestmark = pytest.mark.usefixtures("double")

DIM, STREAMS, VOCABULARY = 16, 4, 23


@pytest.fixture
def model(double) -> nn.Module:
    torch.manual_seed(0)
    config = modeling.DeepseekV4Config(
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        moe_intermediate_size=8,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        mlp_layer_types=["hash_moe", "moe", "moe"],
        compress_rates={"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        num_attention_heads=2,
        head_dim=8,
        partial_rotary_factor=0.5,
        q_lora_rank=8,
        o_groups=2,
        o_lora_rank=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
        sliding_window=4,
        hc_mult=STREAMS,
        max_position_embeddings=64,
        initializer_range=0.3,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = modeling.DeepseekV4ForCausalLM(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hc" in name:  # off the start, where scales are 1 and biases 0
                parameter.add_(0.5 * torch.randn_like(parameter))
        for layer in model.model.layers:
            if layer.mlp.is_hash:
                layer.mlp.gate.tid2eid.copy_(torch.rand(VOCABULARY, 4).argsort(-1)[:, :2])
    return model.train()


class Attention(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention = layer.input_layernorm, layer.self_attn

    def forward(self, x: Tensor, input_ids: Tensor, **kwargs) -> Tensor:
        return self.attention(self.norm(x), **kwargs)[0]


class Experts(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.experts = layer.post_attention_layernorm, layer.mlp

    def forward(self, x: Tensor, input_ids: Tensor, **kwargs) -> Tensor:
        return self.experts(self.norm(x), input_ids=input_ids)


def paired(mine: nn.Module, released: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The projection, the bias and the scale of each."""
    return [*zip(mine.parameters(), released.parameters(), strict=True)]


def pairs(model: nn.Module, stack: Stack) -> list[tuple[Tensor, Tensor]]:
    """Our parameters of the hyper-connections, and theirs."""
    theirs = [m for layer in model.model.layers for m in (layer.attn_hc, layer.ffn_hc)]
    modules = zip([*(layer.connection for layer in stack), stack.output], [*theirs, model.model.hc_head], strict=True)
    return [pair for mine, released in modules for pair in paired(mine, released)]


def rebuilt(model: nn.Module) -> Stack:
    branches = [branch(layer) for layer in model.model.layers for branch in (Attention, Experts)]
    stack = Stack(branches, ManifoldHyperConnection, dim=DIM, streams=STREAMS, form="deepseek_v4")
    with torch.no_grad():
        for mine, released in pairs(model, stack):
            mine.copy_(released)
    return stack


def test_coefficients_are_those_of_the_released_module(model, assert_same):
    module, state = model.model.layers[1].ffn_hc, torch.randn(2, 5, STREAMS, DIM)
    post, comb, collapsed = module(state)
    ours = rebuilt(model)[3].connection
    found = ours.coefficients(state)
    assert_same(ours.read(state), collapsed)
    assert_same(found.write, post)
    assert_same(found.mix, comb.mT)
    assert (comb - comb.mT).abs().max() > 0.01, "else a transposed matrix would pass"


@pytest.mark.parametrize("index", range(3))
def test_a_decoder_layer_gives_the_same_streams_and_gradients(model, index, ids, given_to, assert_same):
    layer, (first, second) = model.model.layers[index], [*rebuilt(model)][2 * index : 2 * index + 2]
    kwargs = given_to([layer], model, ids)[0]
    state = torch.randn(*ids.shape, STREAMS, DIM, requires_grad=True)
    found = second(first(state, **kwargs), **kwargs)
    same = [*paired(first.connection, layer.attn_hc), *paired(second.connection, layer.ffn_hc), (state, state)]
    assert_same(found, layer(state, **kwargs), same)


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


def test_it_starts_from_the_distributions_of_the_released_code(model):
    model.config.initializer_range = 0.02  # as in the released configuration
    fresh = modeling.DeepseekV4ForCausalLM(model.config)
    ours = Stack([nn.Identity()] * 6, ManifoldHyperConnection, dim=DIM, streams=STREAMS, form="deepseek_v4")
    for mine, released in pairs(fresh, ours):
        if mine.ndim == 1:
            assert torch.equal(mine, released.double())
        else:
            assert mine.std().item() == pytest.approx(released.std().item(), rel=0.2)


def test_a_watch_measures_a_state_of_several_streams(model, ids):
    """Between decoder layers it is (batch, sequence, streams, dim)."""
    states: dict[str, Tensor] = {}

    def kept(name: str):
        def hook(layer: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
            state = output[0] if isinstance(output, tuple) else output
            state.retain_grad()
            states[name] = state

        return hook

    names = [f"model.layers.{i}" for i in range(3)]
    handles = [model.get_submodule(name).register_forward_hook(kept(name)) for name in names]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with levada.watch(model, optimizer) as watched:
        (model(ids).logits.float() - 1).square().mean().backward()
        optimizer.step()
    for handle in handles:
        handle.remove()
    (sample,) = watched.samples
    row = {site.name: i for i, site in enumerate(watched.sites)}
    assert {*names} <= {*row}
    for name in names:
        assert states[name].shape == (*ids.shape, STREAMS, DIM)
        for signal, value in (("signal_rms", states[name]), ("gradient_rms", states[name].grad)):
            found, expected = float(sample.values[signal][row[name]]), float(value.detach().square().mean().sqrt())
            assert found == pytest.approx(expected, rel=1e-5), (name, signal)
