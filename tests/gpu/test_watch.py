"""Watching a training on a GPU: what is recorded is what a CPU gives, and the host waits for nothing."""

import math
import warnings

import pytest
import torch
from tests.watching.by_hand import agree, by_hand, data, loss_of, make, sgd, train, watch
from torch import nn

import levada

# What is compiled in full precision is meant to be, and the compiler looks at `.grad` of what has none.
pytestmark = [
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]


def there(batches):
    return [x.cuda() for x in batches]


def test_signals_are_those_of_a_cpu():
    model = make().cuda()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, there(data()))
    agree(watched, by_hand(make(), data()), rtol=1e-4)


@pytest.mark.parametrize("every", [1, 10])
def test_no_step_waits_for_the_device(every):
    model = make().cuda()
    optimizer, batches = torch.optim.AdamW(model.parameters(), capturable=True), there(data(40))
    with watch(model, optimizer, every=every) as watched:
        train(model, optimizer, batches[:10])
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            train(model, optimizer, batches[10:])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [sample.step for sample in watched.samples] == list(range(0, 40, every))


def test_a_scaler_that_skips_steps_in_float16():
    """The scale begins so high that steps overflow: they are no findings, and what follows is recorded unscaled."""
    model = make().cuda()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cuda", init_scale=2.0**22)
    skipped = 0
    with watch(model, optimizer, scaler=scaler) as watched:
        for x in there(data(60)):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = loss_of(model, x)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            skipped += scaler.get_scale() < before
    assert skipped > 5
    assert not [f for f in watched.findings if f.rule == "numerical_overflow"]
    last = watched.samples[-1]
    assert 0 < max(last.values["gradient_rms"]) < 10


def test_bfloat16_autocast():
    def loss(model, x):
        with torch.autocast("cuda", torch.bfloat16):
            out = model(x)
        return (out.float() - 1.0).square().mean()

    model = make().cuda()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, there(data()), loss)
    agree(watched, by_hand(make(), data(), dtype=torch.bfloat16), rtol=0.05)


def test_compiled_by_inductor():
    model = make().cuda()
    torch.compiler.reset()
    compiled = torch.compile(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what watch says of compiled models is tested on a CPU
        with watch(compiled, optimizer := sgd(model)) as watched:
            train(compiled, optimizer, there(data()))
    assert len(watched.samples) == 3
    plain = make().cuda()
    train(plain, sgd(plain), there(data()))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_first_nan_is_found_and_its_step_run_again(tmp_path):
    model = make().cuda()
    batches = there(data(8))
    batches[5][2, 1] = math.inf
    with levada.watch(model, optimizer := sgd(model), run=tmp_path / "run", every=1, max_overhead=math.inf) as watched:
        train(model, optimizer, batches)
    found = [f for f in watched.findings if f.rule == "numerical_overflow"]
    assert found
    assert found[0].evidence
    assert list((tmp_path / "run").rglob("bundle.json"))


def test_the_check_says_on_a_gpu_what_it_says_on_a_cpu():
    def deep(depth=40):
        torch.manual_seed(0)
        layers = [m for _ in range(depth) for m in (nn.Linear(32, 32), nn.Sigmoid())]
        return nn.Sequential(*layers, nn.Linear(32, 10))

    x, y = torch.randn(64, 32), torch.randint(10, (64,))
    here = levada.check(deep(), (x, y))
    device = levada.check(deep().cuda(), (x.cuda(), y.cuda()))
    assert {f.rule for f in here.findings} == {f.rule for f in device.findings}
    assert here.verdict == device.verdict
