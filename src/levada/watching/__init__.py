"""Watch a training loop: signals by block and step at a cost that nobody minds, verdicts while it runs, a record."""

from levada.watching.bundle import Bundle as Bundle
from levada.watching.bundle import read_bundle as read_bundle
from levada.watching.exporting import Exporting as Exporting
from levada.watching.judge import Judge as Judge
from levada.watching.kept_pass import Pass as Pass
from levada.watching.replay import Replay as Replay
from levada.watching.replay import replay as replay
from levada.watching.sample import WATCHED as WATCHED
from levada.watching.sample import Continue as Continue
from levada.watching.sample import Listener as Listener
from levada.watching.sample import Sample as Sample
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
