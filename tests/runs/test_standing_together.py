"""What is said of a run, of several parts too: which rules judged it, up to which step, what is still lacking."""

import pytest

from levada.runs.sampled import sampling
from levada.runs.standing import Standing

DEPTH = "vanishing_gradient"


def waits(rule, why, few=False, **options):
    return Standing((), (), {rule: why}, frozenset({rule}), few={rule: "few"} if few else {}, **options)


def test_of_one_part_alone_what_compares_blocks_over_depth_has_judged():
    alone = Standing((), ("dead_units", DEPTH))
    assert Standing.together({"process 0": alone}).judged == alone.judged
    assert Standing.together({"process 0": alone, "process 1": alone}).judged == ("dead_units",)


def test_what_is_known_over_all_depth_is_asked_for_that_alone():
    part = Standing((), ("dead_units", DEPTH))
    over = Standing((), (DEPTH,), {"dead_units": "it was not asked of all"})
    both = Standing.together({"process 0": part, "process 1": part}, over)
    assert (both.judged, both.unjudged, both.verdict) == (("dead_units", DEPTH), {}, "healthy")
    both = Standing.together({"process 0": part, "process 1": part}, waits(DEPTH, "3 samples", few=True))
    assert (both.judged, both.unjudged) == (("dead_units",), {DEPTH: "3 samples"})
    assert (both.waiting, both.few, both.verdict) == ({DEPTH}, {DEPTH: "few"}, "unknown")


@pytest.mark.parametrize(("seen", "told"), [((40, 60), 40), ((40, None), None), ((None, None), None)])
def test_a_run_was_seen_as_far_as_each_of_its_parts(seen, told):
    parts = {f"process {i}": Standing((), ("a",), sampled=s, reached=s, steps=70 + i) for i, s in enumerate(seen)}
    both = Standing.together(parts)
    assert (both.sampled, both.reached, both.steps) == (told, told, 71)


def test_a_rule_waits_if_it_does_in_one_part_and_for_a_number_alone_if_it_does_in_all():
    sound = Standing((), ("dead_units",), lacking={"samples": 1}, first=3)
    one = waits("dead_units", "2 samples", few=True, lacking={"samples": 2, "losses": 5})
    other = waits("dead_units", "the type of its weights is not known")
    both = Standing.together({"a": sound, "b": one})
    assert (both.judged, both.unjudged, both.verdict) == ((), {"dead_units": "b: 2 samples"}, "unknown")
    assert (both.few, both.first) == ({"dead_units": "b: 2 samples"}, 3)
    assert both.lacking == {"samples": 2, "losses": 5}
    both = Standing.together({"b": one, "c": other})
    assert both.unjudged == {"dead_units": "b: 2 samples; c: the type of its weights is not known"}
    assert both.few == {}


def test_an_alarm_of_any_part_is_one_of_the_run():
    parts = {"a": Standing(("info",), ("x",)), "b": Standing(("warn",), ("x",))}
    assert Standing.together(parts).verdict == "warn"
    parts["c"] = Standing(("error",), ("x",))
    assert Standing.together(parts).verdict == "error"
    del parts["b"], parts["c"]
    assert Standing.together(parts).verdict == "healthy"


def test_what_is_kept_without_counts_says_nothing_that_the_next_sample_makes_untrue():
    told = Standing(
        (),
        ("x",),
        {"a": "3 are needed, and 1 is there", "b": "no zeros were seen"},
        frozenset({"a"}),
        few={"a": "3 are needed"},
        lacking={"samples": 2},
        reached=7,
    )
    event = told.event()
    assert event["unjudged"] == {"a": "3 are needed, and 1 is there", "b": "no zeros were seen"}
    assert (event["lacking"], event["reached"]) == ({"samples": 2}, 7)
    event = told.event(counts=False)
    assert event["unjudged"] == {"a": "3 are needed", "b": "no zeros were seen"}
    assert {"lacking", "reached"}.isdisjoint(event)


@pytest.mark.parametrize(("sampled", "called"), [(89, "healthy up to step 89 of 101"), (90, "healthy")])
def test_a_run_whose_last_tenth_was_not_seen_is_healthy_up_to_there(sampled, called):
    assert Standing((), ("x",), sampled=sampled, steps=101).called == called


def test_the_distance_of_samples_is_that_of_the_last_eight_and_twice_it_is_late():
    steps = [0, 1, *range(21, 182, 20)]  # eight of 20 behind one of 20 and one of 1
    assert sampling(steps, steps[-1] + 41) == "sampled every 20 steps"
    assert sampling(steps, steps[-1] + 42) == "sampled every 20 steps; the last sample is 41 steps old"
    assert sampling([0, 1, *range(21, 142, 20)], 142) == "sampled every 1 to 20 steps"
