"""A small residual network, its training step, and the signals of `watch` computed by hand, in plain PyTorch."""

import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import levada

DIM, DEPTH = 6, 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        self.relu = nn.ReLU()

    def forward(self, x):
        return x + self.relu(self.linear(x))


class Net(nn.Module):
    """`recompute` is None or the kind of checkpointing: "reentrant" or "not"."""

    def __init__(self, recompute=None):
        super().__init__()
        self.embed = nn.Linear(3, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.head = nn.Linear(DIM, 1)
        self.recompute = recompute

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.recompute == "reentrant") if self.recompute else block(x)
        return self.head(x)


NAMES = ["embed", *(f"blocks.{i}" for i in range(DEPTH)), "head"]


def make(recompute=None, seed=0):
    torch.manual_seed(seed)
    return Net(recompute)


def data(count=3, rows=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 3, generator=generator) for _ in range(count)]


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def loss_of(model, x):
    return (model(x) - 1.0).square().mean()


def watch(model, optimizer, **options):
    """Watch every step, whatever it costs."""
    return levada.watch(model, optimizer, **{"every": 1, "max_overhead": math.inf, **options})


def train(model, optimizer, batches, step=loss_of):
    for x in batches:
        optimizer.zero_grad()
        step(model, x).backward()
        optimizer.step()


def by_hand(model, batches, optimizer=None, *, parts=1, dtype=None):
    """Return a list of dicts of signals, one for each step: of a plain Net that this trains.

    With `parts`, each step has that many micro-batches, of which the mean of the losses is minimised; with `dtype`, the
    model runs under autocast.
    """
    optimizer = sgd(model) if optimizer is None else optimizer
    found = []
    for x in batches:
        optimizer.zero_grad()
        boundaries, zeros, losses = [], [], []
        for part in x.chunk(parts):
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                outputs, h = [], model.embed(part)
                outputs.append(h)
                for block in model.blocks:
                    active = torch.relu(block.linear(h))
                    zeros.append((active == 0).double().mean().item())
                    h = h + active
                    outputs.append(h)
                outputs.append(model.head(h))
            for h in outputs:
                h.retain_grad()
            loss = (outputs[-1].float() - 1.0).square().mean() / parts
            loss.backward()
            losses.append(loss.item())
            boundaries.append(outputs)
        owners = [model.embed, *model.blocks, model.head]
        weights = [next(p for p in owner.parameters() if p.dim() == 2) for owner in owners]
        before = [w.detach().clone() for w in weights]
        gradients = [w.grad.clone() for w in weights]
        optimizer.step()
        rested = getattr(optimizer, "rested", set())  # ids of parameters whose optimizer made no step
        found.append(
            {
                "signal_rms": [rms(torch.cat([o[i].detach() for o in boundaries])) for i in range(len(NAMES))],
                "gradient_rms": [rms(torch.cat([o[i].grad for o in boundaries])) for i in range(len(NAMES))],
                "zero_fraction": [math.nan, *(sum(zeros[i::DEPTH]) / parts for i in range(DEPTH)), math.nan],
                "weight_rms": [rms(w) for w in before],
                "weight_gradient_rms": [rms(g) for g in gradients],
                "update_ratio": [
                    math.nan if id(w) in rested else rms(w.detach() - b) / rms(b)
                    for w, b in zip(weights, before, strict=True)
                ],
                "nonfinite": [0.0] * len(NAMES),
                "gradient_nonfinite": [0.0] * len(NAMES),
                "loss": sum(losses),
            }
        )
    return found


def rms(x):
    return x.double().square().mean().sqrt().item()


def agree(watched, expected, *, without=(), rtol=1e-6):
    """Assert that a watch saw what was computed by hand."""
    assert [site.name for site in watched.sites] == NAMES
    assert len(watched.samples) == len(expected)
    for sample, values in zip(watched.samples, expected, strict=True):
        for name, numbers in values.items():
            if name == "loss":
                assert abs(sample.scalars["loss"] - numbers) <= rtol * abs(numbers) + 1e-9
            elif name not in without:
                want = torch.tensor(numbers, dtype=torch.float64)
                torch.testing.assert_close(
                    sample.values[name], want, rtol=rtol, atol=1e-9, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
                )
