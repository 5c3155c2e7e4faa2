"""The check of a result: values of one cheap configuration, by which a test compares the code of today."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from levada._errors import UsageError
from levada._numbers import json_ready
from levada.studies import find
from levada.study import Study

__all__ = ["check_of", "compute", "deviation", "recompute"]

CHECK_SECONDS, CHECK_TOLERANCE, LEAST_TOLERANCE = 3.0, 1e-2, 1e-6


def compute(study: Study, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the values of one configuration and seed, as JSON gives them back.

    Args:
        study: the study.
        config: the configuration.
        seed: the seed.
    """
    (values,) = study.run(config, [seed])
    return json.loads(json.dumps(json_ready(values)))


def deviation(expected: Any, found: Any) -> float:
    """Return the largest relative difference of two floats at one place of `expected` and `found`.

    Args:
        expected: values.
        found: values; infinitely far where anything but floats differs.

    Example:
        >>> deviation({"steps": 3, "loss": [2.0, 0.0]}, {"steps": 3, "loss": [2.5, 0.0]})
        0.2
        >>> deviation({"steps": 3}, {"steps": 4})
        inf
    """
    if isinstance(expected, float) and isinstance(found, float):
        apart = abs(expected - found)
        return 0.0 if apart == 0 else apart / max(abs(expected), abs(found))
    if isinstance(expected, Mapping) and isinstance(found, Mapping) and expected.keys() == found.keys():
        return max((deviation(expected[key], found[key]) for key in expected), default=0.0)
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return max(map(deviation, expected, found), default=0.0)
    return 0.0 if type(expected) is type(found) and expected == found else math.inf


def recompute(result: Mapping[str, Any]) -> float:
    """Compute the check of a result again; return how far its values are from what the file says.

    Args:
        result: as `read` returns it.
    """
    check = result["check"]
    return deviation(check["values"], compute(find(result["name"]), check["config"], check["seed"]))


def check_of(study: Study) -> dict[str, Any]:
    """Compute what a test compares: the cheapest configuration of the scale smoke whose values other hardware repeats.

    The tolerance is ten times the deviation of a second computation, by another number of threads and without the
    vector instructions of this processor, and at least 1e-6.

    Args:
        study: the study.

    Raises:
        UsageError: if no configuration is cheap and repeatable enough.
    """
    cells = study.configurations(study.resolve("smoke"), [0])
    for cell in reversed([cell for cell in cells if cell.config.items() >= study.check.items()]):
        compute(study, cell.config, 0)  # the first call reads the data
        began = time.process_time()
        values = compute(study, cell.config, 0)
        seconds = time.process_time() - began
        if seconds > CHECK_SECONDS:
            continue
        apart = deviation(values, _elsewhere(study, cell.config))
        tolerance = max(LEAST_TOLERANCE, 10 * apart)
        if tolerance <= CHECK_TOLERANCE:
            return {
                "scale": "smoke",
                "config": cell.config,
                "seed": 0,
                "seconds": round(seconds, 2),
                "deviation": float(f"{apart:.2g}"),
                "tolerance": float(f"{tolerance:.2g}"),
                "values": values,
            }
    raise UsageError(
        f"study {study.name}: no configuration of the scale smoke takes {CHECK_SECONDS:.0f} s or less and gives the "
        "same again by other instructions."
    )


def _elsewhere(study: Study, config: Mapping[str, Any]) -> Any:
    """Compute a configuration as other hardware would: two threads, and the least of instructions."""
    code = (
        "import json, sys, torch; from levada.studies import find; from docs.result_checks import compute;"
        "torch.set_num_threads(2); name, config = json.load(sys.stdin);"
        "print(json.dumps(compute(find(name), config, 0)))"
    )
    plain = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    environment = {**os.environ, **plain, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input=json.dumps([study.name, config]),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
