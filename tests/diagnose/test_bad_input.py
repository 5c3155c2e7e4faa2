"""What cannot be used gives one sentence: the rule, what came, what to do; what can be used works."""

from __future__ import annotations

import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from levada._errors import MeasurementError, UsageError
from levada.diagnose import check

X, Y = torch.randn(8, 6), torch.arange(8) % 3


def net(**options):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8, **options), nn.Tanh(), nn.Linear(8, 8, **options), nn.Tanh(), nn.Linear(8, 3, **options)
    )


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch says to compile instead
        return torch.jit.script(net())


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise KeyError("no gradient\nfor this")


class Lacks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


class Misshapes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient[:, :1]


class Once(torch.autograd.Function):
    """It has a backward pass, and that has none itself."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient


def ends(how, after=1):
    """A loader that gives some batches and then raises."""
    for _ in range(after):
        yield X, Y
    raise how


class Tires(nn.Module):
    """It runs a few times and then no more."""

    def __init__(self, times):
        super().__init__()
        self.body, self.times = net(), times

    def forward(self, x):
        self.times -= 1
        if self.times < 0:
            raise RuntimeError("out of memory")
        return self.body(x)


class Wrap(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = net(), wrap

    def forward(self, x):
        return self.wrap(self.body(x))


BAD = {
    "not a module": (lambda: check(net, (X, Y)), "nn.Module, got function"),
    "scripted": (lambda: check(scripted(), (X, Y)), "ScriptModule"),
    "scripted inside": (lambda: check(nn.Sequential(scripted(), nn.Linear(3, 3)), (X, Y)), "ScriptModule"),
    "complex": (lambda: check(net(dtype=torch.complex64), (X, Y)), "must be real, and 0.weight is complex64"),
    "no parameters": (lambda: check(nn.Sequential(nn.ReLU()), (X, Y)), "must have parameters"),
    "lazy": (lambda: check(nn.LazyLinear(3), (X, Y)), "lazy"),
    "meta": (lambda: check(net(device="meta"), (X, Y)), "meta device"),
    "meta in part": (lambda: check(nn.Sequential(net(), nn.Linear(3, 3, device="meta")), (X, Y)), "meta device"),
    "meta buffers": (
        lambda: check(nn.Sequential(net(), nn.BatchNorm1d(3, affine=False, device="meta")), (X, Y)),
        "buffers are on the meta device",
    ),
    "meta batch": (lambda: check(net(), (X.to("meta"), Y)), "batch is on the meta device"),
    "sparse batch": (lambda: check(net(), (X.to_sparse(), Y)), r"dense.*\.to_dense\(\)"),
    "complex inputs": (lambda: check(net(), (X.to(torch.complex64), Y)), r"complex64 \(8, 6\).*dtype"),
    "complex outputs": (
        lambda: check(Wrap(torch.fft.rfft), (X, Y), loss=lambda o, t: o.abs().sum()),
        "floating tensor",
    ),
    "integer inputs": (lambda: check(net(), (X.long(), Y)), r"int64 \(8, 6\).*dtype"),
    "integer outputs": (
        lambda: check(Wrap(lambda o: o.long()), (X, Y), loss=lambda o, t: (o[:, 0] - t).float().mean()),
        "floating tensor",
    ),
    "one row for batch normalisation": (
        lambda: check(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), (X[:1], Y[:1])),
        "more than 1 value per channel",
    ),
    "a loader that raises": (
        lambda: check(net(), ends(OSError("disk gone"))),
        "reading them raised OSError: disk gone",
    ),
    "a loader that raises at once": (lambda: check(net(), ends(OSError("disk gone"), 0)), "OSError: disk gone"),
    "a loader of unlike batches": (lambda: check(net(), [(X, Y), (X[:, :5], Y)]), r"float32 \(8, 5\)"),
    "a second batch without targets": (lambda: check(net(), [(X, Y), X]), "targets, got NoneType"),
    "wrong shape": (lambda: check(net(), (torch.randn(8, 5), Y)), r"float32 \(8, 5\).*shape"),
    "empty": (lambda: check(net(), (X[:0], Y[:0])), "must not be empty"),
    "no batches": (lambda: check(net(), []), "at least one batch"),
    "NaN in inputs": (lambda: check(net(), (X.clone().fill_(torch.nan), Y)), "must be finite.*NaN"),
    "Inf in targets": (lambda: check(net(), (X, torch.full((8, 3), torch.inf))), "targets.*Inf"),
    "no tensor": (lambda: check(net(), ("text", Y)), "must hold a tensor"),
    "not a batch": (lambda: check(net(), 3), "got int"),
    "not inferable": (lambda: check(nn.LSTM(4, 4)), "batch must be given"),
    "loss not scalar": (lambda: check(net(), (X, Y), loss=lambda o, t: o), r"scalar tensor, got shape \(8, 3\)"),
    "loss raises": (lambda: check(net(), (X, Y), loss=lambda o, t: 1 / 0), "ZeroDivisionError"),
    "loss unknown": (lambda: check(net(), (X, Y), loss="crossentropy"), "cross_entropy, mse, output"),
    "loss no callable": (lambda: check(net(), (X, Y), loss=3), "callable"),
    "loss needs targets": (lambda: check(net(), X, loss="mse"), "needs targets"),
    "output is no loss": (lambda: check(net(), (X, Y), loss="output"), "'output' needs a model"),
    "float classes": (lambda: check(net(), (X, Y.float()), loss="cross_entropy"), r"\.long\(\)"),
    "class out of range": (lambda: check(net(), (X, Y + 5)), r"in \[0, 3\).*5 to 7"),
    "no loss follows": (lambda: check(net(), (X, torch.randn(5))), "loss must be given"),
    "mse of other size": (lambda: check(net(), (X, torch.randn(8, 2)), loss="mse"), r"shape \(8, 3\)"),
    "output without a tensor": (lambda: check(Wrap(lambda o: o.argmax(1)), (X, Y)), "floating tensor"),
    "optimizer unknown": (lambda: check(net(), (X, Y), optimizer="Adamm"), "Did you mean 'Adam'"),
    "optimizer instance": (lambda: check(m := net(), (X, Y), optimizer=torch.optim.SGD(m.parameters())), "lambda"),
    "optimizer of others": (
        lambda: check(net(), (X, Y), optimizer=lambda p: torch.optim.SGD(net().parameters())),
        "holds others",
    ),
    "optimizer raises": (lambda: check(net(), (X, Y), optimizer=lambda p: 1 / 0), "ZeroDivisionError"),
    "optimizer no optimizer": (lambda: check(net(), (X, Y), optimizer=lambda p: 1), "must return"),
    "optimizer needs a closure": (lambda: check(net(), (X, Y), optimizer="LBFGS"), "gradients alone"),
    "lr": (lambda: check(net(), (X, Y), lr=0.0), "positive finite number, got 0.0"),
    "lr infinite": (lambda: check(net(), (X, Y), lr=float("inf")), "got inf"),
    "seed": (lambda: check(net(), (X, Y), seed=-1), "seed"),
    "budget": (lambda: check(net(), (X, Y), budget=float("nan")), "budget"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_says_so(case):
    attempt, said = BAD[case]
    with pytest.raises(UsageError, match=said) as caught:
        attempt()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("check: ")
    assert message.endswith((".", "?"))


def test_reentrant_checkpointing_cannot_be_measured():
    class Reentrant(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = nn.Linear(6, 6), net()

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.rest, self.first(x), use_reentrant=True)

    with pytest.raises(MeasurementError, match="use_reentrant=False"):
        check(Reentrant(), (X, Y))


def test_a_backward_pass_that_fails_cannot_be_measured():
    def spoil(o):
        grown = o.exp()
        o.detach().mul_(2), grown.detach().mul_(2)
        return grown

    with pytest.raises(MeasurementError, match="inplace"):
        check(Wrap(spoil), (X, Y))


@pytest.mark.parametrize(
    ("function", "said"),
    [(Raises.apply, "KeyError"), (Lacks.apply, "NotImplementedError"), (Misshapes.apply, "invalid gradient")],
)
@pytest.mark.parametrize("place", ["model", "model without loss", "loss"])
def test_a_custom_function_without_a_backward_pass_cannot_be_measured(function, said, place):
    model = net() if place == "loss" else Wrap(function)
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()

    def loss(out, targets):
        return nn.functional.cross_entropy(function(out) if place == "loss" else out, targets)

    with pytest.raises(MeasurementError, match=f"backward pass must run, and it raised.*{said}") as caught:
        check(model, X if place == "model without loss" else (X, Y), loss=None if "without" in place else loss)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("times", [1, 2, 4, 6, 8])
def test_a_model_that_fails_later_cannot_be_measured_and_comes_back_as_it_was(times):
    model = Tires(times)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(MeasurementError, match="in a later pass it raised RuntimeError: out of memory"):
        check(model, (X, Y))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Chooses(nn.Module):
    """How often the middle layer acts depends on the data."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h, times = torch.tanh(self.first(x)), 0
        while h.norm() > 1.0 and times < 5:
            h, times = 0.7 * torch.tanh(self.middle(h)), times + 1
        return self.last(h)


