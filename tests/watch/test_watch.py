"""`gw.watch`: what it records agrees with the gradients, and the training never minds it."""

import copy
import gc
import logging
import math
import pickle
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from watch_helpers import columns, described, learn, network, steps_of

import gradwise as gw
from gradwise.errors import UserError
from gradwise.watch import WatchWarning


@pytest.mark.parametrize("transform", [None, "autoscale", "clip", "znorm"])
def test_layers_and_steps_agree_with_the_gradients(tmp_path, transform):
    model, optimizer = network()
    if transform:
        gw.attach(optimizer, gw.registry.build(transform))
    seen = []
    with gw.watch(optimizer, model, tmp_path / "a", weights_every=1) as watch:
        learn(model, optimizer, 70, watch, seen=seen)
    run = gw.watch.load(tmp_path / "a")
    assert run.layer_names == tuple(name for name, _ in model.named_parameters())
    for at, name in enumerate(run.layer_names):
        found = columns(run, name)
        assert found["step"] == list(range(70))
        for k in (0, 33, 69):
            for metric, value in described([seen[k]["grads"][at]]).items():
                assert found[metric][k] == pytest.approx(value, rel=1e-5, abs=1e-9), metric
            before, after = seen[k]["before"][at], seen[k]["after"][at]
            assert found["weight_norm"][k] == pytest.approx(after.norm().item(), rel=1e-5)
            ratio = ((after - before).norm() / after.norm()).item()
            assert found["update_ratio"][k] == pytest.approx(ratio, rel=1e-4)
    steps = run.steps.to_pydict()
    for k in (0, 33, 69):
        for when, what in (("grad", "grads"), ("applied", "applied")):
            truth = described(seen[k][what])
            for metric in ("mean", "std", "var", "norm", "max_abs"):
                found = steps[f"{when}_{metric}"][k]
                assert found == pytest.approx(truth[metric], rel=1e-5, abs=1e-8), (when, metric)
    assert steps["lr"] == [0.1] * 70
    assert steps["backwards"] == [1.0] * 70
    assert steps["at"] == list(range(70))
    assert steps["skipped"] == [0.0] * 70
    assert np.all(np.diff(steps["time"]) >= 0)
    assert ("transform/0.Autoscale[trend].sigma" in steps) == (transform == "autoscale")
    assert run.meta["optimizer"] == "SGD"
    assert run.meta["model"] == "Sequential"


def test_per_module_is_the_same_as_all_its_parameters_in_one(tmp_path):
    model, optimizer = network()
    seen = []
    with gw.watch(optimizer, model, tmp_path / "a", per="module", weights_every=2):
        learn(model, optimizer, 8, seen=seen)
    run = gw.watch.load(tmp_path / "a")
    assert run.layer_names == ("0", "2")
    found = columns(run, "2")
    for k in range(8):
        for metric, value in described(seen[k]["grads"][2:]).items():
            assert found[metric][k] == pytest.approx(value, rel=1e-5, abs=1e-9), metric
    norms = [torch.cat([w.flatten() for w in one["after"][2:]]).norm().item() for one in seen]
    known = [k for k in range(8) if not math.isnan(found["weight_norm"][k])]
    assert len(known) == 4
    assert [found["weight_norm"][k] for k in known] == pytest.approx([norms[k] for k in known])


def test_a_layer_without_a_gradient_has_no_statistics(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a"):
        learn(model, optimizer, 1)
        optimizer.zero_grad()
        model[2].weight.square().sum().backward()
        optimizer.step()
    norm = gw.watch.load(tmp_path / "a").metric("norm")[1]
    assert np.isnan(norm[1]).tolist() == [True, True, False, True]
    assert not np.isnan(norm[0]).any()


def test_a_model_s_parameters_that_the_optimizer_does_not_have_are_layers(tmp_path):
    model, _ = network()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with gw.watch(optimizer, model, tmp_path / "a"):
        learn(model, optimizer, 2)
    run = gw.watch.load(tmp_path / "a")
    assert run.layer_names == ("2.weight", "2.bias", "0.weight", "0.bias")
    assert np.isnan(run.metric("norm")[1]).tolist() == [[False, False, True, True]] * 2


def test_a_layer_that_the_optimizer_forgot_is_told_of(tmp_path):
    model, _ = network()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 80)
    alerts = [alert for alert in watch.alerts if alert.rule == "frozen"]
    assert sorted(str(alert.layer) for alert in alerts) == ["0.bias", "0.weight"]
    assert all("never had a gradient" in alert.message for alert in alerts)
    assert "made without them" in alerts[0].advice
    assert gw.watch.read_alerts(tmp_path / "a") == watch.alerts


