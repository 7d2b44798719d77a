"""Each rule: a stream in which it must speak up, and its neighbours in which it must not."""

import numpy as np
import pytest
from rules_streams import block, found, healthy, names, whole

from gradwise.errors import UserError
from gradwise.watch import rules

BIAS = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "attn.in_proj_bias", "head.weight")


def stream(layers, scalars=None, **options):
    """A block with the norm of the whole and a learning rate, unless told otherwise."""
    told = {"lr": np.full(len(layers["norm"]), 0.1), "backwards": np.ones(len(layers["norm"]))}
    return block(layers, {"grad_norm": whole(layers["norm"]), **told, **(scalars or {})}, **options)


def scaled(spans, steps=400, **options):
    """A healthy stream with some gradients multiplied: (from, to, layers, factor)."""
    layers = healthy(steps, **options)
    for first, last, which, factor in spans:
        for metric in ("norm", "mean"):
            layers[metric][first:last, which] *= factor
    return layers


ALL = slice(None)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6])
def test_a_healthy_training_is_quiet(seed, sigma):
    assert found(stream(healthy(1500, seed=seed, sigma=sigma))) == []


def test_only_what_compare_records_is_enough_to_be_quiet():
    layers = healthy(1000)
    few = {name: layers[name] for name in ("mean", "norm", "nonfinite")}
    assert found(block(few, {"grad_norm": whole(few["norm"])})) == []
    assert found(block({"norm": few["norm"]})) == []
    assert found(block({}, {"loss": np.ones(100)}, names=())) == []


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


class TestExploding:
    def one(self, layers, **options):
        return found(stream(layers), [rules.Exploding(**options)])

    def test_the_whole(self):
        [alert] = self.one(scaled([(300, 320, ALL, 50)]))
        assert (alert.layer, alert.step, alert.ended, alert.severity) == (None, 300, 320, "warning")
        times = float(alert.message.split("which is ")[1].split(" times")[0])
        assert 30 < times < 130  # the worst of three, in noise
        trend = float(alert.message.split("its trend of ")[1].split(",")[0])
        assert alert.value == pytest.approx(times * trend, rel=0.01)

    def test_one_layer_within_a_calm_whole(self):
        # A small layer grows beyond its share, which the whole hardly feels.
        layers = scaled([(0, 400, 2, 0.003)], sigma=0.05)
        layers["norm"][300:330, 2] *= 1500
        [alert] = self.one(layers)
        assert (alert.layer, alert.step, alert.ended) == ("layer2.weight", 300, 330)
        assert self.one(layers, matters=5.0) == []

    def test_not_for_a_layer_that_only_catches_up(self):
        layers = scaled([(0, 400, 2, 0.003)], sigma=0.05)
        layers["norm"][300:330, 2] *= 100  # to less than a third of the others
        assert self.one(layers) == []

    def test_an_error_where_the_whole_is_a_thousandfold(self):
        [alert] = self.one(scaled([(300, 320, ALL, 5000)]))
        assert alert.severity == "error"
        layers = scaled([(0, 400, 2, 1e-4)], sigma=0.05)
        layers["norm"][300:330, 2] *= 50_000
        [alert] = self.one(layers)
        assert (alert.layer, alert.severity) == ("layer2.weight", "warning")

    def test_the_whole_speaks_for_its_layers_and_names_the_worst(self):
        layers = scaled([(300, 320, ALL, 50), (300, 320, 4, 50)], sigma=0.05)
        [alert] = self.one(layers)
        assert alert.layer is None
        times = float(
            alert.message.split("most in 'layer4.weight' (")[1]
            .split(" times")[0][:5]
            .replace(",", "")
        )
        assert 2000 < times < 3000

    @pytest.mark.parametrize("factor", [3, 5])
    def test_not_for_a_few_times(self, factor):
        assert self.one(scaled([(300, 320, ALL, factor)], sigma=0.1)) == []

    def test_not_for_one_odd_batch_or_two(self):
        spans = [(at, at + 2, ALL, 500) for at in range(100, 400, 40)]
        assert self.one(scaled(spans)) == []
        assert len(self.one(scaled(spans), streak=2)) > 0

    def test_not_where_norms_scatter_that_much(self):
        assert self.one(healthy(2000, sigma=1.2)) == []

    def test_even_growth_that_a_trend_keeps_up_with(self):
        layers = healthy(2000, sigma=0.1)
        layers["norm"] *= np.exp(0.01 * np.maximum(np.arange(2000) - 300, 0))[:, None]
        [alert] = self.one(layers)
        assert alert.step > 500
        assert self.one(layers, memory=5) == []  # the slow trend is the one that notices

    def test_not_for_norms_that_fall(self):
        layers = healthy(2000)
        layers["norm"] *= np.exp(-0.01 * np.arange(2000))[:, None]
        assert self.one(layers) == []

    def test_from_the_very_first_steps(self):
        layers = healthy(100)
        layers["norm"][1:4] *= [[1e4], [1e8], [1e7]]
        [alert] = self.one(layers)
        assert (alert.layer, alert.step, alert.severity) == (None, 1, "error")

    def test_not_for_what_rises_at_the_start(self):
        layers = healthy(300)
        layers["norm"] *= np.minimum(np.arange(1, 301), 100)[:, None]  # as from a zero init
        assert self.one(layers) == []

    def test_a_lasting_change_is_accepted_in_the_end(self):
        [alert] = self.one(scaled([(300, 3000, ALL, 40)], steps=3000))
        assert alert.step == 300
        assert 330 < alert.ended < 1500

    def test_not_over_before_it_is_well_below(self):
        layers = scaled([(300, 320, ALL, 50), (320, 335, ALL, 8)], sigma=0.05)
        [alert] = self.one(layers)
        assert (alert.step, alert.ended) == (300, 335)

    def test_a_layer_that_joins_late_and_is_not_measured_at_times(self):
        layers = scaled([(0, 600, 2, 0.003)], steps=600, sigma=0.05)
        layers["norm"][:200, 2] = np.nan
        layers["norm"][210:240, 2] = np.nan
        layers["norm"][5::7] = np.nan
        assert self.one(layers) == []
        layers["norm"][400:430, 2] *= 1500
        [alert] = self.one(layers)
        assert (alert.layer, alert.step, alert.ended) == ("layer2.weight", 400, 430)

    @pytest.mark.parametrize("told", [None, np.nan])
    def test_where_the_norm_of_the_whole_was_not_recorded(self, told):
        layers = scaled([(300, 320, ALL, 50)])
        scalars = {} if told is None else {"grad_norm": np.full(400, told)}
        [alert] = found(block(layers, scalars), [rules.Exploding()])
        assert (alert.layer, alert.step) == (None, 300)

    def test_several_layers_within_a_calm_whole(self):
        small = slice(0, 5)
        layers = scaled([(0, 400, small, 0.001)], layers=40, sigma=0.05)
        layers["norm"][300:330, small] *= 8000
        [alert] = self.one(layers)
        assert (alert.layer, alert.step, alert.ended) == (None, 300, 330)
        assert "left its trend in 5 of 40 layers (first of all " in alert.message
        assert f"that of 'layer{alert.message.split('layer')[2][0]}.weight' rose" in alert.message

    def test_without_any_layers(self):
        norm = np.exp(0.2 * np.random.default_rng(0).standard_normal(300))
        norm[200:210] *= 100
        [alert] = found(block({}, {"grad_norm": norm}, names=()), [rules.Exploding()])
        assert alert.step == 200


