"""Run the code blocks of the README and of the documentation as tests; what holds for every test."""

import ctypes
import gc
import os
import sys
from importlib.util import find_spec

import pytest
from benchmarks.torchvision import define_what_torchvision_lacks
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

# One thread, unless the environment says otherwise: the tensors are small, and on a machine that does other things too,
# threads that wait for each other took twenty times as long as one alone. Set before the first import of torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

define_what_torchvision_lacks()

if find_spec("hypothesis"):
    from hypothesis import settings

    settings.load_profile("ci")  # the same examples each time, and no seconds counted

# Kernels import what is not there on every platform; tests of them say so where they skip.
collect_ignore_glob = [
    f"src/levada/ops/*/{name}.py" for name, needs in (("triton", "triton"), ("loops", "numba")) if not find_spec(needs)
]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    excludes=["docs/_build/*"],
).pytest()


# The files that take longest, longest first: begun last, as xdist begins a file of few tests, one of them kept one of
# two processes waiting for the other.
LONGEST = (
    "test_sharding", "diagnose/test_fix", "diagnose/test_healthy_zoo", "diagnose/test_loss_and_data_rules",
    "diagnose/test_misscaled_weights", "diagnose/test_budget", "web/test_lessons", "study/test_studies",
    "watching/test_engine", "test_connection", "test_catalogue", "test_cli", "diagnose/test_interruption",
    "diagnose/test_fix_loss", "test_supervision", "test_golden_vectors", "diagnose/test_exclusion", "test_results",
    "diagnose/test_attention_rule",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
    """Begin with the longest files where processes share them."""
    if hasattr(config, "workerinput"):
        place = {f"tests/{name}.py": index for index, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Let no collection of garbage go through what holds 15,000 tests: each took most of a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Give back to the system what a file's tests have freed, which the C library keeps in pieces: gigabytes of it."""
    if sys.platform == "linux" and (nextitem is None or nextitem.path != item.path):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@pytest.fixture(autouse=True)
def time_enough(monkeypatch):
    """Let no check or repair run short of a budget that is meant to be enough, ten seconds or more.

    One pass in which the machine stalls would be taken for the cost of all that follow, and what there is no time for
    then is left out. What a budget does is tested by a clock that only the model moves.
    """
    from levada.diagnose.course import Clock
    from levada.diagnose.pace import Pace

    def seconds(budget):
        return 1e6 if budget >= 10.0 else budget

    begin = Clock.__init__
    monkeypatch.setattr(Clock, "__init__", lambda clock, budget: begin(clock, seconds(budget)))
    monkeypatch.setattr(Pace, "deadline", property(lambda pace: pace.start + seconds(pace.budget)))
