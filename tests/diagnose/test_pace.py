"""What a check reckons its passes to take, where one of them was stalled."""

import pytest

from levada.diagnose import pace as module
from levada.diagnose.pace import Pace


class Clock:
    """A clock that is moved by hand."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


def timed(clock, stage, seconds):
    for each in seconds:
        with stage():
            clock.now += each


@pytest.mark.parametrize(
    ("forwards", "backwards", "needs"),
    [
        ([0.1, 3.0], [0.2], 0.3),  # the last one was stalled
        ([3.0, 0.1], [0.2], 0.3),
        ([0.1], [0.2, 3.0], 0.3),
        ([0.1, 0.4, 0.5], [0.2], 0.6),  # passes that take longer now
        ([0.1], [], 0.3),  # twice as long as a forward one
        ([3.0, 0.1], [], 0.3),
    ],
)
def test_one_stalled_pass_is_not_what_all_later_ones_take(monkeypatch, forwards, backwards, needs):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    pace = Pace(30.0)
    timed(clock, pace.pass_forward, forwards)
    timed(clock, pace.pass_backward, backwards)
    assert pace.needs(1, 1) == pytest.approx(needs)
    assert pace.quickest == pytest.approx(min(forwards))


def test_what_does_not_end_in_time_is_still_left_out(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    pace = Pace(5.0)
    timed(clock, pace.pass_forward, [0.1, 3.0])
    assert pace.allows("a second draw", 10)
    assert not pace.allows("a hundred draws", 100, rules=("rank_collapse",))
    assert (pace.left_out, list(pace.untested)) == (["a hundred draws"], ["rank_collapse"])
    assert pace.deadline == pytest.approx(105.0)
