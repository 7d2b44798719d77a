"""AdaGradOTA and AdamOTA: AdaGrad where alpha is 2, and what AdamOTA is not."""

from __future__ import annotations

import pytest
import torch
from optim_helpers import Probe, by, close, each_route, noise, normal, walk

from gradwise.federated import Channel
from gradwise.optim import AdaGradOTA, AdaMomentum, AdamOTA
from reference import optimizers as oo

START = [normal(3, 2, seed=7), normal(5, seed=8)]
SHAPES = ((3, 2), (5,))
TINY = 1e-30
power = oo.AdaGradOTA.buffers[1]


@each_route
def test_alpha_2_is_adagrad(route):
    """torch's AdaGrad has its eps outside the root, too."""
    path = noise(8, *SHAPES)
    mine, states = walk(
        lambda p: AdaGradOTA(p, lr=0.1, alpha=2.0, eps=1e-2, **by(route)), START, path
    )
    theirs, sums = walk(
        lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-2, foreach=False), START, path
    )
    for a, b, state, total in zip(mine, theirs, states, sums, strict=True):
        close(a, b, 1e-13)
        close(state[power], total["sum"], 1e-13)


@each_route
@pytest.mark.parametrize("alpha", [1.1, 1.5, 2.0])
class TestFirstStep:
    @pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
    def test_of_adagrad_ota(self, route, alpha, beta1):
        grad = normal(3, 2)
        taken = Probe(AdaGradOTA, route, alpha=alpha, beta1=beta1, eps=TINY).take(grad)
        close(taken, grad.sign(), 1e-12)

    @pytest.mark.parametrize("betas", [(0.9, 0.3), (0.0, 0.9)])
    def test_of_adam_ota(self, route, alpha, betas):
        grad = normal(3, 2)
        taken = Probe(AdamOTA, route, alpha=alpha, betas=betas, eps=TINY).take(grad)
        close(taken, grad.sign() / (1 - betas[1]) ** (1 / alpha), 1e-12)


@each_route
def test_first_step_of_adam_ota_as_published(route):
    taken = Probe(AdamOTA, route, eps=TINY).take(torch.tensor([3.0, -0.2], dtype=torch.float64))
    assert taken.tolist() == pytest.approx([1.268, -1.268], abs=5e-4)


@each_route
class TestAdamOTAWithAlpha2:
    def test_is_not_adam(self, route):
        path = noise(6, *SHAPES)
        mine, _ = walk(
            lambda p: AdamOTA(p, lr=0.01, alpha=2.0, betas=(0.9, 0.99), eps=1e-8, **by(route)),
            START,
            path,
        )
        theirs, _ = walk(
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.99), foreach=False), START, path
        )
        for a, b in zip(mine, theirs, strict=True):
            assert (a - b).abs().max() > 0.01

    def test_has_the_second_moment_of_adamomentum(self, route):
        path, betas = noise(6, *SHAPES), (0.9, 0.99)
        _, mine = walk(
            lambda p: AdamOTA(p, lr=0.01, alpha=2.0, betas=betas, **by(route)), START, path
        )
        _, theirs = walk(
            lambda p: AdaMomentum(p, lr=0.01, betas=betas, eps=1e-40, **by(route)), START, path
        )
        for a, b in zip(mine, theirs, strict=True):
            close(a["exp_avg"], b["exp_avg"], 1e-14)
            close(a[power], b["exp_avg_sq"], 1e-13)

    def test_has_no_bias_correction(self, route):
        betas, eps = (0.9, 0.99), 1e-3
        probe = Probe(AdamOTA, route, alpha=2.0, betas=betas, eps=eps)
        for (g,) in noise(6, (5,)):
            taken = probe.take(g)
            root = probe.state[power].sqrt()
            close(taken, probe.state["exp_avg"] / (root + eps), 1e-13)


@each_route
@pytest.mark.parametrize("cls", [AdaGradOTA, AdamOTA])
@pytest.mark.parametrize("factor", [2.0**-10, 1e4])
def test_scale_of_the_gradient_does_not_matter(route, cls, factor):
    plain, scaled = (Probe(cls, route, eps=TINY) for _ in range(2))
    for (g,) in noise(8, (3, 2)):
        close(scaled.take(factor * g), plain.take(g), 1e-11)


@each_route
@pytest.mark.parametrize("cls", [AdaGradOTA, AdamOTA])
def test_eps_stands_outside_the_root(route, cls):
    plain, large = Probe(cls, route, eps=TINY), Probe(cls, route, eps=0.5)
    for (g,) in noise(4, (5,)):
        a, b = plain.take(g), large.take(g)
        delta = plain.state.get("exp_avg", g)
        # Delta / a is the root alone; Delta / b is eps more.
        close(delta / b - delta / a, torch.full_like(a, 0.5), 1e-9)


@each_route
@pytest.mark.parametrize("cls", [AdaGradOTA, AdamOTA])
def test_no_gradient(route, cls):
    probe = Probe(cls, route)
    for _ in range(3):
        assert torch.equal(probe.take(torch.zeros(4)).abs(), torch.zeros(4))


@each_route
def test_adagrad_ota_only_slows_down(route):
    probe, grad = Probe(AdaGradOTA, route, alpha=1.5), normal(5)
    sizes = torch.stack([probe.take(grad).abs() for _ in range(30)])
    assert (sizes.diff(dim=0) < 0).all()
    # t equal powers sum to t |g|^alpha, so the step is t^(-1/alpha).
    close(sizes[29], torch.full_like(grad, 30 ** (-1 / 1.5)), 1e-3)


@each_route
@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0])
def test_divisor_is_the_alpha_norm_of_the_gradients(route, alpha):
    probe, seen = Probe(AdaGradOTA, route, alpha=alpha, eps=TINY), []
    for (g,) in noise(6, (5,)):
        seen.append(g)
        norm = torch.linalg.vector_norm(torch.stack(seen), ord=alpha, dim=0)
        close(probe.take(g), g / norm, 1e-12)


@each_route
@pytest.mark.parametrize("cls", [AdaGradOTA, AdamOTA])
@pytest.mark.parametrize("alpha", [1.1, 1.5, 2.0])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 4e-15)], ids=["single", "double"]
)
def test_root_undoes_the_power_at_every_size(route, cls, alpha, dtype, rtol):
    """The root may be found by iteration: a round too few shows at some sizes only."""
    grad = torch.logspace(-15, 15, 3001, dtype=torch.float64).to(dtype)
    taken = Probe(cls, route, alpha=alpha, eps=0.0).take(grad)
    first = (1 - 0.3) ** (-1 / alpha) if cls is AdamOTA else 1.0
    close(taken, torch.full_like(grad, first), rtol)


@each_route
@pytest.mark.parametrize("cls", [AdaGradOTA, AdamOTA])
def test_ideal_channel_is_central_training(route, cls):
    """N = 1, h = 1, xi = 0 in (8.2); and N clients of an ideal channel are their average."""
    ideal, path = Channel("none", scale=0.0), noise(5, *SHAPES)
    central, _ = walk(lambda p: cls(p, lr=0.1, **by(route)), START, path)
    sent = [ideal([grads]) for grads in path]
    alone, _ = walk(lambda p: cls(p, lr=0.1, **by(route)), START, sent)
    apart = [ideal([[g + 1 for g in grads], [g - 1 for g in grads]]) for grads in path]
    together, _ = walk(lambda p: cls(p, lr=0.1, **by(route)), START, apart)
    for a, b, c in zip(central, alone, together, strict=True):
        assert torch.equal(a, b)
        close(c, a, 1e-10)
