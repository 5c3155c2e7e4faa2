"""Image classifiers of timm, at their smallest, on MNIST."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from benchmarks.diagnosis.program import Setup
from benchmarks.diagnosis.zoo.entry import Entry, Factory, adamw, digits, sgd
from benchmarks.torchvision import define_what_torchvision_lacks

__all__ = ["entries"]

# Rates of batches of 256, 0.2 and 0.016, made smaller with the batch.
CONVOLUTIONAL, ATTENTIVE = sgd(0.01), adamw(5e-4)


def mobile(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return RMSprop as TensorFlow has it, by which mobile networks are trained."""
    from timm.optim import RMSpropTF

    return RMSpropTF(parameters, lr=7.5e-4, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5)


# name -> side of the images, optimizer, options of the model.
MODELS: dict[str, tuple[int, Factory, dict[str, Any]]] = {
    "resnet18": (32, CONVOLUTIONAL, {}),
    "resnet18d, zero gamma": (32, CONVOLUTIONAL, {"zero_init_last": True}),
    "seresnet18": (32, CONVOLUTIONAL, {}),
    "resnext26ts": (32, CONVOLUTIONAL, {}),
    "densenet121": (32, CONVOLUTIONAL, {"block_config": (3, 3, 3, 3), "growth_rate": 16}),
    "regnetx_002": (32, CONVOLUTIONAL, {}),
    "repvgg_a0": (32, CONVOLUTIONAL, {}),
    "dla46_c": (64, CONVOLUTIONAL, {}),
    "ese_vovnet19b_slim": (32, CONVOLUTIONAL, {}),
    "test_nfnet": (32, sgd(0.01), {}),
    "mobilenetv3_small_050": (32, mobile, {}),
    "mnasnet_050": (32, mobile, {}),
    "tinynet_e": (32, mobile, {"drop_path_rate": 0.1, "drop_rate": 0.2}),
    "ghostnet_050": (32, CONVOLUTIONAL, {}),
    "lcnet_050": (32, CONVOLUTIONAL, {}),
    "starnet_s050": (64, ATTENTIVE, {}),
    "convnext_atto": (32, ATTENTIVE, {"drop_path_rate": 0.1}),
    "convnextv2_atto": (32, ATTENTIVE, {}),
    "inception_next_atto": (32, ATTENTIVE, {}),
    "edgenext_xx_small": (64, ATTENTIVE, {}),
    "mobilevit_xxs": (64, ATTENTIVE, {}),
    "vit_tiny_patch16_224": (32, ATTENTIVE, {"img_size": 32, "patch_size": 4, "depth": 6}),
    "deit_tiny_patch16_224": (32, ATTENTIVE, {"img_size": 32, "patch_size": 8, "drop_path_rate": 0.1}),
    "cait_xxs24_224": (64, ATTENTIVE, {"img_size": 64, "depth": 12}),
    "swin_tiny_patch4_window7_224": (
        32,
        ATTENTIVE,
        {"img_size": 32, "window_size": 4, "embed_dim": 48, "depths": (2, 2), "num_heads": (3, 6)},
    ),
    "xcit_nano_12_p16_224": (64, ATTENTIVE, {"img_size": 64}),
    "levit_128s": (64, ATTENTIVE, {"img_size": 64}),
    "pvt_v2_b0": (64, ATTENTIVE, {}),
    "test_maxvit": (64, ATTENTIVE, {"img_size": 64}),
    "test_mambaout": (32, ATTENTIVE, {}),
    "resmlp_12_224": (32, ATTENTIVE, {"img_size": 32}),
    "convit_tiny": (64, ATTENTIVE, {"img_size": 64, "depth": 6}),
    "beit_base_patch16_224": (64, ATTENTIVE, {"img_size": 64, "depth": 4, "embed_dim": 96, "num_heads": 3}),
}


def build(name: str) -> Setup:
    """Return a model of timm with ten classes."""
    define_what_torchvision_lacks()
    import timm

    size, factory, options = MODELS[name]
    model = timm.create_model(name.split(",")[0], num_classes=10, in_chans=1, **options)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return Setup(model, digits(size, rows=12, batches=5), loss, factory)


def entries() -> list[Entry]:
    """Return the entries; rates rise from a thousandth, as timm's do by default."""
    return [
        Entry(f"timm/{name}", functools.partial(build, name), "MNIST", steps=24, warmup=6, first=1e-3)
        for name in MODELS
    ]
