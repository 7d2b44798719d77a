"""How long the weights are and how far a step moves them, in turns that bound time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise.backends import pairs
from gradwise.backends.segments import wide_dtype
from gradwise.errors import UserError
from gradwise.watch.probes.plain import Mark, checked_every, home_of, mark, real_type, room

ALIGNED = 16  # values: copies begin at multiples of 64 bytes


def module_of(name: str) -> str:
    """The module that a parameter belongs to, by its name.

    That is what stands before the last dot. Entries of a list (`scales.0`) and parameters that
    have numbers for names are modules of their own.

    Examples:
        >>> module_of("blocks.0.norm.weight"), module_of("weight"), module_of("scales.3")
        ('blocks.0.norm', '', 'scales.3')
    """
    before, _, last = name.rpartition(".")
    return name if last.isdecimal() else before


_Kind = tuple[torch.device, torch.dtype]


@dataclass
class _Turn:
    """The parameters of one turn and where their copies go."""

    members: list[tuple[int, Mark | None]]  # by place; None for what cannot be measured
    slots: list[Tensor]  # one for each of those that can
    index: Tensor  # int64, their places, on the device of the results

    def __post_init__(self) -> None:
        self.which = [i for i, m in self.members if m is not None]


class Weights:
    """Norms of the weights and of their updates, every parameter once in `every` steps.

    The parameters are split into `every` turns of about as many values, modules whole. At each
    step the weights of one turn are copied before the update and compared with it afterwards, in
    one pass. So a step costs about 1/every of a copy and a read of the model, and the copies take
    about 1/every of its memory (more where one module is larger than that).

    Not measured, which gives NaN: sharded parameters (DTensor) and others that are made of
    tensors, sparse ones, and those whose shape, strides, type or device changed within the step.
    Frozen parameters are measured like all others. Weights that a step moves by less than half
    the gap to the next number of their type do not move: their update is exactly 0. Complex values
    count as pairs of reals.

    A step that never finished (it raised) is measured anew: the last `before` counts. Where `step`
    calls itself, the innermost is measured.

    Args:
        params: the parameters, in the order of all that is returned.
        names: one for each, by which modules are told apart.
        every: steps in which every parameter has its turn; 1 measures all of them at each step.

    Raises:
        UserError: where `every` is below 1, or there is not one name for each parameter.

    Examples:
        >>> weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(1))
        >>> probe = Weights([weight, bias], ["head.weight", "head.bias"], every=1)
        >>> probe.before()
        >>> with torch.no_grad():
        ...     _ = weight.sub_(0.5)
        >>> sums = probe.after()
        >>> sums["update_sumsq"].tolist(), sums["weight_sumsq"].tolist()
        ([1.0, 0.0], [1.0, 1.0])
    """

    def __init__(self, params: Sequence[Tensor], names: Sequence[str], every: int = 10) -> None:
        if len(names) != len(params):
            raise UserError(
                f"expected one name for each of the {len(params)} parameters, got {len(names)}"
            )
        self.every = checked_every(every)
        self._params = list(params)
        self._names = tuple(names)
        self._done = 0  # steps measured so far
        self._forget()

    def _forget(self) -> None:
        self._turns: list[_Turn] = []  # planned at the first step, and when parameters change
        self._memory: dict[_Kind, Tensor] = {}
        self._pending: _Turn | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {  # copies of weights are of no use to a copy of the probe
            "every": self.every,
            "_params": self._params,
            "_names": self._names,
            "_done": self._done,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @torch.no_grad()
    def before(self) -> None:
        """Copy the weights whose turn it is; to be called before the update."""
        turn = self._turn(self._done % self.every)
        pairs.keep([self._params[i] for i in turn.which], turn.slots)
        self._pending = turn

    @torch.no_grad()
    def after(self) -> dict[str, Tensor]:
        """Compare with the copies; to be called after the update.

        Returns:
            "weight_sumsq" and "update_sumsq": [P] sums of squares of each parameter's weights
            after the update, and of what the update added to them, in the weights' unit squared;
            NaN where it was not the parameter's turn. On the device of the first parameter, in
            float64 (float32 where the device has none). Nothing without a `before`, and at steps
            that are nobody's turn.
        """
        turn, self._pending = self._pending, None
        if turn is None:
            return {}
        self._done += 1
        if not turn.which:
            return {}
        which, slots, index = turn.which, turn.slots, turn.index
        if not self._stands(turn):
            marks = dict(turn.members)
            same = [mark(self._params[i]) == marks[i] for i in which]
            which = [i for i, s in zip(which, same, strict=True) if s]
            slots = [slot for slot, s in zip(slots, same, strict=True) if s]
            index = torch.tensor(which, dtype=torch.int64, device=index.device)
        sums = pairs.differences([self._params[i] for i in which], slots, index.device)
        if len(which) < len(self._params):
            wide = wide_dtype(index.device)
            spread = torch.full((2, len(self._params)), torch.nan, dtype=wide, device=index.device)
            sums = spread.index_copy_(1, index, sums)
        return {"update_sumsq": sums[0], "weight_sumsq": sums[1]}

    def _turn(self, number: int) -> _Turn:
        """A turn as it was planned, or planned anew where its parameters are not what they were."""
        if not self._turns or not self._stands(self._turns[number]):
            self._plan()
        return self._turns[number]

    def _stands(self, turn: _Turn) -> bool:
        return all(mark(self._params[i]) == m for i, m in turn.members)

    def _plan(self) -> None:
        """Say who has a turn when, and take the memory that the largest turn needs."""
        marks = [mark(param) for param in self._params]
        sizes = [0 if m is None else room(m) for m in marks]
        turns = _shared_out(sizes, self._names, self.every)
        places: list[dict[int, tuple[_Kind, int]]] = []  # of each turn: by parameter
        needed: dict[_Kind, int] = {}
        for members in turns:
            ends: dict[_Kind, int] = {}
            places.append({})
            for i in members:
                if (m := marks[i]) is not None:
                    kind = (m[3], real_type(m[2]))
                    start = ends.get(kind, 0)
                    places[-1][i] = kind, start
                    ends[kind] = start + -(-sizes[i] // ALIGNED) * ALIGNED
            for kind, end in ends.items():
                needed[kind] = max(end, needed.get(kind, 0))
        self._turns, self._memory = [], {}  # give back what is held before taking more
        with torch.inference_mode(False):
            for (device, dtype), size in needed.items():
                self._memory[device, dtype] = torch.empty(size, dtype=dtype, device=device)
            home = home_of(self._params)
            for members, placed in zip(turns, places, strict=True):
                slots = [
                    self._memory[kind][start : start + sizes[i]]
                    for i, (kind, start) in placed.items()
                ]
                index = torch.tensor(list(placed), dtype=torch.int64, device=home)
                self._turns.append(_Turn([(i, marks[i]) for i in members], slots, index))


def _shared_out(sizes: Sequence[int], names: Sequence[str], every: int) -> list[list[int]]:
    """The places of the parameters in each turn: whole modules, about as many values a turn."""
    modules: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        modules.setdefault(module_of(name), []).append(i)
    turns: list[list[int]] = [[] for _ in range(every)]
    held = [0] * every
    # The largest first, each to the turn that has least: the turns are as even as modules allow.
    for which in sorted(modules.values(), key=lambda which: -sum(sizes[i] for i in which)):
        turn = min(range(every), key=lambda turn: (held[turn], len(turns[turn])))
        turns[turn].extend(which)
        held[turn] += sum(sizes[i] for i in which)
    return [sorted(turn) for turn in turns]
