"""When a step shows the gradient at two batch sizes, and how many backward passes it has.

Where a step accumulates the gradients of M micro-batches, each is a batch of its own and their sum
is a larger one. Where `DistributedDataParallel` averages over processes, the gradient before that
is one of the smaller batch. Both are read during the backward pass, never at the optimizer's step:
somebody may have clipped or unscaled them by then, and both norms must be in the same unit.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwise.watch.noise import NEEDS_TWO_SIZES
from gradwise.watch.probes.cycle import SEVERAL, Cycle
from gradwise.watch.probes.hooks import Hook, after_accumulation, remove, trainable
from gradwise.watch.probes.plain import checked_every, holds_values
from gradwise.watch.probes.replicas import Replicas

ALONE = f"{NEEDS_TWO_SIZES}; here a step has one backward pass on one process"
APART = f"{NEEDS_TWO_SIZES}; here no DistributedDataParallel is found, and a step has one pass"
SHARDED = "the parameters are sharded, and a part's norm is not that of the gradient"
MIXED = "DistributedDataParallel averages some of the gradients only, or not all over one group"


class NoiseProbe:
    """Measures |g_b|^2 and |g_B|^2 of a step on the device, without making the host wait.

    Steps that are not measured cost one hook on one parameter, which counts backward passes. In
    those that are, every parameter has hooks for the length of the step, and each backward pass
    costs two reads more: of the new gradients, and of the sum so far. Nothing is measured before a
    step has shown that there are two batch sizes: several backward passes, or several processes.

    The smaller batch is one backward pass on this process; its squared norm is the mean of those of
    the M passes of the step, which leaves less to chance than one of them would. The larger one is
    all of them, of all processes where they are averaged. Other processes' own norms would be
    another M samples each; leaving them out costs no bias, and asking for them a message.

    Args:
        params: all that the optimizer updates.
        every: measure every so many steps, counted from 0; not step 0, which may have begun before.
        model: where to look first for a `DistributedDataParallel`.

    Attributes:
        backwards: backward passes since the last `end`, or since this was made.
        reason: why the last step that was to be measured was not, as a sentence without a full
            stop; None where it was, or where none has been due.

    Raises:
        UserError: where `every` is below 1.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> probe = NoiseProbe([weight], every=1)
        >>> for step in range(2):  # the first one only shows that there are two passes a step
        ...     weight.grad = None
        ...     for sample in torch.tensor([[3.0, 0.0], [0.0, 4.0]]):
        ...         (weight * sample).sum().backward()
        ...     probe.gradients([weight.grad])
        ...     found = probe.end()
        >>> {name: float(value) for name, value in found.items()}
        {'noise_small': 12.5, 'noise_big': 6.25, 'noise_ratio': 2.0}
        >>> probe.close()
    """

    def __init__(
        self, params: Sequence[Tensor], *, every: int = 10, model: nn.Module | None = None
    ) -> None:
        self._every = checked_every(every)
        self.backwards = 0
        self.reason: str | None = None
        self._params = list(params)
        self._steps = 0
        self._evaluations = 0  # of the gradients in this step, several with LBFGS
        self._cycle: Cycle | None = None  # where this step is measured
        self._replicas = Replicas(self._params, model)
        self._counting: int | None = None  # the parameter that announces backward passes
        self._hook: list[RemovableHandle] = []  # on it
        self._closed = False
        weakref.finalize(self, remove, self._hook).atexit = False
        # The last one is near the loss, where training goes on when all the rest is frozen.
        self._count_at([i for i, param in enumerate(self._params) if trainable(param)])

    def gradients(self, grads: Sequence[Tensor | None]) -> None:
        """All gradients of an evaluation are there, before anything is done to them at the step.

        Args:
            grads: one a parameter.
        """
        self._evaluations += 1
        if self._cycle is not None:
            self._cycle.stepping()
        if self.backwards == 0:
            self._look_elsewhere(grads)

    def end(self) -> dict[str, Tensor | float]:
        """The step is over.

        Returns:
            Nothing; or `noise_small` and `noise_big`, the squared norms as 0-d tensors on the
            gradients' device, in the unit of the gradients as backward makes them (a loss scale
            included, which cancels in the noise scale); and `noise_ratio`, the larger batch's size
            over the smaller's. The ratio is NaN where the step's gradients did not begin at zero,
            and a 0-d tensor where only the device can tell.
        """
        backwards, evaluations, cycle = self.backwards, self._evaluations, self._cycle
        self.backwards = self._evaluations = 0
        self._cycle = None
        found: dict[str, Tensor | float] = {}
        if cycle is not None:
            found = cycle.result()
            self.reason = cycle.reason
            passes, reached = cycle.passes()
            if self._counting not in reached:  # several losses, of which it sees a part
                backwards = passes
                self._count_at(reached)
        self._steps += 1
        if self._steps % self._every == 0 and not self._closed:
            self._begin(backwards, evaluations)
        return found

    def close(self) -> None:
        """Take all hooks off; calling it again does nothing."""
        self._closed = True
        remove(self._hook)
        if self._cycle is not None:
            self._cycle.close()
            self._cycle = None

    def _count_at(self, candidates: Sequence[int]) -> None:
        """Let the last of some parameters announce backward passes."""
        if candidates and not self._closed:
            remove(self._hook)
            self._counting = candidates[-1]
            hook = Hook(self._count, self._counting)
            self._hook.append(after_accumulation(self._params[self._counting], hook))

    def _look_elsewhere(self, grads: Sequence[Tensor | None]) -> None:
        """No backward pass was announced: perhaps none reached the parameter that counts."""
        pairs = enumerate(zip(self._params, grads, strict=False))
        there = [i for i, (param, grad) in pairs if grad is not None and trainable(param)]
        at = self._counting
        if self._cycle is not None:
            self.backwards = self._cycle.passes()[0]
        if there and at not in there:
            self.backwards = max(self.backwards, 1)  # there are gradients, so there was a pass
        # Gradients that are all there may be those of the step before, or zeros since then: each
        # step without an announcement asks another parameter.
        self._count_at([i for i in there if at is not None and i < at] or there)

    def _count(self, _: int, __: Tensor) -> None:
        self.backwards += 1

    def _begin(self, backwards: int, evaluations: int) -> None:
        """Measure the step that begins now, if one like the last has two batch sizes."""
        processes = self._replicas.size()
        if evaluations > 1:
            self.reason = SEVERAL
        elif not all(holds_values(type(param)) for param in self._params):
            self.reason = SHARDED  # their norms would also need all processes, and one measures
        elif processes is None:
            self.reason = MIXED
        elif backwards < 2 and processes == 1:
            self.reason = APART if self._replicas.joined else ALONE
        else:
            self._cycle = Cycle(self._params, processes)
