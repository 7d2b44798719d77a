"""Online learners whose regret follows the variation of the gradients.

A round: `x = learner.predict()`, the world shows a convex function, `learner.update(grad_fn)` asks
for its gradients. After Xie, Zhao and Zhou, Gradient-Variation Online Learning under Generalized
Smoothness, NeurIPS 2024, https://arxiv.org/abs/2408.09074.

The paper is theory and comes without code. `OptimisticOMD` has its shape of update and step size
with constants that are recalled or chosen here (tags [R] and [X] in the docstrings), and the meta
layer of `UniversalLearner` is this library's stand-in for the paper's own ([X] throughout).

`play` plays all rounds of a game at once and measures regret and gradient variation;
`model_rounds` makes a game of a model and its batches.
"""

from gradwise.analysis.online.domains import Ball, Box, Domain, Projection
from gradwise.analysis.online.meta import AdaptMLProd
from gradwise.analysis.online.models import ModelRounds, model_rounds
from gradwise.analysis.online.omd import GradFn, Hint, OptimisticOMD, Smoothness
from gradwise.analysis.online.regret import (
    FixedPoint,
    Learner,
    Loss,
    Regret,
    best_fixed_point,
    play,
)
from gradwise.analysis.online.universal import UniversalLearner, geometric_grid

__all__ = [
    "AdaptMLProd",
    "Ball",
    "Box",
    "Domain",
    "FixedPoint",
    "GradFn",
    "Hint",
    "Learner",
    "Loss",
    "ModelRounds",
    "OptimisticOMD",
    "Projection",
    "Regret",
    "Smoothness",
    "UniversalLearner",
    "best_fixed_point",
    "geometric_grid",
    "model_rounds",
    "play",
]
