"""What a network is trained on: data sets of installed packages, texts byte by byte, folders of images."""

from __future__ import annotations

import importlib
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from levada._errors import MeasurementError, UsageError
from levada.training.config import Data
from levada.training.sampling import Order

__all__ = ["Examples", "Source", "described", "load_data", "require_batch"]

_IMAGES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_OTHER_IMAGES: Final = (".avif", ".gif", ".heic", ".jfif", ".jp2", ".pgm", ".ppm", ".tif", ".tiff")
_DESCRIBED: Final = 32  # examples whose targets, and images whose bytes, tell data from others
_END: Final = 65_536  # bytes of both ends of a file that is looked at


@final
@dataclass(frozen=True, slots=True)
class Examples:
    """Examples by number.

    Attributes:
        num: how many there are.
        take: numbers `(batch,)` -> inputs and targets.
    """

    num: int
    take: Callable[[Tensor], tuple[Tensor, Tensor]]


@final
@dataclass(frozen=True, slots=True)
class Source:
    """Data that a network can be trained on.

    Attributes:
        train: what it learns from.
        held_out: what it is evaluated on.
        shape: of one input; `()` for each token of a text.
        outputs: number of classes, or of tokens.
        files: what is read at `data.path` of texts and images, in the order of the examples.
        hidden: how many texts or images there are hidden, and not read.
    """

    train: Examples
    held_out: Examples
    shape: tuple[int, ...]
    outputs: int
    files: tuple[Path, ...] = ()
    hidden: int = 0


def load_data(data: Data) -> Source:
    """Open the data that a configuration names.

    Packages' test sets are not touched: what is held out comes from the examples for training, chosen by a shuffle that
    does not depend on the run's seed.

    Args:
        data: the configuration.

    Raises:
        UsageError: if a file, folder or package is missing, or there is too little in it.
        MeasurementError: if a file is damaged.

    Example:
        >>> source = load_data(Data("mnist1d"))
        >>> source.train.num, source.held_out.num, source.shape, source.outputs
        (3600, 400, (40,), 10)
    """
    if data.source in ("text", "king_james"):
        return _text(data)
    if data.source == "images":
        return _images(data)
    from levada.study.data import fashion_mnist, mnist, mnist1d

    if data.source == "mnist1d":
        known = mnist1d()
    elif data.source == "mnist":
        known = mnist(data.path or None)
    else:
        known = fashion_mnist(data.path) if data.path else fashion_mnist()
    inputs, targets = known.train_inputs, known.train_targets
    scale, shift = 1.0, 0.0
    if inputs.dtype == torch.uint8:  # signals come as they are to be used
        values = inputs[:10_000].double()
        scale, shift = float(values.std()), float(values.mean())

    def take(index: Tensor) -> tuple[Tensor, Tensor]:
        return (inputs[index].float() - shift) / scale, targets[index]

    return _divided(len(inputs), data.held_out, take, tuple(inputs.shape[1:]), int(targets.max()) + 1)


def described(source: Source) -> dict[str, Any]:
    """Say of data what tells others from them: how many examples, their shape, a checksum of some targets and of files.

    Targets are whole numbers, which every machine reads alike; pixels hang on who decodes them. Of texts and images
    the checksum "content" is of the sizes of all files, and of the first and last 64 KiB of each text and of 32 images.

    Args:
        source: the data.

    Raises:
        MeasurementError: if a file is damaged.

    Example:
        >>> described(load_data(Data("mnist1d")))
        {'train': 3600, 'held_out': 400, 'shape': [40], 'outputs': 10, 'targets': '...'}
    """
    chosen = torch.arange(_DESCRIBED) * source.train.num // _DESCRIBED
    targets = source.train.take(chosen)[1].contiguous().to(torch.int64)
    said = {
        "train": source.train.num,
        "held_out": source.held_out.num,
        "shape": list(source.shape),
        "outputs": source.outputs,
        "targets": f"{zlib.crc32(targets.numpy().astype('<i8').tobytes()):08x}",
    }
    if source.files:
        said |= {"content": _content(source.files, _DESCRIBED if source.shape else len(source.files))}
    return said | ({"hidden": source.hidden} if source.hidden else {})


