"""The report of one check: verdict, findings, what was measured at every block; as text, JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch

from levada._names import CALLED, STATUSES
from levada._numbers import json_ready
from levada.diagnose.finding import Finding
from levada.runs.jumps import at_steps, told_together

__all__ = ["Report", "Verdict"]

Verdict: TypeAlias = Literal["healthy", "warn", "error", "unknown"]
SCHEMA = 1


@final
@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found.

    Attributes:
        verdict: the worst severity among the fired findings; "unknown" if nothing fired and the measurement that would
            have shown it could not be made.
        findings: fired and unknown findings, causes before what follows from them.
        blocks: one mapping per block, in order of execution: site, order, kind and what was measured and predicted
            there; a key is left out where the value is not known.
        summary: depth, and decays per block with their intervals, beside theory's.
        notes: what was assumed, inferred or left out, one sentence each.
        model: name of the model.
        parameters: number of parameters, shared ones counted once.
        seed: seed of every draw.
        seconds: time that the check took.
        settings: optimizer, lr, loss and its value.
        unknown: rule -> why it gives no verdict, of those that a user may expect one of.
        called: the verdict in words, as "healthy up to step 202 of 600" of a training; "" if it is that word.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    blocks: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    model: str = ""
    parameters: int = 0
    seed: int = 0
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    called: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values: numbers are finite or one of "nan", "inf", "-inf".

        Example:
            >>> Report("healthy", (), ({"site": "0", "gradient_rms": float("inf")},), {}).to_dict()["blocks"]
            [{'site': '0', 'gradient_rms': 'inf'}]
        """
        from levada import __version__

        told = {
            "schema": SCHEMA,
            "levada": __version__,
            "torch": str(torch.__version__),
            "model": self.model,
            "parameters": self.parameters,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "verdict": self.verdict,
            **({"called": self.called} if self.called else {}),
            **self.settings,
            "blocks": self.blocks,
            "summary": self.summary,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": self.notes,
            "unknown": self.unknown,
        }
        return {key: json_ready(value, key) for key, value in told.items()}

    def to_json(self) -> str:
        """Return `to_dict` as JSON text.

        Example:
            >>> json.loads(Report("unknown", (), (), {}).to_json())["verdict"]
            'unknown'
        """
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_html(self, path: str | Path) -> Path:
        """Write the report as one self-contained page.

        Args:
            path: file to write.

        Returns:
            The file's path.
        """
        from levada.report import write_html  # above this package: it reads dictionaries, and nothing here needs it

        write_html([self.to_dict()], Path(path))
        return Path(path)

    def __str__(self) -> str:
        depth = self.summary.get("depth", len(self.blocks))
        called = self.called or CALLED[self.verdict]
        lines = [f"{called}: {self.model}, {depth} blocks, {self.parameters:,} parameters, {self.seconds:.1f} s"]
        for key, words in _DECAYS.items():
            decay = self.summary.get(key)
            if decay:
                lines.append("  " + _decay_line(words, decay))
        memory = self.summary.get("memory_horizon")
        if memory:
            between = f"[{memory['low']:.4g}, {memory['high']:.4g}]"
            lines.append(
                f"  memory over time: {memory['value']:.4g} steps {between}, in sequences of {memory['steps']}"
            )
        from levada.report.depth import depth_lines  # above this package, as in `to_html`

        lines.extend(f"  {line}" for line in depth_lines(self.summary))
        for finding, others in _told_once(self.findings):
            lines.extend(_finding_lines(finding, others))
        lines.extend(f"  note: {note}" for note in self.notes)
        return "\n".join(lines)


_DECAYS = {
    "gradient_decay_per_block": "gradient per block, towards the input",
    "signal_decay_per_block": "difference between inputs per block, towards the output",
}


def _decay_line(words: str, decay: Mapping[str, Any]) -> str:
    text = f"{words}: x{decay['value']:.4g}"
    if "least" in decay:
        text += f" (no one factor can be told: the blocks have x{decay['least']:.4g} to x{decay['most']:.4g})"
    elif "low" in decay:
        text += f" [{decay['low']:.4g}, {decay['high']:.4g}]"
    predicted = decay.get("predicted")
    return f"{text}, theory x{predicted:.4g}" if isinstance(predicted, float) else text


def _calibrated(finding: Finding) -> str:
    told = finding.calibration
    if not told:
        return "not measured"
    count = told["errors"] if finding.severity == "error" else told["errors"] + told["warnings"]
    low, high = 100 * told["low"], 100 * told["high"]
    interval = f"{100 * told['rate']:.1f} %, 95 % interval {low:.1f} to {high:.1f} %"
    return f"as severe on {count} of {told['of']} {told['suite'] or 'healthy programs'} ({interval})"


def _told_once(found: Sequence[Finding]) -> list[tuple[Finding, list[Finding]]]:
    """Give each finding that has lines of its own, with those told in the first: of one divergence, or over too."""
    facts = [
        {"rule": one.rule, "severity": one.severity, "status": one.status, "evidence": one.evidence} for one in found
    ]
    told = [(found[i], [found[j] for j in others]) for i, others in told_together(facts).items()]
    last = {one.rule: one for one in sorted(found, key=_over) if one.status == "clear" and _over(one) >= 0}
    kept = [(one, others) for one, others in told if last.get(one.rule, one) is one or one.status != "clear"]
    for one, others in kept:
        if one is last.get(one.rule):
            others += [each for each in found if each.rule == one.rule and each.status == "clear" and each is not one]
    return kept


def _over(finding: Finding) -> int:
    """Return the step at which a finding of a watched run was over; -1 of others."""
    step = finding.evidence.get("cleared_at")
    return step if isinstance(step, int) else -1


def _finding_lines(finding: Finding, others: Sequence[Finding] = ()) -> Sequence[str]:
    mark = CALLED[finding.severity] if finding.status == "fired" else STATUSES[finding.status]
    beside = ""
    if others and finding.status == "clear":
        over = at_steps(sorted(map(_over, (*others, finding))))
        beside = f", {len(others) + 1} times, at {over}; the last"
    elif others:
        beside = f" and {len(others)} more, at {at_steps(sorted(int(one.evidence['step']) for one in others))}"
    lines = [f"  {mark} {finding.rule}{beside}: {finding.claim}"]
    if finding.status == "fired":
        if finding.consequence:
            lines.append(f"      consequence: {finding.consequence}")
        if finding.ruled_out:
            lines.append(f"      ruled out: {' '.join(finding.ruled_out)}")
        if finding.severity != "info":
            lines.append(f"      false alarms: {_calibrated(finding)}")
        for remedy in finding.remedies:
            sure = "tried" if remedy.verified else "expected, not verified"
            after = ", ".join(f"{key} {value:.4g}" for key, value in remedy.after.items() if isinstance(value, float))
            lines.append(f"      remedy {remedy.name} ({sure}{': ' + after if after else ''}):")
            lines.extend(f"          {line}" for line in remedy.patch.splitlines())
    return lines
