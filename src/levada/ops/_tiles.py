"""Products of skinny matrices in loops that Numba compiles: a tile of sums stays in the registers of vectors.

A call of a library's product takes 10 microseconds and reads the streams once more, and of matrices with few rows it
makes a third of what the processor can.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import numba  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba import types
from numba.core import cgutils  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba.core.codegen import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    get_host_cpu_features,
)
from numba.extending import intrinsic  # type: ignore[import-untyped, import-not-found, unused-ignore]

from levada.ops._numba import compiled

__all__ = ["add_product", "add_product_transposed", "write_dots"]


def _has_wide_vectors() -> bool:
    told = numba.config.CPU_FEATURES  # what Numba compiles for; else what it makes of the processor
    return "+avx512f" in (get_host_cpu_features() if told is None else told)  # "" where LLVM cannot ask


# 16 sums and what they are made of fit 32 registers of 64 bytes, 8 fit 16 of 32.
_WIDE = _has_wide_vectors()
_BYTES, _ROWS, _VECTORS = (64, 4, 4) if _WIDE else (32, 4, 2)
_LEFT, _RIGHT = (4, 4) if _WIDE else (2, 4)
_SPAN = 1024  # columns of streams and weights that stay in the second cache
_COUNT, _LANE = ir.IntType(64), ir.IntType(32)
_PAIR, _TRIPLE = types.UniTuple(types.intp, 2), types.UniTuple(types.intp, 3)


class _Maker:
    """Makes instructions for vectors of a type, with addresses counted in its numbers."""

    def __init__(self, builder, dtype):
        self.builder, self.size = builder, dtype.bitwidth // 8
        self.lanes = _BYTES // self.size
        self.vector = ir.VectorType(ir.FloatType() if self.size == 4 else ir.DoubleType(), self.lanes)

    def at(self, base, row, stride, column=0):
        """Return the address of a tile's entry, behind that of its first."""
        offset = self.builder.mul(stride, _COUNT(row))
        return self.builder.gep(base, [self.builder.add(offset, _COUNT(column))])

    def load(self, address):
        """Return the vector that begins at an address."""
        return self.builder.load(self._vector_at(address), align=self.size)

    def store(self, vector, address):
        """Write a vector there."""
        self.builder.store(vector, self._vector_at(address, vector.type), align=self.size)

    def spread(self, number):
        """Return a vector of one number."""
        first = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), number, _LANE(0))
        everywhere = ir.Constant(ir.VectorType(_LANE, self.lanes), None)
        return self.builder.shuffle_vector(first, ir.Constant(self.vector, ir.Undefined), everywhere)

    def zeros(self):
        """Return a variable, which the compiler keeps in a register."""
        return cgutils.alloca_once_value(self.builder, ir.Constant(self.vector, None))

    def add(self, variable, left, right):
        """Add a product to a variable."""
        product = self.builder.fmul(left, right, flags=("contract",))
        self.builder.store(self.builder.fadd(self.builder.load(variable), product, flags=("contract",)), variable)

    def total(self, vector):
        """Return the sum of a vector's numbers, by halves."""
        return self.builder.extract_element(self.totals([vector]), _LANE(0))

    def totals(self, vectors):
        """Return a vector of the sums of vectors' numbers: of a power of two of them, no more than each has numbers.

        Halves of two vectors are added until one is left, and then its own: half the steps of each sum by itself.
        """
        length, lanes = self.lanes, self.lanes
        while length > 1:  # numbers that are left of each sum, and of the vector
            length //= 2
            lanes = lanes if len(vectors) > 1 else lanes // 2
            taken = [c for c in range(2 * lanes) if c // length % 2 == 0]
            halves = [ir.Constant(ir.VectorType(_LANE, lanes), [c + k for c in taken]) for k in (0, length)]
            pairs = zip(vectors[::2], vectors[1::2] or [ir.Constant(vectors[0].type, ir.Undefined)], strict=True)
            vectors = [
                self.builder.fadd(*(self.builder.shuffle_vector(*pair, half) for half in halves)) for pair in pairs
            ]
        return vectors[0]

    def part(self, vector, first, count):
        """Return some of a vector's numbers."""
        places = ir.Constant(ir.VectorType(_LANE, count), [*range(first, first + count)])
        return self.builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), places)

    def _vector_at(self, address, kind=None):
        return self.builder.bitcast(address, (kind or self.vector).as_pointer())


