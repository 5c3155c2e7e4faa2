"""Any `nn.Module` gets a true verdict, or one sentence that says why there is none, in less than two seconds."""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, rnn

from levada._errors import MeasurementError, UsageError
from levada.diagnose import check
from levada.probe import Probe

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(8, 6, generator=GENERATOR), torch.arange(8) % 3
IDS = torch.randint(20, (8, 5), generator=GENERATOR)
SECONDS = 60.0  # of processor time: a guard against a check without end, and no measurement


def mlp(last=3, first=6):
    return nn.Sequential(nn.Linear(first, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, last))


def sick(last=3, first=6):
    body = [m for _ in range(30) for m in (nn.Linear(8, 8), nn.Sigmoid())]
    return nn.Sequential(nn.Linear(first, 8), *body, nn.Linear(8, last))


class Calls(nn.Module):
    """Holds modules, and a function of them and the inputs."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


class Nested(nn.Module):
    """Lists in mappings in lists, and a block that acts three times."""

    def __init__(self, body):
        super().__init__()
        block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.parts = nn.ModuleDict({"a": nn.ModuleList([nn.ModuleList([body]), block]), "b": block})
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.parts["a"][0][0](x)
        for block in (self.parts["a"][1], self.parts["b"], self.parts["a"][1]):
            h = block(h)
        return self.head(h)


class Lists(nn.Module):
    """Parameters in lists and mappings, without a layer."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(6, 6) / 6**0.5) for _ in range(3)])
        self.head = nn.ParameterDict({"weight": nn.Parameter(torch.randn(3, 6) / 6**0.5)})

    def forward(self, x):
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return functional.linear(x, self.head["weight"])


class UNet(nn.Module):
    def __init__(self, dims):
        super().__init__()
        conv, up = (
            (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1],
            (
                nn.ConvTranspose1d,
                nn.ConvTranspose2d,
                nn.ConvTranspose3d,
            )[dims - 1],
        )
        self.down, self.inner = conv(2, 4, 3, padding=1), conv(4, 8, 3, stride=2, padding=1)
        self.up, self.out = up(8, 4, 2, stride=2), conv(8, 2, 1)

    def forward(self, x):
        h = torch.relu(self.down(x))
        return self.out(torch.cat([h, torch.relu(self.up(torch.relu(self.inner(h))))], 1))


class Packed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        lengths = torch.arange(len(x), 0, -1).clamp(max=x.shape[1])
        _, state = self.body(rnn.pack_padded_sequence(x, lengths, batch_first=True))
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


class Mixture(nn.Module):
    """Each row goes through the two experts that a router chooses for it."""

    def __init__(self):
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)])

    def forward(self, x):
        h = self.stem(x)
        weight, chosen = self.router(h).softmax(-1).topk(2)
        out = torch.zeros_like(h)
        for index, expert in enumerate(self.experts):
            row, place = (chosen == index).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, weight[row, place, None] * expert(h[row]))
        return self.head(h + out)


class Doubles(torch.autograd.Function):
    """Its backward pass has none itself."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient


class Functional(nn.Module):
    """Calls a module with parameters that it computes."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        computed = {name: p * 1.0 for name, p in self.body.named_parameters()}
        return torch.func.functional_call(self.body, computed, (x,))


class Meets(nn.Module):
    """A layer that is left only when something has happened elsewhere."""

    def __init__(self, entered, go):
        super().__init__()
        self.layer, self.entered, self.go = nn.Linear(6, 8), entered, go

    def forward(self, x):
        self.entered.set()
        assert self.go.wait(60)
        return torch.tanh(self.layer(x))

    def __deepcopy__(self, memo):
        raise TypeError("a lock cannot be copied")