def test_sampled_histograms_and_directions(tmp_path):
    model, optimizer = network()
    seen = []
    with gw.watch(optimizer, model, tmp_path / "a", histograms=4, directions=3):
        learn(model, optimizer, 9, seen=seen)
    run = gw.watch.load(tmp_path / "a")
    steps, counts = run.histogram("2.weight")
    assert len(steps) == 3
    assert (counts.sum(1) == model[2].weight.numel()).all()
    edges = np.array(run.histogram_edges)
    truth = [np.histogram(seen[k]["grads"][2], np.r_[-np.inf, edges, np.inf])[0] for k in steps]
    np.testing.assert_array_equal(counts, truth)
    cosine = columns(run, "2.weight")["cosine"]
    known = [k for k in range(9) if not math.isnan(cosine[k])]
    assert len(known) == 2
    now, before = (seen[k]["grads"][2].flatten() for k in (known[0], known[0] - 3))
    truth = torch.nn.functional.cosine_similarity(now, before, dim=0).item()
    assert cosine[known[0]] == pytest.approx(truth, rel=1e-5)


# The training goes on, whatever is attached when


def test_autoscale_may_come_before_or_after_and_watching_changes_no_number(tmp_path):
    results = []
    for order in ("none", "before", "after"):
        model, optimizer = network()
        if order != "after":
            gw.autoscale(optimizer)
        if order != "none":
            watch = gw.watch(optimizer, model, tmp_path / order, histograms=2, directions=2)
        if order == "after":
            gw.autoscale(optimizer)
        torch.manual_seed(1)
        learn(model, optimizer, 20)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        if order != "none":
            watch.close()
            assert any(alpha < 1 for alpha in steps_of(tmp_path / order)["alpha"])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)


def test_closing_leaves_the_optimizer_as_it_was(tmp_path):
    model, optimizer = network()
    attachment = gw.autoscale(optimizer)
    before = (dict(optimizer._optimizer_step_post_hooks), attachment.extremes)
    watch = gw.watch(optimizer, model, tmp_path / "a")
    learn(model, optimizer, 2, watch)
    watch.close()
    watch.close()
    assert (dict(optimizer._optimizer_step_post_hooks), attachment.extremes) == before
    assert attachment.readers == attachment.observers == []
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert "gradwise-watch:run" not in optimizer.state_dict()["param_groups"][0]
    learn(model, optimizer, 2)
    watch.log(loss=1.0)
    assert steps_of(tmp_path / "a")["step"] == [0, 1]


def test_nothing_is_left_when_everybody_forgets_it(tmp_path):
    model, optimizer = network()
    watch = gw.watch(optimizer, model, tmp_path / "a")
    learn(model, optimizer, 3, watch)
    gone, before = weakref.ref(optimizer), threading.active_count()
    del model, optimizer, watch
    gc.collect()
    assert gone() is None
    deadline = time.monotonic() + 20
    while not gw.watch.load(tmp_path / "a").closed and time.monotonic() < deadline:
        time.sleep(0.05)
    assert steps_of(tmp_path / "a")["step"] == [0, 1, 2]
    while threading.active_count() > before - 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before - 2


def test_the_garbage_collector_waits_for_no_lock(tmp_path):
    lock = threading.Lock()

    class Careful(gw.watch.Consumer):
        def take(self, block):
            with lock:
                pass

    def forgotten():
        model, optimizer = network()
        gw.watch.Recorder(gw.attach(optimizer), tmp_path / "a", consumers=[Careful()])
        learn(model, optimizer, 1)

    gc.disable()
    try:
        with lock:
            forgotten()
            gc.collect()  # would hang
    finally:
        gc.enable()


