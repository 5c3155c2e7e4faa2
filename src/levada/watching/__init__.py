"""Watch a training loop: signals by block and step at a cost that nobody minds, verdicts while it runs, a record."""

from levada.watching.sample import WATCHED as WATCHED
from levada.watching.sample import Listener as Listener
from levada.watching.sample import Sample as Sample

__all__ = ["WATCHED", "Listener", "Sample"]
