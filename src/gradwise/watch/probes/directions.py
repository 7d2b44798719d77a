"""Whether gradients keep their direction: against those of the sample before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.backends import pairs
from gradwise.backends.segments import wide_dtype
from gradwise.watch.probes.plain import Mark, checked_every, home_of, mark, real_type, room


class Directions:
    """Dot products and sign agreement of each gradient with its previous sample.

    Samples are `every` steps apart. All that is returned are sums over entries, so that those of
    several parameters may be added: the cosine is dot / sqrt(now * before), the sign agreement is
    agree / number of entries. A common loss scale cancels out of both.

    The last sample is kept, in the gradients' own types: as much memory as one set of gradients,
    however long the run. A gradient that is not there at a sample is forgotten; one that appears,
    or comes back with another shape, stride, type or device, is measured from its second sample
    on. Sparse gradients and those made of other tensors (DTensor) are not measured. NaN and
    infinite entries make the sums of their parameter not finite at that sample and at the next.

    Args:
        every: steps between two samples; the first one is taken at once, and measures nothing.

    Raises:
        UserError: where `every` is below 1.

    Examples:
        >>> probe = Directions(every=1)
        >>> probe.look([torch.tensor([1.0, 0.0, 2.0])])
        {}
        >>> sums = probe.look([torch.tensor([1.0, 0.0, -1.0])])
        >>> sums["direction_dot"].item(), sums["direction_agree"].item()
        (-1.0, 2.0)
    """

    def __init__(self, every: int = 100) -> None:
        self.every = checked_every(every)
        self._seen = 0
        self._marks: list[Mark | None] = []
        self._kept: list[Tensor | None] = []
        self._index: tuple[list[int], Tensor] | None = None

    @torch.no_grad()
    def look(self, grads: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Compare with the last sample if it is time to, and keep this one.

        Args:
            grads: one a parameter, None where there is none.

        Returns:
            Between samples, and where nothing can be compared, nothing. Otherwise vectors [P] on
            the device of the first gradient, in float64 (float32 where the device has none), NaN
            for parameters that could not be compared: "direction_dot" (sum of now x before),
            "direction_now" and "direction_before" (sums of squares), in the gradients' unit
            squared, and "direction_agree" (entries that are both positive, both negative or both
            exactly 0).
        """
        turn = self._seen % self.every == 0
        self._seen += 1
        if not turn:
            return {}
        marks = [mark(grad) for grad in grads]
        if len(marks) != len(self._marks):
            self._marks, self._kept = [None] * len(marks), [None] * len(marks)
        which = [i for i, m in enumerate(marks) if m is not None and m == self._marks[i]]
        sums = self._compared(grads, which)
        self._replace(grads, marks)
        if not which:
            return {}
        dot, now, before, agree = sums.unbind()
        return {
            "direction_dot": dot,
            "direction_now": now,
            "direction_before": before,
            "direction_agree": agree,
        }

    def _compared(self, grads: Sequence[Tensor | None], which: list[int]) -> Tensor:
        """[4, P] sums, NaN but for the chosen ones, whose copies are brought up to date."""
        home = home_of([grad for grad in grads if grad is not None])
        found = [
            (g, k)
            for i in which
            if (g := grads[i]) is not None and (k := self._kept[i]) is not None
        ]
        sums = pairs.directions([g for g, _ in found], [k for _, k in found], home)
        if len(which) == len(grads):
            return sums
        if self._index is None or self._index[0] != which or self._index[1].device != home:
            self._index = which, torch.tensor(which, dtype=torch.int64, device=home)
        spread = torch.full((4, len(grads)), torch.nan, dtype=wide_dtype(home), device=home)
        return spread.index_copy_(1, self._index[1], sums)

    def _replace(self, grads: Sequence[Tensor | None], marks: list[Mark | None]) -> None:
        """Copies of what is new, and none of what has gone."""
        fresh: list[Tensor] = []
        copies: list[Tensor] = []
        for i, (grad, now) in enumerate(zip(grads, marks, strict=True)):
            if now == self._marks[i]:
                continue
            self._kept[i] = None
            if grad is not None and now is not None:
                with torch.inference_mode(False):
                    copy = torch.empty(room(now), dtype=real_type(now[2]), device=now[3])
                self._kept[i] = copy
                fresh.append(grad)
                copies.append(copy)
        self._marks = marks
        if fresh:
            pairs.keep(fresh, copies)
