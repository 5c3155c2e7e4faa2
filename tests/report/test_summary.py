from __future__ import annotations

import io

import pytest
from rich.console import Console

from levada.report import render_report
from levada.report.summary import print_summary
from levada.runs import RunWriter

CLAIMS = {
    "R2": [("grows", "It grows.", "held", ""), ("fixes", "It fixes <all>.", "not held", "It does not.")],
    "R10": [("ends", "It ends.", "not decided", "")],
    "R3": [],
}


@pytest.fixture
def runs(tmp_path):
    made = []
    for name, claims in CLAIMS.items():
        with RunWriter.create(tmp_path / name, kind="study", name=name, config={}) as writer:
            writer.append("study", name=name, title=f"Study {name}", question="Why?")
            if name == "R3":
                writer.append("failure", key="k", config={"x": 1}, seed=0, error="no data", traceback="")
            for claim, statement, status, correction in claims:
                writer.append("claim", name=claim, statement=statement, status=status, correction=correction)
        made.append(writer.path)
    return made


def printed(paths, encoding):
    from levada.runs import Run

    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_summary([Run(path) for path in paths], Console(file=stream, width=80))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(("encoding", "held", "corrected"), [("utf-8", "✓", "≠"), ("ascii", "+", "~")])
def test_every_claim_is_a_line_and_the_outcomes_are_counted(runs, encoding, held, corrected):
    lines = [line.split() for line in printed(runs, encoding).splitlines() if line.strip()]
    assert lines == [
        ["R2", held, "held", "grows"],
        [corrected, "not", "held,", "corrected", "fixes"],
        ["R10", "?", "not", "decided", "ends"],
        ["R3", "failed", "1", "of", "1", "result", "failed"],
        ["3", "claims", "of", "3", "studies:", "1", "held;", "1", "not", "held,", "corrected;", "1", "not", "decided"],
    ]


def test_the_page_of_several_studies_begins_with_all_claims(runs):
    page = render_report(runs)
    table = page[page.index('id="standings"') : page.index('id="part-1"')]
    assert "3 claims of 3 studies: 1 held; 1 not held, corrected; 1 not decided." in table
    # R2 before R3 before R10, each with links to its claims.
    assert table.index("part-1-claim-1") < table.index("part-1-claim-2") < table.index("part-3-claim-1")
    assert 'rowspan="2"' in table
    assert "It fixes &lt;all&gt;." in table
    assert "1 of 1 result failed" in table
    assert table.count('class="badge') == 3
    for number in (1, 2):
        assert f'id="part-1-claim-{number}"' in page, "the link leads somewhere"


def test_one_study_needs_no_table_of_all(runs):
    assert 'id="standings"' not in render_report(runs[:1])
