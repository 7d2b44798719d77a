"""The optimizers' step in Triton: one pass over weight, gradient and state of many tensors.

What a step would otherwise do to the gradient first (the transform's map, its sign, the decay) is
done to it on the way, as in update.c, whose formulas these are. The arithmetic is float32 whatever
the types, and every result is rounded once.
"""

from typing import no_type_check

import triton
import triton.language as tl

from gradwise.backends.gpu.kernels import number_of

SGD, ADAMW = tl.constexpr(0), tl.constexpr(1)
# Rows of the addresses.
PARAM, GRAD, FIRST, SECOND, STEP = (tl.constexpr(i) for i in range(5))
# Entries of the options, which are float64; counts of the host follow them.
LR, COUPLED, DECOUPLED, NUMBER = (tl.constexpr(i) for i in (0, 1, 2, 3))
LOG1, LOG2, COUNTS = (tl.constexpr(i) for i in (8, 9, 16))
# The method's numbers from NUMBER on: momentum and dampening; or the weight of a gradient in the
# first average (that of the average where that is less), beta2, 1 - beta2, eps.
# Rows of the constants.
LEFT, RATE, BOTTOM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@no_type_check
def _prepare_updates(
    options,
    rate,
    addresses,
    constants,
    tensors,
    METHOD: tl.constexpr,
    RATE_GIVEN: tl.constexpr,
    THERE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count the step where the counts are on the device, and correct for it; float64 throughout."""
    which = tl.program_id(0) * TILE + tl.arange(0, TILE)
    here = which < tensors
    lr = tl.load(options + LR)
    if RATE_GIVEN:
        lr = tl.load(rate).to(tl.float64)
    if THERE:
        place = tl.load(addresses + STEP * tensors + which, mask=here, other=0)
        taken = place != 0
        count = place.to(tl.pointer_type(tl.float32))
        step = tl.load(count, mask=taken, other=0.0) + 1.0
        tl.store(count, step, mask=taken)
        steps = step.to(tl.float64)
    else:
        steps = tl.load(options + COUNTS + which, mask=here, other=1.0)
    shrunk = tl.zeros((TILE,), tl.float64) + (1.0 - lr * tl.load(options + DECOUPLED))
    if METHOD == SGD:
        size = tl.zeros((TILE,), tl.float64) - lr
        bottom = tl.where(steps == 1.0, 1.0, 1.0 - tl.load(options + NUMBER + 1))
    else:
        size = -lr / (1.0 - tl.exp(steps * tl.load(options + LOG1)))
        bottom = 1.0 - tl.exp(steps * tl.load(options + LOG2))
        bottom = tl.sqrt(bottom)
    tl.store(constants + LEFT * tensors + which, shrunk.to(tl.float32), mask=here)
    tl.store(constants + RATE * tensors + which, size.to(tl.float32), mask=here)
    tl.store(constants + BOTTOM * tensors + which, bottom.to(tl.float32), mask=here)


prepare_updates = triton.jit(_prepare_updates, do_not_specialize=["tensors"])


@no_type_check
def _place_of_row(addresses, row, tensors, mine, at, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Where a chunk's values of a parameter, its gradient or one of its states begin."""
    address = tl.load(addresses + row * tensors + mine)
    base = address.to(tl.pointer_type(KIND)) + at
    if ALIGNED:
        base = tl.multiple_of(base, 16)
    return base


place_of_row = triton.jit(_place_of_row)


@no_type_check
def _new_values(
    p,
    g,
    m,
    v,
    factor,
    offset,
    shrunk,
    size,
    bottom,
    coupled,
    one,
    two,
    fresh,
    eps,
    METHOD: tl.constexpr,
    STATES: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    NESTEROV: tl.constexpr,
    FAR: tl.constexpr,
):
    """A block's parameters and states after the step; see `update.c`."""
    g = (g - offset) * factor
    if MAXIMIZE:
        g = -g
    g += coupled * p
    p *= shrunk
    if METHOD == SGD:
        if STATES == 0:
            p += size * g
        else:
            m = one * m + bottom * g
            if NESTEROV:
                p += size * (g + one * m)
            else:
                p += size * m
    else:
        if FAR:  # like torch.lerp: a weight of 1/2 and more starts from the other end
            m = g - one * (g - m)
        else:
            m = m + one * (g - m)
        v = two * v + fresh * g * g
        p += size * m / (tl.sqrt_rn(v) / bottom + eps)
    return p, m, v


new_values = triton.jit(_new_values)


@no_type_check
def _update_chunks(
    addresses,
    mapped,
    tensor,
    start,
    length,
    segment,
    options,
    constants,
    scale,
    shift,
    first,
    tensors,
    KIND: tl.constexpr,
    STATE: tl.constexpr,
    METHOD: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALES: tl.constexpr,
    SHIFTS: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    NESTEROV: tl.constexpr,
    FAR: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One step of a chunk: its gradient is only read."""
    chunk = first + tl.program_id(0)
    mine = tl.load(tensor + chunk)
    at = tl.load(start + chunk)
    values = tl.load(length + chunk)
    factor = tl.full((), 1.0, tl.float32)
    offset = tl.full((), 0.0, tl.float32)
    if tl.load(mapped + mine) != 0:
        place = tl.load(segment + chunk)
        factor = number_of(scale, place, SCALES, 1.0)
        offset = number_of(shift, place, SHIFTS, 0.0)
    shrunk = tl.load(constants + LEFT * tensors + mine)
    size = tl.load(constants + RATE * tensors + mine)
    bottom = tl.load(constants + BOTTOM * tensors + mine)
    coupled = tl.load(options + COUPLED).to(tl.float32)
    one = tl.load(options + NUMBER).to(tl.float32)
    two = tl.load(options + NUMBER + 1).to(tl.float32)
    fresh = tl.load(options + NUMBER + 2).to(tl.float32)
    eps = tl.load(options + NUMBER + 3).to(tl.float32)
    param = place_of_row(addresses, PARAM, tensors, mine, at, KIND, ALIGNED)
    grad = place_of_row(addresses, GRAD, tensors, mine, at, KIND, ALIGNED)
    if STATES > 0:
        momentum = place_of_row(addresses, FIRST, tensors, mine, at, STATE, ALIGNED)
    if STATES > 1:
        square = place_of_row(addresses, SECOND, tensors, mine, at, STATE, ALIGNED)
    lanes = tl.arange(0, BLOCK)
    whole = values // BLOCK
    for block in range(whole):
        here = block * BLOCK + lanes
        p = tl.load(param + here).to(tl.float32)
        g = tl.load(grad + here).to(tl.float32)
        m = p
        v = p
        if STATES > 0:
            m = tl.load(momentum + here).to(tl.float32)
        if STATES > 1:
            v = tl.load(square + here).to(tl.float32)
        p, m, v = new_values(
            p, g, m, v, factor, offset, shrunk, size, bottom, coupled, one, two,
            fresh, eps, METHOD, STATES, MAXIMIZE, NESTEROV, FAR,
        )  # fmt: skip
        tl.store(param + here, p.to(KIND))
        if STATES > 0:
            tl.store(momentum + here, m.to(STATE))
        if STATES > 1:
            tl.store(square + here, v.to(STATE))
    rest = values - whole * BLOCK
    if rest > 0:
        here = whole * BLOCK + lanes
        inside = lanes < rest
        p = tl.load(param + here, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32)
        m = p
        v = p
        if STATES > 0:
            m = tl.load(momentum + here, mask=inside, other=0.0).to(tl.float32)
        if STATES > 1:
            v = tl.load(square + here, mask=inside, other=0.0).to(tl.float32)
        p, m, v = new_values(
            p, g, m, v, factor, offset, shrunk, size, bottom, coupled, one, two,
            fresh, eps, METHOD, STATES, MAXIMIZE, NESTEROV, FAR,
        )  # fmt: skip
        tl.store(param + here, p.to(KIND), mask=inside)
        if STATES > 0:
            tl.store(momentum + here, m.to(STATE), mask=inside)
        if STATES > 1:
            tl.store(square + here, v.to(STATE), mask=inside)


update_chunks = triton.jit(_update_chunks, do_not_specialize=["first", "tensors"])
