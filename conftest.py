"""Run the code blocks of the README and of the documentation as tests; what holds for every test."""

import os
from importlib.util import find_spec

from benchmarks.torchvision import define_what_torchvision_lacks
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

# One thread, unless the environment says otherwise: the tensors are small, and on a machine that does other things too,
# threads that wait for each other took twenty times as long as one alone. Set before the first import of torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

define_what_torchvision_lacks()

# Kernels import what is not there on every platform; tests of them say so where they skip.
collect_ignore_glob = [
    f"src/levada/ops/*/{name}.py" for name, needs in (("triton", "triton"), ("loops", "numba")) if not find_spec(needs)
]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    excludes=["docs/_build/*"],
).pytest()
