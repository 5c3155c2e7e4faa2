"""Losses as they were: what changes them by more than rounding changed what a training computes."""

from __future__ import annotations

import pytest

from levada.training import losses, resolve, train

CASES = {
    "mlp, residual": {"model": {"depth": 4, "dim": 16, "initialisation": "orthogonal"}},
    "transformer, manifold hyper-connections": {
        "model": {
            "network": "transformer",
            "depth": 2,
            "dim": 16,
            "connection": "ManifoldHyperConnection",
            "connection_options": {"streams": 2, "iterations": 5},
            "options": {"heads": 2},
        },
        "data": {"source": "king_james", "context": 16},
        "schedule": {"warmup": 3},
    },
    "residual network, ReZero": {
        "model": {
            "network": "cifar_resnet",
            "depth": 8,
            "connection": "ReZero",
            "options": {"channels": [4, 8, 8], "pre_activation": True},
        },
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "stable_decay", "decay": 4},
    },
}
# float32 on one CPU.
GOLDEN = {
    "mlp, residual": [
        3.182838,
        4.2000856,
        4.0837021,
        4.1030617,
        3.4018092,
        3.3319945,
        4.5202403,
        3.0428882,
    ],
    "transformer, manifold hyper-connections": [
        4.3039684,
        4.3091555,
        4.1287127,
        4.0309458,
        3.8481331,
        3.7199433,
        3.6257296,
        3.5637088,
    ],
    "residual network, ReZero": [
        2.2799683,
        2.6851184,
        2.5307319,
        2.4215493,
        2.471875,
        2.2141116,
        2.5179214,
        2.4145648,
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_as_they_were(case, tmp_path):
    changes = [
        "watch.enabled=false",
        "run.steps=8",
        "data.batch_size=16",
        "data.evaluated=16",
        f"run.folder={tmp_path / 'run'}",
    ]
    config = resolve({"optimizer": {"lr": 0.01}, **CASES[case]}, changes)
    assert list(losses(train(config).run).values()) == pytest.approx(GOLDEN[case], rel=1e-5)
