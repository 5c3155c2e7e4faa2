"""Pictures of a study: images that the page holds itself."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Any, Final

from levada._errors import UsageError

__all__ = ["is_picture", "picture_view", "told_pictures"]

_BEGIN: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def is_picture(spec: Mapping[str, Any]) -> bool:
    """Say whether a figure is a picture; one of lines on axes says no kind.

    Args:
        spec: the event "figure".
    """
    return spec.get("kind") == "picture"


def picture_view(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Make what the template shows of a picture: its images as data, or why there are none.

    Args:
        spec: {"title", "caption", "images": [{"label", "alternative", "png": base64}]}, or "missing" for images.

    Raises:
        UsageError: if an image is not a PNG.

    Example:
        >>> picture_view({"title": "Edges", "missing": "HED is not installed."})["missing"]
        'HED is not installed.'
    """
    images = [_image(one) for one in spec.get("images") or ()]
    return {
        "kind": "picture",
        "title": str(spec.get("title") or ""),
        "caption": str(spec.get("caption") or ""),
        "images": images,
        "missing": "" if images else str(spec.get("missing") or "Its images are not in this run."),
    }


def _image(spec: Mapping[str, Any]) -> dict[str, Any]:
    label = str(spec.get("label") or "")
    try:
        png = base64.b64decode(str(spec.get("png") or ""), validate=True)
    except (binascii.Error, ValueError):
        png = b""
    if not png.startswith(_BEGIN) or len(png) < len(_BEGIN) + 8:
        raise UsageError(
            f"render_report: the image {label!r} must be a PNG in base64, and is not. Run its study again."
        )
    width, height = struct.unpack_from(">II", png, len(_BEGIN))
    return {
        "label": label,
        "alternative": str(spec.get("alternative") or label),
        # Encoded here: the page holds these letters and no others.
        "uri": f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}",
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
