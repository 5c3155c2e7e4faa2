from __future__ import annotations

import re
from collections import Counter

import pytest

from levada.studies import STUDIES
from levada.studies.statements import STATEMENTS, VERDICTS
from levada.study.study import SCALES

NUMBERED = {f"R{number}" for number in range(1, 23)}


def test_both_documents_are_there_whole_and_in_order():
    assert [one.name for one in STATEMENTS] == [f"T{n}" for n in range(1, 46)] + [f"E{n}" for n in range(1, 33)]


@pytest.mark.parametrize("one", STATEMENTS, ids=lambda one: one.name)
def test_what_shows_a_statement_exists(one):
    assert one.verdict in VERDICTS
    for study, claim in one.shown_by:
        assert study in NUMBERED
        if study not in STUDIES:
            assert not claim, "a claim can be named once its study is there"
            continue
        settings = STUDIES[study].resolve("small")
        assert not claim or claim in {found.name for found in STUDIES[study].claims(settings)}


def test_every_study_has_its_number_and_shows_a_statement():
    assert STUDIES.keys() <= NUMBERED
    shown = {study for one in STATEMENTS for study, _ in one.shown_by}
    assert NUMBERED - shown <= {"R21"}
    (dense,) = [one for one in STATEMENTS if one.name == "E15"]
    assert ("R22", "dense networks train") in dense.shown_by


def test_what_is_wrong_or_loose_is_corrected():
    for one in STATEMENTS:
        assert one.correction or one.verdict not in ("wrong", "loose"), one.name
        assert len(one.text) <= 120, "a statement is told in short"
        for other in re.findall(r"see ([TE]\d+)", one.correction, re.IGNORECASE):
            assert other in {found.name for found in STATEMENTS}


def test_no_claim_is_named_twice_for_one_statement():
    for one in STATEMENTS:
        assert max(Counter(one.shown_by).values(), default=1) == 1


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_every_study_says_in_three_sentences_what_it_does_and_what_each_scale_takes(study):
    assert study.method.endswith(".")
    assert len(re.findall(r"[.!?](?=\s+[A-Z“]|$)", study.method)) == 3
    assert set(study.costs) == set(SCALES)
    assert all(cost.hours > 0 and cost.hardware for cost in study.costs.values())
    assert study.costs["smoke"].hours < study.costs["small"].hours < study.costs["full"].hours
    assert not study.costs["full"].measured, "what was measured is not an estimate: say which"
