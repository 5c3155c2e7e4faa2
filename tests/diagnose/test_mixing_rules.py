"""Rules on the mixing of streams: what is planted is found, each leg of an error counts, the healthy is left alone."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import levada
from levada.connections.streams import Streams
from levada.diagnose import check
from levada.diagnose.diagnostics.stream_collapse import stream_collapse
from levada.diagnose.diagnostics.unstable_mixing import unstable_mixing
from levada.diagnose.facts import Facts
from levada.probe import MIXING_SIGNALS, Probe
from levada.probe.trace import Site, Trace

DIM, LAYERS = 8, 6
RULES = {"unstable_mixing", "stream_collapse"}
STREAMED = [
    levada.HyperConnection,
    levada.ManifoldHyperConnection,
    levada.IdentityHyperConnection,
    levada.GatedResidual,
    levada.FractionalConnection,
]


def net(connection, depth=LAYERS, **options):
    torch.manual_seed(0)

    def branch(dim):
        return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    stack = levada.Stack(branch, connection, dim=DIM, depth=depth, **options)
    return nn.Sequential(nn.Linear(6, DIM), stack, nn.LayerNorm(DIM), nn.Linear(DIM, 3))


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def streamed(model):
    return [m for m in model.modules() if isinstance(m, Streams)]


def found(model, **how):
    return {f.rule: f for f in check(model, batch(), **how).findings if f.rule in RULES and f.status == "fired"}


def trained(model, steps=40, lr=3e-3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        x, y = batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def scaled(factor, depth=30, **options):
    model = net(levada.HyperConnection, depth, dynamic=False, head="mean", **options)
    with torch.no_grad():
        for connection in streamed(model):
            connection.static_mix.mul_(factor)
    return model


def noisy(seed):
    model = net(levada.HyperConnection, 60, dynamic=False, head="mean")
    torch.manual_seed(seed)
    with torch.no_grad():
        for connection in streamed(model):
            connection.static_mix.add_(0.2 * torch.randn(4, 4))
    return model


def alike(connection=levada.ManifoldHyperConnection, **options):
    """Read, write and mix all streams alike, as an exact conversion with uniform reads would."""
    model = net(connection, **options)
    with torch.no_grad():
        for one in streamed(model):
            one.projection.zero_()
            one.bias[: 2 * one.streams] = torch.tensor([-math.log(one.streams - 1), 0.0]).repeat_interleave(one.streams)
    return model


@pytest.mark.parametrize("connection", [*STREAMED, levada.Residual, levada.ReZero], ids=lambda c: c.__name__)
def test_how_connections_start_is_left_alone(connection):
    assert found(net(connection)) == {}


@pytest.mark.parametrize("connection", STREAMED, ids=lambda c: c.__name__)
def test_small_nets_that_learned_are_left_alone(connection):
    assert found(trained(net(connection))) == {}


def test_what_grows_by_a_fifth_a_layer_is_an_error_with_numbers_place_and_repair():
    told = found(scaled(1.2))["unstable_mixing"]
    assert told.severity == "error"
    assert told.where == {"first": "1.layers.0", "last": "1.layers.29"}
    assert told.evidence["composite_backward_gain"] == pytest.approx(1.2**30, rel=1e-4)
    assert told.evidence["composite_forward_gain"] == pytest.approx(1.2**30, rel=1e-4)
    assert "237" in told.claim
    tested = told.evidence["tests"]["growth_beside_the_mixing"]
    assert tested["decades_of_the_mixing"] == pytest.approx(30 * math.log10(1.2), rel=1e-3)
    assert tested["decades_measured_at_least"] > 1.2
    assert told.remedies[0].after == {"composite_backward_gain": 1.0}


@pytest.mark.parametrize("factor", [1.04, 0.96])
def test_what_changes_threefold_in_all_is_left_alone(factor):
    assert found(scaled(factor)) == {}


def test_attenuation_alone_is_a_warning():
    told = found(scaled(0.8))["unstable_mixing"]
    assert told.severity == "warn"
    assert told.evidence["composite_column_norm"] == pytest.approx(0.8**30, rel=1e-3)
    assert told.where == {"first": "1.layers.0", "last": "1.layers.29"}
    assert "leaves 0.0012 of a gradient" in told.claim
    assert told.remedies[0].after == {"composite_column_norm": 0.5}


def two_chains(first, second):
    """Twenty layers, then ten with streams of their own; their matrices multiplied by these factors."""
    torch.manual_seed(0)
    stacks = [
        levada.Stack([nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(n)],
                     levada.HyperConnection, dim=DIM, head="mean", dynamic=False)
        for n in (20, 10)
    ]  # fmt: skip
    for stack, factor in zip(stacks, (first, second), strict=True):
        for layer in stack.layers:
            layer.connection.static_mix.data.mul_(factor)
    middle, end = (nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, n)) for n in (DIM, 3))
    return nn.Sequential(nn.Linear(6, DIM), stacks[0], middle, stacks[1], end)


@pytest.mark.parametrize(
    ("factors", "name", "count", "gain"), [((1.3, 1.0), "1", 20, 1.3**20), ((1.0, 1.7), "3", 10, 1.7**10)]
)
def test_of_two_chains_the_one_that_grows_is_named_with_its_own_layers(factors, name, count, gain):
    told = found(two_chains(*factors))["unstable_mixing"]
    assert told.severity == "error"
    assert told.where == {"first": f"{name}.layers.0", "last": f"{name}.layers.{count - 1}"}
    assert f"of {count} layers with streams" in told.claim
    assert told.evidence["composite_backward_gain"] == pytest.approx(gain, rel=1e-3)
    tested = told.evidence["tests"]["growth_beside_the_mixing"]
    assert tested["decades_measured_at_least"] > 0.6 * math.log10(gain)


def test_two_chains_that_grow_are_two_findings_and_the_summary_tells_each():
    report = check(two_chains(1.3, 1.7), batch())
    told = [f.where["first"] for f in report.findings if f.rule == "unstable_mixing"]
    assert sorted(told) == ["1.layers.0", "3.layers.0"]
    chains = report.summary["mixing"]["chains"]
    assert [len(chain["layers"]) for chain in chains] == [20, 10]
    assert [chain["composite_forward_gain"] for chain in chains] == pytest.approx([1.3**20, 1.7**10], rel=1e-3)


@pytest.mark.parametrize("manifold", ["orthogonal", "isometric"])
@pytest.mark.parametrize("size", [0.5, 1.0, 3.0])
def test_mixing_that_keeps_energy_is_left_alone(manifold, size):
    for seed in range(4):
        torch.manual_seed(seed)
        model = net(levada.ManifoldHyperConnection, 24, manifold=manifold)
        with torch.no_grad():
            for one in streamed(model):
                one.bias[2 * one.streams :].normal_(0, size)
        with Probe(model) as probe:
            model(batch()[0]).sum().backward()
            probe.step()
        trace = probe.trace()
        assert list(unstable_mixing(trace)) == []
        norms = trace["composite_column_norm"]
        torch.testing.assert_close(norms[~norms.isnan()], torch.ones(24, dtype=torch.float64), rtol=1e-4, atol=0)


def test_a_column_that_sums_to_nearly_zero_is_no_fault_on_either_side_of_zero():
    for rest in (0.005, -0.005):
        model = net(levada.HyperConnection, dynamic=False, head="mean")
        with torch.no_grad():
            streamed(model)[-1].static_mix[1, 0] = rest - 1
        assert found(model) == {}


def test_noise_of_a_fifth_over_sixty_layers_is_found():
    assert all("unstable_mixing" in found(noisy(seed), budget=0.0) for seed in range(3))


def test_streams_that_are_treated_alike_are_an_error_and_stay_equal_when_trained():
    model = alike()
    told = found(model)["stream_collapse"]
    assert told.severity == "error"
    assert max(told.evidence["tests"]["difference_of_gradients_between_streams"].values()) < 1e-5
    assert set(told.evidence["tests"]["difference_of_gradients_between_streams"]) == {"read", "mix", "write"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)  # Adam would blow rounding up
    for step in range(20):
        optimizer.zero_grad()
        x, y = batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    for connection in streamed(model):
        read, write, _ = torch.split(connection.bias.detach(), connection.sizes)
        assert read.std() < 1e-4
        assert write.std() < 1e-4
        assert connection.bias.grad[2 * connection.streams :].abs().max() < 1e-6


def test_its_remedy_parts_the_streams():
    model = alike()
    exec(found(model)["stream_collapse"].remedies[0].patch, {"model": model})
    assert found(model) == {}
    trained(model)
    assert max(float(c.bias.detach()[:4].std()) for c in streamed(model)) > 0.1


def test_streams_that_a_learned_head_parts_are_left_alone():
    assert found(alike(levada.IdentityHyperConnection)) == {}
    assert found(alike(levada.IdentityHyperConnection, head="mean"))["stream_collapse"].severity == "error"


@pytest.mark.parametrize(
    ("make", "expected"),
    [(alike, ["warn"]), (lambda: net(levada.HyperConnection), []), (lambda: net(levada.Residual), [])],
)
def test_of_a_run_no_gradient_by_weight_is_known_and_the_symmetry_alone_is_a_warning(make, expected):
    model = make()
    with Probe(model) as probe:
        model(batch()[0]).sum().backward()
        probe.step()
    assert [f.severity for f in stream_collapse(probe.trace())] == expected


def test_single_pass_streams_are_treated_alike_though_the_first_layer_reads_one_and_not_if_the_end_does():
    model = alike(levada.SinglePassManifoldHyperConnection)
    for expected in (["warn"], []):
        with Probe(model) as probe:
            model(batch()[0]).sum().backward()
            probe.step()
        assert [f.severity for f in stream_collapse(probe.trace())] == expected
        with torch.no_grad():
            streamed(model)[-1].bias[0] += 1.0  # the weights that put the streams together at the end


def test_one_layer_that_reads_unlike_the_others_is_enough():
    model = alike()
    with torch.no_grad():
        streamed(model)[3].bias[0] += 0.01
    assert found(model) == {}


def test_connections_that_are_not_meant_to_learn_are_a_warning():
    model = alike()
    for connection in streamed(model):
        connection.requires_grad_(False)
    assert found(model)["stream_collapse"].severity == "warn"


def test_a_single_stream_that_is_used_is_information():
    model = net(levada.HyperConnection, dynamic=False)
    with torch.no_grad():
        for connection in streamed(model):
            for weights in (connection.static_read, connection.static_write):
                weights.copy_(torch.tensor([0.01, 1.0, 0.01, 0.01]))
    told = found(model)["stream_collapse"]
    assert told.severity == "info"
    assert told.claim.startswith("Stream 1 alone")
    with torch.no_grad():  # each layer a stream of its own: none is alone
        for i, connection in enumerate(streamed(model)):
            for weights in (connection.static_read, connection.static_write):
                weights.copy_(torch.eye(4)[i % 4])
    assert found(model) == {}


def trace(count=LAYERS, draws=2, logs=None, **columns):
    sites = tuple(Site(str(i), i, "Layer", (4, 2, 8)) for i in range(count + 1))  # a stem first
    usual = {
        "mixing_forward_gain": 1.0,
        "composite_forward_gain": 1.0,
        "composite_backward_gain": 1.0,
        "composite_log_column_sum": 0.0,
        "composite_column_norm": 1.0,
        "signal_rms": 1.0,
    }
    values = {}
    for name, usually in usual.items():
        column = columns.get(name, [usually] * count)
        row = ([1.0] if name == "signal_rms" else [math.nan]) + column
        values[name] = torch.tensor([row] * draws, dtype=torch.float64)
    logs = torch.zeros(draws, count + 1, dtype=torch.float64) if logs is None else logs
    context = {"facts": Facts(cotangent_log10=logs), "mixing": {"1": [[1.0]]}}
    return Trace(sites, (0,) * draws, values, context)


def severity(one):
    told = list(unstable_mixing(one))
    return told[0].severity if told else None


GROWING = [1000.0, 300.0, 100.0, 30.0, 10.0, 3.0]


def falling(decades, noise=0.0):
    rows = [[decades * (1 - i / LAYERS) + noise * sign * (i < 3) for i in range(LAYERS + 1)] for sign in (1, -1)]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"composite_backward_gain": GROWING, "logs": falling(3.0)}, "error"),
        ({"composite_backward_gain": GROWING, "logs": falling(1.0)}, "warn"),  # the gradient does not follow
        ({"composite_backward_gain": GROWING, "logs": falling(3.0, noise=2.0)}, "warn"),  # its interval is wide
        ({"composite_backward_gain": GROWING}, "warn"),
        ({"composite_backward_gain": [g / 20 for g in GROWING], "logs": falling(3.0)}, "warn"),  # 50 is below 100
        ({"composite_backward_gain": [g / 200 for g in GROWING], "logs": falling(3.0)}, None),
        ({"composite_forward_gain": GROWING[::-1], "signal_rms": GROWING[::-1]}, "error"),
        ({"composite_forward_gain": GROWING[::-1]}, "warn"),
        ({"composite_backward_gain": [31.0] * LAYERS}, "warn"),
        ({"composite_backward_gain": [29.0] * LAYERS}, None),
        ({"composite_column_norm": [0.09] * LAYERS}, "warn"),
        ({"composite_column_norm": [0.11] * LAYERS}, None),
        ({"composite_column_norm": [0.0] * LAYERS}, "warn"),
        ({"composite_column_norm": [math.nan] * LAYERS}, None),  # pooled on the way
        ({"composite_log_column_sum": [5.0] * LAYERS}, None),  # a column that sums to nearly zero keeps its norm
        ({"composite_backward_gain": [math.inf] * LAYERS, "logs": falling(math.inf)}, "warn"),
        ({"composite_backward_gain": [math.nan] * LAYERS}, None),
    ],
)
def test_each_leg_of_unstable_mixing_is_needed(given, expected):
    assert severity(trace(**given)) == expected


def test_rules_say_nothing_of_a_trace_without_streams():
    plain = Trace((Site("0", 0, "Linear", (4, 2)),), (0,), {})
    assert list(unstable_mixing(plain)) == []
    assert list(stream_collapse(plain)) == []
    zeros = check(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.zeros(4, 4))
    assert not {f.rule for f in zeros.findings} & RULES


def test_the_report_has_the_signals_by_block_and_the_matrices_once():
    report = check(net(levada.ManifoldHyperConnection), batch())
    blocks = {b["site"]: b for b in report.blocks}
    assert not set(blocks["0"]) & set(MIXING_SIGNALS)
    assert set(MIXING_SIGNALS) <= set(blocks["1.layers.0"])
    assert blocks["1.layers.3"]["read_share"] == pytest.approx(0.7)
    mixing = json.loads(report.to_json())["summary"]["mixing"]
    assert (mixing["layers"], mixing["streams"]) == (LAYERS, 4)
    assert list(mixing["matrices"]) == [f"1.layers.{i}" for i in range(LAYERS)]
    assert sum(mixing["matrices"]["1.layers.0"][2]) == pytest.approx(1.0)
    assert mixing["composite_backward_gain"] == max(
        blocks[name]["composite_backward_gain"] for name in mixing["matrices"]
    )
    assert "mixing" not in check(net(levada.Residual), batch()).summary


def test_a_check_of_compiled_layers_measures_the_same_and_leaves_nothing_attached():
    model = net(levada.HyperConnection, compile={"backend": "eager"})
    twin = net(levada.HyperConnection)
    twin.load_state_dict(model.state_dict())
    before = [set(vars(m)) for m in model.modules()]
    assert check(model, batch()).summary["mixing"] == check(twin, batch()).summary["mixing"]
    assert [set(vars(m)) for m in model.modules()] == before


def test_a_check_that_keeps_segments_measures_the_same():
    kept, whole = net(levada.HyperConnection, checkpoint=3), net(levada.HyperConnection)
    assert check(kept, batch()).summary["mixing"] == check(whole, batch()).summary["mixing"]
    assert found(alike(checkpoint=3))["stream_collapse"].severity == "error"
