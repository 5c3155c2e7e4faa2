"""The Run folder: one folder on disk, append-only, that training, sweeps, reports, pages and the command line share."""

from levada.runs.frames import Damage as Damage
from levada.runs.health import Health as Health
from levada.runs.health import RankHealth as RankHealth
from levada.runs.health import doctor as doctor
from levada.runs.manifest import Manifest as Manifest
from levada.runs.reader import Run as Run
from levada.runs.reader import find_runs as find_runs
from levada.runs.resealing import reseal as reseal
from levada.runs.signal_writer import SignalWriter as SignalWriter
from levada.runs.signals import Reading as Reading
from levada.runs.signals import Signals as Signals
from levada.runs.writer import RunWriter as RunWriter

__all__ = [
    "Damage",
    "Health",
    "Manifest",
    "RankHealth",
    "Reading",
    "Run",
    "RunWriter",
    "SignalWriter",
    "Signals",
    "doctor",
    "find_runs",
    "reseal",
]
