"""Write the digits that the explorer trains on into `src/explorer/train/digits.json`.

`python web/data/make.py`, where the package scikit-learn is installed (`pip install --no-deps scikit-learn` is enough).

The data are the 1,797 images of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, 1998, UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49, under CC BY 4.0, as scikit-learn ships them: 8 x 8 counts,
from 0 to 16, of ink in a block of 4 x 4 pixels, and the digit. Nothing is changed but how they are packed.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from importlib import metadata
from pathlib import Path

TO = Path(__file__).parents[1] / "src" / "explorer" / "train" / "digits.json"
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of the bytes before they are compressed
COUNT, PIXELS = 1797, 64


def read() -> bytes:
    """Return all pixels, image by image, and then the labels: a byte for each.

    Raises:
        ValueError: if the package holds other data.
    """
    path = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = [
        [int(float(cell)) for cell in line.split(",")]
        for line in gzip.decompress(Path(str(path)).read_bytes()).decode().split()
    ]
    data = bytes(value for row in rows for value in row[:PIXELS]) + bytes(row[PIXELS] for row in rows)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError("scikit-learn's digits are not those that this file was written for.")
    return data


def unpacked(text: str) -> bytes:
    """Return the bytes that a file holds.

    Args:
        text: of the file.
    """
    return zlib.decompress(base64.b64decode(json.loads(text)["deflated"]), wbits=-15)


def packed(data: bytes) -> str:
    """Return a file's text.

    Args:
        data: as `read` returns it.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = base64.b64encode(deflate.compress(data) + deflate.flush()).decode()
    return json.dumps({"count": COUNT, "side": 8, "levels": 16, "deflated": deflated}, indent=2) + "\n"


if __name__ == "__main__":
    TO.parent.mkdir(exist_ok=True)
    TO.write_text(packed(read()), encoding="utf-8")
