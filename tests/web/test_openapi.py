"""The OpenAPI document: what it says of questions and answers is so, for questions drawn at random."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from levada.web.computation import Computation
from levada.web.folder import identity

from .conftest import Client, served

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import positive_data_acceptance  # noqa: E402

DOCUMENT = "/api/1/openapi.json"
# Answers as the real one does, at once.
QUICK = """
import sys
from levada.web.network import Checked, CheckOf
asked = CheckOf.model_validate_json(sys.stdin.buffer.read())
nothing = dict.fromkeys(("facts", "findings", "notes", "sites"), [])
told = {"verdict": "healthy", "headline": "", "claim": "", "signals": {}, "table": None, "seconds": 0.0}
print(Checked(**told, **nothing).model_dump_json())
"""


@pytest.fixture(scope="module")
def drawn_on(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("program")
    (folder / "quick.py").write_text(QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
        with served(root, computation=Computation(600.0, "quick")) as client:
            client.runs()
            yield client


OPERATIONS = [
    ("GET", "/api/1/runs"),
    *(
        ("GET", f"/api/1/runs/{{id}}{what}")
        for what in ("", "/loss", "/heat", "/mixing", "/gates", "/memory", "/drawings")
    ),
    ("POST", "/api/1/compute/check"),
    ("POST", "/api/1/session"),
]
"""All but the stream of events, which has no end and a test of its own."""


RUN_OF = dict.fromkeys(("mixing", "memory", "drawings"), "checks/one")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_as_the_document_says(drawn_on: Client, method: str, path: str, mode: Any) -> None:
    schema = schemathesis.openapi.from_dict(drawn_on.json(DOCUMENT))
    schema.config.update(base_url=f"http://127.0.0.1:{drawn_on.port}")
    own = {"Origin": f"http://127.0.0.1:{drawn_on.port}", "Authorization": f"Bearer {drawn_on.token}"}
    # What is computed has a budget, which is no part of its shape.
    left_out = [positive_data_acceptance] if "compute" in path else []
    statuses = Counter[int]()

    known = {"id": identity(RUN_OF.get(path.rpartition("/")[2], "watched"))}
    fixed = known if "{id}" in path and mode is GenerationMode.POSITIVE else None

    @given(case=schema[path][method].as_strategy(generation_mode=mode, path_parameters=fixed))
    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        statuses[case.call_and_validate(headers=own, excluded_checks=left_out).status_code] += 1

    try:
        ask()
    except Unsatisfiable:
        # Without parameters there is nothing that could be wrong.
        assert (mode, path in ("/api/1/runs", "/api/1/session")) == (GenerationMode.NEGATIVE, True)
        return
    assert statuses
    assert max(statuses) < 500
    # A signal's name is drawn, and is none.
    assert (200 in statuses) == (mode is GenerationMode.POSITIVE and not path.endswith("/heat")), statuses


def test_the_document_names_all_questions_and_what_else_may_be_answered(client: Client) -> None:
    document = client.json(DOCUMENT)
    shown = {path: sorted(operations) for path, operations in document["paths"].items()}
    run = "/api/1/runs/{id}"
    assert shown == {
        "/api/1/runs": ["get"],
        **{f"{run}{what}": ["get"] for what in ("", "/loss", "/heat", "/mixing", "/gates", "/memory", "/drawings")},
        "/api/1/events": ["get"],
        "/api/1/compute/check": ["post"],
        "/api/1/session": ["post"],
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            assert {"200", "401", "403", "422"} <= set(operation["responses"])
            for status, response in operation["responses"].items():
                if status != "200":
                    assert response["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
    loose = [
        name for name, shape in document["components"]["schemas"].items() if shape.get("additionalProperties", True)
    ]
    assert loose == []
