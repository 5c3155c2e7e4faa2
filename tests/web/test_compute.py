"""What a page may have computed: the rules of `levada check` on a network that it describes, within limits."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from levada.web.computation import MAX_PROCESSES, Computation
from levada.web.computing import build, checked
from levada.web.network import MAX_VALUES, CheckOf

from .conftest import Client, served

CHECK = "/api/1/compute/check"
CONNECTIONS: list[dict[str, Any]] = [
    {"name": "plain"},
    {"name": "residual", "activation": "relu"},
    {"name": "post_norm", "alpha": 2.0, "norm": "rms"},
    {"name": "post_norm", "alpha": 0.0},
    {"name": "highway", "coupled": False, "bias": -1.0},
    {"name": "dense", "growth": 4},
    {"name": "hyper", "streams": 2, "dynamic": False, "head": "mean", "norm": "rms"},
    {"name": "manifold", "streams": 2, "iterations": 3},
    {"name": "identity", "streams": 3, "head": "mean"},
    {"name": "attention", "blockSize": 2, "scale": "sum"},
]


@pytest.mark.parametrize("connection", CONNECTIONS, ids=lambda one: str(one["name"]))
def test_every_connection_of_the_explorer_is_that_of_levada(connection: dict[str, Any]) -> None:
    import torch

    network = build(CheckOf(depth=3, width=8, connection=connection, inputs=5, classes=7))
    assert network(torch.randn(4, 5)).shape == (4, 7)
    made = network.stack.layers[1].connection
    written = repr(made) + " ".join(f"{key}={value}" for key, value in vars(made).items())
    names = {"plain": "Plain", "residual": "Residual", "post_norm": "PostNorm", "attention": "AttentionResidual"}
    assert type(made).__name__ in {**names, "manifold": "ManifoldHyperConnection"}.get(connection["name"], written)
    for name, value in connection.items():
        held = getattr(made, {"blockSize": "block_size"}.get(name, name), None)
        assert held is None or name in ("name", "norm", "activation", "bias") or held == value


@pytest.mark.parametrize("options", [{"activation": "erf"}, {"norm": "batch"}, {"norm": "rms", "preActivation": True}])
def test_every_branch_of_the_explorer_is_fully_connected(options: dict[str, Any]) -> None:
    import torch

    network = build(CheckOf(depth=2, width=8, bias=False, precision="float64", **options))
    assert network(torch.randn(4, 8).double()).dtype == torch.float64
    branch = network.stack.layers[0].branch
    assert branch.linear.bias is None
    assert branch.pre_activation is options.get("preActivation", False)


def test_weights_start_as_they_are_described() -> None:
    def spread(**init: Any) -> float:
        asked = CheckOf(depth=1, width=256, init=init)
        weight: Any = build(asked).stack.layers[0].branch.linear.weight
        return float(weight.detach().std() * 16)

    assert spread(name="pytorch_default") == pytest.approx(3**-0.5, rel=0.02)
    assert spread(name="he") == pytest.approx(2**0.5, rel=0.02)
    assert spread(name="glorot", gain=2.0) == pytest.approx(2.0, rel=0.02)
    assert spread(name="orthogonal", gain=0.5) == pytest.approx(0.5, rel=0.02)
    assert spread(name="gaussian", weightVariance=9.0) == pytest.approx(3.0, rel=0.02)
    assert (
        build(CheckOf(depth=1, width=8, seed=1)).first.weight[0, 0]
        != build(CheckOf(depth=1, width=8)).first.weight[0, 0]
    )


def test_the_verdict_is_that_of_check() -> None:
    sick = checked(CheckOf(depth=30, width=32, activation="sigmoid", batch=16), seconds=1.0)
    assert (sick.verdict, sick.findings[0].severity) == ("error", "error")
    assert sick.headline == sick.findings[0].title
    assert len(sick.sites) == len(sick.signals["gradient_rms"]) == 32
    sound = checked(CheckOf(depth=4, width=32, connection={"name": "residual"}, batch=16), seconds=1.0)
    assert (sound.verdict, sound.findings) == ("healthy", [])


def test_a_network_is_computed_in_a_process_of_its_own(client: Client) -> None:
    status, headers, body = client.post(CHECK, {"depth": 3, "width": 8, "batch": 8})
    assert (status, headers["content-type"]) == (200, "application/json"), body
    assert json.loads(body)["sites"][0] == "first"


def test_what_would_be_too_much_is_refused_before_it_begins(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncio.create_subprocess_exec", lambda *_, **__: pytest.fail("it is computed"))
    status, _, body = client.post(CHECK, {"depth": 1000, "width": 512, "batch": 32})
    told = json.loads(body)["detail"]
    assert (status, told) == (
        422,
        f"depth x width x batch must be at most {MAX_VALUES:,}, got 16,384,000. Make one of them smaller.",
    )
    status, _, body = client.post(CHECK, {"depth": 1000, "width": 512, "batch": 2})
    assert (status, json.loads(body)["detail"][:12]) == (422, "A network ha")
    dense = {"depth": 1000, "width": 64, "batch": 2, "connection": {"name": "dense", "growth": 64}}
    assert client.post(CHECK, dense)[0] == 422


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0, "width": 8},
        {"depth": 1001, "width": 8, "batch": 2},
        {"depth": 3, "width": 513, "batch": 2},
        {"depth": 3},
        {"depth": 3, "width": 8, "activation": "__import__('os')"},
        {"depth": 3, "width": 8, "connection": {"name": "ReZero"}},
        {"depth": 3, "width": 8, "connection": {"name": "plain", "streams": 2}},
        {"depth": 3, "width": 8, "steps": 10**9},
        {"depth": 3, "width": 8, "optimizer": {"lr": "nan"}},
        [],
        b"{",
        b"\xff\r",
    ],
)
def test_networks_that_cannot_be_meant_are_refused(client: Client, wrong: Any) -> None:
    status, _, body = client.post(CHECK, wrong)
    assert (status, json.loads(body)["detail"][:28]) == (422, "The question cannot be used.")
    if isinstance(wrong, dict):
        with pytest.raises(ValidationError):
            CheckOf(**wrong)


SLOW = "import sys, time; sys.stdin.read(); time.sleep(600)"
GREEDY = (
    "import sys; from levada.web.child import limit_memory; limit_memory(2**28); sys.stdin.read(); "
    "held = bytearray(2**30); print('{}')"
)

# The real one, of which only what it computes is another: it asks for memory, within its limit and beyond it.
PROBING = """
import json, os, resource
from levada.web import computing
def given(size):
    try:
        return len(bytearray(size)) == size
    except MemoryError:
        return False
