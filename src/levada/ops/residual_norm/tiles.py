"""A row's sums and its normalised numbers, for loops that Numba compiles: whole vectors at a time, sums in registers.

Of loops written out a row of some hundred channels spent most of its time before and behind them.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba import types
from numba.core import cgutils  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba.extending import intrinsic  # type: ignore[import-untyped, import-not-found, unused-ignore]

from levada.ops._tiles import _BYTES, _Maker

__all__ = ["VECTOR", "add_rows", "sum_row", "sum_squares", "write_gradient", "write_normed", "write_sums"]

VECTOR = _BYTES
_TOGETHER = 4  # vectors, of which each has sums of its own
_COUNT = ir.IntType(64)


class _Row(_Maker):
    """Makes instructions for the vectors of rows."""

    def __init__(self, context, builder, signature, args):
        dtype = signature.args[0].dtype
        super().__init__(builder, dtype)
        self.zero = ir.Constant(self.vector, None)
        self.given = [
            context.make_array(kind)(context, builder, x).data if isinstance(kind, types.Array) else x
            for kind, x in zip(signature.args, args, strict=True)
        ]

    def behind(self, pointer, start):
        """Return where a row begins."""
        return self.builder.gep(pointer, [start])

    def over(self, count, sums, write):
        """Write a loop over whole vectors, some at a time, and return the totals of sums, which it adds to.

        Args:
            count: of numbers.
            sums: how many.
            write: takes what reads a vector there, what writes one, and vectors of sums, which it returns, added to.
        """
        many = _COUNT(_TOGETHER * self.lanes)
        variables = [[self.zeros() for _ in range(_TOGETHER)] for _ in range(sums)]

        def step(column, k):
            def load(pointer):
                return self.load(self.builder.gep(pointer, [column]))

            def store(vector, pointer):
                self.store(vector, self.builder.gep(pointer, [column]))

            found = write(load, store, [self.builder.load(x[k]) for x in variables])
            for x, vector in zip(variables, found, strict=True):
                self.builder.store(vector, x[k])

        blocks = self.builder.udiv(count, many)
        with cgutils.for_range(self.builder, blocks) as loop:
            begin = self.builder.mul(loop.index, many)
            for k in range(_TOGETHER):
                step(self.builder.add(begin, _COUNT(k * self.lanes)), k)
        done = self.builder.mul(blocks, many)
        with cgutils.for_range(
            self.builder, self.builder.udiv(self.builder.sub(count, done), _COUNT(self.lanes))
        ) as loop:
            step(self.builder.add(done, self.builder.mul(loop.index, _COUNT(self.lanes))), 0)
        return [self.total(self._added([self.builder.load(x) for x in several])) for several in variables]

    def _added(self, vectors):
        while len(vectors) > 1:
            vectors = [self.plus(a, b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        return vectors[0]

    def plus(self, a, b):
        """Return a sum."""
        return self.builder.fadd(a, b, flags=("contract",))

    def minus(self, a, b):
        """Return a difference."""
        return self.builder.fsub(a, b, flags=("contract",))

    def times(self, a, b):
        """Return a product."""
        return self.builder.fmul(a, b, flags=("contract",))


@intrinsic
def add_rows(typing, state, out, new, start, count):
    """Write the sum of two rows, and return the sum of its numbers."""

    def make(context, builder, signature, args):
        row = _Row(context, builder, signature, args)
        x, f, y = (row.behind(pointer, row.given[3]) for pointer in row.given[:3])

        def write(load, store, sums):
            total = row.plus(load(x), load(f))
            store(total, y)
            return (row.plus(sums[0], total),)

        (found,) = row.over(row.given[4], 1, write)
        return found

    return state.dtype(state, out, new, types.intp, types.intp), make


@intrinsic
def sum_row(typing, new, start, count):
    """Return the sum of a row's numbers."""

    def make(context, builder, signature, args):
        row = _Row(context, builder, signature, args)
        y = row.behind(row.given[0], row.given[1])
        (found,) = row.over(row.given[2], 1, lambda load, store, sums: (row.plus(sums[0], load(y)),))
        return found

    return new.dtype(new, types.intp, types.intp), make


