"""Rules on the training loop's order: where each must speak up, and where not."""

import numpy as np
import pytest
from rules_streams import block, found, healthy, stream, whole

from gradwise.watch import rules


def clipped(bound, steps=400, noise=1e-7, **options):
    """Layers that change, scaled to the same norm at each step."""
    layers = healthy(steps, **options)
    random = np.random.default_rng(1)
    factor = bound * (1 + noise * random.standard_normal(steps)) / whole(layers["norm"])
    for metric in ("norm", "mean"):
        layers[metric] = layers[metric] * factor[:, None]
    return layers


class TestClipped:
    def one(self, layers):
        return found(stream(layers), [rules.ClippedBeforeUnscale(), rules.AlreadyClipped()])

    @pytest.mark.parametrize(
        ("bound", "power", "told"),
        [(1.0, 16, "1 divided by 2^16"), (0.5, 10, "1 divided by 2^11"),
         (5.0, 14, "5 divided by 2^14"), (0.1, 24, "0.1 divided by 2^24")],
    )  # fmt: skip
    def test_before_unscaling(self, bound, power, told):
        [alert] = self.one(clipped(bound / 2**power))
        assert (alert.rule, alert.step, alert.severity) == ("clipped-before-unscale", 1, "error")
        assert f"({told})" in alert.message

    def test_the_scale_may_change(self):
        layers = clipped(2.0**-16)
        layers["norm"][200:] *= 2
        layers["norm"][210:] /= 4
        [alert] = self.one(layers)
        assert alert.ended is None

    def test_a_bound_nobody_uses_is_not_taken_apart(self):
        [alert] = self.one(clipped(0.7 / 2**16))
        assert "divided by 2^" not in alert.message

    def test_clipped_before_it_was_measured(self):
        [alert] = self.one(clipped(1.0))
        assert (alert.rule, alert.step, alert.severity) == ("already-clipped", 1, "warning")
        assert alert.value == pytest.approx(1.0)

    def test_not_where_it_is_clipped_now_and_then(self):
        layers = clipped(1.0)
        layers["norm"][::25] *= 0.9
        assert self.one(layers) == []

    def test_not_for_a_gradient_that_hardly_changes(self):
        # All of the data at each step and a small learning rate: the whole and the layers alike.
        layers = healthy(400, sigma=0.0)
        layers["norm"] = layers["norm"][:1] * np.exp(-1e-5 * np.arange(400))[:, None]
        assert self.one(layers) == []

    def test_not_for_noise_in_layers_that_do_not_matter(self):
        layers = healthy(400, sigma=0.0)
        layers["norm"] = np.repeat(layers["norm"][:1], 400, 0)
        layers["norm"][:, 3] = 1e-9 * np.random.default_rng(0).random(400)
        assert self.one(layers) == []

    def test_over_when_it_changes_at_an_ordinary_size(self):
        layers = clipped(1.0, steps=600)
        layers["norm"][300:] = healthy(600)["norm"][300:]
        alerts = self.one(layers)
        assert [(alert.rule, alert.ended) for alert in alerts] == [("already-clipped", 300)]

    def test_not_over_for_the_rounding_of_a_coarser_type(self):
        layers = clipped(2.0**-16)
        layers["norm"][200:] *= np.where(np.arange(200) % 2, 1.0, 1.0003)[:, None]
        [alert] = self.one(layers)
        assert alert.ended is None

    def test_over_when_it_changes(self):
        layers = clipped(2.0**-16, steps=600)
        free = healthy(600)["norm"]
        layers["norm"][300:] = free[300:]
        alerts = self.one(layers)
        assert [(alert.rule, alert.ended) for alert in alerts] == [("clipped-before-unscale", 300)]


