"""No false alarm: architectures as their authors start them are measured without exception and without an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from levada.diagnose import check

IMAGES = (torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(4))
VECTORS = (torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10)
TIMM = {
    "resnet18": {},
    "densenet121": {},
    "mobilenetv3_small_050": {},
    "efficientnet_lite0": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 64},
    "resmlp_12_224": {"img_size": 64},  # its last layer starts at zero
    "xcit_nano_12_p16_224": {"img_size": 64},
    "regnetx_002": {},
    "ghostnet_050": {},
    "nf_resnet26": {},
    "mobilevit_xxs": {},
    "levit_128s": {"img_size": 64},
    "repvgg_a0": {},
}


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="the zoo needs timm and torchvision, which CI installs with --no-deps")


@pytest.mark.parametrize("name", TIMM)
def test_no_error_on_an_architecture_of_timm(timm, name):
    torch.manual_seed(0)
    report = check(timm.create_model(name, num_classes=10, **TIMM[name]), IMAGES)
    assert report.verdict == "healthy", str(report)
    assert report.summary["depth"] >= 6
    assert "gradient_decay_per_block" in report.summary


class Encoder(nn.Module):
    def __init__(self, *, norm_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.embed = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.body, self.head = (
            nn.Embedding(50, 32),
            kind(32, 32, num_layers=2, batch_first=True),
            nn.Linear(32, 10),
        )

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens))[0][:, -1])


class Scaled(nn.Module):
    """A residual block whose branch starts at zero."""

    def __init__(self, dim):
        super().__init__()
        self.branch, self.scale = nn.Sequential(nn.Linear(dim, dim), nn.ReLU()), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.scale * self.branch(x)


class LowRank(nn.Module):
    """A frozen linear map and a learned correction that starts at zero."""

    def __init__(self, dim):
        super().__init__()
        self.base = nn.Linear(dim, dim).requires_grad_(False)
        self.a, self.b = nn.Linear(dim, 4, bias=False), nn.Linear(4, dim, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return x + torch.tanh(self.base(x) + self.b(self.a(x)))


class Experts(nn.Module):
    """Experts of which a batch touches some only."""

    def __init__(self, dim, num=16):
        super().__init__()
        self.gate, self.experts = nn.Linear(dim, num), nn.ModuleList(nn.Linear(dim, dim) for _ in range(num))

    def forward(self, x):
        weight, choice = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i in choice.unique().tolist():
            rows = (choice == i).nonzero()[:, 0]
            out = out.index_add(0, rows, torch.relu(self.experts[i](x[rows])))
        return x + weight[:, None] * out


def generator():
    layers = [nn.Linear(64, 64 * 4 * 4), nn.Unflatten(1, (64, 4, 4))]
    for channels in (64, 32):
        layers += [nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1), nn.BatchNorm2d(channels // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh())


def rectified(depth):
    layers = [m for _ in range(depth) for m in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def bottleneck(start):
    """A plain layer in the middle that starts at, or near, zero and opens with its own first step."""
    model = rectified(8)
    nn.init.normal_(model[8].weight, 0.0, start) if start else nn.init.zeros_(model[8].weight)
    nn.init.uniform_(model[8].bias, 0.0, 1.0)
    return model


def tiny_head(depth):
    model = rectified(depth)
    nn.init.normal_(model[-1].weight, 0.0, 1e-6)
    return model


TOKENS = (torch.arange(8 * 12).reshape(8, 12) % 50, torch.arange(8))
HEALTHY = {
    "transformer, norm first": (lambda: Encoder(norm_first=True), TOKENS),
    "transformer, norm last": (lambda: Encoder(norm_first=False), TOKENS),
    "lstm": (lambda: Recurrent(nn.LSTM), TOKENS),
    "gru": (lambda: Recurrent(nn.GRU), TOKENS),
    "generator": (generator, VECTORS[0]),
    "zero-initialised branches": (lambda: nn.Sequential(*[Scaled(64) for _ in range(100)], nn.Linear(64, 10)), VECTORS),
    "low-rank adaptation": (lambda: nn.Sequential(*[LowRank(64) for _ in range(4)], nn.Linear(64, 10)), VECTORS),
    "experts": (lambda: nn.Sequential(*[Experts(64) for _ in range(4)], nn.Linear(64, 10)), VECTORS),
    "He, 30 layers": (lambda: rectified(30), VECTORS),
    "tiny last layer": (lambda: tiny_head(10), VECTORS),
    "layer at zero": (lambda: bottleneck(0.0), VECTORS),
    "layer near zero": (lambda: bottleneck(1e-6), VECTORS),
    "scaled loss": (lambda: rectified(10), (*VECTORS, lambda o, t: 65536 * nn.functional.cross_entropy(o, t))),
    "autoencoder": (
        lambda: nn.Sequential(
            nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 64)
        ),
        (VECTORS[0], VECTORS[0]),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_error_on_a_healthy_model(name):
    build, batch = HEALTHY[name]
    torch.manual_seed(0)
    loss = batch[2] if isinstance(batch, tuple) and len(batch) == 3 else None
    report = check(build(), batch[:2] if loss is not None else batch, loss=loss)
    assert report.verdict == "healthy", str(report)
    assert "gradient_decay_per_block" in report.summary


@pytest.mark.parametrize(("optimizer", "lr"), [("SGD", 1e-2), ("AdamW", 1e-4)])
@pytest.mark.parametrize("name", [name for name in HEALTHY if name != "scaled loss"])
def test_no_error_on_a_healthy_model_at_a_rate_that_somebody_chose(name, optimizer, lr):
    build, batch = HEALTHY[name]
    torch.manual_seed(0)
    report = check(build(), batch, optimizer=optimizer, lr=lr)
    if name in ("layer at zero", "layer near zero"):  # it opens, and learns the faster for being drawn otherwise
        assert {f.rule for f in report.findings if f.status == "fired"} == {"misscaled_weights"}
        assert report.verdict == "warn", str(report)
    else:
        assert report.verdict == "healthy", str(report)
