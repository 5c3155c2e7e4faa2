"""A transformers.Trainer is watched as a plain loop is, whatever it wraps around model and optimizer."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState
from tests.integrations.loops import Batches, Rule, assert_recorded, assert_same, plain, unwatched
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from levada._errors import UsageError
from levada.integrations.huggingface import LevadaCallback
from levada.integrations.training import _numbered
from levada.runs import Run
from levada.watching import Continue

CONFIG = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def alone():
    """Accelerate's state is the process's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**CONFIG))


def data(count=64):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 32, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer(model, folder, callbacks, **options):
    arguments = TrainingArguments(
        str(folder),
        **{
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 2,
            **options,
        },
    )
    return Trainer(model, arguments, train_dataset=data(), callbacks=callbacks)


def mean_loss(model, args, kwargs):
    return model(**{k: v for k, v in kwargs.items() if k != "num_items_in_batch"}).loss


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2, "bf16": True}],
    ids=["plain", "accumulated in bf16"],
)
def test_samples_are_those_of_a_plain_loop(tmp_path, options):
    model, reference = llama(), llama()
    batches, rule = Batches(model), Rule()
    callback = LevadaCallback(str(tmp_path / "run"), every=1, max_overhead=math.inf, listeners=[rule])
    trained = trainer(model, tmp_path, [callback], **options)
    trained.train()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0)
    autocast = torch.bfloat16 if options.get("bf16") else None
    accumulate = options.get("gradient_accumulation_steps", 1)
    expected = plain(reference, optimizer, batches.seen, mean_loss, accumulate=accumulate, clip=1.0, autocast=autocast)
    assert_same(callback.watch, expected)
    assert_recorded(tmp_path / "run", callback.watch)
    assert [step for step, _ in rule.heard] == [0, 1, 2, 3]
    assert callback.watch.steps == 4
    # The loss of a step is what the trainer logs, also of micro-batches that it divides.
    logged = [row["loss"] for row in trained.state.log_history if "loss" in row]
    losses = [sample.scalars["loss"] for sample in callback.watch.samples]
    assert logged == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-3)
    assert [site.name for site in callback.watch.sites if "layers" in site.name] == [
        f"model.layers.{i}" for i in range(3)
    ]
    assert unwatched_but_for(model, batches)


def unwatched_but_for(model, batches):
    model._forward_pre_hooks.clear()
    return unwatched(model)


def test_numbers_are_in_the_logs_where_reporters_find_them(tmp_path):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    callback = LevadaCallback(every=1, max_overhead=math.inf)
    trained = trainer(llama(), tmp_path, [Reporter(), callback])
    trained.train()
    samples = callback.watch.samples
    for row, kept, sample in zip(seen[:2], trained.state.log_history[:2], (samples[1], samples[3]), strict=True):
        assert row.items() <= kept.items()
        assert row["levada/gradient_norm"] == sample.scalars["gradient_norm"]
        assert row["levada/gradient_rms_first"] == sample.values["gradient_rms"][0].item()
        assert row["levada/signal_rms_last"] == sample.values["signal_rms"][-1].item()
        assert row["levada/findings_error"] == 0.0
    assert not any(key.startswith("levada/") for key in seen[-1])  # the summary of the training is the trainer's


@pytest.mark.parametrize("stop", [False, True])
def test_findings_are_warnings_and_stop_the_training_if_asked(tmp_path, stop):
    callback = LevadaCallback(every=1, max_overhead=math.inf, listeners=[Rule(1)], stop_on_error=stop)
    trained = trainer(llama(), tmp_path, [callback], logging_steps=1)
    with pytest.warns(UserWarning, match="error exploding_gradient: the gradient grows Nothing is learned") as caught:
        trained.train()
    assert len([w for w in caught if "levada" in str(w.message)]) == 1
    assert trained.state.global_step == (2 if stop else 4)
    assert trained.state.log_history[-2]["levada/findings_error"] == 1.0


