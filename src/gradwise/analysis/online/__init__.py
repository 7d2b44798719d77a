"""Online learners whose regret follows the variation of the gradients.

A round: `x = learner.predict()`, the world shows a convex function, `learner.update(grad_fn)` asks
for its gradients. After Xie, Zhao and Zhou, Gradient-Variation Online Learning under Generalized
Smoothness, NeurIPS 2024, https://arxiv.org/abs/2408.09074.

The paper is theory and comes without code. `OptimisticOMD` has its shape of update and step size
with constants that are recalled or chosen here (tags [R] and [X] in the docstrings), and the meta
layer of `UniversalLearner` is this library's stand-in for the paper's own ([X] throughout).
"""

from gradwise.analysis.online.domains import Ball, Box, Domain, Projection
from gradwise.analysis.online.meta import AdaptMLProd
from gradwise.analysis.online.omd import GradFn, Hint, OptimisticOMD, Smoothness
from gradwise.analysis.online.universal import UniversalLearner, geometric_grid

__all__ = [
    "AdaptMLProd",
    "Ball",
    "Box",
    "Domain",
    "GradFn",
    "Hint",
    "OptimisticOMD",
    "Projection",
    "Smoothness",
    "UniversalLearner",
    "geometric_grid",
]