class Told:
    def model_dump_json(self):
        cpu = resource.getrlimit(resource.RLIMIT_CPU)
        limits = {"cpu": cpu, "nice": os.getpriority(os.PRIO_PROCESS, 0) >= 10}
        return json.dumps({"given": given(2**30), "more": given(computing.MEMORY + 2**27), **limits})
computing.checked = lambda asked: Told()
computing.main()
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write what computes instead of levada."""
    import os

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        )
        return name

    return write


def begun(folder: Path, count: int) -> None:
    """Wait until so many processes have begun to compute."""
    late = time.monotonic() + 120
    while len(list(folder.glob("began-*"))) < count:
        assert time.monotonic() < late
        time.sleep(0.02)


def test_two_are_computed_at_a_time_and_the_third_comes_later(root: Path, tmp_path: Path, program: Any) -> None:
    ends = f"open({str(tmp_path / 'began-')!r} + str(os.getpid()), 'w').close()\n"
    ends += f"for _ in range(4000):\n    if os.path.exists({str(tmp_path / 'end')!r}): break\n    time.sleep(0.02)\n"
    ends += "print('{}')"
    with served(root, computation=Computation(600.0, program("slow", f"import os, time\n{ends}"))) as client:
        found: list[tuple[int, Any]] = []

        def ask() -> None:
            status, headers, _ = client.post(CHECK, {"depth": 3, "width": 8})
            found.append((status, headers.get("retry-after")))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        begun(tmp_path, 2)
        ask()
        assert found == [(429, "5")]
        assert client.get("/api/1/runs")[0] == 200  # the server answers meanwhile
        (tmp_path / "end").touch()
        for thread in threads:
            thread.join()
        assert found[1:] == [(200, None)] * 2


def test_what_takes_too_long_is_ended(root: Path, program: Any) -> None:
    with served(root, computation=Computation(0.5, program("slow", SLOW))) as client:
        status, _, body = client.post(CHECK, {"depth": 3, "width": 8})
        assert (status, "takes longer than" in json.loads(body)["detail"]) == (422, True)


def test_what_takes_too_much_memory_is_ended(root: Path, program: Any) -> None:
    with served(root, computation=Computation(600.0, program("greedy", GREEDY))) as client:
        status, _, body = client.post(CHECK, {"depth": 3, "width": 8})
        assert (status, json.loads(body)["detail"][:45]) == (422, "The network takes more than it may here: make")


def test_the_process_that_computes_has_its_limits(root: Path, program: Any) -> None:
    with served(root, computation=Computation(600.0, program("probing", PROBING))) as client:
        status, _, body = client.post(CHECK, {"depth": 3, "width": 8})
        assert (status, json.loads(body)) == (200, {"given": True, "more": False, "cpu": [120, 120], "nice": True})


def test_an_answer_counts_if_its_process_ended_well_and_it_is_no_larger_than_one(
    root: Path, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "import json, os, sys; of = os.environ; "
    told += "print(json.dumps([of['OMP_NUM_THREADS'], of['CUDA_VISIBLE_DEVICES']]))"
    asked = {"depth": 3, "width": 8}
    with served(root, computation=Computation(600.0, program("well", told))) as client:
        status, _, body = client.post(CHECK, asked)
        assert (status, json.loads(body)) == (200, ["1", ""])  # one thread, and no accelerator
        monkeypatch.setattr("levada.web.computation._LARGEST", len(body) - 1)
        assert client.post(CHECK, asked)[0] == 422
        monkeypatch.undo()
    with served(root, computation=Computation(600.0, program("badly", f"{told}; sys.exit(3)"))) as client:
        assert client.post(CHECK, asked)[0] == 422


def test_what_no_one_waits_for_keeps_no_place(root: Path, tmp_path: Path, program: Any) -> None:
    first = f"open({str(tmp_path / 'began-')!r} + str(os.getpid()), 'w').close(), time.sleep(600)"
    quick = f"import os, sys, time\nif '\"depth\":3' in sys.stdin.read(): {first}\nprint('{{}}')"
    with served(root, computation=Computation(600.0, program("sometimes", quick))) as client:
        own = f"Host: 127.0.0.1:{client.port}\r\nOrigin: http://127.0.0.1:{client.port}\r\n"
        own += f"Authorization: Bearer {client.token}\r\nContent-Type: application/json\r\n"
        body = '{"depth":3,"width":8}'
        asked = f"POST {CHECK} HTTP/1.1\r\n{own}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        for count in range(1, MAX_PROCESSES + 1):
            with socket.create_connection(("127.0.0.1", client.port)) as left:
                left.sendall(asked)
                begun(tmp_path, count)
        late = time.monotonic() + 120
        while (found := client.post(CHECK, {"depth": 4, "width": 8})[0]) == 429 and time.monotonic() < late:
            time.sleep(0.1)
        assert found == 200