def _address(context, builder, kind, array, offset):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def _outer(rows, vectors):
    """Return what adds `sum_p left[i, p] right[p, c]` to a tile.

    It is told where in the arrays' memory each begins and what its axes are apart: the tile's rows, both of what is on
    the left, and rows on the right.
    """

    @intrinsic
    def add(typing, total, tile, left, entry, right, line, count):
        def make(context, builder, signature, args):
            maker = _Maker(builder, total.dtype)
            total_, tile_, left_, entry_, right_, line_, count_ = args
            at_, stride_ = cgutils.unpack_tuple(builder, tile_)
            start_, row_, step_ = cgutils.unpack_tuple(builder, entry_)
            begin_, width_ = cgutils.unpack_tuple(builder, line_)
            sums = [[maker.zeros() for _ in range(vectors)] for _ in range(rows)]
            first = _address(context, builder, left, left_, start_)
            other = _address(context, builder, right, right_, begin_)
            with cgutils.for_range(builder, count_) as loop:
                factor = builder.gep(first, [builder.mul(loop.index, step_)])
                line = builder.gep(other, [builder.mul(loop.index, width_)])
                parts = [maker.load(maker.at(line, 0, width_, k * maker.lanes)) for k in range(vectors)]
                for i in range(rows):
                    weight = maker.spread(builder.load(maker.at(factor, i, row_)))
                    for k in range(vectors):
                        maker.add(sums[i][k], weight, parts[k])
            found = _address(context, builder, total, total_, at_)
            for i in range(rows):
                for k in range(vectors):
                    place = maker.at(found, i, stride_, k * maker.lanes)
                    maker.store(builder.fadd(maker.load(place), builder.load(sums[i][k])), place)
            return context.get_dummy_value()

        return types.void(total, _PAIR, left, _TRIPLE, right, _PAIR, types.intp), make

    return add


