"""What the server answers stays text wherever a page puts it."""

from __future__ import annotations

import json

import pytest

from levada.web.app import Json

ENDS = ["<", ">", "&", "\u2028", "\u2029"]


@pytest.mark.parametrize("one", ENDS, ids=[f"U+{ord(one):04X}" for one in ENDS])
def test_an_answer_has_nothing_that_ends_a_script_or_its_line(one: str) -> None:
    given = {f"a{one}b": [f"</script>{one * 2}<!--", "é 漢 \U0001f300"]}
    body = Json(json.dumps(given, ensure_ascii=False).encode()).body
    assert one.encode() not in body
    assert f"\\u{ord(one):04x}".encode() in body
    assert json.loads(body) == given