class TestVanishing:
    def one(self, layers, **options):
        return found(stream(layers), [rules.Vanishing(**options)])

    def test_a_layer_that_sinks(self):
        layers = scaled([(300, 800, 1, 1e-5)], steps=800)
        layers["update_ratio"][300:, 1] *= 1e-4
        [alert] = self.one(layers)
        assert (alert.layer, alert.step, alert.ended) == ("layer1.weight", 301, None) or (
            alert.step,
            alert.ended,
        ) == (300, None)
        assert alert.value < 1e-4

    def test_several_layers(self):
        layers = scaled([(300, 800, slice(0, 4), 1e-5)], steps=800, layers=20)
        del layers["update_ratio"]
        [alert] = self.one(layers)
        assert (alert.layer, alert.value < 1e-4) == (None, True)
        told = "the gradient vanished in 4 of 20 layers (first of all 'layer"
        assert alert.message.startswith(told)
        assert alert.message.endswith(" times the norm that other layers have.")

    def test_one_that_was_small_all_along(self):
        layers = scaled([(0, 400, 1, 1e-6)])
        layers["update_ratio"] = layers["update_ratio"] * 0
        [alert] = self.one(layers)
        assert (alert.layer, alert.step) == ("layer1.weight", 20)

    def test_a_share_that_is_small_only_beside_what_it_was(self):
        for first, count in ((300, 1), (0, 0)):
            layers = scaled([(first, 800, 1, 4e-4)], steps=800, sigma=0.05)
            del layers["update_ratio"]
            assert len(self.one(layers)) == count
        # A burst is no past to be measured by.
        layers = scaled([(300, 303, 1, 1e4), (0, 800, 1, 0.01)], steps=800, sigma=0.05)
        del layers["update_ratio"]
        assert self.one(layers) == []

    def test_not_where_all_shrink_together(self):
        layers = healthy(2000)
        fall = np.exp(-0.01 * np.arange(2000))[:, None]
        layers["norm"] *= fall
        layers["update_ratio"] *= fall
        assert self.one(layers) == []

    def test_not_where_another_layer_explodes(self):
        layers = scaled([(300, 800, 0, 1e6)], steps=800)
        layers["update_ratio"] = np.full_like(layers["norm"], np.nan)
        assert self.one(layers) == []

    def test_not_where_the_optimizer_makes_up_for_it(self):
        assert self.one(scaled([(300, 800, 1, 1e-5)], steps=800)) == []

    def test_not_for_biases_and_not_for_zeros(self):
        layers = scaled([(0, 400, [1, 3, 4], 1e-9), (0, 400, 0, 0.0)])
        del layers["update_ratio"]
        assert found(stream(layers, names=BIAS), [rules.Vanishing()]) == []

    def test_over_when_it_is_back(self):
        layers = scaled([(300, 500, 1, 1e-6)], steps=800)
        del layers["update_ratio"]
        [alert] = self.one(layers)
        assert (alert.step, alert.ended) == (300, 500)


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
        layers["update_ratio"][100, 2] = 2e-6
        assert self.small(layers) == []

    def test_not_small_for_biases(self):
        layers = healthy(600)
        layers["update_ratio"][::10, [1, 3, 4]] = 1e-9
        assert self.small(layers, names=BIAS) == []