class Threaded(nn.Module):
    """Runs two branches on threads: the left one is entered first, and left while the other is still inside."""

    def __init__(self):
        super().__init__()
        self.inside, self.joined, self.over = (threading.Event() for _ in range(3))
        self.left = Meets(self.inside, self.joined)
        self.right = Meets(self.joined, self.over)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        found = {}
        for event in (self.inside, self.joined, self.over):
            event.clear()

        def go_left():
            found["left"] = self.left(x)
            self.over.set()

        def go_right():
            assert self.inside.wait(60)
            found["right"] = self.right(x)

        threads = [threading.Thread(target=branch) for branch in (go_left, go_right)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.head(torch.cat([found["left"], found["right"]], 1))


class Generated(nn.Module):
    """A generator, judged by a discriminator that does not learn here."""

    def __init__(self, generator):
        super().__init__()
        self.generator, self.critic = generator, mlp(1, 6).requires_grad_(False)

    def forward(self, noise):
        return functional.softplus(-self.critic(self.generator(noise))).mean()


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


def parametrized(how):
    model = mlp()
    for layer in model[::2]:
        how(layer)
    return model


def hooked():
    model, seen = mlp(), []
    model[0].register_forward_hook(lambda m, a, o: o * 1.0)
    model[0].register_forward_pre_hook(lambda m, a: seen.append(0))
    model[2].register_full_backward_hook(lambda m, i, o: None)
    return model


def checkpointed(body):
    return Calls(
        lambda self, x: self.head(torch.utils.checkpoint.checkpoint(self.body, self.stem(x), use_reentrant=False)),
        stem=nn.Linear(6, 8),
        body=body,
        head=nn.Linear(8, 3),
    )


def deep(width=8):
    return nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(width, width), nn.Sigmoid())])


def transformer(name):
    models = pytest.importorskip("transformers")
    small = {"num_layers": 2, "num_hidden_layers": 2, "vocab_size": 20}
    torch.manual_seed(0)
    if name == "t5":
        config = models.T5Config(d_model=16, d_kv=8, d_ff=32, num_heads=2, **small, decoder_start_token_id=0)
        return models.T5ForConditionalGeneration(config), {"input_ids": IDS, "labels": IDS}
    if name == "bart":
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        config = models.BartConfig(
            vocab_size=20,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            **heads,
        )
        return models.BartForConditionalGeneration(config), {"input_ids": IDS, "labels": IDS}
    if name == "gpt2":
        config = models.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8)
        return models.GPT2LMHeadModel(config), {"input_ids": IDS, "labels": IDS}
    config = models.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return models.BertForSequenceClassification(config), {"input_ids": IDS, "labels": Y % 2}


def seq2seq():
    body = nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True)
    embed = nn.Embedding(20, 16)
    return Calls(
        lambda self, source, target: self.head(self.body(self.embed(source), self.embed(target))).mean(1),
        embed=embed,
        body=body,
        head=nn.Linear(16, 3),
    )


def of(function, body=None):
    return Calls(lambda self, x: function(self.body(x)), body=body or mlp())


