"""A Lightning training is watched as a plain loop is: automatic and manual, accumulated, in mixed precision."""

from __future__ import annotations

import math
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.integrations.loops import Batches, Rule, assert_recorded, assert_same, plain, unwatched
from torch import nn

import levada

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import Callback

    from levada.integrations.lightning import LevadaCallback


def network():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)), nn.Linear(8, 1))


class Module(lightning.LightningModule):
    def __init__(self, calls_itself=True):
        super().__init__()
        self.net = network()
        self.calls_itself = calls_itself

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return nn.functional.mse_loss(self(batch[0]) if self.calls_itself else self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Manual(Module):
    """Two optimizers, of two losses, one after the other, as adversaries have them."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(half.parameters(), lr=0.1) for half in (self.net[:2], self.net[2:])]

    def training_step(self, batch, index):
        for number, optimizer in enumerate(self.optimizers()):
            optimizer.zero_grad()
            self.manual_backward(losses(self, batch)[number])
            optimizer.step()


def losses(model, batch):
    difference = model(batch[0]) - batch[1]
    return difference.square().mean(), difference.abs().mean()


def loader(count=48, size=8):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=size, shuffle=False
    )


def trainer(folder, callbacks, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=callbacks, default_root_dir=folder, **quiet | options
    )


def fit(folder, module, **options):
    rule = Rule()
    callback = LevadaCallback(str(folder / "run"), every=1, max_overhead=math.inf, listeners=[rule])
    trainer(folder, [callback], **options).fit(module, loader())
    return callback.watch, rule


def mean_loss(model, args, kwargs):
    x = args[0]
    return nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))


@pytest.mark.parametrize("calls_itself", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2, "precision": "bf16-mixed", "gradient_clip_val": 0.5}],
    ids=["plain", "accumulated and clipped in bf16"],
)
def test_samples_are_those_of_a_plain_loop(tmp_path, options, calls_itself):
    module, reference = Module(calls_itself), Module()
    batches = Batches(module.net)
    watch, rule = fit(tmp_path, module, **options)
    accumulate = options.get("accumulate_grad_batches", 1)
    expected = plain(
        reference,
        reference.configure_optimizers(),
        batches.seen,
        mean_loss,
        accumulate=accumulate,
        clip=options.get("gradient_clip_val"),
        autocast=torch.bfloat16 if "precision" in options else None,
    )
    # Of what the model is given nothing is known where a part of the module is called.
    unknown = () if calls_itself else ("alike_rows", "input_rms")
    assert_same(watch, expected, skip=("overhead", *unknown))
    assert watch.steps == 6 // accumulate
    # The loss is there before the update, although Lightning runs its passes inside of the optimizer's step.
    assert rule.heard == [(step, pytest.approx(loss)) for s in watch.samples for step, loss in s.losses]
    assert_recorded(tmp_path / "run", watch)
    module.net._forward_pre_hooks.clear()
    assert unwatched(module)
    assert bool(watch._engine.passes.seen) == calls_itself


def test_manual_optimization_with_two_optimizers(tmp_path):
    module, reference = Manual(), Manual()
    watch, _ = fit(tmp_path, module)
    optimizers = reference.configure_optimizers()
    expected = levada.watch(reference, optimizers, every=1, max_overhead=math.inf)
    with expected:
        for batch in loader():
            for number, optimizer in enumerate(optimizers):
                optimizer.zero_grad()
                losses(reference, batch)[number].backward()
                optimizer.step()
    assert_same(watch, expected)
    assert watch.steps == 12, "each optimizer has a pass of its own, and takes a step of its own"


def test_numbers_are_logged_and_findings_are_warnings_that_stop_if_asked(tmp_path):
    for stop in (False, True):
        callback = LevadaCallback(every=1, max_overhead=math.inf, listeners=[Rule(1)], stop_on_error=stop)
        run = trainer(tmp_path, [callback], min_epochs=0)
        with pytest.warns(UserWarning, match="error exploding_gradient: the gradient grows") as caught:
            run.fit(Module(), loader())
        assert len([w for w in caught if "exploding" in str(w.message)]) == 1
        assert run.global_step == (2 if stop else 6)
        last = callback.watch.samples[-1]
        assert run.callback_metrics["levada/gradient_norm"].item() == pytest.approx(last.scalars["gradient_norm"])
        assert run.callback_metrics["levada/findings_error"] == 1.0


class Broken(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if index == 2:
            raise RuntimeError("out of memory")


def test_an_exception_ends_the_watch(tmp_path):
    module, rule = Module(), Rule()
    callback = LevadaCallback(every=1, max_overhead=math.inf, listeners=[rule])
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(tmp_path, [Broken(), callback]).fit(module, loader())
    assert rule.closed == 1
    assert [sample.step for sample in callback.watch.samples] == [0, 1]
    assert unwatched(module)


def test_what_was_imported_as_pytorch_lightning_gets_a_callback_of_its_own(monkeypatch):
    package = SimpleNamespace(Callback=type("Callback", (), {}))
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", package)
    path = Path(levada.__file__).parent / "integrations" / "lightning.py"
    assert issubclass(runpy.run_path(str(path))["LevadaCallback"], package.Callback)
