"""Optimizers and whole training steps that are compiled: the watch's own hooks are called beside, and not traced."""

import pytest
import torch
from tests.watching.by_hand import agree, by_hand, data, loss_of, make, sgd, watch
from tests.watching.compiled import Counted
from torch._dynamo.utils import counters

from levada.watching.script import Watches

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")


def optimizer_alone(model, optimizer, backend, scaler):
    update = torch.compile(optimizer.step, backend=backend)

    def step(x):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        update()

    return step


def all_of_a_step(model, optimizer, backend, scaler):
    def step(x):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()

    return torch.compile(step, backend=backend)


def all_of_a_scaled_step(model, optimizer, backend, scaler):
    def step(x):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, x)).backward()
        scaler.step(optimizer)
        scaler.update()

    return torch.compile(step, backend=backend)


def compiled(loop, *, watched, every=2):
    """Return a watch, and how many graphs and frames were compiled by and by."""
    torch._dynamo.reset()
    counters.clear()
    model, backend, counts = make(), Counted(), []
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=64.0)
    found = watch(model, optimizer, every=every) if watched else None
    step = loop(model, optimizer, backend, scaler)
    for x in data(7):
        step(x)
        counts.append((backend.graphs, counters["frames"]["total"]))
    if found is not None:
        found.close()
    return found, counts


@pytest.mark.parametrize(
    ("loop", "taps"),
    [(optimizer_alone, 0), (all_of_a_step, 1), (all_of_a_scaled_step, 1)],
    ids=["optimizer", "step", "scaled"],
)
def test_a_compiled_step_has_the_graphs_of_the_unwatched_one_and_one_with_taps(loop, taps):
    _, alone = compiled(loop, watched=False)
    found, counts = compiled(loop, watched=True)
    assert counts[-1][0] == alone[-1][0] + taps
    assert counts[-1][1] <= 1.5 * alone[-1][1] + 10
    assert counts[3] == counts[-1]  # nothing is compiled again
    agree(found, by_hand(make(), data(7))[::2], rtol=1e-5)


def test_what_finds_trainings_in_a_script_is_not_traced_either():
    torch._dynamo.reset()
    counters.clear()
    model, seen = make(), []
    optimizer = sgd(model)
    with Watches(lambda *given: seen.append((torch.compiler.is_compiling(), given[0])) or None):
        torch.compile(optimizer.step, backend="eager")()
    assert seen == [(False, model)]
    assert counters["frames"]["total"] < 20


def test_what_was_wrapped_is_as_it_was_when_the_last_watch_is_closed():
    before = torch.autograd.backward, torch.amp.GradScaler.scale, torch.amp.GradScaler.step
    with watch(model := make(), sgd(model)):
        assert torch.autograd.backward is not before[0]
    assert (torch.autograd.backward, torch.amp.GradScaler.scale, torch.amp.GradScaler.step) == before
