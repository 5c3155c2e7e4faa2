"""Dropout so heavy that outputs differ more from run to run than between inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.noise import CALM, Noise
from levada.probe.trace import Trace

__all__ = ["noisy_forward"]

RULE = "noisy_forward"
# Noise's share of the variance of outputs from which on the rule speaks.
MOSTLY = 0.8
# Measured and predicted share agree if the interval reaches this part of the prediction.
AGREES = 0.95
# Steps gain less than this share of the loss, and of what they gain with less dropout, which gains this share or more.
NOTHING, BEHIND, WORTH = 0.05, 0.2, 0.1
# Wide layers and masks of inputs learn at nine tenths; from here on it is a warning.
TOO_MUCH = 0.95
SOURCE = "Srivastava et al. 2014, JMLR 15, 1929 to 1958 (dropout); variance of a Bernoulli mask over 1 - p: p / (1 - p)"


def noisy_forward(trace: Trace) -> Iterable[Finding]:
    r"""Dropout leaves so little that what the loss sees of an input is noise.

    A mask over $1 - p$ has the variance $p / (1 - p)$, so that a linear map of what it leaves has a noise of at least
    $p / (1 - p)$ times its signal: a share of $p$ of its variance. It looks at dropout of 0.9 and more in training
    mode, and speaks where noise has four fifths of the outputs' variance. It is information, and a warning at 0.95 and
    more: wide layers and masked inputs learn with nine tenths gone. An error needs a share as large as theory's, and
    that twenty steps, each with new noise, gain less than a twentieth of the loss and a fifth of what they gain with a
    dropout of 0.1 in its place, which is a tenth of the loss or more, all judged without noise. Noise of other kinds is
    passed over: a loss that samples means it.

    Args:
        trace: of one check, or of a run.

    Source: Srivastava et al. 2014, JMLR 15.
    """
    found = facts_of(trace).noise
    if found is None or not found.low >= MOSTLY:
        return
    module, rate = max(found.modules.items(), key=lambda item: item[1])
    place = found.site or trace.names()[0]
    if found.share < 1:
        ratio = math.sqrt(found.share / (1 - found.share))
        apart = f"differ {ratio:.3g} times as far from run to run as between inputs"
    else:
        apart = "differ from run to run so far that their mean does not tell the inputs apart"
    plain, calm = found.plain, found.calm
    claim = (
        f"{module} drops {rate:.3g} of its inputs: outputs {apart}, so that noise has {found.share:.3g} of their "
        "variance"
    )
    if plain is not None and calm is not None:
        claim += (
            f". {len(plain.losses) - 1} steps take the loss without it from {plain.aside[0]:.4g} to "
            f"{plain.aside[1]:.4g}, and to {calm.aside[1]:.4g} with a dropout of {CALM:g}"
        )
    yield Finding(
        rule=RULE,
        severity=_severity(found, rate),
        status="fired",
        claim=f"{claim}.",
        where={"first": place, "last": place},
        evidence={
            "noise_share": {"value": found.share, "low": found.low, "high": found.high, "predicted": rate},
            "dropout": dict(found.modules),
            "reference": "dropout of 0.1 to 0.6",
            "explained_by": "theory" if found.high >= AGREES * rate else None,
            "tests": {
                "steps_with_less_dropout": "not made"
                if plain is None or calm is None
                else {"loss": list(plain.aside), "loss_less_dropout": list(calm.aside)}
            },
        },
        consequence="A step follows the few units that were left by chance, and hardly learns from the data.",
        falsify=f"Train some hundred steps with dropout {CALM:g}: if the loss without it falls no faster, it is wrong.",
        remedies=(
            Proposal(
                "less_dropout",
                found.patch,
                {"loss": plain.aside[1] if plain is not None else None},
                {"loss": calm.aside[1] if calm is not None else None},
            ),
        ),
        source=SOURCE,
    )


def _severity(found: Noise, rate: float) -> Severity:
    plain, calm = found.plain, found.calm
    mild: Severity = "warn" if rate >= TOO_MUCH else "info"
    if plain is None or calm is None or found.high < AGREES * rate:
        return mild
    size = abs(calm.aside[0])
    gained, gain = (course.aside[0] - course.aside[1] for course in (plain, calm))
    still = gained < NOTHING * size and gained < BEHIND * gain
    return "error" if still and gain > WORTH * size else mild
