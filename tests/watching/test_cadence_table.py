"""The table of samples by time in the documentation, planned again."""

import re
from pathlib import Path

import pytest

from levada.watching.loop.overhead import Cadence

PAGE = (Path(__file__).parents[2] / "docs" / "watch_cost.md").read_text()
TABLE = PAGE.partition("| | samples in the first second | in ten seconds | in the first minute |")[2].partition("\n\n")[
    0
]


def planned(step, hearing):
    """Return how many samples of 5 ms a cadence plans in a second, in ten, and in a minute."""
    cadence, counts = Cadence(20, 0.01, regardless=11), []
    now, samples, i = 0.0, 0, 0
    for limit in (1.0, 10.0, 60.0):
        while now < limit:
            sampled = cadence.due(i)
            own = 0.005 if sampled else hearing
            cadence.count(sampled, own=own, seconds=step + own)
            if sampled:
                cadence.plan(i)
            now, samples, i = now + step + own, samples + sampled, i + 1
        counts.append(samples)
    return counts


@pytest.mark.parametrize(
    ("row", "step", "hearing"), [(0, 0.001, 0.0), (1, 0.001, 1e-4), (2, 0.01, 0.0), (3, 0.01, 1e-4)]
)
def test_the_table_says_what_is_planned(row, step, hearing):
    told = TABLE.strip().splitlines()[1 + row]
    assert [int(number) for number in re.findall(r"\| (\d+) (?=\|)", told)] == planned(step, hearing)