HEALTHY = {
    "nested containers and a shared block": lambda: check(Nested(mlp(8)), (X, Y)),
    "tuple of inputs": lambda: check(Calls(lambda s, a, b: s.body(a + b), body=mlp()), ((X, X), Y)),
    "mapping as one input": lambda: check(Calls(lambda s, d: s.body(d["x"]), body=mlp()), [(({"x": X},), Y)]),
    "nested outputs": lambda: check(of(lambda o: {"a": [(o, o.argmax(1))], "b": None}), (X, Y)),
    "dataclass with a loss": lambda: check(of(lambda o: Output(o.square().mean(), o)), X),
    "keyword arguments alone": lambda: check(
        Calls(lambda s, *, x, mask: s.body(x * mask), body=mlp()), {"x": X, "mask": torch.ones(6), "labels": Y}
    ),
    "keyword argument with no default": lambda: check(
        Calls(lambda s, *, x, scale=1.0: s.body(x * scale), body=mlp()), ({"x": X, "scale": 2.0}, Y)
    ),
    "encoder and decoder": lambda: check(seq2seq(), ((IDS, IDS), Y)),
    "t5": lambda: check(*transformer("t5")),
    "bart": lambda: check(*transformer("bart")),
    "gpt2": lambda: check(*transformer("gpt2")),
    "bert": lambda: check(*transformer("bert")),
    "u-net 1d": lambda: check(UNet(1), (torch.randn(4, 2, 8), torch.randn(4, 2, 8))),
    "u-net 2d": lambda: check(UNet(2), (torch.randn(4, 2, 8, 8), torch.zeros(4, 8, 8).long())),
    "u-net 3d": lambda: check(UNet(3), (torch.randn(4, 2, 4, 4, 4), torch.randn(4, 2, 4, 4, 4))),
    "packed lstm": lambda: check(Packed(nn.LSTM), (torch.randn(8, 5, 6), Y)),
    "packed gru": lambda: check(Packed(nn.GRU), (torch.randn(8, 5, 6), Y)),
    "mixture of experts": lambda: check(Mixture(), (X, Y)),
    "generator and discriminator": lambda: check(Generated(mlp(6)), X),
    "lazy modules after a first batch": lambda: check(initialised(), (X, Y)),
    "weight normalisation": lambda: check(parametrized(parametrizations.weight_norm), (X, Y)),
    "spectral normalisation": lambda: check(parametrized(parametrizations.spectral_norm), (X, Y)),
    "orthogonal": lambda: check(parametrized(parametrizations.orthogonal), (X, Y)),
    "old weight normalisation": lambda: check(parametrized(old_weight_norm), (X, Y)),
    "lists of parameters": lambda: check(Lists(), (X, Y)),
    "sparse embedding": lambda: check(
        nn.Sequential(nn.EmbeddingBag(20, 6, sparse=True), *mlp()), (IDS, Y), optimizer="SGD"
    ),
    "functional call": lambda: check(Functional(mlp()), (X, Y)),
    "hooks of the user": lambda: check(hooked(), (X, Y)),
    "no double backward": lambda: check(of(Doubles.apply), (X, Y)),
    "checkpointed": lambda: check(checkpointed(nn.Sequential(nn.Linear(8, 8), nn.Tanh())), (X, Y)),
    "0-dim output": lambda: check(of(lambda o: o.logsumexp((0, 1))), X),
    "bool inputs": lambda: check(Calls(lambda s, x: s.body(x.float()), body=mlp()), (X > 0, Y)),
    "integers and floats": lambda: check(
        Calls(lambda s, i, x: s.body(torch.cat([s.e(i).mean(1), x], 1)), e=nn.Embedding(20, 6), body=mlp(3, 12)),
        ((IDS, X), Y),
    ),
    "branches on threads": lambda: check(Threaded(), (X, Y)),
    "gradient inside of forward": lambda: check(energy(), (X, Y)),
    "einsum and where": lambda: check(
        Calls(lambda s, x: s.head(torch.where(x > 0, x, torch.einsum("bi,ij->bj", x, s.w))), w=square(), head=mlp()),
        (X, Y),
    ),
    "no gradient inside of forward": lambda: check(
        Calls(lambda s, x: s.head(s.body(x) + detached(s.body, x)), body=mlp(6), head=mlp()), (X, Y)
    ),
    "autocast inside of forward": lambda: check(Calls(autocast, body=mlp()), (X, Y)),
    "inputs that ask for a gradient": lambda: check(mlp(), (X.clone().requires_grad_(), Y)),
    "partial as an activation": lambda: check(of(functools.partial(functional.leaky_relu, negative_slope=0.2)), (X, Y)),
    "dropout": lambda: check(nn.Sequential(*mlp(8), nn.Dropout(0.3), nn.Linear(8, 3)), (X, Y)),
}


def square():
    return nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) / 6**0.5)


def detached(body, x):
    with torch.no_grad():
        return body(x)


def autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.body(x).float()


def initialised():
    model = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3))
    model(X)
    return model


def old_weight_norm(layer):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch says to parametrize instead
        nn.utils.weight_norm(layer)


def ensemble():
    weights = nn.Parameter(torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(0)) / 6**0.5)
    return Calls(
        lambda s, x: s.head(torch.vmap(lambda w: torch.tanh(x @ w))(s.weights).mean(0)), weights=weights, head=mlp()
    )


