"""Rules on norms: a stream in which each must speak up, and neighbours in which it must not."""

import numpy as np
import pytest
from rules_streams import ALL, BIAS, block, found, healthy, scaled, stream

from gradwise.watch import rules


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
