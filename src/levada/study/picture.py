"""Pictures of a study as data: PNG images with words for who does not see them; the report shows them."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from levada._errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MAX_BYTES", "Image", "Picture", "encode_png"]

MAX_BYTES = 400_000
"""What the images of one picture may hold together: a report is one file."""

_COLOURS = {1: 0, 3: 2}  # channels -> the colour type of PNG


@final
@dataclass(frozen=True, slots=True)
class Image:
    """One image of a picture.

    Attributes:
        label: what stands below it.
        alternative: what it shows, for who does not see it.
        png: the image, as `encode_png` makes it.
    """

    label: str
    alternative: str
    png: bytes


@final
@dataclass(frozen=True, slots=True)
class Picture:
    """What a study shows that is no line on axes: images side by side; or why they are missing.

    Attributes:
        id: short name, unique among its study's figures.
        title: what it shows.
        caption: how to read it.
        images: from left to right.
        missing: a sentence on why there are none.

    Raises:
        UsageError: if there are neither images nor a reason, or both, or an image has no alternative text, or the
            images are too large together.

    Example:
        >>> Picture("edges", "Edges", "Black: an edge.", (Image("fused", "", b""),))
        Traceback (most recent call last):
        levada._errors.UsageError: Picture 'edges': every image needs an alternative text; 'fused' has none.
    """

    id: str
    title: str
    caption: str
    images: tuple[Image, ...] = ()
    missing: str = ""

    def __post_init__(self) -> None:
        if bool(self.images) == bool(self.missing):
            raise UsageError(f"Picture {self.id!r}: give either images, or in `missing` why there are none.")
        for image in self.images:
            if not image.alternative:
                raise UsageError(
                    f"Picture {self.id!r}: every image needs an alternative text; {image.label!r} has none."
                )
        size = sum(len(image.png) for image in self.images)
        if size > MAX_BYTES:
            raise UsageError(
                f"Picture {self.id!r}: images are at most {MAX_BYTES:,} bytes together, got {size:,}. "
                "Make them smaller."
            )

    def to_event(self) -> dict[str, Any]:
        """Return the fields of the event "figure"; its "kind" tells it from a figure of lines, which has none."""
        told = {"kind": "picture", "id": self.id, "title": self.title, "caption": self.caption}
        if self.missing:
            return {**told, "missing": self.missing}
        images = [
            {"label": i.label, "alternative": i.alternative, "png": base64.b64encode(i.png).decode("ascii")}
            for i in self.images
        ]
        return {**told, "images": images}


def encode_png(pixels: Tensor) -> bytes:
    """Write an image as PNG: of the same pixels always the same bytes, without a date or a program's name.

    Args:
        pixels: uint8.

    Shape:
        `(height, width)` for grey, `(height, width, 3)` for red, green, blue.

    Raises:
        UsageError: if the pixels are of another type or shape, or there are none.

    Example:
        >>> import torch
        >>> encode_png(torch.zeros(2, 3, dtype=torch.uint8))[1:4]
        b'PNG'

    Source: W3C, Portable Network Graphics Specification.
    """
    import torch  # studies are told of without it

    channels = pixels.shape[2] if pixels.dim() == 3 else 1
    if pixels.dtype != torch.uint8 or pixels.dim() not in (2, 3) or channels not in _COLOURS or not pixels.numel():
        raise UsageError(
            "encode_png: pixels must be uint8 of shape (height, width) or (height, width, 3), got "
            f"{str(pixels.dtype).removeprefix('torch.')} of {tuple(pixels.shape)}."
        )
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width, channels)
    # Filter 1: each byte less that of the pixel on its left, modulo 256, which compresses better.
    less = torch.cat([rows[:, :1], rows[:, 1:] - rows[:, :-1]], dim=1).reshape(height, -1)
    lines = torch.cat([torch.ones(height, 1, dtype=torch.uint8), less], dim=1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)
    content = bytes(lines.flatten().tolist())
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(content, 9)), (b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
