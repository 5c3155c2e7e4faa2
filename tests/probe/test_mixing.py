"""What layers with several streams read, mix and write: closed forms, one call a pass, and nothing left behind."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import levada
from levada.connections.streams import Coefficients, MultiStream
from levada.conversion import convert
from levada.ops._define import plain_operations
from levada.probe import MIXING_SIGNALS, SIGNALS, Probe, record
from levada.probe.mixing import mixing_signals, site_of
from levada.probe.streams import MAX_TOKENS, Sample, mixed_layers
from levada.probe.trace import Site, Trace

DEPTH, DIM = 3, 4
calls = []


class Given(MultiStream):
    """Reads, mixes and writes with what it is given; counts its calls."""

    def __init__(self, dim, *, layer=0, depth=1, mixes=None, reads=None, writes=None, streams=2):
        super().__init__(dim, streams=streams, layer=layer, depth=depth)
        pick = lambda held, usual: torch.as_tensor(usual if held is None else held[layer], dtype=torch.float32)  # noqa: E731
        self.given_read = nn.Parameter(pick(reads, torch.full((streams,), 1 / streams)))
        self.given_write = nn.Parameter(pick(writes, torch.ones(streams)))
        self.given_mix = nn.Parameter(pick(mixes, torch.eye(streams)))

    def coefficients(self, state):
        calls.append(self.layer)
        return Coefficients(self.given_read, self.given_mix, self.given_write)


class Separate(Given):
    """Makes its coefficients once to read and once to write."""

    def advance(self, state, branch, *args, **kwargs):
        return self.write(state, branch(self.read(state)))


class ByToken(Given):
    """Mixes by a number that lies in the first element of each token: that element of the first stream."""

    def coefficients(self, state):
        t = state[..., 0, 0]
        mix = torch.eye(2) + t[..., None, None] * torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        return Coefficients(torch.ones(*t.shape, 2), mix, torch.ones(*t.shape, 2))


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


def stack(connection=Given, depth=DEPTH, **options):
    torch.manual_seed(0)
    return levada.Stack(lambda dim: nn.Linear(dim, dim), connection, dim=DIM, depth=depth, **options)


def probed(model, x=None, **how):
    with Probe(model, **how) as probe:
        model(torch.randn(5, DIM) if x is None else x).sum().backward()
        probe.step()
    return probe.trace()


def close(values, expected):
    torch.testing.assert_close(
        values, torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-6, atol=1e-7
    )


def sample(mix, *, layer=0, name="", read=(0.5, 0.5), write=(1.0, 1.0), gram=None):
    mix = torch.as_tensor(mix, dtype=torch.float64)
    mix = mix[None] if mix.ndim == 2 else mix
    n = mix.shape[-1]
    gram = torch.eye(n, dtype=torch.float64) if gram is None else torch.as_tensor(gram, dtype=torch.float64)
    rows = [torch.as_tensor(w, dtype=torch.float64)[None] for w in (read, write)]
    return Sample(name, layer, mix, *rows, gram[None], torch.zeros(1, dtype=torch.float64))


def signal(name, *samples):
    return [row[name] for row in mixing_signals(samples)]


A, B = [[1.0, 2.0], [0.0, 0.5]], [[0.5, 0.0], [-1.0, 1.0]]


def test_sums_of_rows_and_columns():
    assert signal("mixing_row_deviation", sample(A)) == [2.0]
    assert signal("mixing_column_deviation", sample(A)) == [1.5]
    assert signal("mixing_forward_gain", sample(A)) == [3.0]
    assert signal("mixing_backward_gain", sample(A)) == [2.5]
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
    assert signal("mixing_row_deviation", sample(tokens)) == [2.0]  # the worst token's
    assert signal("mixing_forward_gain", sample(tokens)) == [1.0]  # of the mean over tokens


def test_products_over_depth_in_the_order_in_which_signal_and_gradient_pass():
    # B A = [[.5, 1], [-1, -1.5]]: what two layers, A first, do to the streams.
    both = [sample(A, layer=0), sample(B, layer=1)]
    assert signal("composite_forward_gain", *both) == [3.0, 2.5]
    assert signal("composite_backward_gain", *both) == [0.5, 1.0]
    assert signal("composite_log_column_sum", *both) == [math.inf, math.inf]  # columns -.5, -.5; and -.5, 1
    product = torch.tensor([[0.5, 1.0], [-1.0, -1.5]], dtype=torch.float64)
    assert signal("second_eigenvalue", *both)[1] == pytest.approx(0.5, rel=1e-6)  # both are -1/2
    s = torch.linalg.svdvals(product)
    p = s / s.sum()
    assert signal("smallest_singular_value", *both)[1] == pytest.approx(float(s[1]))
    assert signal("effective_rank", *both)[1] == pytest.approx(float((-(p * p.log()).sum()).exp()))


def test_the_logarithm_of_column_sums_shows_attenuation_that_the_gain_hides():
    m = [[0.1, 0.0], [0.0, 1.5]]
    assert signal("composite_backward_gain", sample(m)) == [1.5]
    assert signal("composite_log_column_sum", sample(m))[0] == pytest.approx(math.log(10))


def test_products_are_made_for_each_token_and_then_averaged():
    tokens = torch.stack([torch.eye(2) * 2, torch.eye(2) * 0.5])
    pair = [sample(tokens, layer=0), sample(tokens, layer=1)]
    assert signal("composite_forward_gain", *pair) == [1.25, 2.125]
    pooled = [sample(tokens, layer=0), sample(torch.stack([torch.eye(2)] * 3), layer=1)]  # no token is the same
    assert signal("composite_forward_gain", *pooled) == [1.25, 1.25]


def test_another_stack_begins_another_product():
    two = 2 * torch.eye(2)
    three = sample(2 * torch.eye(3), layer=1, read=[1 / 3] * 3, write=[1.0] * 3)
    assert signal("composite_forward_gain", *[sample(two, layer=i) for i in (0, 1, 0, 1)]) == [2, 4, 2, 4]
    assert signal("composite_forward_gain", sample(two), three) == [2, 2]


def test_entropy_and_diagonal():
    uniform = torch.full((4, 4), 0.25)
    four = {"read": [0.25] * 4, "write": [1.0] * 4}
    assert signal("mixing_entropy", sample(uniform, **four))[0] == pytest.approx(math.log(4))
    assert signal("mixing_diagonal", sample(uniform, **four)) == [0.25]
    assert signal("effective_rank", sample(uniform, **four))[0] == pytest.approx(1.0)
    assert signal("mixing_entropy", sample(torch.eye(4), **four)) == [0.0]
    assert math.isnan(signal("mixing_entropy", sample(B))[0])
    assert signal("mixing_diagonal", sample(B)) == [0.75]


def test_shares_cosine_and_sizes():
    one = sample(A, read=(0.9, 0.3), write=(1.0, 3.0), gram=[[4.0, 1.0], [1.0, 1.0]])
    assert signal("read_share", one) == [pytest.approx(0.75)]
    assert signal("write_share", one) == [0.75]
    assert signal("stream_cosine", one) == [0.5]
    assert signal("stream_rms_ratio", one) == [2.0]


def test_a_product_that_overflows_has_no_eigenvalues_and_raises_nothing():
    huge = [sample(1e200 * torch.eye(2, dtype=torch.float64), layer=i) for i in range(2)]
    assert signal("composite_forward_gain", *huge) == [1e200, math.inf]
    assert math.isnan(signal("second_eigenvalue", *huge)[1])


def test_a_trace_has_the_signals_by_layer_and_the_matrices_in_its_context():
    model = stack(mixes=[A, B, torch.eye(2)], reads=[[1.0, 0.0]] * 3)
    trace = probed(model)
    assert set(trace.values) == set(SIGNALS) - {"cotangent_rms"} | set(MIXING_SIGNALS)
    names = [f"layers.{i}" for i in range(DEPTH)]
    assert trace.names() == names
    close(trace["composite_forward_gain"][0], [3.0, 2.5, 2.5])
    close(trace["composite_backward_gain"][0], [0.5, 1.0, 1.0])
    close(trace["read_share"][0], [1.0] * 3)
    close(trace["write_share"][0], [0.5] * 3)
    assert trace["stream_cosine"][0, 0] == pytest.approx(1.0, abs=1e-12)  # copies of the input
    assert trace.context["mixing"] == {"layers.0": A, "layers.1": B, "layers.2": [[1.0, 0.0], [0.0, 1.0]]}
    assert trace.context["stream_weights"]["layers.1"] == {"read": [1.0, 0.0], "write": [0.5, 0.5]}
    again = Trace.from_dict(trace.to_dict())
    assert again.context["mixing"] == trace.context["mixing"]


def test_rounding_is_that_of_the_weights_in_bfloat16():
    third = 1 / 3
    trace = probed(stack(mixes=[[[third, 0.0], [0.0, third]]] * 3))
    error = abs(third - float(torch.tensor(third).bfloat16())) / third
    close(trace["coefficient_rounding"][0], [error] * 3)
    close(probed(stack())["coefficient_rounding"][0], [0.0] * 3)


def test_weights_that_follow_the_token_are_averaged_over_tokens_at_an_even_stride():
    x = torch.zeros(2, 2 * MAX_TOKENS, DIM)
    x[..., 0] = torch.arange(4.0 * MAX_TOKENS).reshape(2, -1)
    taken = torch.arange(0, 4 * MAX_TOKENS, 4).double()
    model = stack(ByToken, depth=1)
    trace = probed(model, x)
    (matrix,) = trace.context["mixing"].values()
    assert matrix[0] == [1.0, float(taken.mean())]
    close(trace["mixing_row_deviation"][0, 0], float(taken.max()))
    close(trace["mixing_forward_gain"][0, 0], 1 + float(taken.mean()))


def test_a_model_without_streams_has_none_of_it():
    trace = probed(nn.Sequential(nn.Linear(DIM, DIM), nn.Linear(DIM, 2)))
    assert not set(trace.values) & set(MIXING_SIGNALS)
    assert "mixing" not in trace.context
    assert mixed_layers(nn.Sequential(levada.Residual(2))) == []


def own_attributes(model):
    return [set(vars(m)) for m in model.modules()]


def test_nothing_is_attached_to_steps_that_are_not_sampled_and_nothing_is_left():
    model = stack()
    before = own_attributes(model)
    with Probe(model, every=3) as probe:
        for step in range(4):
            tapped = ["coefficients" in vars(m) for _, m in mixed_layers(model)]
            assert tapped == [step % 3 == 0] * DEPTH
            model(torch.randn(5, DIM)).sum().backward()
            probe.step()
    assert own_attributes(model) == before
    trace = probe.trace()
    assert trace.steps == (0, 3)
    assert not trace["mixing_forward_gain"].isnan().any()
    # Two of the four steps are sampled, and make the coefficients once more to measure what rounding does.
    assert calls == [0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 2, 2]


def test_an_error_leaves_nothing_behind_and_its_pass_does_not_count():
    model = stack()
    model.layers[1].branch = nn.Linear(DIM, DIM + 1)
    before = own_attributes(model)
    with pytest.raises(levada._errors.UsageError), Probe(model):
        model(torch.randn(5, DIM))
    assert own_attributes(model) == before

    model, broken = stack(), stack()
    with Probe(model) as probe:
        for x in (torch.randn(5, DIM + 1), torch.randn(5, DIM)):
            try:
                model(x).sum().backward()
            except Exception:
                continue
        probe.step()
    assert not probe.trace()["mixing_forward_gain"].isnan().any()
    assert own_attributes(model) == own_attributes(broken)


@pytest.mark.parametrize("connection", [Separate, Given], ids=["twice a layer", "once a layer"])
@pytest.mark.parametrize("segments", [0, DEPTH])
def test_what_is_made_again_for_the_write_or_in_the_backward_pass_is_not_taken_again(connection, segments, monkeypatch):
    taken = []
    see = levada.probe.streams.Mixing.see

    def spy(self, name, *rest):
        before = len(self.samples)
        see(self, name, *rest)
        taken.extend([name] * (len(self.samples) - before))

    monkeypatch.setattr(levada.probe.streams.Mixing, "see", spy)
    trace = probed(stack(connection, checkpoint=segments, mixes=[A, B, A]))
    assert taken == [f"layers.{i}.connection" for i in range(DEPTH)]
    measuring = DEPTH  # once, to measure what rounding does
    assert len(calls) == DEPTH * (2 if connection is Separate else 1) * (2 if segments else 1) + measuring
    close(trace["mixing_forward_gain"][0], [3.0, 0.5, 3.0])


@pytest.mark.parametrize(
    ("connection", "tolerance"), [(levada.FractionalConnection, 0.0), (levada.HyperConnection, 1e-5)]
)
def test_measuring_changes_neither_outputs_nor_gradients_nor_the_blocks(connection, tolerance):
    """Up to rounding, where unmeasured coefficients and what is read are made by one operation."""
    model, twin = stack(connection), stack(connection)
    x = torch.randn(5, DIM)
    twin(x).sum().backward()
    with Probe(model) as probe:
        model(x).sum().backward()
        probe.step()
    with plain_operations():  # which who measures coefficients gets
        assert probe.execution.operations == record(twin, lambda: twin(x)).operations
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=tolerance, atol=tolerance)


def test_an_evaluation_is_not_measured():
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Probe(model, optimizer) as probe:
        with torch.no_grad():
            model(torch.full((5, DIM), math.nan))
        assert probe._mixing.samples == []
        model(torch.randn(5, DIM)).sum().backward()
        optimizer.step()
    assert probe.trace()["stream_cosine"][0, 0] == pytest.approx(1.0)


def test_a_copy_made_meanwhile_is_its_own_and_a_layer_of_its_own_attribute_keeps_it():
    model = stack(mixes=[A, B, A])
    with Probe(model) as probe:
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with torch.no_grad():
                twin.layers[0].connection.given_mix.zero_()
            twin(torch.randn(5, DIM))
            made = twin.layers[0].connection.coefficients(torch.zeros(1, 2, DIM))
            assert not made.mix.any()
        model(torch.randn(5, DIM)).sum().backward()
        probe.step()
    close(probe.trace()["mixing_forward_gain"][0], [3.0, 0.5, 3.0])

    own = model.layers[0].connection
    patched = own.coefficients = lambda state: Coefficients(own.given_read, 7 * torch.eye(2), own.given_write)
    again = probed(model)
    assert again["mixing_forward_gain"][0, 0] == 7
    assert again["coefficient_rounding"].isnan().tolist() == [[True, False, False]]  # of its own: made once alone
    assert own.coefficients is patched


def test_layers_that_run_compiled_are_left_as_they_are():
    model = stack(compile={"backend": "eager"})
    assert mixed_layers(model) == []
    assert len(mixed_layers(stack())) == DEPTH
    with torch.compiler.set_stance("force_eager"):
        assert len(mixed_layers(model)) == DEPTH


@pytest.mark.parametrize(
    "connection", [levada.GatedResidual, levada.FractionalConnection, levada.IdentityHyperConnection]
)
def test_weights_of_elements_of_fractions_and_no_mixing_at_all(connection):
    trace = probed(stack(connection))
    n = len(trace.context["mixing"]["layers.0"])
    assert trace.context["mixing"]["layers.0"] == torch.eye(n).tolist()
    close(trace["composite_backward_gain"][0, :DEPTH], [1.0] * DEPTH)
    share = trace["read_share"][0, :DEPTH]
    assert bool((share >= 1 / n - 1e-9).all())
    assert bool((share < 1).all())


def test_two_layers_in_one_block_of_a_converted_model_have_names_of_their_own():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    net = convert(model, levada.HyperConnection, batch=torch.randn(2, 5, 8), streams=4)
    trace = probed(net, torch.randn(2, 5, 8))
    assert len(trace.context["mixing"]) == 4
    assert not trace["mixing_backward_gain"].isnan().all()
    close(trace["composite_forward_gain"].nan_to_num(1.0)[0], [1.0] * len(trace.sites))


def test_a_connection_belongs_to_the_block_that_holds_it_has_its_parameters_or_lies_beside_it():
    sites = [
        Site(n, i, "", (), p) for i, (n, p) in enumerate([("a.0", ()), ("a.0.b", ()), ("c", ("d.e.w",)), ("f.g", ())])
    ]
    assert site_of("a.0.b.connection", sites) == 1
    assert site_of("a.0.c", sites) == 0
    assert site_of("d.e", sites) == 2
    assert site_of("f.connection", sites) == 3
    assert site_of("z", sites) is None