def test_copies_and_pickles_of_the_optimizer_are_not_watched(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a"):
        learn(model, optimizer, 2)
        twin = copy.deepcopy(model)
        both = copy.deepcopy((model, optimizer))
        loaded = pickle.loads(pickle.dumps((model, optimizer)))
        for other, its in (both, loaded):
            learn(other, its, 2)
        learn(twin, torch.optim.SGD(twin.parameters(), lr=0.1), 1)
        learn(model, optimizer, 1)
    assert steps_of(tmp_path / "a")["step"] == [0, 1, 2]


def test_watching_anew_closes_the_watch_before(tmp_path):
    model, optimizer = network()
    first = gw.watch(optimizer, model, tmp_path / "a")
    learn(model, optimizer, 2, first)
    second = gw.watch(optimizer, model, tmp_path / "b")
    learn(model, optimizer, 3, second)
    second.close()
    assert steps_of(tmp_path / "a")["step"] == [0, 1]
    assert steps_of(tmp_path / "b")["step"] == [0, 1, 2]


def test_a_failing_rule_or_sink_costs_no_step(tmp_path, caplog):
    class Broken(gw.watch.sinks.Sink):
        def write(self, step, values, time):
            raise RuntimeError("no network")

    model, optimizer = network()
    sink = Broken(every=1)
    with (
        caplog.at_level(logging.WARNING, "gradwise"),
        gw.watch(optimizer, model, tmp_path / "a", sinks=[sink]) as watch,
    ):
        learn(model, optimizer, 20, watch)
    assert steps_of(tmp_path / "a")["step"] == list(range(20))
    assert watch.errors > 0
    assert len([r for r in caplog.records if "no network" in r.getMessage()]) == 1


def test_late_scalars_reach_the_store_and_the_sinks(tmp_path):
    rows = []

    class Collector(gw.watch.sinks.Sink):
        def write(self, step, values, time):
            rows.append((step, values))

    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a", sinks=[Collector(every=1)]) as watch:
        learn(model, optimizer, 3, watch)
        watch.flush()
        watch.log(accuracy=0.5)
    assert (2, {"accuracy": 0.5}) in rows
    assert steps_of(tmp_path / "a")["accuracy"][2] == 0.5


# Accumulation, skipped steps, closures


def test_accumulation_counts_passes_and_tells_the_noise_scale(tmp_path):
    model, optimizer = network(lr=0.0)
    with gw.watch(optimizer, model, tmp_path / "a", noise_every=1, batch_size=8) as watch:
        with pytest.raises(UserError, match="two batch sizes"):
            _ = watch.noise_scale
        learn(model, optimizer, 80, watch, passes=4)
        watch.flush()
        assert 0 < watch.noise_scale < 1000
    steps = steps_of(tmp_path / "a")
    assert steps["backwards"] == [4.0] * 80
    assert steps["noise_scale"][-1] == pytest.approx(watch.noise_scale)


def test_closures_and_several_evaluations_a_step(tmp_path):
    model, _ = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    x = torch.randn(16, 4)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        for _ in range(4):
            optimizer.step(closure)
            watch.log(done=1.0)
    steps = steps_of(tmp_path / "a")
    assert len(steps["step"]) >= 4
    assert sum(v == 1.0 for v in steps["done"]) == 4


def test_steps_that_a_loss_scaler_skips_are_no_rows(tmp_path):
    model, optimizer = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    norms = []
    with gw.watch(optimizer, model, tmp_path / "a"):
        for i in range(6):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean() * (math.inf if i == 3 else 1.0)
            scaler.scale(loss).backward()
            if i != 3:
                flat = torch.cat([p.grad.flatten() for p in model.parameters()])
                norms.append(flat.norm().item() / scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
    steps = steps_of(tmp_path / "a")
    assert steps["grad_norm"] == pytest.approx(norms, rel=1e-5)
    assert steps["backwards"][3] == 2.0  # the pass that overflowed, too


# Logging


def test_log_belongs_to_the_step_that_the_backward_pass_is_for(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        for i in range(5):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            watch.log(between=i)
            optimizer.step()
            watch.log(after=i)
        watch.log(accuracy=0.75)
    steps = steps_of(tmp_path / "a")
    assert steps["between"] == steps["after"] == [0, 1, 2, 3, 4]
    assert steps["accuracy"][4] == 0.75


def test_what_is_logged_between_recorded_steps_waits_for_the_next(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a", every=4) as watch:
        for i in range(7):
            learn(model, optimizer, 1)
            watch.log(at=i)
            if i in (2, 6):
                watch.log(accuracy=i / 10)
    steps = steps_of(tmp_path / "a")
    assert steps["step"] == [0, 4]
    assert steps["at"] == [0, 4]
    assert steps["accuracy"][1] == 0.6  # of step 6, after the last record


def test_what_cannot_be_logged_is_refused_before_the_first_step_too(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        for _ in range(2):
            with pytest.raises(UserError, match="other than"):
                watch.log(alpha=1.0)
            learn(model, optimizer, 1)
    assert steps_of(tmp_path / "a")["step"] == [0, 1]


def test_learning_rates_of_all_groups_and_as_tensors(tmp_path):
    model, _ = network()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": torch.tensor(0.25)},
            {"params": model[2].parameters(), "lr": 0.5},
        ]
    )
    with gw.watch(optimizer, model, tmp_path / "a"):
        learn(model, optimizer, 2)
        optimizer.param_groups[0]["lr"].fill_(0.125)
        learn(model, optimizer, 1)
    steps = steps_of(tmp_path / "a")
    assert steps["lr"] == [0.25, 0.25, 0.125]
    assert steps["lr/1"] == [0.5] * 3


# Mistakes


def test_numbers_out_of_bounds():
    model, optimizer = network()
    for bad in ({"every": 0}, {"weights_every": -1}, {"batch_size": 0}, {"resume_from": -1}):
        ((name, value),) = bad.items()
        with pytest.raises(UserError, match=f"got {name}={value}"):
            gw.watch(optimizer, model, **bad)
    with pytest.raises((UserError, BeartypeCallHintViolation), match="per='layer'"):
        gw.watch(optimizer, model, per="layer")
    with pytest.raises((UserError, BeartypeCallHintViolation), match="Optimizer"):
        gw.watch(model)
    assert not optimizer._optimizer_step_pre_hooks


def test_layers_without_names_are_told_of():
    model, _ = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(WatchWarning, match=r"called group0\.0 and so on: pass the model"):
        gw.watch(optimizer).close()
    named = torch.optim.SGD(model.named_parameters(), lr=0.1)
    with gw.watch(named):
        learn(model, named, 1)


def test_without_a_folder_rules_and_callbacks_still_work():
    model, optimizer = network()
    told = []
    with gw.watch(optimizer, model, on_alert=told.append) as watch:
        learn(model, optimizer, 3)
        model[0].weight.data.fill_(math.nan)
        learn(model, optimizer, 1)
        watch.flush()
        learn(model, optimizer, 1)
    assert [(alert.rule, alert.step) for alert in watch.alerts] == [("non-finite", 3)]
    assert told == watch.alerts
    assert threading.current_thread() is threading.main_thread()


def test_a_rule_may_end_the_training(tmp_path):
    model, optimizer = network()
    rules = [gw.watch.rules.NonFinite(action="raise")]
    with gw.watch(optimizer, model, tmp_path / "a", rules=rules) as watch:
        learn(model, optimizer, 3)
        model[0].weight.data.fill_(math.nan)
        learn(model, optimizer, 1)
        watch.flush()
        with pytest.raises(gw.watch.GradientAlert, match="step 3"):
            learn(model, optimizer, 1)
    assert [alert.step for alert in gw.watch.read_alerts(tmp_path / "a")] == [3]
