"""Rows of a batch that change each other's outputs: a module with `batch_first=False` takes them for time."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.rows import Mixed, block_of
from levada.probe.trace import Trace

__all__ = ["mixed_rows"]

RULE = "mixed_rows"
# A row's output moves by this share of the difference between outputs, and by this much less with batch_first=True.
MOVES, STILL = 1e-3, 1e-2
# Steps with batch_first=True gain this share of the loss, and this many times what they gain without.
WORTH, FURTHER = 0.05, 2.0
# So few steps may as well be sensors or relations.
SENSORS = 4
SOURCE = "torch.nn.RNN, torch.nn.MultiheadAttention: with batch_first=False inputs are (steps, rows, features)"


def mixed_rows(trace: Trace) -> Iterable[Finding]:
    r"""A recurrent or attention module has `batch_first=False` and is given the rows of the batch first.

    It then goes from row to row as if these were the steps of one sequence: $\partial y_i / \partial x_j \ne 0$ of rows
    $i \ne j$, which is exactly 0 in a module that keeps rows apart. Which dimension holds the rows is known from
    targets with one entry for each, or from outputs that have lost the other dimension; else nothing is said. It is a
    warning: to attend across a batch may be meant. An error needs a recurrent module, that the output of a row moves as
    others stand beside it and does not with `batch_first=True`, and that twenty steps of training gain twice as much
    with it, and a twentieth of the loss. It is information where successive rows are alike, as the steps of one series
    are, where the other dimension has four entries or fewer, as sensors, or where a module of the same kind keeps rows
    apart or is given the two dimensions the other way round, as in attention over rows and over columns in turn.

    Args:
        trace: of one check, or of a run.
    """
    found = facts_of(trace).mixed
    if found is None or found.doubt:
        return
    place = block_of(trace.names(), found.modules[0])
    severity, moved = _severity(found), found.moved
    shares = found.shares
    tested = "" if moved is None else f" With other rows beside it a row's output moves by {moved:.2g} of the "
    tested += "difference between outputs" if tested else ""
    if tested and found.repaired is not None:
        tested += f", and by {found.repaired:.2g} with batch_first=True"
    if found.plain is not None and found.turned is not None:
        tested += (
            f". {len(found.plain.losses) - 1} steps take the loss from {found.plain.losses[0]:.4g} to "
            f"{found.plain.end:.4g}, and with batch_first=True from {found.turned.losses[0]:.4g} to "
            f"{found.turned.end:.4g}"
        )
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"{found.modules[0]} has batch_first=False and is given the {found.rows} rows of the batch first: it takes "
            f"them for steps, and {sum(shares) / len(shares):.2g} of the gradient of a row's output lies at other "
            f"rows.{tested}{'.' if tested else ''}"
        ),
        where={"first": place, "last": place},
        evidence={
            "modules": list(found.modules[:20]),
            "gradient_at_other_rows": {
                "value": sum(shares) / len(shares),
                "low": min(shares),
                "high": max(shares),
                "rows": len(shares),
            },
            "reference": "exactly 0 in a module that keeps rows apart",
            "successive_rows": found.succession,
            "explained_by": "theory",
            "tests": {
                "moved_by_other_rows": "not made" if moved is None else moved,
                "with_batch_first": "not made" if found.repaired is None else found.repaired,
                "steps_with_batch_first": "not made"
                if found.plain is None or found.turned is None
                else {"loss": list(found.plain.losses), "loss_repaired": list(found.turned.losses)},
            },
        },
        consequence="What is said of an input depends on which others are beside it, and its own steps are not read.",
        falsify="Put other rows beside a row, in evaluation mode: if its output stays as it is, this is wrong.",
        remedies=(
            Proposal(
                "batch_first",
                "\n".join(f"model.get_submodule({name!r}).batch_first = True" for name in found.modules),
                {"moved_by_other_rows": moved},
                {"moved_by_other_rows": found.repaired},
            ),
        ),
        source=SOURCE,
    )


def _severity(found: Mixed) -> Severity:
    series = found.succession < 1 - 2 / math.sqrt(found.rows)
    if found.aside or series or found.steps <= SENSORS:
        return "info"
    if found.kind != "recurrent" or found.moved is None or found.repaired is None:
        return "warn"
    if not (found.moved > MOVES and found.repaired < STILL * found.moved):
        return "warn"
    plain, turned = found.plain, found.turned
    if plain is None or turned is None:
        return "warn"
    more = turned.gain > FURTHER * max(plain.gain, 0.0) and turned.end < plain.end
    return "error" if more and turned.gain > WORTH * abs(turned.losses[0]) else "warn"
