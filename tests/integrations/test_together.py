"""Two processes that a trainer wraps in DistributedDataParallel: samples are those of one with the whole batch."""

from __future__ import annotations

import math
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import levada
from levada.watching import WATCHED

STEPS, TRAINERS = 4, ("accelerate", "huggingface", "lightning")
OPTIONS = {"every": 1, "max_overhead": math.inf}


def network():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)), nn.Linear(8, 1))


def batches():
    return torch.randn(STEPS, 8, 8, generator=torch.Generator().manual_seed(1))


def objective(model, x):
    return nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(**config, num_hidden_layers=3, num_attention_heads=2))


def rows():
    return torch.randint(0, 32, (8 * STEPS, 8), generator=torch.Generator().manual_seed(1))


def alone(trainer):
    """Train in a loop of one's own, in one process."""
    of_language = trainer == "huggingface"
    model = llama() if of_language else network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    with levada.watch(model, optimizer, **OPTIONS) as watch:
        for x in rows().chunk(STEPS) if of_language else batches():
            optimizer.zero_grad()
            (model(input_ids=x, labels=x).loss if of_language else objective(model, x)).backward()
            if of_language:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return kept(watch)


def kept(watch):
    return [site.name for site in watch.sites], [
        {name: sample.values[name] for name in WATCHED}
        | {name: torch.tensor(sample.scalars[name]) for name in ("loss", "gradient_norm", "lr")}
        for sample in watch.samples
    ]


@pytest.fixture(scope="module")
def found(two_processes):
    return two_processes(__file__)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_samples_are_those_of_one_process(trainer, found):
    names, samples = alone(trainer)
    prefix = "net." if trainer == "lightning" else ""
    for seen, theirs in found[trainer]:  # of both processes
        assert seen == [f"{prefix}{name}" for name in names]
        assert len(theirs) == len(samples) == STEPS
        for mine, expected in zip(theirs, samples, strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-9, equal_nan=True, check_dtype=False)


# In each of two processes.


def accelerate(rank, folder):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    halves = DataLoader(batches().flatten(0, 1), batch_size=4)
    model, optimizer, halves = accelerator.prepare(model, optimizer, halves)
    with levada.watch(model, optimizer, **OPTIONS) as watch:
        for x in halves:
            optimizer.zero_grad()
            accelerator.backward(objective(model, x))
            optimizer.step()
    return kept(watch)


def huggingface(rank, folder):
    from transformers import Trainer, TrainingArguments

    from levada.integrations.huggingface import LevadaCallback

    callback = LevadaCallback(**OPTIONS)
    arguments = TrainingArguments(
        str(folder / "out"),
        per_device_train_batch_size=4,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    data = [{"input_ids": row, "labels": row} for row in rows()]
    Trainer(llama(), arguments, train_dataset=data, callbacks=[callback]).train()
    return kept(callback.watch)


def lightning(rank, folder):
    import lightning.pytorch as package

    from levada.integrations.lightning import LevadaCallback

    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, x, index):
            return objective(self.net, x)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.0)

    callback = LevadaCallback(**OPTIONS)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = package.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        callbacks=[callback],
        default_root_dir=folder,
        **quiet,
    )
    trainer.fit(Module(), DataLoader([x.chunk(2)[rank] for x in batches()], batch_size=None))
    return kept(callback.watch)


def work(rank, folder):
    import torch.distributed as dist

    sys.path.append(str(Path(__file__).parents[2]))
    from benchmarks.torchvision import define_what_torchvision_lacks

    define_what_torchvision_lacks()
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}  # nothing listens
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    result = {}
    for trainer in (accelerate, huggingface, lightning):
        both = [None, None]
        dist.all_gather_object(both, trainer(rank, folder))
        result[trainer.__name__] = both
    if rank == 0:
        torch.save(result, folder / "found.pt")
    dist.barrier()  # a process that ends while the other still talks to it aborts


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes outlive the interpreter and abort it
