"""Products, weighted sums and gradients of rows that lie at addresses, for loops that Numba compiles.

A table holds where each source begins; a token's row of it begins the same number of elements behind each. Sums stay in
registers, and lines of memory are asked for some time before they are read: a processor that sees a dozen streams, a
row of each at a time, does not do so by itself.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba import carray, types  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba.core import cgutils  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba.extending import intrinsic  # type: ignore[import-untyped, import-not-found, unused-ignore]

from levada.ops._numba import compiled
from levada.ops._tiles import _BYTES, _Maker

__all__ = ["row_at", "write_gradients", "write_products", "write_shares", "write_squares", "write_sum"]

_SOURCES = 4  # whose products and gradients are made at once
_VECTORS = 8  # of a sum that are made at once
_AHEAD = 2048  # bytes from what is read to what is asked for
_COUNT, _LANE, _TEXT = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
_PLACE = types.intp


class _Rows(_Maker):
    """Makes instructions for rows, too."""

    def row(self, address, start):
        """Return a pointer to a number, so many of them behind an address."""
        return self.builder.gep(self.builder.inttoptr(address, self.vector.element.as_pointer()), [start])

    def rows(self, table, first, start, count):
        """Return that in each of some of a table's tensors."""
        entry = self.builder.gep(table, [first])
        return [self.row(self.builder.load(self.builder.gep(entry, [_COUNT(i)])), start) for i in range(count)]

    def vector_at(self, pointer, column):
        """Return the vector that begins so many numbers behind a pointer."""
        return self.load(self.builder.gep(pointer, [column]))

    def spreads(self, numbers, first, count):
        """Return vectors of one number, of each of some in an array."""
        entry = self.builder.gep(numbers, [first])
        return [self.spread(self.builder.load(self.builder.gep(entry, [_COUNT(i)]))) for i in range(count)]

    def fetch(self, pointer, column):
        """Ask for the line that lies a while behind a number."""
        kind = ir.FunctionType(ir.VoidType(), [_TEXT, _LANE, _LANE, _LANE])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        ahead = self.builder.gep(pointer, [self.builder.add(column, _COUNT(_AHEAD // self.size))])
        self.builder.call(function, [self.builder.bitcast(ahead, _TEXT), _LANE(0), _LANE(3), _LANE(1)])

    def times(self, left, right, more=None):
        """Return a product, and with more what is added to it."""
        product = self.builder.fmul(left, right, flags=("contract",))
        return product if more is None else self.builder.fadd(product, more, flags=("contract",))

    def write_totals(self, variables, pointer):
        """Write the sums of variables' numbers, one behind the other."""
        self.store(self.totals([self.builder.load(x) for x in variables]), pointer)


def _opened(context, builder, signature, args):
    """Return arguments, arrays as pointers to their first number."""
    return [
        context.make_array(kind)(context, builder, given).data if isinstance(kind, types.Array) else given
        for kind, given in zip(signature.args, args, strict=True)
    ]


def _over(builder, maker, count):
    """Return a loop over whole vectors, and where each begins."""
    return cgutils.for_range(builder, builder.udiv(count, _COUNT(maker.lanes)))


def _dots(sources, squares, fetches):
    """Return what writes the products of a row with those of some sources, in whole vectors, and sums of squares."""

    @intrinsic
    def write(typing, found, sizes, table, first, start, row, count):
        def make(context, builder, signature, args):
            maker = _Rows(builder, found.dtype)
            found_, sizes_, table_, first_, start_, row_, count_ = _opened(context, builder, signature, args)
            places, own = maker.rows(table_, first_, start_, sources), maker.row(row_, _COUNT(0))
            dots, sizes_of = ([maker.zeros() for _ in range(sources * many)] for many in (1, squares))
            with _over(builder, maker, count_) as loop:
                c = builder.mul(loop.index, _COUNT(maker.lanes))
                part = maker.vector_at(own, c)
                for i, place in enumerate(places):
                    x = maker.vector_at(place, c)
                    maker.add(dots[i], part, x)
                    if squares:
                        maker.add(sizes_of[i], x, x)
                    if fetches:
                        maker.fetch(place, c)
            maker.write_totals(dots, builder.gep(found_, [first_]))
            if squares:
                maker.write_totals(sizes_of, builder.gep(sizes_, [first_]))
            return context.get_dummy_value()

        return types.void(found, sizes, table, *[_PLACE] * 4), make

    return write


def _weighted(vectors, fetches):
    """Return what writes some vectors of the sources' weighted sum."""

    @intrinsic
    def write(typing, out, begin, table, start, weights, count):
        def make(context, builder, signature, args):
            maker = _Rows(builder, weights.dtype)
            out_, begin_, table_, start_, weights_, count_ = _opened(context, builder, signature, args)
            sums = [maker.zeros() for _ in range(vectors)]
            with cgutils.for_range(builder, count_) as loop:
                (weight,), (place,) = maker.spreads(weights_, loop.index, 1), maker.rows(table_, loop.index, start_, 1)
                for k in range(vectors):
                    maker.add(sums[k], weight, maker.vector_at(place, _COUNT(k * maker.lanes)))
                    if fetches:
                        maker.fetch(place, _COUNT(k * maker.lanes))
            found = maker.row(out_, begin_)
            for k in range(vectors):
                maker.store(builder.load(sums[k]), builder.gep(found, [_COUNT(k * maker.lanes)]))
            return context.get_dummy_value()

        return types.void(_PLACE, _PLACE, table, _PLACE, weights, _PLACE), make

    return write


def _gradients(sources, more):
    """Return what writes `scale_i x_i + weight_i g + by_i q` to some sources' gradients, and adds `by_i x_i` to a sum.

    With `more` the first term is what lies there.
    """

    @intrinsic
    def write(typing, coefficients, stride, table, places, given, by_query, count):
        def make(context, builder, signature, args):
            maker = _Rows(builder, coefficients.dtype)
            opened = _opened(context, builder, signature, args)
            coefficients_, stride_, table_, places_, given_, by_query_, count_ = opened
            first_, start_, new_ = cgutils.unpack_tuple(builder, places_)
            cotangent, query = (maker.row(x, _COUNT(0)) for x in cgutils.unpack_tuple(builder, given_))
            places, found = (maker.rows(table_, x, start_, sources) for x in (first_, builder.add(first_, new_)))
            scales, weights, by = (
                maker.spreads(coefficients_, builder.add(first_, builder.mul(stride_, _COUNT(k))), sources)
                for k in range(3)
            )
            with _over(builder, maker, count_) as loop:
                c = builder.mul(loop.index, _COUNT(maker.lanes))
                g, q, total = (maker.vector_at(x, c) for x in (cotangent, query, by_query_))
                for i in range(sources):
                    x, there = maker.vector_at(places[i], c), builder.gep(found[i], [c])
                    begun = maker.load(there) if more else maker.times(scales[i], x)
                    maker.store(maker.times(by[i], q, maker.times(weights[i], g, begun)), there)
                    total = maker.times(by[i], x, total)
                maker.store(total, builder.gep(by_query_, [c]))
            return context.get_dummy_value()

        pair = types.UniTuple(_PLACE, 2)
        triple = types.UniTuple(_PLACE, 3)
        return types.void(coefficients, _PLACE, table, triple, pair, by_query, _PLACE), make

    return write


def _shares(sources, more):
    """Return what writes the products of a row with those of some sources, and `weight_i g` to their gradients.

    With `more` it is added to what lies there.
    """

    @intrinsic
    def write(typing, found, weights, table, places, row, count):
        def make(context, builder, signature, args):
            maker = _Rows(builder, found.dtype)
            found_, weights_, table_, places_, row_, count_ = _opened(context, builder, signature, args)
            first_, start_, new_ = cgutils.unpack_tuple(builder, places_)
            places, there = (maker.rows(table_, x, start_, sources) for x in (first_, builder.add(first_, new_)))
            cotangent, scales = maker.row(row_, _COUNT(0)), maker.spreads(weights_, first_, sources)
            dots = [maker.zeros() for _ in range(sources)]
            with _over(builder, maker, count_) as loop:
                c = builder.mul(loop.index, _COUNT(maker.lanes))
                g = maker.vector_at(cotangent, c)
                for i in range(sources):
                    maker.add(dots[i], g, maker.vector_at(places[i], c))
                    place = builder.gep(there[i], [c])
                    maker.store(maker.times(scales[i], g, maker.load(place) if more else None), place)
                    if not more:
                        maker.fetch(places[i], c)
            maker.write_totals(dots, builder.gep(found_, [first_]))
            return context.get_dummy_value()

        return types.void(found, weights, table, types.UniTuple(_PLACE, 3), _PLACE, _PLACE), make

    return write


_first_dots, _first_dot = _dots(_SOURCES, True, True), _dots(1, True, True)
_fetching_dots = _dots(_SOURCES, False, True)
_more_dots, _more_dot = _dots(_SOURCES, False, False), _dots(1, False, False)
_first_sums, _more_sums, _sum = _weighted(_VECTORS, True), _weighted(_VECTORS, False), _weighted(1, False)
_first_gradients, _first_gradient = _gradients(_SOURCES, False), _gradients(1, False)
_more_gradients, _more_gradient = _gradients(_SOURCES, True), _gradients(1, True)
_first_shares, _first_share = _shares(_SOURCES, False), _shares(1, False)
_more_shares, _more_share = _shares(_SOURCES, True), _shares(1, True)


@intrinsic
def _pointer(typing, address, like):
    def make(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(_PLACE, like), make


@compiled
def row_at(address, start, length, like):
    """Return the numbers that begin so many of them behind an address, of an array's type."""
    return carray(_pointer(address + start * like.itemsize, like), (length,))


@compiled
def write_squares(found, sizes, table, start, row, width):
    """Write the products of a row and all sources' rows that begin there, and the sums of the latter's squares."""
    sources = len(found)
    whole, most = width - width % (_BYTES // found.itemsize), sources - sources % _SOURCES
    for i in range(0, most, _SOURCES):
        _first_dots(found, sizes, table, i, start, row, whole)
    for i in range(most, sources):
        _first_dot(found, sizes, table, i, start, row, whole)
    for i in range(sources if whole < width else 0):
        x, own = row_at(table[i], start + whole, width - whole, found), row_at(row, whole, width - whole, found)
        for c in range(width - whole):
            found[i] += own[c] * x[c]
            sizes[i] += x[c] * x[c]


@compiled
def write_products(found, table, start, row, width, fetches):
    """Write the products of a row and all sources' rows that begin there."""
    sources = len(found)
    whole, most = width - width % (_BYTES // found.itemsize), sources - sources % _SOURCES
    for i in range(0, most, _SOURCES):
        if fetches:
            _fetching_dots(found, found, table, i, start, row, whole)
        else:
            _more_dots(found, found, table, i, start, row, whole)
    for i in range(most, sources):
        _more_dot(found, found, table, i, start, row, whole)
    for i in range(sources if whole < width else 0):
        x, own = row_at(table[i], start + whole, width - whole, found), row_at(row, whole, width - whole, found)
        for c in range(width - whole):
            found[i] += own[c] * x[c]


@compiled
def write_sum(out, weights, table, start, width, fetches):
    """Write the weighted sum of all sources' rows that begin there, as far from another address."""
    sources, lanes = len(weights), _BYTES // weights.itemsize
    whole, most = width - width % lanes, width - width % (lanes * _VECTORS)
    for c in range(start, start + most, lanes * _VECTORS):
        if fetches:
            _first_sums(out, c, table, c, weights, sources)
        else:
            _more_sums(out, c, table, c, weights, sources)
    for c in range(start + most, start + whole, lanes):
        _sum(out, c, table, c, weights, sources)
    if whole < width:
        found = row_at(out, start + whole, width - whole, weights)
        found[:] = 0
        for i in range(sources):
            x, weight = row_at(table[i], start + whole, width - whole, weights), weights[i]
            for c in range(width - whole):
                found[c] += weight * x[c]


@compiled
def write_gradients(coefficients, table, new, start, given, by_query, more):
    """Write `scale_i x_i + weight_i g + by_i q` to all gradients' rows that begin there, and add `by_i x_i` to a sum.

    The gradients are the table's tensors from `new` on, coefficients (scales, weights, by), and g and q given by their
    addresses. With `more` the first term is what lies there.
    """
    sources, width = coefficients.shape[1], len(by_query)
    whole, most = width - width % (_BYTES // by_query.itemsize), sources - sources % _SOURCES
    for i in range(0, most, _SOURCES):
        if more:
            _more_gradients(coefficients, sources, table, (i, start, new), given, by_query, whole)
        else:
            _first_gradients(coefficients, sources, table, (i, start, new), given, by_query, whole)
    for i in range(most, sources):
        if more:
            _more_gradient(coefficients, sources, table, (i, start, new), given, by_query, whole)
        else:
            _first_gradient(coefficients, sources, table, (i, start, new), given, by_query, whole)
    left, first = width - whole, start + whole
    g, q = row_at(given[0], whole, left, by_query), row_at(given[1], whole, left, by_query)
    for i in range(sources if left else 0):
        x, found = row_at(table[i], first, left, by_query), row_at(table[new + i], first, left, by_query)
        scale, weight, by = coefficients[0, i], coefficients[1, i], coefficients[2, i]
        for c in range(left):
            begun = found[c] if more else scale * x[c]
            found[c] = begun + weight * g[c] + by * q[c]
            by_query[whole + c] += by * x[c]


@compiled
def write_shares(found, weights, table, new, start, row, width, more):
    """Write the products of a row g and all sources' rows that begin there, and `weight_i g` to all gradients' rows.

    The gradients are the table's tensors from `new` on. With `more` it is added to what lies there.
    """
    sources = len(found)
    whole, most = width - width % (_BYTES // found.itemsize), sources - sources % _SOURCES
    for i in range(0, most, _SOURCES):
        if more:
            _more_shares(found, weights, table, (i, start, new), row, whole)
        else:
            _first_shares(found, weights, table, (i, start, new), row, whole)
    for i in range(most, sources):
        if more:
            _more_share(found, weights, table, (i, start, new), row, whole)
        else:
            _first_share(found, weights, table, (i, start, new), row, whole)
    left, first = width - whole, start + whole
    g = row_at(row, whole, left, found)
    for i in range(sources if left else 0):
        x, there, weight = row_at(table[i], first, left, found), row_at(table[new + i], first, left, found), weights[i]
        for c in range(left):
            found[i] += g[c] * x[c]
            there[c] = (there[c] if more else 0) + weight * g[c]
