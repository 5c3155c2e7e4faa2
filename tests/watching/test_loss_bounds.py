"""From what on a loss has learned, has fallen, is flat, or is no better than a constant: each bound from both sides."""

import pytest

from levada.watching.verdict.baseline import LossBaseline


def known(level, *, first=2.0, start=2.0, middle=None, scatter=0.0, steps=300, constant=None):
    """Give losses of `start`, after the very first; from step 16 on `middle`, and from step 100 on `level`."""
    losses = LossBaseline()
    if constant is not None:
        losses.sampled({"constant_loss": constant})
    for step in range(steps):
        usual = start if step < 16 else middle if middle is not None and step < 100 else level
        losses.add(step, first if step == 0 else usual + scatter * (-1) ** step)
    return losses


@pytest.mark.parametrize(("level", "learned"), [(1.92, False), (1.88, True)])
def test_a_twentieth_of_its_start_is_learned(level, learned):
    assert known(level).has_learned is learned
    assert known(level).fell is learned
    assert not known(level, steps=31).has_learned


@pytest.mark.parametrize(("first", "scatter", "fell"), [(2.08, 0.0, False), (2.12, 0.0, True), (2.12, 0.01, False)])
def test_the_very_first_loss_alone_counts_if_it_is_above_the_scatter_too(first, scatter, fell):
    assert known(2.0, first=first, scatter=scatter).fell is fell


@pytest.mark.parametrize(
    ("below", "scatter", "no_better"),
    [(0.008, 0.0, True), (0.012, 0.0, False), (0.02, 0.01, True), (0.04, 0.01, False)],
)
def test_a_hundredth_and_more_than_the_scatter_is_better_than_a_constant(below, scatter, no_better):
    assert known(1.0 - below, scatter=scatter, constant=1.0).no_better is no_better


@pytest.mark.parametrize(("level", "flat"), [(1.1, True), (0.9, False)])
def test_a_loss_that_came_down_by_half_at_first_is_not_flat(level, flat):
    assert known(level).flat is flat
    assert not known(level, steps=127).flat


@pytest.mark.parametrize(
    ("level", "scatter", "flat"), [(1.47, 0.0, True), (1.45, 0.0, False), (1.45, 0.02, True), (1.42, 0.02, False)]
)
def test_a_loss_is_flat_below_a_fiftieth_of_its_start_or_the_scatter(level, scatter, flat):
    assert known(level, middle=1.5, scatter=scatter).flat is flat


@pytest.mark.parametrize(("level", "scale"), [(2.0, 0.5), (1.6, 0.5), (1.4, 0.6)])
def test_what_matters_is_what_was_learned_or_a_quarter_of_the_start(level, scale):
    assert known(level).scale == pytest.approx(scale)


@pytest.mark.parametrize(("first", "untrained"), [(2.0, 2.0), (3.0, 3.0), (9.0, 4.0)])
def test_the_untrained_model_has_twice_the_start_at_most(first, untrained):
    assert known(1.0, first=first).untrained == untrained


@pytest.mark.parametrize(
    ("level", "constant", "maximised"),
    [(-3.0, -1.0, True), (-3.0, 1.0, False), (-3.0, None, False), (-0.5, -1.0, False), (-1.01, -1.0, False)],
)
def test_a_loss_is_maximised_that_is_a_negative_multiple_and_falls_and_is_down_still(level, constant, maximised):
    middle = None if level == -1.01 else -3.0  # it fell, and may have come back
    assert known(level, first=-1.0, start=-1.0, middle=middle, constant=constant).maximised is maximised


def test_a_loss_that_was_positive_on_any_batch_is_not_maximised():
    losses = known(-3.0, first=-1.0, start=-1.0, constant=1.0)
    losses.sampled({"constant_loss": -1.0})
    assert (losses.constant, losses.maximised) == (-1.0, False)