def _dots(rows, columns):
    """Return what writes `sum_c left[i, c] right[k, c]`, of whole vectors, to a tile.

    It is told where each begins, what the tile's rows are apart and those of both others, and how many columns to take.
    """

    @intrinsic
    def write(typing, found, tile, left, start, right, begin, line):
        def make(context, builder, signature, args):
            maker = _Maker(builder, found.dtype)
            found_, tile_, left_, start_, right_, begin_, line_ = args
            at_, stride_ = cgutils.unpack_tuple(builder, tile_)
            width_, count_ = cgutils.unpack_tuple(builder, line_)
            sums = [[maker.zeros() for _ in range(columns)] for _ in range(rows)]
            first = _address(context, builder, left, left_, start_)
            other = _address(context, builder, right, right_, begin_)
            with cgutils.for_range(builder, builder.udiv(count_, _COUNT(maker.lanes))) as loop:
                along = [builder.mul(loop.index, _COUNT(maker.lanes))]
                here, there = builder.gep(first, along), builder.gep(other, along)
                own = [maker.load(maker.at(here, i, width_)) for i in range(rows)]
                for k in range(columns):
                    part = maker.load(maker.at(there, k, width_))
                    for i in range(rows):
                        maker.add(sums[i][k], own[i], part)
            first = _address(context, builder, found, found_, at_)
            together = min(rows, maker.lanes // columns)  # rows whose sums are one vector
            for i in range(0, rows, together):
                totals = maker.totals([builder.load(one) for line in sums[i : i + together] for one in line])
                for k in range(together):
                    maker.store(maker.part(totals, k * columns, columns), maker.at(first, i + k, stride_))
            return context.get_dummy_value()

        return types.void(found, _PAIR, left, types.intp, right, types.intp, _PAIR), make

    return write


_add_tile, _add_row = _outer(_ROWS, _VECTORS), _outer(1, _VECTORS)
_add_narrow, _add_one = _outer(_ROWS, 1), _outer(1, 1)
_write_tile, _write_row = _dots(_LEFT, _RIGHT), _dots(1, _RIGHT)
_write_column, _write_one = _dots(_LEFT, 1), _dots(1, 1)


@compiled
def add_product(total, left, right):
    """Add `left @ right` to `total`: contiguous matrices, `left` with few columns.

    What a row gets does not depend on the others.
    """
    _add(total, left, left.shape[1], 1, right)
    rows, width = total.shape
    first = width - width % (_BYTES // total.itemsize)
    for t in range(rows if first < width else 0):
        for p in range(len(right)):
            for c in range(first, width):
                total[t, c] += left[t, p] * right[p, c]


@compiled
def add_product_transposed(total, left, right):
    """Add `left.T @ right` to `total`: contiguous matrices, `left` with few columns."""
    _add(total, left, 1, left.shape[1], right)
    rows, width = total.shape
    first = width - width % (_BYTES // total.itemsize)
    for t in range(len(right) if first < width else 0):
        for k in range(rows):
            for c in range(first, width):
                total[k, c] += left[t, k] * right[t, c]


@compiled
def _add(total, left, row, step, right):
    """Add the product's whole vectors; entry (i, p) of what is on the left lies at `i row + p step`."""
    count, (rows, width), lanes = len(right), total.shape, _BYTES // total.itemsize
    whole, many = rows // _ROWS * _ROWS, lanes * _VECTORS
    for c in range(0, width // many * many, many):
        for t in range(0, whole, _ROWS):
            _add_tile(total, (t * width + c, width), left, (t * row, row, step), right, (c, width), count)
        for t in range(whole, rows):
            _add_row(total, (t * width + c, width), left, (t * row, row, step), right, (c, width), count)
    for c in range(width // many * many, width // lanes * lanes, lanes):
        for t in range(0, whole, _ROWS):
            _add_narrow(total, (t * width + c, width), left, (t * row, row, step), right, (c, width), count)
        for t in range(whole, rows):
            _add_one(total, (t * width + c, width), left, (t * row, row, step), right, (c, width), count)


@compiled
def write_dots(found, left, right):
    """Write `left @ right.T` to `found`: contiguous matrices, `right` with few rows.

    What a row gets does not depend on the others.
    """
    rows, columns = found.shape
    width, lanes = left.shape[1], _BYTES // found.itemsize
    _write(found, left, right, 0, min(width, _SPAN))
    if width > _SPAN:
        more = np.empty(found.shape, found.dtype)
        for c in range(_SPAN, width, _SPAN):
            _write(more, left, right, c, min(width - c, _SPAN))
            for t in range(rows):
                for k in range(columns):
                    found[t, k] += more[t, k]
    for t in range(rows if width % lanes else 0):
        for k in range(columns):
            for c in range(width // lanes * lanes, width):
                found[t, k] += left[t, c] * right[k, c]


@compiled
def _write(found, left, right, first, count):
    """Write what whole vectors add up to, from one column on."""
    rows, columns = found.shape
    width = left.shape[1]
    whole, most = rows // _LEFT * _LEFT, columns // _RIGHT * _RIGHT
    for k in range(0, most, _RIGHT):
        own = k * width + first
        for t in range(0, whole, _LEFT):
            _write_tile(found, (t * columns + k, columns), left, t * width + first, right, own, (width, count))
        for t in range(whole, rows):
            _write_row(found, (t * columns + k, columns), left, t * width + first, right, own, (width, count))
    for k in range(most, columns):
        own = k * width + first
        for t in range(0, whole, _LEFT):
            _write_column(found, (t * columns + k, columns), left, t * width + first, right, own, (width, count))
        for t in range(whole, rows):
            _write_one(found, (t * columns + k, columns), left, t * width + first, right, own, (width, count))
