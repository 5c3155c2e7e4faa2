"""What torchvision lacks where it is installed without its compiled part, as by `make test`."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["define_what_torchvision_lacks"]

LIBRARIES: list[object] = []  # what is collected takes its operators along


def define_what_torchvision_lacks() -> None:
    """Declare two operators without which torchvision, and so timm and transformers, cannot be imported.

    It has no build for this torch: installed without its compiled part, it lacks them.
    """
    import torch

    if find_spec("torchvision") is not None and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        LIBRARIES.append(library)
