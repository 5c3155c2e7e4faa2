"""The programs of the diagnosis benchmark: what was planted is there, where it is said to be, and nothing else."""

import functools
import json
import math

import pytest
import torch
from benchmarks.diagnosis.operators import OPERATORS
from benchmarks.diagnosis.operators.layers import Bottleneck, Detached, Rounded, Scaled, Squashed, WithoutGradient
from benchmarks.diagnosis.operators.operator import ACTIVATIONS, NORMS, activated
from benchmarks.diagnosis.planted import LABELS, SEEDS, harmful, label, labels, programs
from benchmarks.diagnosis.program import Program, Setup, held_out, judge, train
from torch import nn

from levada.diagnose.diagnostics import DIAGNOSTICS
from levada.probe import Probe

PROGRAMS = {program.name: program for program in programs()}
HEALTHY = [program for program in PROGRAMS.values() if program.healthy]
FAULTY = [program for program in PROGRAMS.values() if not program.healthy]
# No rule: what `check` does not measure at all, and says why.
REFUSED = "refused"


class Pair:
    """One program of an operator, and its twin, both fresh."""

    def __init__(self, operator: str) -> None:
        order = ["mlp", "lstm", "gru", "rnn", "autoencoder", "vit", "transformer", "cnn", "resnet"]
        self.program = min((p for p in FAULTY if p.operator == operator), key=lambda p: order.index(p.family))
        self.setup = self.program.build(0)
        self.twin = PROGRAMS[self.program.architecture].build(0)
        self.site = self.program.place.removesuffix(".inner")

    @functools.cached_property
    def outputs(self):
        return self.run(self.setup)

    @functools.cached_property
    def twin_outputs(self):
        return self.run(self.twin)

    @staticmethod
    def run(setup: Setup):
        torch.manual_seed(0)
        with torch.no_grad():
            return setup.model(setup.batches[0][0])

    @property
    def planted(self) -> nn.Module:
        return self.setup.model.get_submodule(self.site)

    def ratio(self, site: str = "", name: str = "weight"):
        """Sizes of parameters over those of the twin's, and all that lie elsewhere: those must be equal."""
        before = dict(self.twin.model.named_parameters())
        inside = {k: v for k, v in self.setup.model.named_parameters() if k.startswith(site)}
        for key, value in self.setup.model.named_parameters():
            assert key in inside or torch.equal(value, before[key])
        values = {k: float((v.norm() / before[k].norm()).detach()) for k, v in inside.items() if name in k}
        return {
            k: v for k, v in values.items() if before[k].dim() > 1 and not {"position", "embed"} & set(k.split("."))
        }

    def scaled(self, factor: float, site: str = "") -> bool:
        return all(v == pytest.approx(factor, rel=1e-3) for v in self.ratio(site).values())

    def embedding_ratio(self) -> float:
        return float((self.planted.weight.norm() / self.twin.model.embed.weight.norm()).detach())

    def weights(self, site: str = ""):
        return [
            p.detach()
            for k, p in self.setup.model.named_parameters()
            if k.startswith(site) and p.dim() > 1 and "embed" not in k and "position" not in k
        ]

    def groups(self, option: str) -> tuple[float, float]:
        found = [s.optimizer(s.model.parameters()).param_groups[0][option] for s in (self.setup, self.twin)]
        return found[0], found[1]

    def rate(self, factor: float) -> bool:
        mine, twins = self.groups("lr")
        return mine == pytest.approx(factor * twins)

    def losses(self) -> tuple[float, float]:
        targets = self.twin.batches[0][1]
        return float(self.setup.loss(self.outputs, targets)), float(self.twin.loss(self.twin_outputs, targets))

    def judged_alike(self) -> bool:
        return judge(self.setup) == pytest.approx(judge(self.twin), rel=1e-5)

    def inputs(self):
        return self.setup.batches[0][0], self.twin.batches[0][0]

    def gradient_reaches_the_start(self) -> bool:
        x, y = self.setup.batches[0]
        self.setup.loss(self.setup.model(x), y).backward()
        gradient = next(self.setup.model.parameters()).grad
        return gradient is not None and bool(gradient.any())

    def kinds(self, *kinds: type) -> int:
        return sum(isinstance(m, kinds) for m in self.setup.model.modules())


