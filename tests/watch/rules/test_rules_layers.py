"""Rules on single layers: where each must speak up, and where not."""

import numpy as np
import pytest
from rules_streams import ALL, BIAS, block, found, healthy, names, scaled, stream

from gradwise.watch import rules


class TestNonFinite:
    def test_one_layer(self):
        layers = healthy(30)
        layers["nonfinite"][12, 4] = 1
        [alert] = found(stream(layers), [rules.NonFinite()])
        assert alert.message == "the gradient was not finite in layer 'layer4.weight'."

    def test_names_the_first_layer_in_the_models_order(self):
        layers = healthy(30)
        layers["nonfinite"][12, [4, 2]] = [5, 3]
        layers["norm"][12, [4, 2]] = np.nan, np.inf
        [alert] = found(stream(layers), [rules.NonFinite()])
        assert (alert.layer, alert.step, alert.ended, alert.value) == ("layer2.weight", 12, 13, 8.0)
        assert "2 of 6 layers" in alert.message
        assert "'layer2.weight' to 'layer4.weight' (8 values)" in alert.message
        assert alert.severity == "warning"

    def test_is_an_error_where_it_persists(self):
        layers = healthy(60)
        layers["nonfinite"][20:, 3] = 1
        layers["nonfinite"][27:, 1] = 1  # by then another layer is the first
        once, lasts = found(stream(layers), [rules.NonFinite(persists=8)])
        assert (once.layer, once.step, once.severity) == ("layer3.weight", 20, "warning")
        assert (lasts.layer, lasts.step, lasts.severity) == ("layer1.weight", 27, "error")
        layers["nonfinite"][27:] = 0
        assert names(found(stream(layers), [rules.NonFinite(persists=8)])) == ["non-finite"]

    def test_steps_that_were_not_measured_count_neither_way(self):
        layers = healthy(60)
        layers["nonfinite"][20:40:2, 3] = 1
        for values in layers.values():
            values[21:40:2] = np.nan
        assert len(found(stream(layers), [rules.NonFinite(persists=10)])) == 2
        assert len(found(stream(layers), [rules.NonFinite(persists=11)])) == 1

    def test_infinite_norms_without_counts(self):
        layers = healthy(30)
        layers["norm"][5, 1] = np.inf
        layers["norm"][6, 1] = np.nan  # may as well not have been recorded
        [alert] = found(block({"norm": layers["norm"]}), [rules.NonFinite()])
        assert (alert.layer, alert.step, alert.ended) == ("layer1.weight", 5, 6)


class TestDead:
    def one(self, layers, **options):
        return found(stream(layers), [rules.Dead(**options)])

    def test_a_layer(self):
        layers = scaled([(100, 200, 2, 0.0)])
        layers["zeros"][100:200, 2] = 1.0
        [alert] = self.one(layers)
        assert (alert.rule, alert.layer, alert.step, alert.ended) == (
            "dead", "layer2.weight", 100, 200,
        )  # fmt: skip

    @pytest.mark.parametrize("metric", ["zeros", "norm"])
    def test_either_metric_will_do(self, metric):
        layers = scaled([(100, 200, 2, 0.0)])
        layers["zeros"][100:200, 2] = 1.0
        assert len(found(block({metric: layers[metric]}), [rules.Dead()])) == 1

    def test_not_for_a_layer_that_most_inputs_do_not_use(self):
        layers = scaled([(at, at + 25, 2, 0.0) for at in range(100, 380, 30)])
        layers["zeros"] = (layers["norm"] == 0).astype(float)
        assert self.one(layers) == []
        layers["zeros"][:, 4] = 0.999
        assert self.one(layers) == []

    def test_all_layers_is_another_matter(self):
        layers = scaled([(100, 200, ALL, 0.0)])
        layers["zeros"][100:200] = 1.0
        [alert] = self.one(layers)
        assert "all 6 layers" in alert.message
        assert "zero_grad()" in alert.advice

    def test_many_layers(self):
        layers = scaled([(100, 200, slice(0, 312), 0.0)], layers=500)
        layers["zeros"][100:200, :312] = 1.0
        [alert] = self.one(layers)
        assert "312 of 500 layers" in alert.message


