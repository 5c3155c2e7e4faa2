"""Watch a training loop: signals by block and step at a cost that nobody minds, verdicts while it runs, a record."""

from levada.watching.measure.sample import WATCHED as WATCHED
from levada.watching.measure.sample import Continue as Continue
from levada.watching.measure.sample import Listener as Listener
from levada.watching.measure.sample import Sample as Sample
from levada.watching.record.exporting import Exporting as Exporting
from levada.watching.rerun.replay import Replay as Replay
from levada.watching.rerun.replay import replay as replay
from levada.watching.steps.kept_pass import Pass as Pass
from levada.watching.verdict.bundle import Bundle as Bundle
from levada.watching.verdict.bundle import read_bundle as read_bundle
from levada.watching.verdict.judge import Judge as Judge
from levada.watching.watch import Watch as Watch

__all__ = [
    "WATCHED",
    "Bundle",
    "Continue",
    "Exporting",
    "Judge",
    "Listener",
    "Pass",
    "Replay",
    "Sample",
    "Watch",
    "read_bundle",
    "replay",
]