def near(value, expected) -> bool:
    return bool(value == pytest.approx(expected, rel=1e-4))


def dead(pair: Pair) -> bool:
    """Whether the units that the fault is about let nothing through."""
    model = pair.setup.model
    sites = [pair.site] if pair.site else activated(model)
    x = pair.setup.batches[0][0]
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, ACTIVATIONS) and any(0 < int(name) - int(s) <= 2 for s in sites):
            return float((x.abs() > 1e-2).float().mean()) < 0.05
    return False


def bias_of(pair: Pair, family: str, gate: int):
    dim = len(pair.setup.model.recurrent.weight_hh_l0[0])
    return pair.setup.model.recurrent.bias_ih_l0[gate * dim : (gate + 1) * dim]


def masked_in(pair: Pair):
    return pair.setup.model.mask, pair.twin.model.mask


def deep(pair: Pair, factor: float) -> bool:
    mine, twins = (sum(p.dim() > 1 for p in s.model.parameters()) for s in (pair.setup, pair.twin))
    return mine > factor * twins


CHANGES = {
    "small_weights": lambda p: p.scaled(0.01),
    "large_weights": lambda p: p.scaled(10.0),
    "zero_weights": lambda p: not any(w.any() for w in p.weights()),
    "constant_weights": lambda p: all((w == 0.05).all() for w in p.weights()),
    "unit_normal_weights": lambda p: all(0.8 < float(w.std()) < 1.2 for w in p.weights()),
    "positive_weights": lambda p: all(w.min() >= 0 and 0.4 < float(w.mean()) < 0.6 for w in p.weights()),
    "small_block": lambda p: p.scaled(1e-3, p.site),
    "large_block": lambda p: p.scaled(100.0, p.site),
    "zero_block": lambda p: p.scaled(0.0, p.site),
    "equal_rows": lambda p: all((w == w[:1]).all() for w in p.weights(p.site)),
    "rank_one_block": lambda p: (
        p.scaled(1.0, p.site) and all(torch.linalg.matrix_rank(w.flatten(1)) == 1 for w in p.weights(p.site))
    ),
    "dead_block": dead,
    "dead_biases": dead,
    "saturated_biases": lambda p: bool((p.planted.bias.abs() == 10).all()),
    "large_head": lambda p: p.scaled(100.0, p.site),
    "large_head_bias": lambda p: bool((p.outputs.argmax(-1) == 3).all()),
    "large_embedding": lambda p: near(p.embedding_ratio(), 1e3),
    "small_embedding": lambda p: near(p.embedding_ratio(), 1e-6),
    "equal_embedding": lambda p: 0 < float(p.planted.weight.detach().std(0).max()) < 1e-3,
    "sharp_attention": lambda p: all(
        r > 10 if "in_proj" in k else near(r, 1.0) for k, r in p.ratio().items() if "self_attn" in k
    ),
    "small_norms": lambda p: all(
        near(m.weight.abs().max().item(), 1e-3) for m in p.setup.model.modules() if isinstance(m, NORMS)
    ),
    "large_branches": lambda p: sum(near(r, 30.0) for r in p.ratio().values()) >= 2,
    "nan_weight": lambda p: sum(int(w.isnan().sum()) for w in p.setup.model.get_submodule(p.site).parameters()) == 1,
    "overflowing_head": lambda p: float(p.planted.weight.detach().abs().max()) > 1e35,
    "exploding_recurrence": lambda p: all(near(r, 10.0 if "hh" in k else 1.0) for k, r in p.ratio().items()),
    "forgetting": lambda p: bool((bias_of(p, p.program.family, 1) == -5).all()),
    "closed_gates": lambda p: bool((bias_of(p, p.program.family, 0) == -10).all()),
    "sigmoids": lambda p: p.kinds(nn.Sigmoid) and not p.kinds(*ACTIVATIONS),
    "no_activations": lambda p: not p.kinds(*ACTIVATIONS),
    "high_thresholds": lambda p: p.kinds(nn.Threshold) and not p.kinds(*ACTIVATIONS),
    "squashed_block": lambda p: isinstance(p.planted, Squashed),
    "rounded_block": lambda p: isinstance(p.planted, Rounded) and not p.gradient_reaches_the_start(),
    "shrunk_block": lambda p: isinstance(p.planted, Scaled) and p.planted.factor == 1e-4,
    "swollen_block": lambda p: isinstance(p.planted, Scaled) and p.planted.factor == 300,
    "bottleneck": lambda p: isinstance(p.planted, Bottleneck) and len(p.planted.down.weight) == 1,
    "detached_block": lambda p: isinstance(p.planted, Detached) and not p.gradient_reaches_the_start(),
    "unrecorded_block": lambda p: isinstance(p.planted, WithoutGradient) and not p.gradient_reaches_the_start(),
    "rectified_outputs": lambda p: torch.equal(p.outputs, p.twin_outputs.relu()) and p.outputs.min() == 0,
    "squashed_outputs": lambda p: torch.equal(p.outputs, p.twin_outputs.sigmoid()),
    "cold_logits": lambda p: torch.allclose(p.outputs, 1e-4 * p.twin_outputs),
    "much_deeper": lambda p: deep(p, 1.9),
    "deep_sigmoids": lambda p: p.kinds(nn.Sigmoid) >= 11 and not p.kinds(*NORMS),
    "chaotic": lambda p: (
        p.kinds(nn.Tanh) >= 19 and all(float(w[:2].norm(dim=1).min()) > 3.9 for w in p.weights()[1:-1])
    ),
    "norms_removed": lambda p: not p.kinds(*NORMS),
    "norms_removed_deep": lambda p: not p.kinds(*NORMS) and deep(p, 1.9),
    "skips_removed": lambda p: not any(type(m).__name__ == "ResidualBlock" for m in p.setup.model.modules()),
    "skips_and_norms_removed": lambda p: not p.kinds(*NORMS) and deep(p, 1.5),
    "large_norm_eps": lambda p: float(p.outputs.std(0).max()) < 0.1 * float(p.twin_outputs.std(0).max()),
    "eval_mode": lambda p: not p.setup.model.training and p.twin.model.training,
    "dropout_of_nearly_all": lambda p: all(m.p == 0.99 for m in p.setup.model.modules() if isinstance(m, nn.Dropout)),
    "inverted_mask": lambda p: torch.equal(masked_in(p)[0], ~masked_in(p)[1]),
    "lonely_mask": lambda p: bool(((~masked_in(p)[0]).sum(1) == 1).all()),
    "leaking_mask": lambda p: not masked_in(p)[0].any() and masked_in(p)[1].any(),
    "batch_as_time": lambda p: not p.setup.model.recurrent.batch_first,
    "first_state_read": lambda p: torch.allclose(p.outputs, p.setup.model(p.inputs()[0][:, :1]), atol=1e-6),
    "rate_100_times": lambda p: p.rate(100),
    "rate_10_times": lambda p: p.rate(10),
    "rate_of_1e_4": lambda p: p.rate(1e-4),
    "rate_of_1e_2": lambda p: p.rate(1e-2),
    "eps_of_1": lambda p: p.groups("eps") == (1.0, 1e-8),
    "enormous_decay": lambda p: near(p.groups("weight_decay")[0] * p.groups("lr")[0], 0.2),
    "momentum_of_1": lambda p: p.groups("momentum") == (1.0, 0.9),
    "clipped_to_nothing": lambda p: clipped(p),
    "head_alone_optimised": lambda p: len(p.setup.optimizer(p.setup.model.parameters()).param_groups[0]["params"]) == 2,
    "no_zero_grad": lambda p: not p.setup.zero_grad and p.twin.zero_grad,
    "double_softmax": lambda p: torch.allclose(p.outputs, p.twin_outputs.softmax(-1)) and p.judged_alike(),
    "double_log_softmax": lambda p: p.judged_alike() and not torch.allclose(p.outputs, p.twin_outputs),
    "likelihood_without_log": lambda p: p.losses()[0] < 1.0 and p.judged_alike(),
    "log_of_softmax": lambda p: p.losses()[0] == math.inf and p.judged_alike(),
    "negated_loss": lambda p: p.losses()[0] == -p.losses()[1] and p.judged_alike(),
    "loss_without_graph": lambda p: not graph(p) and p.judged_alike(),
    "loss_of_nothing": lambda p: p.losses()[0] == 0.0 and p.judged_alike(),
    "loss_over_the_batch": lambda p: p.losses()[0] > 1.2 * p.losses()[1] and p.judged_alike(),
    "squared_error_of_predicted_class": lambda p: not graph(p) and p.judged_alike(),
    "squared_error_of_indices": lambda p: p.losses()[0] > 2 * p.losses()[1] and p.judged_alike(),
    "broadcast_error": lambda p: not near(*p.losses()) and p.judged_alike(),
    "summed_loss": lambda p: near(p.losses()[0], p.losses()[1] * p.outputs.numel()) and p.judged_alike(),
    "faint_loss": lambda p: near(p.losses()[0], 1e-8 * p.losses()[1]) and p.judged_alike(),
    "bfloat16_weights": lambda p: p.outputs.dtype == torch.bfloat16 and p.rate(1),
    "bfloat16_weights_short_steps": lambda p: p.outputs.dtype == torch.bfloat16 and p.rate(1 / 30),
    "float16_weights": lambda p: p.outputs.dtype == torch.float16,
    "float16_flushed": lambda p: p.outputs.dtype == torch.float16 and p.losses()[0] < 1e-4 * p.losses()[1],
    "inputs_1000_times": lambda p: near(p.inputs()[0].std() / p.inputs()[1].std(), 1000),
    "inputs_off_centre": lambda p: near(p.inputs()[0].mean() - p.inputs()[1].mean(), 100),
    "inputs_of_bytes": lambda p: p.inputs()[0].min() >= 0 and 200 < p.inputs()[0].max() < 255.1,
    "tiny_inputs": lambda p: near(p.inputs()[0].std() / p.inputs()[1].std(), 1e-4),
    "one_large_feature": lambda p: p.inputs()[0].std() > 50 * p.inputs()[1].std(),
    "nan_inputs": lambda p: p.inputs()[0].isnan().sum() == 1 and p.judged_alike(),
    "shuffled_labels": lambda p: not torch.equal(p.setup.batches[0][1], p.twin.batches[0][1]) and p.judged_alike(),
    "targets_of_another_batch": lambda p: torch.equal(p.setup.batches[0][1], p.twin.batches[1][1]) and p.judged_alike(),
    "padded_sequences": lambda p: p.inputs()[0].shape[1] == p.inputs()[1].shape[1] + 100,
}


