"""Run the code blocks of the README and of the documentation as tests."""

from importlib.util import find_spec

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

# The kernels import triton, which is not there on every platform; tests of them say so where they skip.
collect_ignore = [] if find_spec("triton") else ["src/levada/ops/scan/triton.py"]


def _prepare(namespace: dict[str, object]) -> None:
    """Let examples import transformers and Lightning, as the tests do."""
    from benchmarks.torchvision import define_what_torchvision_lacks

    define_what_torchvision_lacks()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    excludes=["docs/_build/*"],
    setup=_prepare,
).pytest()