@intrinsic
def sum_squares(typing, new, start, count, mean):
    """Return the sum of a row's numbers' squares, apart from their mean."""

    def make(context, builder, signature, args):
        row = _Row(context, builder, signature, args)
        y, mean_ = row.behind(row.given[0], row.given[1]), row.spread(row.given[3])

        def write(load, store, sums):
            apart = row.minus(load(y), mean_)
            return (row.plus(sums[0], row.times(apart, apart)),)

        (found,) = row.over(row.given[2], 1, write)
        return found

    return new.dtype(new, types.intp, types.intp, new.dtype), make


@intrinsic
def write_normed(typing, new, normed, weight, bias, start, count, moments):
    """Write a row less its mean over its size, times a weight and with a bias."""

    def make(context, builder, signature, args):
        row = _Row(context, builder, signature, args)
        y, z = (row.behind(pointer, row.given[4]) for pointer in row.given[:2])
        w, b = row.given[2:4]
        mean, inverse = (row.spread(x) for x in cgutils.unpack_tuple(builder, row.given[6]))

        def write(load, store, sums):
            apart = row.times(row.minus(load(y), mean), inverse)
            store(row.plus(row.times(apart, load(w)), load(b)), z)
            return ()

        row.over(row.given[5], 0, write)
        return context.get_dummy_value()

    pair = types.UniTuple(new.dtype, 2)
    return types.void(new, normed, weight, bias, types.intp, types.intp, pair), make


@intrinsic
def write_sums(typing, new, by_normed, weight, of_weight, of_bias, place, moments):
    """Add a row's part to the gradients by weight and bias; return the sums of `u` and of `u n` for what is below."""

    def make(context, builder, signature, args):
        row = _Row(context, builder, signature, args)
        start_, count_ = cgutils.unpack_tuple(builder, row.given[5])
        y, g = (row.behind(pointer, start_) for pointer in row.given[:2])
        w, of_weight_, of_bias_ = row.given[2:5]
        mean, inverse = (row.spread(x) for x in cgutils.unpack_tuple(builder, row.given[6]))

        def write(load, store, sums):
            normed, cotangent = row.times(row.minus(load(y), mean), inverse), load(g)
            store(row.plus(row.times(cotangent, normed), load(of_weight_)), of_weight_)
            store(row.plus(cotangent, load(of_bias_)), of_bias_)
            inner = row.times(cotangent, load(w))
            return row.plus(sums[0], inner), row.plus(sums[1], row.times(inner, normed))

        found = row.over(count_, 2, write)
        return context.make_tuple(builder, signature.return_type, found)

    pair = types.UniTuple(new.dtype, 2)
    return pair(new, by_normed, weight, of_weight, of_bias, types.UniTuple(types.intp, 2), pair), make


@intrinsic
def write_gradient(typing, new, by_normed, weight, by_new, by_sum, place, moments):
    """Write `direct + inverse (u - n aligned - total)`, the gradient by a row's sum."""

    def make(context, builder, signature, args):
        row = _Row(context, builder, signature, args)
        start_, count_ = cgutils.unpack_tuple(builder, row.given[5])
        y, g = (row.behind(pointer, start_) for pointer in row.given[:2])
        w, direct, found = row.given[2], *(row.behind(pointer, start_) for pointer in row.given[3:5])
        mean, inverse, total, aligned = (row.spread(x) for x in cgutils.unpack_tuple(builder, row.given[6]))

        def write(load, store, sums):
            normed = row.times(row.minus(load(y), mean), inverse)
            inner = row.minus(row.times(load(g), load(w)), row.plus(row.times(normed, aligned), total))
            store(row.plus(row.times(inner, inverse), load(direct)), found)
            return ()

        row.over(count_, 0, write)
        return context.get_dummy_value()

    four = types.UniTuple(new.dtype, 4)
    return types.void(new, by_normed, weight, by_new, by_sum, types.UniTuple(types.intp, 2), four), make
