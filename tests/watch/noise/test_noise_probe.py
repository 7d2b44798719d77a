"""What the probe measures where gradients are accumulated, and where it had better say nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradwise.errors import UserError
from gradwise.watch.probes import cycle
from gradwise.watch.probes.noise import ALONE, NoiseProbe
from noise.loops import agrees, expected, looped, loss_of, numbers


def hooks(model: nn.Module) -> int:
    found = 0
    for p in model.parameters():
        found += len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ())
    return found


@pytest.mark.parametrize("divided", [True, False], ids=["divided by M", "summed"])
@pytest.mark.parametrize("passes", [2, 5])
def test_it_measures_what_it_says(passes: int, divided: bool) -> None:
    loop = looped(passes, divided=divided)
    for _ in range(3):
        truth = expected(loop.true(), 1 / passes if divided else 1.0)
        assert agrees(loop.step(), truth)
        assert loop.probe.reason is None


def test_clipping_and_unscaling_before_the_step_change_nothing() -> None:
    loop = looped()
    params = list(loop.model.parameters())

    def meddle() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1e-3)
        for p in params:
            p.grad.div_(1024.0)

    loop.before_step = meddle
    truth = expected(loop.true(), 1 / 3)
    assert agrees(loop.step(), truth)


def test_every_so_many_steps() -> None:
    loop = looped(every=4)
    found = [bool(loop.step()) for _ in range(9)]
    assert found == [step % 4 == 0 for step in range(1, 10)]


def test_hooks_are_there_in_measured_steps_only() -> None:
    loop = looped(every=3)
    counts = []
    for _ in range(6):
        counts.append(hooks(loop.model))
        loop.step()
    assert counts == [1, 1, 9, 1, 1, 9]
    loop.probe.close()
    loop.probe.close()
    assert hooks(loop.model) == 0
    assert loop.step() == {}
    assert loop.probe.backwards == 0


def test_plain_training_is_never_measured() -> None:
    loop = looped(1)
    for _ in range(5):
        assert hooks(loop.model) == 1
        assert loop.step() == {}
    assert loop.probe.reason == ALONE
    assert "accumulate gradients over micro-batches or train with" in ALONE
    # and as soon as there is something to measure, it is
    assert loop.step(4) == {}
    truth = expected(loop.true(4), 1 / 4)
    assert agrees(loop.step(4), truth)


def test_a_changing_number_of_passes() -> None:
    loop = looped(2)
    for passes in (4, 2, 3):
        truth = expected(loop.true(passes), 1 / passes)
        assert agrees(loop.step(passes), truth)


@pytest.mark.parametrize(("passes", "reason"), [(1, cycle.SINGLE), (0, cycle.NOTHING)])
def test_too_few_passes_in_the_step_that_is_measured(passes: int, reason: str) -> None:
    loop = looped(2, every=2)
    loop.step()
    assert loop.step(passes) == {}
    assert loop.probe.reason == reason
    loop.step()
    assert loop.step()
    assert loop.probe.reason is None


class TestZeroing:
    def test_in_place(self) -> None:
        loop = looped()
        loop.zero = lambda: loop.optimizer.zero_grad(set_to_none=False)
        for _ in range(2):
            truth = expected(loop.true(), 1 / 3)
            found = loop.step()
            assert agrees(found, truth)
            assert isinstance(found["noise_ratio"], Tensor)

    def test_never(self) -> None:
        loop = looped()
        loop.zero = lambda: None
        small, big, ratio = numbers(loop.step())
        assert ratio != ratio
        assert small == small
        assert big == big

    def test_of_one_parameter_alone_is_not_enough(self) -> None:
        loop = looped()
        loop.zero = lambda: setattr(loop.model[0].weight, "grad", None)
        assert numbers(loop.step())[2] != 3.0

    @pytest.mark.parametrize("to_none", [True, False])
    def test_between_two_passes(self, to_none: bool) -> None:
        # As sharpness-aware steps do, or a discriminator that also got the generator's gradients.
        loop = looped()
        loop.between = lambda m: loop.optimizer.zero_grad(set_to_none=to_none) if m == 0 else None
        assert loop.step() == {}
        assert loop.probe.reason == cycle.CHANGED

    def test_anything_written_between_two_passes(self) -> None:
        loop = looped()
        loop.between = lambda m: loop.model[2].bias.grad.mul_(0.5)
        assert loop.step() == {}
        assert loop.probe.reason == cycle.CHANGED
        loop.between = lambda m: None
        assert loop.step()


def test_a_step_that_was_skipped_is_no_micro_batch() -> None:
    # GradScaler leaves out optimizer.step after an overflow; the loop goes on with the next batch.
    loop = looped(2)
    for m in range(2):
        loop.zero()
        loss_of(loop.model, m).backward()
    assert loop.step() == {}
    assert loop.probe.reason == cycle.CHANGED


def test_backward_passes_are_counted() -> None:
    loop = looped(3)
    seen = []
    loop.before_step = lambda: seen.append(loop.probe.backwards)
    for passes in (3, 1, 4, 0, 2):
        loop.step(passes)
        assert loop.probe.backwards == 0
    assert seen == [3, 1, 4, 0, 2]
    loss_of(loop.model, 0).backward()
    loss_of(loop.model, 1).backward()
    assert loop.probe.backwards == 2  # no step has come since


def test_stale_gradients_count_nothing() -> None:
    loop = looped(1)
    loop.zero = lambda: None
    loop.probe.gradients([p.grad for p in loop.model.parameters()])
    assert loop.probe.backwards == 0


def test_mistakes() -> None:
    with pytest.raises(UserError, match="expected every >= 1, got every=0"):
        NoiseProbe([], every=0)