class Broken(TrainerCallback):
    """Breaks the training where no callback is told of it."""

    def __init__(self, error):
        self.error = error

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_exception_ends_the_watch(tmp_path, error):
    model, rule = llama(), Rule()
    callback = LevadaCallback(every=1, max_overhead=math.inf, listeners=[rule])
    with pytest.raises(type(error)):
        trainer(model, tmp_path, [callback, Broken(error)]).train()
    assert rule.closed == 1
    assert unwatched(model)
    assert [sample.step for sample in callback.watch.samples] == [0, 1]


def test_added_later_a_with_block_ends_the_watch_and_a_second_training_is_a_second_watch(tmp_path):
    model, rule = llama(), Rule()
    trained = trainer(model, tmp_path, [Broken(RuntimeError("once"))])
    callback = LevadaCallback(str(tmp_path / "run"), every=1, max_overhead=math.inf, listeners=[rule])
    trained.add_callback(callback)
    with pytest.raises(RuntimeError, match="once"), callback:
        trained.train()
    assert rule.closed == 1
    assert unwatched(model)
    trained.remove_callback(Broken)
    first = callback.watch
    trained.train()
    assert callback.watch is not first
    assert callback.watch.steps == 4
    assert [Run(tmp_path / name).losses()[-1][0] for name in ("run", "run-2")] == [1, 3]
    assert rule.closed == 2
    assert unwatched(model)


def test_a_training_that_resumes_goes_on_with_its_record(tmp_path):
    model = llama()
    trainer(model, tmp_path, [LevadaCallback(f"{tmp_path}/run/", every=1)], max_steps=2, save_strategy="steps").train()
    callback = LevadaCallback(Continue(tmp_path / "run", 2), every=1)
    resumed = trainer(model, tmp_path, [callback])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert callback.watch.steps == 4
    assert [step for step, _ in Run(tmp_path / "run").losses()] == [0, 1, 2, 3]
    resumed.train()  # a second one is no continuation, and lies beside the first, not in it
    assert [step for step, _ in Run(tmp_path / "run-2").losses()] == [0, 1, 2, 3]


@pytest.mark.parametrize("run", ["run/", Path("run"), Continue("run", 7)], ids=repr)
def test_a_second_training_has_a_record_beside_the_first(run):
    assert _numbered(run, 2) == "run-2"
    assert _numbered(Continue(None, 7), 2) is None


def test_deepspeed_is_refused():
    arguments = copy.copy(TrainingArguments("unused", use_cpu=True, report_to=[]))
    arguments.deepspeed = {"zero_optimization": {}}
    with pytest.raises(UsageError, match="DeepSpeed"):
        LevadaCallback().on_train_begin(arguments, None, None, model=llama(), optimizer=None)


@pytest.mark.parametrize(
    ("module", "missing", "install"),
    [
        ("huggingface", ("transformers",), r"pip install 'transformers\[torch\]'"),
        ("lightning", ("lightning", "lightning.pytorch", "pytorch_lightning"), "pip install lightning"),
    ],
)
def test_without_the_package_the_error_names_it(module, missing, install, monkeypatch):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"levada.integrations.{module}", raising=False)
    with pytest.raises(UsageError, match=install):
        importlib.import_module(f"levada.integrations.{module}")


def test_a_package_that_is_there_and_cannot_be_imported_says_so_itself(monkeypatch):
    broken = ModuleType("transformers")
    broken.__spec__, broken.__path__ = sys.modules["transformers"].__spec__, []

    def fail(name):
        raise ModuleNotFoundError(f"Could not import module {name!r}.")  # as of a torchvision for another PyTorch

    broken.__getattr__ = fail
    monkeypatch.setitem(sys.modules, "transformers", broken)
    monkeypatch.delitem(sys.modules, "levada.integrations.huggingface", raising=False)
    with pytest.raises(ModuleNotFoundError, match="Could not import module 'Trainer'"):
        importlib.import_module("levada.integrations.huggingface")
