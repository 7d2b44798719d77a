"""Measure and apply in Triton: programs that each take a chunk of one segment of one tensor.

What a chunk is stands in tables (see `gradwise.backends.gpu.tables`): which tensor it belongs to,
whose address stands in another table, at which value it starts and how many it has. Whole blocks
are read without a mask, which is what lets the compiler use the widest loads where addresses allow
it; only the end of a chunk has one.

Nothing is summed by atomics, so the same gradients give the same bits every time.

Functions become kernels by a call and not by a decorator: checkers of types at run time, which
decorate whatever a module defines, would be handed Triton's objects otherwise.
"""

from typing import no_type_check

import triton
import triton.language as tl

# How a kernel is given a factor or a shift: not at all, one for all segments, or one for each.
NONE, SINGLE, EACH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
ZEROS, NANS = tl.constexpr(20), tl.constexpr(40)  # bits below the counts that share an int64


@no_type_check
def _place_of(addresses, tensor, start, chunk, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Where a chunk's values begin."""
    address = tl.load(addresses + tl.load(tensor + chunk))
    base = address.to(tl.pointer_type(KIND)) + tl.load(start + chunk)
    if ALIGNED:
        base = tl.multiple_of(base, 16)
    return base


place_of = triton.jit(_place_of)


@no_type_check
def _merged(x, inside, n, seen, mean, m2, low, high, counts, EXTREMES: tl.constexpr):
    """What is known of the values before a block, with the block's own n values `x[inside]`.

    The block is in registers, so that its mean and the squares about it are two sums over them and
    not two reads. It is brought near 1 by a power of two first, because squares of float32 leave
    its range far sooner than the values do. Both are put together with what was there by the update
    of Chan, Golub and LeVeque.
    """
    size = tl.max(tl.abs(x), axis=0)
    if EXTREMES:
        low = tl.minimum(low, tl.min(tl.where(inside, x, float("inf")), axis=0))
        high = tl.maximum(high, tl.max(tl.where(inside, x, float("-inf")), axis=0))
    lost = (tl.abs(x) == float("inf")) | (x != x)
    mine = lost.to(tl.int64)
    if EXTREMES:
        mine += ((x == 0.0) & inside).to(tl.int64) << ZEROS
        mine += (x != x).to(tl.int64) << NANS
    counts += tl.sum(mine, axis=0)
    exponent = (size.to(tl.int32, bitcast=True) >> 23) & 255
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    near = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    back = (exponent << 23).to(tl.float32, bitcast=True).to(tl.float64)

    x = x * near
    middle = tl.sum(x, axis=0) / n
    apart = tl.where(inside, x - middle, 0.0)
    rest = tl.sum(apart, axis=0)  # what rounding has left in the mean
    squares = tl.sum(apart * apart, axis=0).to(tl.float64)
    wide_n = n.to(tl.float64)
    wide_rest = rest.to(tl.float64)
    own_mean = (middle.to(tl.float64) + wide_rest / wide_n) * back
    own_m2 = squares - wide_rest * wide_rest / wide_n
    own_m2 = tl.where(own_m2 < 0.0, 0.0, own_m2) * back * back

    total = seen + n
    share = wide_n / total.to(tl.float64)
    step = own_mean - mean
    mean += step * share
    m2 += own_m2 + step * step * (seen.to(tl.float64) * share)
    return total, mean, m2, low, high, counts


merged = triton.jit(_merged)


@no_type_check
def _measure_chunks(
    addresses,
    tensor,
    start,
    length,
    partial,
    counted,
    first,
    chunks,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    EXTREMES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Mean, squared deviations, extremes and counts of a chunk: rows of `partial` [., chunks]."""
    chunk = first + tl.program_id(0)
    base = place_of(addresses, tensor, start, chunk, KIND, ALIGNED)
    values = tl.load(length + chunk)
    lanes = tl.arange(0, BLOCK)
    seen = tl.full((), 0.0, tl.float32)
    mean = tl.full((), 0.0, tl.float64)
    m2 = tl.full((), 0.0, tl.float64)
    low = tl.full((), float("inf"), tl.float32)
    high = tl.full((), float("-inf"), tl.float32)
    counts = tl.full((), 0, tl.int64)
    whole = values // BLOCK
    n = tl.full((), BLOCK, tl.int32).to(tl.float32)
    for block in range(whole):
        x = tl.load(base + block * BLOCK + lanes).to(tl.float32)
        seen, mean, m2, low, high, counts = merged(
            x, lanes >= 0, n, seen, mean, m2, low, high, counts, EXTREMES
        )
    rest = values - whole * BLOCK
    if rest > 0:
        inside = lanes < rest
        x = tl.load(base + whole * BLOCK + lanes, mask=inside, other=0.0).to(tl.float32)
        seen, mean, m2, low, high, counts = merged(
            x, inside, rest.to(tl.float32), seen, mean, m2, low, high, counts, EXTREMES
        )
    row = chunks.to(tl.int64)
    tl.store(partial + chunk, mean)
    tl.store(partial + row + chunk, m2)
    tl.store(counted + chunk, counts)
    if EXTREMES:
        tl.store(partial + 2 * row + chunk, low.to(tl.float64))
        tl.store(partial + 3 * row + chunk, high.to(tl.float64))


measure_chunks = triton.jit(_measure_chunks, do_not_specialize=["first", "chunks"])


@no_type_check
def _combine_chunks(
    length,
    begin,
    partial,
    counted,
    out,
    out_counts,
    chunks,
    segments,
    TILE: tl.constexpr,
    EXTREMES: tl.constexpr,
):
    """One segment from its chunks, in float64 and always in the same order.

    Rows of `out` are mean, m2, min and max, those of `out_counts` non-finite values and zeros. What
    is left of a constant segment is rounding, and counts as none.
    """
    segment = tl.program_id(0)
    at = tl.load(begin + segment)
    end = tl.load(begin + segments + segment)
    row = chunks.to(tl.int64)
    lanes = tl.arange(0, TILE)
    count = tl.full((), 0.0, tl.float64)
    total = tl.full((), 0.0, tl.float64)
    m2 = tl.full((), 0.0, tl.float64)
    low = tl.full((), float("inf"), tl.float64)
    high = tl.full((), float("-inf"), tl.float64)
    nonfinite = tl.full((), 0, tl.int64)
    zeros = tl.full((), 0, tl.int64)
    nans = tl.full((), 0, tl.int64)
    for tile in range(at, end, TILE):
        chunk = tile + lanes
        here = chunk < end
        n = tl.load(length + chunk, mask=here, other=0).to(tl.float64)
        count += tl.sum(n, axis=0)
        total += tl.sum(n * tl.load(partial + chunk, mask=here, other=0.0), axis=0)
        m2 += tl.sum(tl.load(partial + row + chunk, mask=here, other=0.0), axis=0)
        counts = tl.load(counted + chunk, mask=here, other=0)
        nonfinite += tl.sum(counts & 0xFFFFF, axis=0)
        if EXTREMES:
            zeros += tl.sum((counts >> ZEROS) & 0xFFFFF, axis=0)
            nans += tl.sum(counts >> NANS, axis=0)
            lows = tl.load(partial + 2 * row + chunk, mask=here, other=float("inf"))
            highs = tl.load(partial + 3 * row + chunk, mask=here, other=float("-inf"))
            low = tl.minimum(low, tl.min(lows, axis=0))
            high = tl.maximum(high, tl.max(highs, axis=0))
    mean = total / tl.where(count > 0.0, count, 1.0)
    for tile in range(at, end, TILE):
        chunk = tile + lanes
        here = chunk < end
        n = tl.load(length + chunk, mask=here, other=0).to(tl.float64)
        apart = tl.load(partial + chunk, mask=here, other=0.0) - mean
        m2 += tl.sum(tl.where(here, n * apart * apart, 0.0), axis=0)
    m2 = tl.where(m2 <= 1e-14 * (m2 + count * mean * mean), 0.0, m2)
    tl.store(out + segment, mean)
    tl.store(out + segments + segment, m2)
    tl.store(out_counts + segment, nonfinite)
    if EXTREMES:
        empty = count == 0.0
        unknown = tl.where(nans > 0, float("nan"), 0.0)  # minima and maxima pass over NaN
        tl.store(out + 2 * segments + segment, tl.where(empty, 0.0, low) + unknown)
        tl.store(out + 3 * segments + segment, tl.where(empty, 0.0, high) + unknown)
        tl.store(out_counts + segments + segment, zeros)


combine_chunks = triton.jit(_combine_chunks, do_not_specialize=["chunks", "segments"])


@no_type_check
def _number_of(vector, segment, HOW: tl.constexpr, DEFAULT: tl.constexpr):
    """A segment's factor or shift, as float32."""
    if HOW == NONE:
        number = tl.full((), DEFAULT, tl.float32)
    elif HOW == SINGLE:
        number = tl.load(vector).to(tl.float32)
    else:
        number = tl.load(vector + segment).to(tl.float32)
    return number


number_of = triton.jit(_number_of)


@no_type_check
def _map_chunks(
    addresses,
    tensor,
    start,
    length,
    segment,
    scale,
    shift,
    first,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALES: tl.constexpr,
    SHIFTS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """`g <- scale * (g - shift)` for a chunk, in float32 and rounded once.

    The host must not ask whether a map changes anything, but a program can: where it does not, no
    byte of the gradient moves.
    """
    chunk = first + tl.program_id(0)
    mine = tl.load(segment + chunk)
    factor = number_of(scale, mine, SCALES, 1.0)
    offset = number_of(shift, mine, SHIFTS, 0.0)
    if (factor != 1.0) | (offset != 0.0):
        base = place_of(addresses, tensor, start, chunk, KIND, ALIGNED)
        values = tl.load(length + chunk)
        lanes = tl.arange(0, BLOCK)
        whole = values // BLOCK
        for block in range(whole):
            at = base + block * BLOCK + lanes
            x = (tl.load(at).to(tl.float32) - offset) * factor
            tl.store(at, x.to(KIND))
        rest = values - whole * BLOCK
        if rest > 0:
            at = base + whole * BLOCK + lanes
            x = (tl.load(at, mask=lanes < rest).to(tl.float32) - offset) * factor
            tl.store(at, x.to(KIND), mask=lanes < rest)


map_chunks = triton.jit(_map_chunks, do_not_specialize=["first"])
