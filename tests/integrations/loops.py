"""What tests of trainers share: samples are compared with those of a plain loop that is given the same batches."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch

import levada
from levada.diagnose import Finding
from levada.runs import Run
from levada.watching import WATCHED

FINDING = Finding("exploding_gradient", "error", "fired", "the gradient grows", consequence="Nothing is learned.")


class Rule:
    """A listener that finds something at one step, and remembers what it heard."""

    def __init__(self, step=None):
        self.step, self.findings, self.heard, self.closed = step, [], [], 0

    def before_update(self, step, loss):
        self.heard.append((step, None if loss is None else loss.item()))

    def sampled(self, sample):
        if sample.step == self.step:
            self.findings.append(FINDING)

    def close(self):
        self.closed += 1


class Batches:
    """Remembers what a model was called with while it learned."""

    def __init__(self, model, keys=None):
        self.seen = []
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        if torch.is_grad_enabled() and module.training:
            self.seen.append(copy.deepcopy((args, kwargs)))


def plain(model, optimizer, batches, loss, *, accumulate=1, clip=None, autocast=None):
    """Train with a loop of one's own; give the watch."""
    watch = levada.watch(model, optimizer, every=1, max_overhead=math.inf)
    with watch:
        for step, (args, kwargs) in enumerate(batches):
            context = torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext()
            with context:
                value = loss(model, args, kwargs) / accumulate
            value.backward()
            if (step + 1) % accumulate == 0:
                if clip:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return watch


def assert_same(watch, expected, rtol=1e-5, skip=("overhead",)):
    """Compare all samples: sites, steps, signals, scalars and losses."""
    assert [site.name for site in watch.sites] == [site.name for site in expected.sites]
    assert [s.step for s in watch.samples] == [s.step for s in expected.samples]
    assert len(watch.samples) > 2
    for mine, theirs in zip(watch.samples, expected.samples, strict=True):
        for name in WATCHED:
            torch.testing.assert_close(
                mine.values[name],
                theirs.values[name],
                rtol=rtol,
                atol=1e-12,
                equal_nan=True,
                msg=lambda m, n=name: f"{n}: {m}",
            )
        assert sorted(mine.scalars.keys() - set(skip)) == sorted(theirs.scalars.keys() - set(skip))
        for name in theirs.scalars.keys() - set(skip):
            torch.testing.assert_close(mine.scalars[name], theirs.scalars[name], rtol=rtol, atol=1e-12)
        torch.testing.assert_close(dict(mine.losses), dict(theirs.losses), rtol=rtol, atol=1e-12)
    finite = watch.trace()["gradient_rms"]
    assert (finite > 0).all()  # something was measured
    assert (watch.trace()["update_ratio"] > 0).any()


def assert_recorded(folder, watch):
    """Compare the run folder with the watch: 128 codes an octave."""
    run = Run(folder)
    signals = run.signals()
    assert run.damage is None
    assert list(signals.steps) == [sample.step for sample in watch.samples]
    assert [site["name"] for site in signals.sites] == [site.name for site in watch.sites]
    for name in ("signal_rms", "gradient_rms", "update_ratio"):
        for sample, row in zip(watch.samples, signals.read(name), strict=True):
            assert row == pytest.approx(sample.values[name].tolist(), rel=0.01, nan_ok=True)
    assert run.losses() == [pair for sample in watch.samples for pair in sample.losses]
    assert next(run.events("end"))["steps"] == watch.steps


def unwatched(model):
    """Whether nothing of a watch is left."""
    from levada.watching.loop import losses

    hooks = [m for m in model.modules() if m._forward_hooks or m._backward_hooks]
    return not losses._watchers and not hooks and not hasattr(torch.autograd.backward, "__wrapped__")
