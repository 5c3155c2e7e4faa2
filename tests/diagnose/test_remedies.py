"""Each remedy writes code that changes a model as it says, or says that it does not apply."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from levada import Residual, Stack
from levada.diagnose import REMEDIES, Patch
from levada.diagnose.check import examine
from levada.diagnose.facts import facts_of
from levada.diagnose.remedies import Subject, calls
from levada.inputs import read_batches

DIM = 8
BATCH = (torch.randn(16, DIM, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3)


def subject(model, batch=BATCH, **how):
    report, trace = examine(model, batch, **how)
    batches = read_batches(model, batch)
    looked_at = copy.deepcopy(model)
    return Subject(looked_at, report, facts_of(trace), batches, calls(looked_at, batches[0]))


def applied(name, model, batch=BATCH, **how):
    """Return what a remedy makes of a copy, which must still run; and its patch."""
    looked = subject(model, batch, **how)
    before = copy.deepcopy(model.state_dict())
    patch = REMEDIES[name].write(looked)
    assert all(torch.equal(before[key], value) for key, value in looked.model.state_dict().items())
    assert patch is not None
    changed = patch.change(copy.deepcopy(model), looked.inputs)
    batches = read_batches(model, batch)
    first = batches[0].args[0]
    dtype = next(changed.parameters()).dtype
    changed(first.to(dtype) if first.is_floating_point() else first)
    return changed, patch


def chain(activation=nn.ReLU, depth=5, end=3):
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(DIM, DIM), activation())]
    return nn.Sequential(*layers, nn.Linear(DIM, end))


@pytest.mark.parametrize(("name", "wanted"), [("0.001", 1e-3), ("0.01", 1e-2), ("0.05", 5e-2)])
@pytest.mark.parametrize("rate", [10.0, 1e-6])
def test_rates_are_set_by_the_largest_first_step(name, wanted, rate):
    looked, weight = subject(chain(), optimizer="SGD", lr=rate), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=rate)
    REMEDIES[f"learning_rate.update_{name}"].write(looked).prepare(optimizer, [weight])
    set_to = optimizer.param_groups[0]["lr"]
    # One digit; and the first step of plain SGD is in proportion to its rate.
    assert looked.largest_update * set_to / rate == pytest.approx(wanted, rel=0.35)
    assert REMEDIES[f"learning_rate.update_{name}"].write(subject(chain(), optimizer="SGD", lr=set_to)) is None


def test_clipping_acts_before_each_step():
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    REMEDIES["clip"].write(subject(chain())).prepare(optimizer, [weight])
    for _ in range(2):
        weight.grad = torch.full((4,), 100.0)
        optimizer.step()
    assert torch.allclose(weight, torch.full((4,), -1.0), atol=1e-4)  # two steps of norm 1


def test_normalisation_goes_after_every_layer_but_the_last():
    model, patch = applied("normalise", chain())
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
    assert norms == [f"{i}.1" for i in range(0, 10, 2)]
    assert "names = [n for n, m" in patch.build
    images = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3)
    )
    model, _ = applied("normalise", images, (torch.randn(16, 2, 8, 8), BATCH[1]))
    assert [type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__] == [
        "GroupNorm",
        "GroupNorm",
        "LayerNorm",
    ]
    assert REMEDIES["normalise"].write(subject(model, (torch.randn(16, 2, 8, 8), BATCH[1]))) is None


def test_bounded_activations_are_swapped_but_for_the_output():
    shared = nn.Tanh()
    model = nn.Sequential(nn.Linear(DIM, DIM), shared, nn.Linear(DIM, DIM), shared, nn.Linear(DIM, 3), nn.Sigmoid())
    changed, patch = applied("activation.relu", model)
    assert [type(m).__name__ for m in changed][1::2] == ["ReLU", "ReLU", "Sigmoid"]
    assert "['1', '3']" in patch.build
    assert REMEDIES["activation.relu"].write(subject(chain())) is None


def test_blocks_of_a_chain_become_branches():
    model, patch = applied("rezero", nn.Sequential(nn.Sequential(nn.Linear(DIM, DIM)), chain(nn.Tanh)))
    (stack,) = [m for m in model.modules() if isinstance(m, Stack)]
    assert stack.depth == 5
    assert "model.get_submodule('1')" in patch.build
    x = BATCH[0]
    assert torch.equal(model[1](x), model[1][-1](x))  # the identity at the start
    assert REMEDIES["rezero"].write(subject(chain(depth=2))) is None


def test_a_sequential_with_its_own_forward_is_not_taken_apart():
    class Own(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    assert REMEDIES["rezero"].write(subject(Own(*chain()))) is None


@pytest.mark.parametrize(("name", "start"), [("scale_branches", 6**-0.5), ("gate_branches", 0.0)])
def test_residual_branches_get_a_learned_scale(name, start):
    model = nn.Sequential(Stack([nn.Linear(DIM, DIM) for _ in range(6)], Residual, dim=DIM), nn.Linear(DIM, 3))
    changed, _ = applied(name, model)
    scales = [p.item() for n, p in changed.named_parameters() if n.endswith(".scale")]
    assert scales == pytest.approx([start] * 6)
    assert REMEDIES[name].write(subject(chain())) is None


def test_a_chain_of_branches_without_an_inferable_input_is_given_one():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.norm = nn.Linear(DIM, DIM), nn.LayerNorm(DIM)

        def forward(self, x):
            return x + self.branch(self.norm(x))

    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x.reshape(16, DIM))

    model = Noisy(nn.LayerNorm(DIM), *(Block() for _ in range(4)), nn.Linear(DIM, 3))
    _, patch = applied("gate_branches", model)
    assert "batch=(inputs, None)" in patch.build


def test_forget_gates_open():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.head = nn.LSTM(DIM, 6, num_layers=2, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.read(x)[0][:, -1])

    changed, _ = applied("forget_bias", Reader(), (torch.randn(16, 5, DIM), BATCH[1]))
    for layer in range(2):
        total = getattr(changed.read, f"bias_ih_l{layer}") + getattr(changed.read, f"bias_hh_l{layer}")
        assert total[6:12].tolist() == [1.0] * 6
        assert total[:6].abs().max() < 1.0
    assert REMEDIES["forget_bias"].write(subject(chain())) is None


def test_modes_types_and_requests_for_gradients():
    model = chain().eval()
    assert applied("train", model)[0].training
    assert REMEDIES["train"].write(subject(chain())) is None
    frozen = chain()
    frozen[0].requires_grad_(False)
    assert applied("unfreeze", frozen)[0][0].weight.requires_grad
    assert REMEDIES["unfreeze"].write(subject(chain())) is None
    half, inputs = chain().half(), (BATCH[0].half(), BATCH[1])
    assert next(applied("bfloat16", half, inputs)[0].parameters()).dtype == torch.bfloat16
    assert REMEDIES["bfloat16"].write(subject(chain())) is None


@pytest.mark.parametrize("shape", [(16, DIM), (16, 3, 9), (16, 3, 6, 6)])
def test_inputs_out_of_scale_are_standardised(shape):
    torch.manual_seed(0)
    first = {2: nn.Linear(DIM, 3), 3: nn.Conv1d(3, 3, 9), 4: nn.Conv2d(3, 3, 6)}[len(shape)]
    model, x = nn.Sequential(first, nn.Flatten()), 100 * torch.randn(shape) + 70
    changed, _ = applied("standardise", model, (x, BATCH[1]))
    seen = changed[0](x)
    assert seen.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert seen.std().item() == pytest.approx(1.0, abs=0.01)
    assert REMEDIES["standardise"].write(subject(model, (torch.randn(shape), BATCH[1]))) is None


def test_a_softmax_inside_the_model_is_no_fault():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.score, self.softmax, self.head = nn.Linear(DIM, DIM), nn.Softmax(-1), nn.Linear(DIM, 3)

        def forward(self, x):
            return self.head(x * self.softmax(self.score(x)))

    assert REMEDIES["softmax"].write(subject(Attends(), loss="cross_entropy")) is None
    changed, _ = applied("softmax", nn.Sequential(chain(), nn.Softmax(1)), loss="cross_entropy")
    assert isinstance(changed[1], nn.Identity)
    assert (
        REMEDIES["softmax"].write(subject(nn.Sequential(chain(end=1), nn.Softmax(1)), (BATCH[0], torch.ones(16, 1))))
        is None
    )


@pytest.mark.parametrize("name", ["initialise.he", "initialise.lsuv", "initialise.critical", "initialise.glorot"])
def test_weights_are_drawn_from_the_seed_alone(name):
    model = chain(nn.ReLU if name == "initialise.he" else nn.Tanh)
    torch.manual_seed(5)
    one, _ = applied(name, model)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    other, patch = applied(name, model)
    assert torch.equal(one[0].weight, other[0].weight)
    assert not torch.equal(one[0].weight, model[0].weight)
    torch.set_rng_state(state)
    patch.change(copy.deepcopy(model), BATCH[0])
    assert torch.equal(state, torch.get_rng_state())


def test_every_output_gets_unit_variance_without_the_batch():
    model, patch = applied("initialise.lsuv", chain(nn.Tanh))
    x = BATCH[0]
    for module in model:
        x = module(x)
        assert not isinstance(module, nn.Linear) or x.var(correction=0).item() == pytest.approx(1.0, abs=0.03)
    assert "inputs" not in patch.build


def test_a_patch_says_where_its_parts_belong():
    text = str(Patch("model.train()", "optimizer.zero_grad()", "pass"))
    assert text.index("After building the model") < text.index("After building the optimizer") < text.index("Between")


def test_weights_drawn_anew_are_trained_at_a_tenth_of_the_rate():
    model = chain()
    one, _ = applied("initialise.he", model)
    other, patch = applied("initialise.he_slower", model)
    assert torch.equal(one[0].weight, other[0].weight)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    exec(patch.optimizer, {"optimizer": optimizer})
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