class TestDominating:
    def one(self, layers, **options):
        return found(stream(layers), [rules.Dominating(**options)])

    def test_a_layer(self):
        [alert] = self.one(scaled([(100, 300, 2, 100.0)], steps=600, sigma=0.1))
        assert (alert.layer, alert.step, alert.ended) == ("layer2.weight", 100, 300)
        assert 0.99 < alert.value < 1

    def test_not_for_a_large_part_nor_for_a_while(self):
        assert self.one(scaled([(100, 400, 2, 5.0)], sigma=0.1)) == []
        assert self.one(scaled([(100, 190, 2, 100.0)], sigma=0.1)) == []

    def test_not_among_few(self):
        assert self.one(scaled([(100, 400, 2, 100.0)], layers=4)) == []
        layers = scaled([(100, 400, 2, 100.0), (0, 400, [0, 1], 0.0)])
        assert self.one(layers) == []  # only four have a gradient

    def test_norms_whose_squares_overflow(self):
        layers = scaled([(0, 400, 2, 100.0)], sigma=0.1)
        layers["norm"] *= 1e300
        norm = layers["norm"].max(1) * 1.0001
        assert len(found(stream(layers, {"grad_norm": norm}), [rules.Dominating()])) == 1


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


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("Exploding", {"factor": 1.0}, "expected 1 < factor < inf, got factor=1"),
        ("Exploding", {"streak": 0}, "expected streak >= 1, got streak=0"),
        ("Exploding", {"matters": 0}, "expected 0 < matters < inf, got matters=0"),
        ("NonFinite", {"persists": 1}, "expected persists >= 2, got persists=1"),
        ("Vanishing", {"drop": float("nan")}, "expected 0 < drop < 1, got drop=nan"),
        ("Dead", {"calm": 0}, "expected calm >= 1, got calm=0"),
        ("Dead", {"warmup": -1}, "expected warmup >= 0, got warmup=-1"),
        ("LargeUpdates", {"limit": 0}, "expected 0 < limit < inf, got limit=0"),
        ("SmallUpdates", {"small": 2}, "expected 0 < small < 1, got small=2"),
        ("Dominating", {"share": 0.5}, "expected 0.5 < share < 1, got share=0.5"),
        ("AlreadyClipped", {"same": 0}, "expected 0 < same < 1, got same=0"),
        ("NoStep", {"factor": 1}, "expected factor >= 2, got factor=1"),
    ],
)
def test_numbers_out_of_bounds(rule, options, message):
    with pytest.raises(UserError) as caught:
        getattr(rules, rule)(**options)
    assert str(caught.value).startswith(message)


def test_what_rules_look_at():
    norm = np.array([[3.0, 4.0], [np.nan, 2.0], [np.nan, np.nan], [0.0, np.inf]])
    rates = {"lr": [0.0, 0.0, 0.1, np.nan], "lr/1": [0.0, np.nan, 0.0, np.nan]}
    view = rules.View(block({"norm": norm}, rates), 10)
    assert view.records.tolist() == [10, 11, 12, 13]
    assert view.measured.tolist() == [True, True, False, True]
    assert view.resting.tolist() == [True, True, False, True]
    np.testing.assert_equal(view.whole, [5.0, 2.0, np.nan, np.inf])
    np.testing.assert_equal(view.log_whole, [np.log(5.0), np.log(2.0), np.nan, np.nan])
    np.testing.assert_equal(view.log_norm[3], [np.nan, np.nan])
    np.testing.assert_equal(view.scalar("none"), [np.nan] * 4)
    told = rules.View(block({"norm": norm}, {"grad_norm": [7.0, np.nan, np.nan, 8.0]}), 0)
    np.testing.assert_equal(told.whole, [7.0, 2.0, np.nan, 8.0])
    assert not told.resting.any()


def test_an_action_that_is_none():
    rule = rules.Stale()
    rule.action = "shout"
    with pytest.raises(UserError, match="expected action 'log', 'raise' or a function, got action"):
        rule.__post_init__()
