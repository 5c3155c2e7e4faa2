"""The fixture fails what is sick, passes what is healthy, and costs nothing where it is not used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

pytest_plugins = ["pytester"]
MODULE = "levada.integrations.pytest_plugin"
ROOT = Path(__file__).parents[2]
TESTS = """
    import pytest
    import torch
    from torch import nn

    BATCH = torch.randn(16, 32), torch.arange(16) % 4

    def net(activation, depth):
        torch.manual_seed(0)
        return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(32, 32), activation())], nn.Linear(32, 4))

    def test_healthy(assert_trainable):
        report = assert_trainable(net(nn.Tanh, 3), BATCH, optimizer="SGD", lr=0.1, max_gradient_ratio_decades=2)
        assert report.verdict == "healthy"
        assert report.settings["optimizer"] == "SGD"

    def test_sick(assert_trainable):
        assert_trainable(net(nn.Sigmoid, 40), BATCH)

    TWICE = net(nn.Tanh, 2).append(nn.Softmax(-1))

    def test_ignored(assert_trainable):
        assert_trainable(TWICE, BATCH, ignore=["double_softmax"])

    def test_not_ignored(assert_trainable):
        with pytest.raises(AssertionError, match="double_softmax"):
            assert_trainable(TWICE, BATCH)

    def test_warned(assert_trainable):
        model = net(nn.ReLU, 20)  # Adam trains it
        assert assert_trainable(model, BATCH, optimizer="AdamW").verdict == "warn"
        with pytest.raises(AssertionError, match="warning vanishing_gradient"):
            assert_trainable(model, BATCH, optimizer="AdamW", fail_on="warn")

    def test_limits(assert_trainable):
        model = net(nn.ReLU, 8)
        told = assert_trainable(model, BATCH).summary["gradient_decay_per_block"]
        assert told["low"] < told["value"] < told["high"]
        assert_trainable(model, BATCH, min_gradient_decay_per_block=(told["value"] + told["high"]) / 2)
        with pytest.raises(AssertionError, match="gradient_decay_per_block is .*, below"):
            assert_trainable(model, BATCH, min_gradient_decay_per_block=told["high"] + 0.01)
        with pytest.raises(AssertionError, match="above 0.1"):
            assert_trainable(model, BATCH, max_gradient_decay_per_block=0.1)

    def test_unknown(assert_trainable):
        with pytest.raises(AssertionError, match="not decided"):
            assert_trainable(net(nn.ReLU, 8).requires_grad_(False), BATCH)
        with pytest.raises(AssertionError, match="not known: signal_decay_per_block"):
            assert_trainable(net(nn.ReLU, 8), (BATCH[0][:1], BATCH[1][:1]), min_signal_decay_per_block=0.1)

    @pytest.mark.parametrize(
        "options", [{"fail_on": "never"}, {"ignore": ["nan"]}, {"max_depht": 3}, {"depth": 3}, {"max_depth": "3"}]
    )
    def test_arguments(assert_trainable, options):
        with pytest.raises(Exception, match="assert_trainable: "):
            assert_trainable(net(nn.ReLU, 2), BATCH, **options)
"""


def test_the_fixture_passes_what_is_healthy_and_fails_what_is_sick_without_a_traceback(pytester):
    installed = any(entry.value == MODULE for entry in entry_points(group="pytest11"))
    pytester.makepyfile(TESTS)
    # In a process of its own: torch cannot be imported a second time in this one.
    result = pytester.runpytest_subprocess(*([] if installed else ["-p", MODULE]), "-p", "no:cacheprovider")
    result.assert_outcomes(passed=11, failed=1)
    result.stdout.fnmatch_lines(
        ["*AssertionError: Sequential is not trainable as it is:", "*error vanishing_signal: *"]
    )
    result.stdout.fnmatch_lines(["FAILED *::test_sick*"])
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_the_package_installs_the_plugin_and_does_not_import_pytest_or_torch():
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["entry-points"]["pytest11"] == {"levada": MODULE}
    code = f"import sys; import levada; print('pytest' in sys.modules); import {MODULE}; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]