class TestStale:
    def one(self, layers, scalars=None):
        return found(stream(layers, scalars), [rules.Stale()])

    def test_the_same_gradient_again_and_again(self):
        layers = healthy(100)
        for metric in ("norm", "mean"):
            layers[metric][40:60] = layers[metric][40]
        layers["norm"] *= 1e-9
        for metric in ("norm", "mean"):
            layers[metric][:, 2] = np.nan  # a layer without a gradient
        [alert] = self.one(layers)
        assert (alert.step, alert.ended) == (41, 60)
        assert "exactly that of the step before" in alert.message

    def test_where_backward_passes_were_not_counted(self):
        layers = healthy(100)
        for metric in ("norm", "mean"):
            layers[metric][40:60] = layers[metric][40]
        few = {name: layers[name] for name in ("norm", "mean")}
        [alert] = found(block(few), [rules.Stale()])
        assert (alert.step, alert.ended) == (41, 60)

    @pytest.mark.parametrize("metric", ["norm", "mean"])
    def test_not_if_anything_differs(self, metric):
        layers = healthy(100)
        for name in ("norm", "mean"):
            layers[name][40:60] = layers[name][40]
        layers[metric][40:60, 5] *= 1 + 1e-12 * np.arange(20)
        told = np.repeat(whole(layers["norm"])[40], 100)
        assert self.one(layers, {"grad_norm": told}) == []

    def test_not_for_zeros_nor_while_the_learning_rate_is_zero(self):
        layers = healthy(100)
        for metric in ("norm", "mean"):
            layers[metric][40:60] = layers[metric][40]
            layers[metric][70:90] = 0.0
        rate = np.full(100, 0.1)
        rate[40:60] = 0.0
        assert self.one(layers, {"lr": rate}) == []
        assert len(self.one(layers, {"lr": rate, "lr/1": np.full(100, 0.1)})) == 1

    def test_no_backward_pass(self):
        layers = healthy(100)
        backwards = np.ones(100)
        backwards[40:60] = 0
        for values in layers.values():
            values[40:60] = np.nan
        [alert] = self.one(layers, {"backwards": backwards})
        assert (alert.step, alert.ended) == (40, 60)
        assert "without a backward pass" in alert.message

    def test_gradients_written_by_hand_need_no_backward_pass(self):
        assert self.one(healthy(100), {"backwards": np.zeros(100)}) == []


class TestNoStep:
    def feed(self, clock, *times):
        return [clock.feed(step=5, backwards=b, seconds=s, usual=u) for b, s, u in times]

    def test_begins_and_ends(self):
        clock = rules.NoStep().clock()
        late, soon, less = (50, 60.0, 2.0), (3, 1.0, 2.0), (21, 60.0, 2.0)
        times = (late, late, late, less, soon, soon)
        first, alert, lasting, still, over, again = self.feed(clock, *times)
        assert first is lasting is still is again is None
        assert (alert.rule, alert.step, alert.layer, alert.value) == ("no-step", 5, None, 50.0)
        assert "50 backward passes and 60 s, where one came every 2 before" in alert.message
        assert over.key == alert.key
        assert over.ended == 5

    @pytest.mark.parametrize(
        ("backwards", "seconds", "usual"),
        [
            (39, 60.0, 2.0),  # not twenty times as many
            (400, 9.0, 2.0),  # not for long
            (19, 1e6, 0.1),  # less than one is one
            (499, 1e6, None),  # before the first step, people may accumulate
            (0, 1e6, 1.0),  # a validation
        ],
    )
    def test_not_before_its_time(self, backwards, seconds, usual):
        assert self.feed(rules.NoStep().clock(), *[(backwards, seconds, usual)] * 5) == [None] * 5

    def test_before_the_first_step(self):
        alert = self.feed(rules.NoStep().clock(), *[(500, 20.0, None)] * 2)[1]
        assert "not even the first" in alert.message

    def test_once_in_a_while_is_no_streak(self):
        times = [(50, 60.0, 2.0), (3, 0.1, 2.0)] * 5
        assert self.feed(rules.NoStep().clock(), *times) == [None] * 10
