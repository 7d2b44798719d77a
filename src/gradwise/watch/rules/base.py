"""What a rule is: a judgement of every record, and words for what was found."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from gradwise.errors import UserError
from gradwise.watch.alerts import Alert
from gradwise.watch.rules.view import Array, Mask, View

__all__ = [
    "Action",
    "AnyRule",
    "Found",
    "Judgement",
    "Rule",
    "Seen",
    "Words",
    "at_least",
    "between",
    "shown",
]

Action = Literal["log", "raise"] | Callable[[Alert], object]
"""What to do about an alert: write a line to the log, raise `GradientAlert` in the training loop
at the next step, or call this there."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a rule thinks of K records of N subjects.

    A record may be neither bad nor calm: that lies between the threshold and its margin, breaks
    a streak of bad ones and one of calm ones.

    Attributes:
        known: [K, N], whether there was anything to judge; what was not leaves streaks alone.
        bad: [K, N], whether it is over the rule's threshold.
        calm: [K, N], whether it is well within, so that trouble may be called over.
        value: [K, N], the number to show.
        score: [K, N], how bad, to find the worst; None to go by the value.
    """

    known: Mask
    bad: Mask
    calm: Mask
    value: Array
    score: Array | None = None


@dataclass(frozen=True)
class Seen:
    """One subject of an alert.

    Attributes:
        index: which of the rule's subjects.
        layer: its name; None for the whole.
        step: where its streak began.
        value: the number to show, of the worst record of the streak.
        score: how bad that was.
    """

    index: int
    layer: str | None
    step: int
    value: float
    score: float


@dataclass(frozen=True)
class Found:
    """What an alert is about.

    Attributes:
        seen: the subjects, the worst first; the whole, where it is among them, before all layers.
        layers: how many layers the run has.
        known: the step at which it was clear.
    """

    seen: tuple[Seen, ...]
    layers: int
    known: int

    @property
    def step(self) -> int:
        """The step at which it began."""
        return min(one.step for one in self.seen)

    @property
    def worst(self) -> Seen:
        """The subject to show the numbers of."""
        return self.seen[0]

    @property
    def where(self) -> str:
        """The subjects in words.

        Examples:
            >>> seen = tuple(Seen(i, name, 0, 1.0, 1.0) for i, name in enumerate("abcd"))
            >>> Found(seen[:1], 9, 0).where, Found(seen, 9, 0).where
            ("'a'", "4 of 9 layers (first of all 'a', 'b', 'c')")
        """
        names = [repr(one.layer) for one in self.seen if one.layer is not None]
        if len(names) <= 1:
            return "".join(names) or "the whole"
        if len(names) <= 3:
            return f"{', '.join(names[:-1])} and {names[-1]}"
        return f"{len(names)} of {self.layers} layers (first of all {', '.join(names[:3])})"


@dataclass(frozen=True)
class Words:
    """What a rule says about what was found.

    Attributes:
        message: one sentence with numbers: what happened, where.
        advice: what it means and what people usually do about it.
        severity: "warning" or "error".
        layer: the layer to name where the subject is the whole; None for none.
    """

    message: str
    advice: str
    severity: str = "warning"
    layer: str | None = None


@dataclass(kw_only=True)
class AnyRule:
    """What all rules have in common.

    Args:
        action: "log" writes a line to the logger "gradwise", "raise" raises `GradientAlert` in
            the training loop, and a function is called there with the alert.
        streak: how often in a row something must be found until the rule speaks up.

    Attributes:
        name: what alerts call the rule.

    Raises:
        UserError: where a number is out of its bounds.
    """

    name: ClassVar[str]

    action: Action = "log"
    streak: int = 1

    def __post_init__(self) -> None:
        if not (callable(self.action) or self.action in ("log", "raise")):
            raise UserError(
                f"expected action 'log', 'raise' or a function, got action={self.action!r}"
            )
        at_least(self, streak=1)


@dataclass(kw_only=True)
class Rule(AnyRule, ABC):
    """Judges a run record by record; whoever runs it adds the hysteresis.

    To write one, derive a dataclass with a `name` of its own, `judge` and `explain`; what it has
    to remember from block to block is set in `begin`. A rule object is a description: every run
    works with a copy of its own.

    Trouble begins after `streak` bad records in a row and ends after `calm` calm ones. Each time
    the same subject comes back it takes twice as many calm ones, up to 64 times `calm`, so that
    a signal which goes to and fro gives few alerts.

    Args:
        action: see `AnyRule`.
        streak: bad records in a row until the rule speaks up; records without a measurement
            count neither way.
        calm: calm records in a row until it is over.
        warmup: records at the beginning of a run that are not judged.

    Attributes:
        name: what alerts call the rule.
        needs: metrics of layers or steps without which there is nothing to judge; one of several
            is enough where they stand together as "zeros|norm".
        gather: records to wait for further layers, so that one alert tells of all.

    Raises:
        UserError: where a number is out of its bounds.

    Examples:
        >>> @dataclass(kw_only=True)
        ... class HighLoss(Rule):
        ...     name = "high-loss"
        ...     limit: float = 10.0
        ...     def judge(self, view):
        ...         loss = view.scalar("loss")[:, None]
        ...         return Judgement(loss == loss, loss > self.limit, loss < self.limit / 2, loss)
        ...     def explain(self, found):
        ...         return Words(f"the loss rose to {found.worst.value:g}.", "Look at the data.")
        >>> HighLoss(streak=3, action="raise").limit
        10.0
    """

    needs: ClassVar[tuple[str, ...]] = ()
    gather: ClassVar[int] = 0

    calm: int = 10
    warmup: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, calm=1, warmup=0)

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything: a run begins.

        Args:
            names: the layers.

        Returns:
            The N subjects that the rule judges: a layer's name, or None for the whole. Here, the
            whole alone.
        """
        return (None,)

    @abstractmethod
    def judge(self, view: View) -> Judgement | None:
        """Judge K records; all are judged in order, in blocks of any size.

        What numpy has to say about NaN, infinities and overflows is not heard here.

        Args:
            view: the records.

        Returns:
            The judgement [K, N]; None where there is nothing to judge by.
        """

    @abstractmethod
    def explain(self, found: Found) -> Words:
        """Say what was found.

        Args:
            found: the subjects and their numbers.
        """


def at_least(rule: object, **bounds: float) -> None:
    """Check that fields are numbers no less than a bound.

    Args:
        rule: whose fields.
        bounds: the lowest allowed value of each.

    Raises:
        UserError: where one is less, or no number.
    """
    for name, low in bounds.items():
        value = getattr(rule, name)
        if not value >= low:
            raise UserError(f"expected {name} >= {low:g}, got {name}={value:g}")


def between(rule: object, low: float, high: float, *names: str) -> None:
    """Check that fields lie strictly between two bounds.

    Args:
        rule: whose fields.
        low: the lower bound.
        high: the upper bound.
        names: the fields.

    Raises:
        UserError: where one does not.
    """
    for name in names:
        value = getattr(rule, name)
        if not low < value < high:
            raise UserError(f"expected {low:g} < {name} < {high:g}, got {name}={value:g}")


def shown(number: float) -> str:
    """A number as sentences show it, to three digits.

    Args:
        number: any.

    Examples:
        >>> shown(0.000123456), shown(1234.5), shown(12)
        ('0.000123', '1,234', '12')
    """
    if 1000 <= abs(number) < 1e6:
        return f"{number:,.0f}"
    return f"{number:.3g}"