def graph(pair: Pair) -> bool:
    x, y = pair.setup.batches[0]
    return pair.setup.loss(pair.setup.model(x), y).requires_grad


def clipped(pair: Pair) -> bool:
    parameters = list(pair.setup.model.parameters())
    optimizer = pair.setup.optimizer(parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return float(torch.stack([p.grad.norm() for p in parameters]).norm()) < 1e-7


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_changes_what_it_says(name):
    assert CHANGES[name](Pair(name))


@pytest.mark.parametrize("name", [name for name, op in OPERATORS.items() if op.sites is not None])
def test_a_place_is_a_block_of_the_probe(name):
    pair = Pair(name)
    with Probe(pair.setup.model) as probe:
        pair.setup.model(pair.setup.batches[0][0])
        probe.step()
    assert pair.program.place in probe.trace().names()


def test_every_place_is_a_module():
    for program in FAULTY:
        assert bool(program.place) is (OPERATORS[program.operator].sites is not None)
        if program.place:
            assert program.build(0).model.get_submodule(program.place) is not None


def test_operators_are_described_and_name_known_rules():
    rules = set(DIAGNOSTICS) | {REFUSED}
    assert set(CHANGES) == set(OPERATORS)
    for op in OPERATORS.values():
        assert op.causes <= rules
        assert op.mutate.__doc__.endswith(".")
        assert "\n" not in op.mutate.__doc__
        assert len({p.architecture for p in FAULTY if p.operator == op.name}) >= 3


def test_programs_are_many_and_split_about_evenly():
    assert len(HEALTHY) >= 240
    assert len(FAULTY) >= 280
    for group in (HEALTHY, FAULTY):
        assert 0.44 < sum(held_out(p.name) for p in group) / len(group) < 0.56
    assert all(p.operator == "" and not p.causes and not p.place for p in HEALTHY)
    assert all(p.architecture in PROGRAMS and p.family == PROGRAMS[p.architecture].family for p in FAULTY)


def test_the_second_draw_is_large_and_counted_apart():
    assert sum(p.draw == 2 for p in FAULTY) >= 280
    for program in PROGRAMS.values():
        last = "fresh" if program.draw == 2 else "held out"
        assert program.split == (last if held_out(program.name) else "calibration")
    assert all(p.draw == 1 for p in HEALTHY)


def test_the_same_seed_gives_the_same_setup_and_another_another():
    program = PROGRAMS["mlp-3-relu-sgd"]
    first, again, other = (program.build(seed) for seed in (3, 3, 4))
    assert torch.equal(first.model[1].weight, again.model[1].weight)
    assert torch.equal(first.batches[0][0], again.batches[0][0])
    assert not torch.equal(first.model[1].weight, other.model[1].weight)
    assert not torch.equal(first.batches[0][0], other.batches[0][0])
    assert train(first, 3, 0) == train(again, 3, 0)


def test_a_label_run_resumes(tmp_path):
    path = tmp_path / "labels.jsonl"
    chosen: list[Program] = [PROGRAMS["mlp-3-relu-sgd"]]
    label(chosen, path, steps=10)
    healthy = path.read_text()
    wrong = next(p for p in FAULTY if p.operator == "loss_of_nothing" and p.family == "mlp")
    assert wrong.architecture != chosen[0].name
    label([*chosen, wrong], path, steps=10)
    assert path.read_text().startswith(healthy)
    assert labels(path) == {chosen[0].name: "healthy", wrong.architecture: "healthy", wrong.name: "harmful"}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["name"] for row in rows] == [chosen[0].name, wrong.architecture, wrong.name]
    assert rows[2]["ends"] == rows[2]["starts"]
    assert rows[2]["twin_ends"] == rows[1]["ends"]
    assert len(rows[2]["ends"]) == len(SEEDS)


def test_harm_is_a_tenth_of_the_gain_in_every_seed():
    assert harmful([1.11, math.inf], [2.0, 2.0], [1.0, 1.0])
    assert not harmful([1.09, math.inf], [2.0, 2.0], [1.0, 1.0])


def test_the_labels_are_of_these_programs():
    known = labels()
    rows = [json.loads(line) for line in LABELS.read_text().splitlines()]
    assert set(known) == set(PROGRAMS)
    assert len(rows) == len(known)
    assert all(row["learned"] for row in rows if not row["operator"])
    assert sum(kind == "harmful" for kind in known.values()) >= 240
    assert all((known[name] == "healthy") is program.healthy for name, program in PROGRAMS.items())
