"""The rules that a watch has unless told otherwise."""

from gradwise.watch.rules.base import AnyRule
from gradwise.watch.rules.clipped import AlreadyClipped, ClippedBeforeUnscale
from gradwise.watch.rules.dead import Dead
from gradwise.watch.rules.dominating import Dominating
from gradwise.watch.rules.exploding import Exploding
from gradwise.watch.rules.frozen import Frozen
from gradwise.watch.rules.nonfinite import NonFinite
from gradwise.watch.rules.nostep import NoStep
from gradwise.watch.rules.ratio import LargeUpdates, SmallUpdates
from gradwise.watch.rules.stale import Stale
from gradwise.watch.rules.vanishing import Vanishing

__all__ = ["default_rules"]


def default_rules() -> tuple[AnyRule, ...]:
    """All rules there are, with their defaults.

    To change one, put it in front: of two rules with the same name the first counts.

    Examples:
        >>> from gradwise.watch import rules
        >>> mine = [rules.Exploding(action="raise"), *rules.default_rules()]
        >>> rules.Rules(mine).rules[0].action
        'raise'
    """
    return (
        NonFinite(),
        Exploding(),
        Vanishing(),
        Dead(),
        Frozen(),
        LargeUpdates(),
        SmallUpdates(),
        Dominating(),
        ClippedBeforeUnscale(),
        AlreadyClipped(),
        Stale(),
        NoStep(),
    )