class TestFrozen:
    def one(self, layers, scalars=None, **options):
        return found(stream(layers, scalars), [rules.Frozen(**options)])

    def test_a_layer_that_does_not_move(self):
        layers = healthy(400)
        layers["update_ratio"][100:200:10, 2] = 0.0
        [alert] = self.one(layers)
        assert (alert.layer, alert.step, alert.ended) == ("layer2.weight", 100, 200)
        assert "3 measurements" in alert.message

    def test_not_where_none_moves(self):
        layers = healthy(400)
        layers["update_ratio"][100:200:10] = 0.0
        # The others moved shortly before: two measurements without are not enough.
        assert self.one(layers, streak=7) == []
        assert self.one(layers, streak=5) != []

    def test_in_turns(self):
        layers = healthy(400)
        layers["update_ratio"][:] = np.nan
        for at in range(6):
            layers["update_ratio"][at::10, at] = 1e-3 if at != 3 else 0.0
        [alert] = self.one(layers)
        assert (alert.layer, alert.step) == ("layer3.weight", 3)

    def test_not_where_there_is_no_gradient(self):
        layers = scaled([(0, 400, 2, 0.0)])
        layers["update_ratio"][::10, 2] = 0.0
        assert self.one(layers) == []

    def test_a_layer_that_never_had_a_gradient(self):
        layers = healthy(400)
        for metric in ("norm", "mean", "zeros", "nonfinite"):
            layers[metric][:, 4] = np.nan
            layers[metric][:200, 5] = np.nan
        layers["update_ratio"][:, 4] = np.nan
        layers["update_ratio"][:200, 5] = np.nan
        late, never = sorted(self.one(layers), key=lambda alert: alert.ended is None)
        assert (never.layer, never.step, never.ended) == ("layer4.weight", 49, None)
        assert "never had a gradient" in never.message
        assert (late.layer, late.ended) == ("layer5.weight", 200)
        del layers["update_ratio"]  # as in runs of `compare`
        again = sorted(self.one(layers), key=lambda alert: alert.ended is None)
        assert [alert.layer for alert in again] == ["layer5.weight", "layer4.weight"]
        assert again[0].ended == 200

    def test_not_for_a_gradient_that_comes_late_or_now_and_then(self):
        layers = healthy(400)
        layers["norm"][:45, 1] = np.nan
        layers["norm"][1::2, 2] = np.nan
        layers["norm"][200:, 3] = np.nan
        assert self.one(layers) == []


class TestUpdates:
    def large(self, layers, **options):
        return found(stream(layers, **options), [rules.LargeUpdates()])

    def small(self, layers, **options):
        return found(stream(layers, **options), [rules.SmallUpdates()])

    def test_large(self):
        layers = healthy(400)
        layers["update_ratio"][100:200:10, 2] = 0.2
        [alert] = self.large(layers)
        assert (alert.layer, alert.step, alert.ended, alert.value, alert.severity) == (
            "layer2.weight", 100, 200, 0.2, "warning",
        )  # fmt: skip
        layers["update_ratio"][100:200:10, 2] = 0.8
        assert self.large(layers)[0].severity == "error"

    def test_not_large_for_what_is_usual(self):
        layers = healthy(400)
        layers["update_ratio"] *= 70  # 0.07
        layers["update_ratio"][[100, 110, 130, 140], 2] = 0.5  # two at a time
        assert self.large(layers) == []

    def test_not_for_biases_nor_for_weights_around_zero(self):
        layers = healthy(400)
        layers["update_ratio"][::10, [1, 3, 4, 5]] = 0.5
        layers["weight_norm"][::10, 5] = 0.02
        assert self.large(layers, names=BIAS) == []
        layers["weight_norm"][::10, 5] = 0.05
        assert [alert.layer for alert in self.large(layers, names=BIAS)] == ["head.weight"]

    @pytest.mark.parametrize("power", [0, 1])
    def test_not_for_weights_that_grow_from_zero(self, power):
        # Updates all alike, or growing as in a warmup: n / (1 + ... + n) of the weights.
        layers = healthy(400)
        n = np.arange(1, 401)
        layers["update_ratio"][::10, 0] = (n**power / np.cumsum(n**power))[::10]
        assert self.large(layers) == []

    def test_infinite_ratios_once(self):
        layers = healthy(400)
        layers["update_ratio"][0] = np.inf
        layers["weight_norm"][0] = 0.0
        assert self.large(layers) == self.small(layers) == []

    def test_small(self):
        layers = healthy(600)
        layers["update_ratio"][::10, 2] = 1e-8
        [alert] = self.small(layers)
        assert (alert.layer, alert.step) == ("layer2.weight", 200)
        assert alert.value == 1e-8

    def test_not_small_where_it_once_moved_or_does_not_move(self):
        layers = healthy(600)
        layers["update_ratio"] *= np.exp(-0.03 * np.arange(600))[:, None]  # to 1e-11
        layers["update_ratio"][::10, 3] = 0.0
        assert self.small(layers) == []

    def test_small_after_it_was_nearly_so(self):
        layers = healthy(800)
        layers["update_ratio"][::10, 2] = 5e-7
        layers["update_ratio"][400::10, 2] = 1e-8
        assert [alert.step for alert in self.small(layers)] == [400]
        layers["update_ratio"][600::10, 2] = 1.5e-7
        assert [alert.ended for alert in self.small(layers)] == [None]
        layers["update_ratio"][600::10, 2] = 3e-7
        assert [alert.ended for alert in self.small(layers)] == [600]
        layers["update_ratio"][100, 2] = 2e-6
        assert self.small(layers) == []

    def test_not_small_for_biases(self):
        layers = healthy(600)
        layers["update_ratio"][::10, [1, 3, 4]] = 1e-9
        assert self.small(layers, names=BIAS) == []