def energy():
    """Its output is the slope of a scalar, as of a force field."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.body(x).sum(), x, create_graph=True)[0][:, :3]

    return Calls(forward, body=mlp(1))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def timed(attempt):
    start = time.process_time()
    try:
        return attempt()
    finally:
        assert time.process_time() - start < SECONDS


def fired(report):
    return {f.rule for f in report.findings if f.status == "fired" and f.severity != "info"}


@pytest.mark.parametrize("case", HEALTHY)
def test_what_trains_is_healthy(case):
    HEALTHY[case]() if case in ("t5", "bart", "gpt2", "bert") else None  # what transformers imports on its first use
    report = timed(HEALTHY[case])
    assert report.verdict == "healthy", str(report)
    report.to_json()


SICK = {
    "nested containers and a shared block": lambda: check(Nested(sick(8)), (X, Y)),
    "mapping as one input": lambda: check(Calls(lambda s, d: s.body(d["x"]), body=sick()), [(({"x": X},), Y)]),
    "keyword arguments alone": lambda: check(
        Calls(lambda s, *, x, mask: s.body(x * mask), body=sick()), {"x": X, "mask": torch.ones(6), "labels": Y}
    ),
    "generator and discriminator": lambda: check(Generated(sick(6)), X),
    "functional call": lambda: check(Functional(sick()), (X, Y)),
    "no double backward": lambda: check(of(Doubles.apply, sick()), (X, Y)),
    "checkpointed": lambda: check(checkpointed(deep()), (X, Y)),
    "0-dim output": lambda: check(of(lambda o: o.logsumexp((0, 1)), sick()), X),
    "dataclass with a loss": lambda: check(of(lambda o: Output(o.square().mean(), o), sick()), X),
}


@pytest.mark.parametrize("case", SICK)
def test_what_cannot_learn_is_named_however_it_is_wrapped(case):
    report = timed(SICK[case])
    assert report.verdict == "error", str(report)
    assert fired(report) & {"vanishing_gradient", "vanishing_signal"}, str(report)


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.eye(6))

    def forward(self, x):
        return x @ self.weight


class Huge(nn.Module):
    """10 GB of parameters that were never given memory."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(16_384, 16_384, device="meta") for _ in range(10)])

    def forward(self, x):
        return self.layers(x)


def script_inside():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch says to compile instead
        return nn.Sequential(nn.Linear(6, 6), torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh())), mlp())


def half_complex():
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3, dtype=torch.complex64))


SENTENCES = {
    "buffers alone": (lambda: check(Buffers(), (X, Y)), "must have parameters"),
    "10 GB on the meta device": (lambda: check(Huge(), (X, Y)), "meta device"),
    "lazy modules": (lambda: check(nn.Sequential(nn.Linear(6, 6), nn.LazyLinear(3)), (X, Y)), "lazy"),
    "a scripted module inside": (lambda: check(script_inside(), (X, Y)), "torch.jit.script"),
    "complex parameters": (lambda: check(half_complex(), (X, Y)), "must be real"),
    "keyword arguments left out": (
        lambda: check(Calls(lambda s, x, *, mask: s.body(x * mask), body=mlp()), (X, Y)),
        "mask",
    ),
    "a model without forward": (lambda: check(nn.ModuleList([nn.Linear(6, 3)]), (X, Y)), "forward"),
    "an output of None": (lambda: check(of(lambda o: None), (X, Y)), "floating tensor"),
    "an empty output": (lambda: check(of(lambda o: o[:0]), X), "at least one number"),
    "vmap over a module": (
        lambda: check(Calls(lambda s, x: torch.vmap(s.body)(x), body=mlp()), (X, Y)),
        r"torch\.vmap",
    ),
    "vmap over parameters": (lambda: check(ensemble(), (X, Y)), r"torch\.vmap"),
    "gradient of a function inside": (
        lambda: check(
            Calls(lambda s, x: s.head(torch.func.grad(lambda v: s.body(v).sum())(x)), body=mlp(1), head=mlp()), (X, Y)
        ),
        r"torch\.func",
    ),
    "text as input": (lambda: check(mlp(), (["a", "b"], Y)), "tensor"),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_what_cannot_be_measured_gets_one_sentence(case):
    attempt, said = SENTENCES[case]
    with pytest.raises((UsageError, MeasurementError), match=said) as caught:
        timed(attempt)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("check: ")


def test_hooks_of_the_user_stay_and_run():
    model = hooked()
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    check(model, (X, Y))
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    assert before == after


def test_a_run_with_function_transforms_inside_is_measured_around_them():
    torch.manual_seed(0)
    model = Calls(lambda s, x: s.head(torch.vmap(s.body)(s.stem(x))), stem=nn.Linear(6, 6), body=mlp(6), head=mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
    trace = probe.trace()
    assert [name for name in trace.names() if name.startswith("body")] == []
    assert {"stem", "head.0", "head.2", "head.4"} <= set(trace.names())
    for signal in ("signal_rms", "gradient_rms"):
        assert bool((trace[signal] > 0).all()), signal
