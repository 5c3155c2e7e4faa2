"""Watch a training loop: signals by block and step at a cost that nobody minds, verdicts while it runs, a record."""

from levada.watching.passes import Pass as Pass
from levada.watching.sample import WATCHED as WATCHED
from levada.watching.sample import Listener as Listener
from levada.watching.sample import Sample as Sample
from levada.watching.watch import Watch as Watch

__all__ = ["WATCHED", "Listener", "Pass", "Sample", "Watch"]
