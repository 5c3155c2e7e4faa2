"""Pictures of a study: images that the page holds itself.

A run may come from someone else. What is drawn is a PNG by its first bytes and by the type that the page names; what
is none, or has more pixels than a page should ask a browser for, is a sentence in its place.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["MOST_PIXELS", "is_picture", "picture_view", "told_pictures"]

MOST_PIXELS: Final = 2**24
"""Of an image: a few bytes can say that they are of thousands of millions."""
_BEGIN: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def is_picture(spec: Mapping[str, Any]) -> bool:
    """Say whether a figure is a picture; one of lines on axes says no kind.

    Args:
        spec: the event "figure".
    """
    return spec.get("kind") == "picture"


def picture_view(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Make what a page shows of a picture: its images in base64, and why there are none, or not all.

    Args:
        spec: {"title", "caption", "images": [{"label", "alternative", "png": base64}]}, or "missing" for images.

    Example:
        >>> picture_view({"title": "Edges", "missing": "HED is not installed."})["missing"]
        'HED is not installed.'
        >>> picture_view({"title": "Edges", "images": [{"label": "fused", "png": "PHN2Zz4="}]})["missing"]
        'The image “fused” is no PNG in base64, and is not shown. Run its study again.'
    """
    held = spec.get("images")
    found = [_image(one) for one in held if isinstance(one, Mapping)] if isinstance(held, list) else []
    images = [one for one in found if not isinstance(one, str)]
    refused = [one for one in found if isinstance(one, str)]
    missing = "" if images else str(spec.get("missing") or "Its images are not in this run.")
    return {
        "kind": "picture",
        "title": str(spec.get("title") or ""),
        "caption": str(spec.get("caption") or ""),
        "images": images,
        "missing": " ".join(refused) or missing,
    }


def _image(spec: Mapping[str, Any]) -> dict[str, Any] | str:
    """Give an image, or why it is not shown."""
    label = str(spec.get("label") or "")
    try:
        png = base64.b64decode(str(spec.get("png") or ""), validate=True)
    except (binascii.Error, ValueError):
        png = b""
    width, height = struct.unpack_from(">II", png, len(_BEGIN)) if len(png) >= len(_BEGIN) + 8 else (0, 0)
    if not png.startswith(_BEGIN) or not width or not height:
        return f"The image “{label}” is no PNG in base64, and is not shown. Run its study again."
    if width * height > MOST_PIXELS:
        size = f"{width:,} x {height:,} pixels"
        return f"The image “{label}” has {size}, and a page shows {MOST_PIXELS:,} at most. Make it smaller."
    return {
        "label": label,
        "alternative": str(spec.get("alternative") or label),
        # Encoded here: a page holds these letters and no others.
        "png": base64.b64encode(png).decode("ascii"),
        "width": width,
        "height": height,
    }


def told_pictures(events: list[Mapping[str, Any]]) -> list[str]:
    """Say each picture of a study in a line, for where none can be shown.

    Args:
        events: events of a run; of one id the last counts.

    Example:
        >>> told_pictures([{"type": "figure", "kind": "picture", "id": "a", "title": "Edges", "images": [{}, {}]}])
        ['Edges: a picture of 2 images, in the report.']
    """
    found = {str(e.get("id")): e for e in events if e.get("type") == "figure" and is_picture(e)}
    lines = []
    for event in found.values():
        number = len(event.get("images") or ())
        shown = f"a picture of {number} {'image' if number == 1 else 'images'}, in the report."
        lines.append(f"{event.get('title')}: {shown if number else event.get('missing')}")
    return lines