def _content(files: Sequence[Path], looked_at: int) -> str:
    """Return the CRC-32 of the sizes of files, and of the ends of some that are spread over them."""
    chosen = {number * len(files) // looked_at for number in range(looked_at)}
    crc = 0
    for number, path in enumerate(files):
        size = path.stat().st_size
        crc = zlib.crc32(f"{size} ".encode(), crc)
        if number in chosen:
            with path.open("rb") as file:
                crc = zlib.crc32(file.read(_END), crc)
                file.seek(max(size - _END, 0))
                crc = zlib.crc32(file.read(_END), crc)
    return f"{crc:08x}"


def require_batch(data: Data, source: Source) -> None:
    """Raise if a batch has more examples than there are to train on: some would be in it twice, and it may not fit.

    Args:
        data: the configuration.
        source: what `load_data` gave for it.

    Raises:
        UsageError: if so.
    """
    if data.batch_size > source.train.num:
        what = "examples" if source.shape else "windows of the text"
        raise UsageError(
            f"train: data.batch_size must be at most the {source.train.num} {what} that are trained on, got "
            f"{data.batch_size}. Use a smaller batch."
        )


def _divided(
    num: int, held_out: float, take: Callable[[Tensor], tuple[Tensor, Tensor]], shape: tuple[int, ...], outputs: int
) -> Source:
    num_held_out = round(num * held_out)
    if not 0 < num_held_out < num:
        raise UsageError(f"train: data.held_out must leave examples on both sides, got {held_out} of {num}. Change it.")
    order = Order(num, seed=0)

    def part(first: int, last: int) -> Examples:
        where = order.examples(first, last)
        return Examples(len(where), lambda index: take(where[index]))

    return Source(part(num_held_out, num), part(0, num_held_out), shape, outputs)


def _text(data: Data) -> Source:
    files: list[Path] = []
    hidden = 0
    if data.source == "king_james":
        from levada.study.data import king_james

        text = king_james()
        vocabulary, parts, kept = len(text.characters), [text.train], [text.validation]
    else:
        vocabulary, parts, kept = 256, [], []
        if not 0 < data.held_out < 1:
            rule = "train: data.held_out must leave some of a text to train on and some to evaluate on"
            raise UsageError(f"{rule}, got {data.held_out}. Leave it out for the default, 0.1.")
        files, hidden = _texts(Path(data.path))
        if not any(path.stat().st_size for path in files):
            what = "is empty" if len(files) == 1 else f"holds {len(files)} .txt files, all empty"
            raise UsageError(f"train: data.path must name a text; {data.path!r} {what}. Name another.")
        for path in files:
            content = _mapped(path)
            cut = len(content) - round(len(content) * data.held_out)
            parts.append(content[:cut])
            kept.append(content[cut:])
    return Source(
        _windows(parts, data.context, "for training"),
        _windows(kept, data.context, "held out"),
        (),
        vocabulary,
        tuple(files),
        hidden,
    )


def _texts(path: Path) -> tuple[list[Path], int]:
    """Return the texts that a path names, and how many are hidden."""
    folder = path.is_dir()
    found, hidden = _seen(path, "*.txt") if folder else ([path], [])
    if not found or not (folder or path.is_file()):
        what = "holds no .txt file" if folder else "is neither" if path.exists() else "does not exist"
        raise UsageError(f"train: data.path must name a text file or a folder of .txt files; {str(path)!r} {what}.")
    return found, len(hidden)


def _seen(folder: Path, pattern: str) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder and those below it, sorted, and apart the hidden ones and what hidden folders hold.

    A link that leads nowhere is among them, so that it is told; a pipe or a device is none, which may never end.
    """
    files = sorted(one for one in folder.rglob(pattern) if one.is_file() or not one.exists())
    hidden = {one for one in files if any(part.startswith(".") for part in one.relative_to(folder).parts)}
    return [one for one in files if one not in hidden], sorted(hidden)


def _mapped(path: Path) -> Tensor:
    """Return a file's bytes, read from the disk when they are used."""
    size = path.stat().st_size
    with path.open("rb"):  # PyTorch's own error names no reason that the command line knows
        pass
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def _windows(parts: Sequence[Tensor], context: int, which: str) -> Examples:
    """Windows of `context + 1` tokens that begin anywhere and lie in one part: inputs, and what comes after each."""
    parts = [part for part in parts if len(part) > context]
    ends = list(itertools.accumulate(len(part) - context for part in parts))
    if not ends:
        raise UsageError(
            f"train: data.context must be shorter than a text {which}, got {context} and no text of {context + 1} "
            f"tokens. Use a shorter context or a longer text{', or hold more out' if which == 'held out' else ''}."
        )
    bounds = torch.tensor(ends)

    def take(index: Tensor) -> tuple[Tensor, Tensor]:
        windows = []
        for number, part in zip(index.tolist(), torch.searchsorted(bounds, index, right=True).tolist(), strict=True):
            start = number - (ends[part - 1] if part else 0)
            windows.append(parts[part][start : start + context + 1])
        tokens = torch.stack(windows).long()
        return tokens[:, :-1], tokens[:, 1:]

    return Examples(ends[-1], take)


def _images(data: Data) -> Source:
    image = _reader()
    folder = Path(data.path)
    if not folder.is_dir():
        raise UsageError(f"train: data.path must name a folder with a folder for each class, got {str(folder)!r}.")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files, hidden = [], 0
    for label, home in enumerate(classes):
        seen, unseen = _seen(home, "*")
        files += [(path, label) for path in seen if path.suffix.lower() in (*_IMAGES, *_OTHER_IMAGES)]
        hidden += sum(path.suffix.lower() in _IMAGES for path in unseen)
    other = next((path for path, _ in files if path.suffix.lower() in _OTHER_IMAGES), None)
    if other is not None:
        known = ", ".join(_IMAGES)
        raise UsageError(f"train: images must be {known}, got {str(other)!r}. Convert it, or take it out.")
    empty = [home.name for label, home in enumerate(classes) if label not in {label for _, label in files}]
    if len(classes) < 2 or empty:
        came = f"no image in {', '.join(empty)}" if empty else f"{len(classes)} folders in {str(folder)!r}"
        raise UsageError(
            f"train: data.path must hold two folders of images or more, a class each, got {came}. Put the images of "
            "each class into a folder of its own."
        )
    paths = tuple(path for path, _ in files)
    shape = _common_shape(image, paths)
    targets = torch.tensor([label for _, label in files])

    def take(index: Tensor) -> tuple[Tensor, Tensor]:
        pixels = torch.stack([_pixels(image, files[number][0], shape) for number in index.tolist()])
        return pixels.float() / 127.5 - 1, targets[index]

    source = _divided(len(files), data.held_out, take, shape, len(classes))
    return replace(source, files=paths, hidden=hidden)


def _reader() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise UsageError(
            "train: reading images needs the package 'pillow', which is not installed. Install it with: pip install "
            "pillow"
        ) from error


def _opened(image: Any, path: Path) -> Any:
    try:
        return image.open(path)
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise MeasurementError(f"{path} is not a whole image ({error}). Repair it or take it out.") from error


def _common_shape(image: Any, paths: Sequence[Path]) -> tuple[int, int, int]:
    """Return the shape of all images, or name two that differ; only their headers are read."""
    first: tuple[tuple[int, int], bool] | None = None
    for path in paths:
        with _opened(image, path) as picture:
            found = picture.size, picture.mode in ("1", "L")
            if picture.mode[0] in "IF":
                raise UsageError(f"train: images must have 8 bits a channel, and {path} is of mode {picture.mode}.")
        if first is None:
            first = found
        if found != first:
            told = ["{}x{} {}".format(*size, "grey" if grey else "colour") for size, grey in (first, found)]
            raise UsageError(
                f"train: images must have one size and one number of channels, but {paths[0]} is {told[0]} and {path} "
                f"is {told[1]}. Bring them to one size first."
            )
    assert first is not None
    (width, height), grey = first
    return 1 if grey else 3, height, width


def _pixels(image: Any, path: Path, shape: tuple[int, int, int]) -> Tensor:
    with _opened(image, path) as picture:
        try:
            content = picture.convert("L" if shape[0] == 1 else "RGB").tobytes()
        except (OSError, ValueError, SyntaxError) as error:
            raise MeasurementError(f"{path} is not a whole image ({error}). Repair it or take it out.") from error
    if len(content) != math.prod(shape):
        raise MeasurementError(f"{path} changed its size since training began.")
    channels, height, width = shape
    pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return pixels.view(height, width, channels).permute(2, 0, 1)