class InAThread(nn.Module):
    """Its body runs on another thread."""

    def __init__(self, body):
        super().__init__()
        self.body, self.last = body, nn.Linear(3, 3)

    def forward(self, x):
        return self.last(on_another_thread(lambda: self.body(x)))


def on_another_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


class Complex(nn.Module):
    """Real parameters, complex numbers inside."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.view_as_complex(self.first(x).reshape(len(x), 4, 2))
        return self.last((h * h).abs())


SICK = {"vanishing_signal", "vanishing_gradient"}


def deep():
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(40) for m in (nn.Linear(6, 6), nn.Sigmoid())], nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("attempt", "rules"),
    [
        (lambda: check(Wrap(Once.apply), (X, Y)), set()),
        (lambda: check(Chooses(), [(X, Y), (0.01 * X, Y)]), set()),
        (lambda: check(Complex(), (X, Y)), set()),
        (lambda: check(nn.Sequential(nn.Embedding(2, 6), nn.Flatten(), nn.Linear(36, 3)), ((X > 0).long(), Y)), set()),
        (lambda: check(net(), (X, Y.to(torch.int8))), set()),
        (lambda: on_another_thread(lambda: check(net(), (X, Y))), set()),
        (lambda: on_another_thread(lambda: check(deep(), (X, Y))), SICK),
        (lambda: check(InAThread(net()), (X, Y)), set()),
        (lambda: check(InAThread(deep()), (X, Y)), SICK),
        (lambda: check(nn.Linear(1, 1), (torch.ones(1, 1), torch.ones(1, 1))), set()),
        (lambda: check(deep(), (X[:1], Y[:1])), {"vanishing_gradient"}),
        (lambda: check(net(), iter([(X, Y)])), set()),
        (lambda: check(net(), [(X, Y), (X[:1], Y[:1])]), set()),
        (lambda: check(net(), (X, Y), loss=lambda o, t: t.float().mean()), {"wrong_loss"}),
        (lambda: check(net(), (X, Y), loss=lambda o, t: (o.argmax(1) != t).sum()), {"wrong_loss"}),
        (lambda: check(Wrap(lambda o: o * torch.nan), (X, Y)), {"numerical_overflow"}),
        (lambda: check(net(), (X, Y), loss=lambda o, t: (o * torch.nan).sum()), {"numerical_overflow"}),
        (lambda: check(Wrap(lambda o: (0 * o).sqrt() + o), (X, Y)), {"numerical_overflow"}),
    ],
)
def test_what_is_unusual_gets_the_verdict_that_it_deserves(attempt, rules):
    report = attempt()
    assert {f.rule for f in report.findings if f.status == "fired"} == rules, str(report)
    report.to_json()


def test_an_interrupted_check_leaves_the_model_as_it_was():
    for times in (2, 5, 8):
        model = Tires(times)
        body = model.body.forward

        def forward(x, model=model, body=body):
            if model.times == 0:
                raise KeyboardInterrupt
            return body(x)

        model.body.forward = forward
        before = {name: p.clone() for name, p in model.named_parameters()}
        with pytest.raises(KeyboardInterrupt):
            check(model, (X, Y), optimizer="SGD", lr=1e4)
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


GOOD = {
    "tuple": lambda: check(Wrap(lambda o: (o, o.argmax(1))), (X, Y)),
    "mapping": lambda: check(Wrap(lambda o: {"aux": o.argmax(1), "logits": o}), (X, Y)),
    "object": lambda: check(Wrap(lambda o: SimpleNamespace(logits=o, state=None)), (X, Y)),
    "object with loss": lambda: check(Wrap(lambda o: SimpleNamespace(loss=o.square().mean(), logits=o)), X),
    "scalar output": lambda: check(Wrap(lambda o: o.square().mean()), X),
    "in place": lambda: check(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(True), nn.Linear(8, 8), nn.ReLU(True), nn.Linear(8, 3)), (X, Y)
    ),
    "float64": lambda: check(net(dtype=torch.float64), (X.double(), Y)),
    "bfloat16": lambda: check(net(dtype=torch.bfloat16), (X.bfloat16(), Y)),
    "keywords": lambda: check(net(), {"input": X, "targets": Y}),
    "iterable": lambda: check(net(), [(X, Y), (X + 1, Y)]),
    "list of tensors": lambda: check(net(), [X, Y]),
    "inputs alone": lambda: check(net(), X),
    "inferred": lambda: check(net()),
    "torch loss": lambda: check(Wrap(lambda o: (o,)), (X, Y), loss=nn.CrossEntropyLoss()),
    "own loss": lambda: check(net(), (X, Y), loss=lambda o, t: (o - 1).square().mean()),
    "token classes": lambda: check(net(), (torch.randn(4, 5, 6), torch.zeros(4, 5, dtype=torch.long))),
    "lower case optimizer": lambda: check(net(), (X, Y), optimizer="sgd", lr=0.1),
    "own optimizer": lambda: check(net(), (X, Y), optimizer=lambda p: torch.optim.Adam(p, lr=1e-2, eps=1e-4)),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_can_be_used_works(case):
    report = GOOD[case]()
    assert report.verdict in ("healthy", "warn"), str(report)
    assert report.summary["gradient_decay_per_block"]["value"] > 0
    report.to_json()


def test_a_module_used_twice_has_two_boundaries():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = torch.tanh(self.stem(x))
            return self.head(torch.tanh(self.block(torch.tanh(self.block(h)))))

    report = check(Twice(), (X, Y))
    assert [b["site"] for b in report.blocks] == ["stem", "block", "block#2", "head"]
    assert report.verdict == "healthy"


def test_what_was_assumed_is_said():
    notes = " ".join(check(net(), (X, Y)).notes)
    assert "AdamW was assumed" in notes
    assert "loss was inferred: cross_entropy" in notes
    assert "first of AdamW at lr 0.001" in notes
    notes = " ".join(check(net().eval()).notes)
    assert "inputs were inferred" in notes
    assert "eval mode" in notes
    assert "only random cotangents" in notes


def test_a_budget_that_is_spent_is_said():
    report = check(net(), [(X, Y), (X, Y), (X, Y)], budget=0.0)
    assert any("1 of 4 random cotangents" in note for note in report.notes)
    assert any("1 of 3 batches" in note for note in report.notes)
    assert any("budget of 0 s was spent" in note for note in report.notes)
    assert not any("was spent" in note for note in check(net(), (X, Y)).notes)


def frozen_backbone():
    model = net()
    model[:-1].requires_grad_(False)
    return model


@pytest.mark.parametrize("build", [lambda: nn.Linear(6, 3), frozen_backbone], ids=["one layer", "a head alone"])
def test_where_there_is_no_depth_to_follow_the_verdict_is_healthy_and_a_note_says_so(build):
    report = check(build(), (X, Y))
    assert report.verdict == "healthy"
    assert not [f for f in report.findings if f.status == "unknown"]
    assert any("no depth to follow" in note for note in report.notes)
    assert "no depth" not in " ".join(check(net(), (X, Y)).notes)


def test_a_model_that_asks_for_no_gradient_is_unknown():
    report = check(net().requires_grad_(False), (X, Y))
    assert report.verdict == "unknown"
    assert any(f.status == "unknown" for f in report.findings)


def test_a_model_that_cannot_be_used_is_left_as_it_was():
    model = net(dtype=torch.complex64)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UsageError):
        check(model, (X, Y))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Compiled:
    """The three ways to compile, with a backend that compiles nothing."""

    @staticmethod
    def whole():
        return torch.compile(net(), backend="eager")

    @staticmethod
    def in_place():
        model = net()
        model.compile(backend="eager")
        return model

    @staticmethod
    def inside():
        model = net()
        model[2] = torch.compile(model[2], backend="eager")
        return model


@pytest.mark.parametrize("how", ["whole", "in_place", "inside"])
def test_a_compiled_model_is_measured_as_it_is_written(how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what the compiler imports
        model = getattr(Compiled, how)()
        report = check(model, (X, Y), seed=3)
        plain = check(net(), (X, Y), seed=3)
    assert any("without compiling" in note for note in report.notes)
    assert not any("without compiling" in note for note in plain.notes)
    assert [b["signal_rms"] for b in report.blocks] == [b["signal_rms"] for b in plain.blocks]
    if how == "whole":
        assert (report.model, [b["site"] for b in report.blocks]) == ("Sequential", ["0", "2", "4"])


def test_sparse_gradients_are_stepped_with_what_takes_them():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Embedding(20, 6, sparse=True), net()

        def forward(self, ids):
            return self.body(self.embed(ids).mean(1))

    ids = torch.arange(32).reshape(8, 4) % 20
    report = check(Bag(), (ids, Y))
    assert report.settings["optimizer"] == "SGD"
    assert any("SGD was assumed, because AdamW takes no sparse" in note for note in report.notes)
    with pytest.raises(UsageError, match="first step of Adam "):
        check(Bag(), (ids, Y), optimizer="Adam")


@pytest.mark.parametrize(("fill", "rules"), [(0.0, 6), (1.0, 2)])
def test_inputs_without_size_or_spread_are_the_data_s_fault(fill, rules):
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(6, 6), nn.ReLU())], nn.Linear(6, 3))
    for layer in model[::2]:
        nn.init.zeros_(layer.bias)
    report = check(model, (torch.full((8, 6), fill), Y))
    unknown = [f.rule for f in report.findings if f.status == "unknown"]
    assert report.verdict != "error"
    assert {"dead_units", "vanishing_signal"} <= set(unknown)
    assert len(unknown) == rules
    assert any("inputs are all zero" in note or "rows of the batch are the same" in note for note in report.notes)


def test_a_batch_of_one_has_no_spread():
    report = check(net(), (X[:1], Y[:1]))
    assert report.verdict == "healthy"
    assert "signal_decay_per_block" in report.summary["unknown"]
    assert any("one row" in note for note in report.notes)


@pytest.mark.parametrize(
    ("model", "inputs", "advice"),
    [
        (
            nn.Linear(3, 2).double(),
            torch.randn(4, 3),
            "Its weights are float64: give a batch of that type, or the model in that of the batch.",
        ),
        (nn.Conv2d(3, 2, 1), torch.zeros(4, 3, 2, 2, dtype=torch.uint8), "Give a batch of the type that it expects."),
        (nn.Embedding(5, 2), torch.zeros(4), "Give a batch of the type that it expects."),
        (
            nn.Linear(3, 2),
            torch.randn(4, 5),
            "Give a batch of the shape that it expects. Two inputs and no targets are written ((a, b), None).",
        ),
    ],
    ids=["float64", "bytes", "floats for indices", "shape"],
)
def test_a_batch_that_the_model_does_not_take_is_answered_with_what_it_lacks(model, inputs, advice):
    with pytest.raises(UsageError) as caught:
        check(nn.Sequential(model), (inputs, torch.zeros(4, dtype=torch.long)), optimizer="SGD", lr=0.1)
    assert str(caught.value).endswith(f". {advice}")
