"""Pictures: pixels come back from the PNG as they were, and a picture is whole or says what it lacks."""

from __future__ import annotations

import base64
import io

import pytest
import torch

from levada._errors import UsageError
from levada.study import Image, Picture
from levada.study.picture import MAX_BYTES, encode_png


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (16, 3), (1, 1, 3), (6, 9, 3)])
def test_pixels_come_back(shape):
    images = pytest.importorskip("PIL.Image")
    pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    written = encode_png(pixels)
    with images.open(io.BytesIO(written)) as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", "L" if len(shape) == 2 else "RGB")
        assert image.size == (shape[1], shape[0])
        assert list(image.tobytes()) == pixels.flatten().tolist()
    assert encode_png(pixels.clone()) == written


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (torch.zeros(2, 2), r"float32 of \(2, 2\)"),
        (torch.zeros(2, dtype=torch.uint8), r"uint8 of \(2,\)"),
        (torch.zeros(2, 2, 4, dtype=torch.uint8), r"uint8 of \(2, 2, 4\)"),
        (torch.zeros(0, 2, dtype=torch.uint8), r"uint8 of \(0, 2\)"),
    ],
)
def test_other_pixels_are_refused(pixels, got):
    with pytest.raises(UsageError, match=r"pixels must be uint8 of shape .*got " + got):
        encode_png(pixels)


def test_an_event_holds_the_images_or_the_reason():
    event = Picture("a", "A", "how", (Image("one", "what it shows", b"\x89PNG"),)).to_event()
    assert event == {
        "kind": "picture", "id": "a", "title": "A", "caption": "how",
        "images": [{"label": "one", "alternative": "what it shows", "png": base64.b64encode(b"\x89PNG").decode()}],
    }  # fmt: skip
    assert Picture("a", "A", "how", missing="why").to_event() == {
        "kind": "picture", "id": "a", "title": "A", "caption": "how", "missing": "why",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("images", "missing", "message"),
    [
        ((), "", "give either images, or in `missing` why"),
        ((Image("one", "words", b""),), "why", "give either images, or in `missing` why"),
        ((Image("one", "", b""),), "", "every image needs an alternative text; 'one' has none"),
        ((Image("one", "words", bytes(MAX_BYTES)), Image("two", "words", b"1")), "", "at most 400,000 bytes together"),
    ],
)
def test_a_picture_is_whole(images, missing, message):
    with pytest.raises(UsageError, match=message):
        Picture("a", "A", "how", images, missing)
