"""What the catalogue says: the docstrings' notation, their costs against what is counted, and the page itself."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch
from benchmarks.costs import DIM, LAYER, Chain, costs, listed
from benchmarks.costs import OPTIONS as OPTIONS_COUNTED
from docs import catalogue
from docs.docstrings import Entry, evaluate, names_of, parameters_of, traffic_of
from docs.mathml import is_formula, to_mathml
from torch import Tensor, nn

import levada.connections
from levada.connection import SingleStream
from levada.connections.streams import MultiStream

OPTIONS = {
    "AttentionResidual": [{"block_size": 4}, {"inputs": 3}],
    "Dense": [{"growth": 8}],
    "DepthWeightedAverage": [{"dilation": 2}, {"dilation": 5}],
    "FractionalConnection": [{"dynamic": False}, {"fractions": 4}, {"norm": "rms"}],
    "GatedResidual": [{"rank": 3}, {"streams": 2}],
    "Highway": [{"coupled": False}],
    "HyperConnection": [{"dynamic": False}, {"streams": 3}, {"norm": "rms"}, {"norm": "rms", "dynamic": False}],
    "IdentityHyperConnection": [{"streams": 3}],
    "LearnedAugmentedResidual": [{"norm": True}, {"rank": 5}],
    "ManifoldHyperConnection": [{"streams": 3}],
    "MultiwayDynamicDense": [{"inputs": 3}],
    "SinglePassManifoldHyperConnection": [{"streams": 3}],
    "SparseHyperConnection": [{"streams": 8, "active": 3, "fixed": 1}],
}
USUAL = {"Dense": {"growth": 32}, "ValueResidual": {"period": 1}}  # every layer an attention
CASES = [(name, o) for name in listed() for o in (USUAL.get(name, {}), *OPTIONS.get(name, ()))]

# In widths of the stream, over what the docstring has.
MORE = {
    "InputResidual": "1",  # reads stream and input again to write, not what the branch was given
    "SinglePassManifoldHyperConnection": "n",  # its docstring has one pass, and what is here takes two over n streams
    "SparseHyperConnection": "2 k",  # keeps a copy of the k active streams from before the branch to after it
}


def id_of(value: object) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) or "default" if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("layer", [0, 5, LAYER])
@pytest.mark.parametrize(("name", "options"), CASES, ids=id_of)
def test_a_layer_has_the_parameters_that_its_docstring_says(name, options, layer):
    connection = listed()[name](40, layer=layer, depth=24, **options)
    entry = Entry.of(type(connection))
    expected = parameters_of(entry, names_of(entry, connection, **options))
    assert sum(p.numel() for p in connection.parameters()) == expected


@pytest.mark.parametrize(("name", "options"), CASES, ids=id_of)
def test_a_layer_moves_what_its_docstring_says(name, options):
    connection, options = listed()[name], {**OPTIONS_COUNTED.get(name, {}), **options}
    counted, entry = costs(connection, options=options), Entry.of(connection)
    names = names_of(entry, Chain(connection, tokens=1, options=options).last, **options)
    least = traffic_of(entry, names) + evaluate(MORE.get(name, "0"), names) * DIM
    # Beside it there are coefficients, a few numbers for each token.
    assert 0 <= counted.fused - least < 0.1 * DIM
    assert counted.moved >= counted.fused


@pytest.mark.parametrize("streams", [2, 4, 5])
@pytest.mark.parametrize("name", [name for name, c in listed().items() if issubclass(c, MultiStream)])
def test_streams_are_read_twice_and_written_once(name, streams):
    option = {"fractions": streams} if name == "FractionalConnection" else {"streams": streams}
    if name == "SparseHyperConnection":
        option["active"] = 2
    connection = listed()[name](40, **option)
    entry = Entry.of(type(connection))
    width = 1 / streams if name == "FractionalConnection" else 1
    read, handed_on, got = streams * width, 1, 1
    assert traffic_of(entry, names_of(entry, connection)) == pytest.approx(40 * (3 * read + handed_on + got))


def test_what_is_counted_of_known_layers():
    residual = costs(levada.connections.Residual)
    assert (residual.moved, residual.fused, residual.saved) == (3 * DIM, 3 * DIM, 0)
    assert (residual.state, residual.growth, residual.parameters) == (DIM, 0, 0)
    scaled = costs(levada.connections.LayerScale)
    assert (scaled.fused, scaled.saved) == (3 * DIM, DIM)  # the gradient of gamma needs what the branch returned
    momentum = costs(levada.connections.Momentum)
    assert (momentum.state, momentum.fused, momentum.saved) == (2 * DIM, 5 * DIM, 0)
    assert costs(levada.connections.Momentum, options={"recompute": False}).saved == 0  # all of it is linear
    dense = costs(levada.connections.Dense)
    assert (dense.state, dense.growth, dense.moved) == (DIM + 32 * LAYER, 32, 64)
    attention = costs(levada.connections.AttentionResidual, layer=3)
    assert (attention.state, attention.growth, attention.fused) == (4 * DIM, DIM, 5 * DIM)


class Doubling(SingleStream):
    """A residual connection whose stream is doubled.

    `x' = 2 x + w^2 f(x)`

    Use it in tests.

    Args:
        dim: width of the stream.

    Cost:
        1 parameter; reads `2 dim` and writes `dim` elements per token.

    Example:
        >>> 1
        1
    """

    def __init__(self, dim: int, *, layer: int = 0, depth: int = 1) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        self.w = nn.Parameter(torch.ones(1))

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        return 2 * state.view_as(state) + self.w * (self.w * out)


def test_what_is_counted_operation_by_operation():
    counted = costs(Doubling)
    assert counted.moved == (2 + 2 + 2 + 3) * DIM  # views and the parameter are free
    assert counted.fused == 3 * DIM
    assert counted.saved == 2 * DIM  # out, and w out


class Averaging(Doubling):
    def write(self, state: Tensor, out: Tensor) -> Tensor:
        return state + out.mean(-1, keepdim=True).expand_as(out)


def test_what_is_expanded_is_read_once():
    assert costs(Averaging).moved == (DIM + 1) + (DIM + 1 + DIM)


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr(levada.connections, "Doubling", Doubling, raising=False)
    catalogue.cards.cache_clear()
    yield
    catalogue.cards.cache_clear()


def test_a_new_connection_appears_by_itself(planted):
    page = catalogue.page("<!-- overview -->\n\n<!-- advice -->\n\n<!-- entries -->\n\n<!-- rivals -->")
    for name in listed():
        assert f'<a href="#{name.lower()}">{name}</a>' in page
        assert f"\n### {name}\n" in page
        assert f"- [`{name}`](#{name.lower()}): " in page
    assert '<td data-label="kept"><span>2 C</span></td>' in page.split(">Doubling</a>")[1].split("</tr>")[0]
    assert "not yet measured at 4,096 x 512" in page.split("### Doubling\n")[1].split("###")[0]
    assert "<!--" not in page


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1 parameter;", "2 parameters;", "another number"),
        ("1 parameter;", "Parameters: 1;", "Cost must begin"),
        ("reads `2 dim` and writes", "moves", "Cost must say"),
        ("`2 dim`", "`2 width`", "width has no value"),
        ("Use it in tests.", "For tests.", '"Use it"'),
        ("`x'", "x'", "a code span"),
    ],
)
def test_a_docstring_without_the_notation_is_refused(monkeypatch, old, new, said):
    assert Doubling.__doc__.count(old) == 1
    monkeypatch.setattr(Doubling, "__doc__", Doubling.__doc__.replace(old, new))
    with pytest.raises(ValueError, match=said):
        catalogue.Card.of(Doubling, [])


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("7", 7),
        ("2 n^2 + n", 36),
        ("(n + 1)(n - 1) / 3", 5),
        ("ceil(5 n / 3) dim", 70),
        ("2 floor(n / 3)(n)", 8),
        ("-n + 6", 2),
    ],
)
def test_formulas_are_read_as_in_a_paper(formula, value):
    assert evaluate(formula, {"n": 4, "dim": 10}) == value


@pytest.mark.parametrize("formula", ["2 k", "n $ 2", "n.real"])
def test_what_is_no_formula_is_refused(formula):
    with pytest.raises(ValueError, match=re.escape(formula)):
        evaluate(formula, {"n": 4})


@pytest.mark.parametrize("name", listed())
def test_equations_are_typeset(name):
    spans = re.findall("`([^`]+)`", Entry.of(listed()[name]).equation)
    assert is_formula(spans[0])
    for span in filter(is_formula, spans):
        for display in (False, True):
            root = ElementTree.fromstring(to_mathml(span, display=display))
            shown = "".join(root.itertext())
            assert not set(shown) & set("^{}`")
            # Letters and digits stay, in their order, but for Greek ones and roots.
            plain = re.sub(r"alpha|gamma|epsilon|sum|sqrt", "", span)
            assert re.sub(r"[^A-Za-z0-9]", "", shown) == re.sub(r"[^A-Za-z0-9]", "", plain)


@pytest.mark.parametrize(
    ("formula", "inside"),
    [
        ("x'_i", "<msub><mrow><mi>x</mi><mo>′</mo></mrow><mi>i</mi></msub>"),
        ("mix_ij", "<msub><mi>mix</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub>"),
        ("static_mix_ij", "<msub><mi>static_mix</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub>"),
        ("x1", "<msub><mi>x</mi><mn>1</mn></msub>"),
        ("x^(n + 1)", "<msup><mi>x</mi><mrow><mi>n</mi><mo>+</mo><mn>1</mn></mrow></msup>"),
        ("1 / sqrt(L)", "<mn>1</mn><mo>/</mo><msqrt><mrow><mi>L</mi></mrow></msqrt>"),
        ("a < b", "<mi>a</mi><mo>&lt;</mo><mi>b</mi>"),
        ("up x", '<mi>up</mi><mspace width="0.25em"/><mi>x</mi>'),
    ],
)
def test_mathml(formula, inside):
    assert to_mathml(formula) == f"<math><mrow>{inside}</mrow></math>"


@pytest.mark.parametrize("formula", ["f(x", "f x)", "^2", "x^", "a # b"])
def test_what_cannot_be_typeset_is_refused(formula):
    with pytest.raises(ValueError, match="cannot be read"):
        to_mathml(formula)
