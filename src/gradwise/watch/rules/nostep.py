"""An optimizer step that never comes."""

from dataclasses import dataclass, replace
from typing import ClassVar

from gradwise.watch.alerts import Alert
from gradwise.watch.rules.base import AnyRule, at_least

__all__ = ["NoStep", "StepClock"]


@dataclass(kw_only=True)
class NoStep(AnyRule):
    """Backward passes go on, and no optimizer step comes.

    Records are made by steps, so they cannot tell; the training loop has to be asked.

    Args:
        factor: times the usual number of backward passes a step. 20 is far beyond the few steps
            that a loss scaler leaves out after an overflow, and beyond the last, shorter or
            longer, accumulation of an epoch.
        unusual: backward passes before the very first step; 500 is more than anybody accumulates.
        seconds: time that must have passed too, so that a loop of tiny steps is not reported
            between two looks at it.
        action: see `AnyRule`.
        streak: looks in a row that must find it so.

    Raises:
        UserError: where a number is out of its bounds.
    """

    name: ClassVar[str] = "no-step"

    factor: float = 20.0
    unusual: float = 500.0
    seconds: float = 10.0
    streak: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, factor=2, unusual=1, seconds=0)

    def clock(self) -> "StepClock":
        """What watches one training loop by this rule.

        Examples:
            >>> clock = NoStep(streak=1).clock()
            >>> clock.feed(step=7, backwards=3, seconds=30.0, usual=1.0) is None
            True
            >>> clock.feed(step=7, backwards=64, seconds=30.0, usual=1.0).message
            'no optimizer step came for 64 backward passes and 30 s, where one came every 1 before.'
        """
        return StepClock(self)


class StepClock:
    """Finds out that no step comes, from what is known of the training loop once in a while.

    Args:
        rule: says when that is so.
    """

    def __init__(self, rule: NoStep) -> None:
        self._rule = rule
        self._alert: Alert | None = None
        self._streak = 0

    def feed(
        self, *, step: int, backwards: float, seconds: float, usual: float | None
    ) -> Alert | None:
        """Take in how the loop gets on.

        Args:
            step: the last step taken, -1 before the first.
            backwards: backward passes since then.
            seconds: time since then.
            usual: backward passes that a step usually has; None where there was no step yet.

        Returns:
            The alert where one begins, and again with its end where it is over; None otherwise.
        """
        rule, alert = self._rule, self._alert
        known = usual is not None and usual > 0
        limit = rule.factor * max(usual, 1.0) if known and usual is not None else rule.unusual
        if alert is not None:
            if backwards < limit / 2:
                self._alert, self._streak = None, 0
                return replace(alert, ended=max(step, alert.step))
            return None
        late = backwards >= limit and seconds >= rule.seconds
        self._streak = self._streak + 1 if late else 0
        if self._streak < rule.streak:
            return None
        before = f"where one came every {usual:.3g} before" if known else "not even the first"
        self._alert = Alert(
            rule.name,
            max(step, 0),
            None,
            float(backwards),
            f"no optimizer step came for {backwards:.0f} backward passes and {seconds:.0f} s, "
            f"{before}.",
            "Gradients are computed and never used. Look whether optimizer.step() is still called, "
            "on this optimizer, and whether a loss scaler leaves every step out because of "
            "overflows (its scale then falls and falls).",
            "warning",
        )
        return self._alert
