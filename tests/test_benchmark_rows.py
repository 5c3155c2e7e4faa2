"""What a benchmark prints where a package is not installed, and of numbers with many digits."""

import builtins

import torch
from benchmarks.measure import print_row
from benchmarks.ops import rows
from benchmarks.ops.layer import cases


def test_a_case_whose_reference_is_a_package_that_is_not_installed_is_left_out_with_a_line(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "hyper_connections":
            raise ModuleNotFoundError("No module named 'hyper_connections'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    added, *_, package = cases([(8, 4, 16)])
    assert list(rows(package, torch.device("cpu"), torch.float32, 1)) == []
    assert capsys.readouterr().out == (
        f"{package.operator}: left out, as it needs the package hyper_connections, which is not installed\n"
    )
    row = next(rows(added, torch.device("cpu"), torch.float32, 1))
    row.extra["error"] = 2.8055634795583778e-08
    print_row(row)
    assert "error 2.806e-08, " in capsys.readouterr().out
