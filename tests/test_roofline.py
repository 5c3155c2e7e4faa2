"""The figure of bandwidths: it is that of the rows that are kept."""

import json

from docs.roofline import IMAGE, NAMES, ROWS, draw, operations_of, points

from levada.ops.flops import of_reading, of_writing


def rows():
    return [json.loads(line) for line in ROWS.read_text().splitlines()]


def test_the_figure_is_of_the_rows():
    assert draw(points(rows())) == IMAGE.read_text(encoding="utf-8")


def test_each_program_of_each_operation_is_drawn_once_as_it_was_measured_last():
    found = points(rows())
    assert len({(p.name, p.program) for p in found}) == len(found)
    assert {p.name.split(", one")[0].split(", two")[0] for p in found} == set(NAMES.values())
    on_gpu = [row for row in rows() if row["machine"]["device"] != "CPU"]
    newest = [row for row in on_gpu if row["case"].startswith("residual addition")][-1]
    (point,) = [p for p in found if p.name == "residual addition"]
    assert point.share == 1 / newest["ratio"]["median"]
    assert point.low <= point.share <= point.high
    other = [{**newest, "machine": {"device": "CPU"}}]
    assert points(other) == []


def test_products_are_those_that_are_counted():
    n, dim, rows = 4, 10, 2 * 4 + 16
    mixing, reading = of_writing((1, n, dim), (1, dim), (1, n), (1, n, n)), of_reading((1, n, dim), (rows, n * dim))
    writing = operations_of("write_streams", "forward", n)
    assert writing == mixing / dim + 2 * n
    # The squares are not of the products.
    assert operations_of("mHC layer", "forward", n) == writing + reading / dim + 2 * n
