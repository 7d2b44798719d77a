"""A trial: fair beginnings, numbers that depend on nothing but settings and seed, divergence."""

import itertools
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from lab_helpers import make_trial, numbers, recorded, same_tables, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from gradwise.lab import trial as trial_module
from gradwise.lab.methods import OPTIMIZERS
from gradwise.watch import Recorder

METHODS = ("sgd", "adamw", "rmsprop", "autoscale", "znorm+clip(max_norm=0.1)", "adamw+center+agc")


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
def test_all_methods_begin_alike_and_see_the_same_batches(tmp_path, augment):
    settings = tiny(augment=augment, epochs=2)
    seen = {0: set(), 1: set()}
    accuracies = set()
    for seed in seen:
        for method in METHODS:
            result = make_trial(tmp_path / f"{seed}{method}", settings, method, seed).run()
            seen[seed].add((result["init_checksum"], result["batches_checksum"]))
            accuracies.add(result["test_loss"])
    assert [len(pairs) for pairs in seen.values()] == [1, 1]
    (init0, batches0), (init1, batches1) = seen[0].pop(), seen[1].pop()
    assert init0 != init1
    if augment != "none":  # without, a seed still decides the order
        assert batches0 != batches1
    assert len(accuracies) == 2 * len(METHODS)  # the methods did something


def test_the_order_of_batches_depends_on_the_seed_alone(tmp_path):
    sums = [
        make_trial(tmp_path / f"{seed}", tiny(augment="none", epochs=1), seed=seed).run()[
            "batches_checksum"
        ]
        for seed in (0, 1, 0)
    ]
    assert sums[0] == sums[2] != sums[1]


def test_epochs_see_the_rows_in_other_orders(tmp_path):
    one = make_trial(tmp_path / "1", tiny(augment="none"))
    batches = []
    one.batches.add = lambda inputs, targets: batches.append(targets.tolist())
    one._train_epoch(0, None)
    one._train_epoch(1, None)
    first, second = batches[:4], batches[4:]
    assert first != second
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second))


@pytest.mark.parametrize("augment", ["standard", "strong"])
def test_what_happens_before_and_meanwhile_does_not_matter(tmp_path, augment):
    settings = tiny(augment=augment)
    expected = numbers(make_trial(tmp_path / "a", settings, "autoscale").run())
    torch.rand(7)
    random.random()
    np.random.rand(3)
    # Somebody else draws from the global generators whenever the trial says something.
    other = make_trial(tmp_path / "b", settings, "autoscale", progress=lambda event: torch.rand(1))
    assert numbers(other.run()) == expected


def test_threads_of_the_caller_are_set_and_part_of_the_settings(tmp_path):
    make_trial(tmp_path, tiny(threads=1))
    assert torch.get_num_threads() == 1


def test_history_and_result_agree(tmp_path):
    settings = tiny(record_every=1)
    result = make_trial(tmp_path, settings).run()
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    history = result["history"]
    assert history["step"] == [4, 8, 12]
    assert history["epoch"] == [1, 2, 3]
    assert result["steps"] == 12
    assert result["status"] == "finished"
    assert result["diverged_at_step"] is None
    assert result["test_accuracy"] == history["test_accuracy"][-1]
    assert not (tmp_path / "checkpoint.pt").exists()
    steps, layers = recorded(tmp_path)
    assert steps["step"].to_pylist() == list(range(12))
    by_epoch = np.array(steps["loss"].to_pylist()).reshape(3, 4).mean(1)
    assert by_epoch == pytest.approx(history["train_loss"], rel=1e-12)
    assert layers.num_rows == 12 * 6  # an mlp has three weights and three biases


def test_the_learning_rate_recorded_is_the_one_the_step_took(tmp_path):
    make_trial(tmp_path, tiny(schedule="step", epochs=4, lr=0.5)).run()
    rates = recorded(tmp_path)[0]["lr"].to_pylist()
    assert rates == pytest.approx([0.5] * 8 + [0.05] * 4 + [0.005] * 4)


def test_record_every_leaves_steps_out_and_nothing_else(tmp_path):
    all_steps = make_trial(tmp_path / "1", tiny(record_every=1), "autoscale").run()
    some = make_trial(tmp_path / "3", tiny(record_every=3), "autoscale").run()
    none = make_trial(tmp_path / "0", tiny(record_every=0), "autoscale").run()
    assert numbers(all_steps) == numbers(some) == numbers(none)
    assert not (tmp_path / "0" / "watch").exists()
    whole, thinned = recorded(tmp_path / "1")[0], recorded(tmp_path / "3")[0]
    assert same_tables(whole.take([0, 3, 6, 9]), thinned)


class HostReads(TorchDispatchMode):
    """Counts the operators by which the host reads a value from the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["sgd", "autoscale"])
def test_the_host_reads_nothing_between_two_reports(tmp_path, monkeypatch, method):
    monkeypatch.setattr(trial_module, "REPORT_SECONDS", 1e9)
    monkeypatch.setenv("GRADWISE_BACKEND", "foreach")  # as on an accelerator
    reads = {}
    for rows in (64, 640):
        one = make_trial(tmp_path / f"{rows}", tiny(limit_train=rows, augment="strong"), method)
        recorder = Recorder(one.learner.attachment, tmp_path / f"{rows}" / "watch")
        one._train_epoch(0, recorder)
        with HostReads() as counter:
            one._train_epoch(1, recorder)
        reads[rows] = counter.count
        recorder.close()
    assert 0 < reads[64] == reads[640] < 16  # an epoch's own, however many its steps


# Divergence


def break_model_at(one, step):
    """Let the update before a step turn a weight into NaN."""
    real, count = one.learner.step, iter(range(10**6))

    def learn(inputs, targets):
        if next(count) == step:
            with torch.no_grad():
                next(one.learner.model.parameters())[0, 0] = math.nan
        return real(inputs, targets)

    one.learner.step = learn


@pytest.mark.parametrize("report_seconds", [0.0, 60.0])
def test_divergence_counts_as_guessing_whenever_it_is_noticed(
    tmp_path, monkeypatch, report_seconds
):
    monkeypatch.setattr(trial_module, "REPORT_SECONDS", report_seconds)
    one = make_trial(tmp_path)
    break_model_at(one, 5)
    result = one.run()
    assert result["status"] == "diverged"
    assert result["test_accuracy"] == 0.1
    assert result["test_loss"] is None
    assert result["diverged_at_step"] == result["steps"] == 5
    assert result["history"]["epoch"] == [1]
    assert result["skipped"] == 0
    steps, layers = recorded(tmp_path)
    assert steps["step"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert math.isnan(steps["loss"].to_pylist()[5])
    assert layers.num_rows == 6 * 6
    # Fair as far as it went: the checksum is that of the first epoch.
    expected = make_trial(tmp_path / "one", tiny(epochs=1)).run()["batches_checksum"]
    assert result["batches_checksum"] == expected
    assert "NaN" not in (tmp_path / "result.json").read_text()


def test_a_real_divergence(tmp_path):
    result = make_trial(tmp_path, tiny(lr=1e6)).run()
    assert result["status"] == "diverged"
    assert result["test_accuracy"] == 0.1
    assert 0 < result["diverged_at_step"] < 12


def test_a_model_that_breaks_with_the_last_update_has_diverged(tmp_path):
    one = make_trial(tmp_path, tiny(epochs=2))
    real = one.learner.evaluate
    epochs = iter([False, True])

    def evaluate(rows, labels):
        if next(epochs):
            with torch.no_grad():
                next(one.learner.model.parameters()).fill_(math.nan)
        return real(rows, labels)

    one.learner.evaluate = evaluate
    result = one.run()
    assert result["status"] == "diverged"
    assert result["diverged_at_step"] == 8
    assert result["history"]["epoch"] == [1]
    assert recorded(tmp_path)[0].num_rows == 8


# Every optimizer, every precision


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_learns_under_a_transform(tmp_path, optimizer):
    one = make_trial(tmp_path, tiny(optimizer=optimizer, epochs=1), "autoscale")
    before, _ = one.learner.evaluate(one.test_x, one.test_y)
    result = one.run()
    assert result["status"] == "finished"
    assert result["test_loss"] != before
    assert recorded(tmp_path)[0].num_rows == 4


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["sgd", "adamw+center+clip"])
def test_mixed_precision(tmp_path, amp, method):
    plain = make_trial(tmp_path / "off", tiny(amp="off", augment="strong"), method).run()
    mixed = make_trial(tmp_path / amp, tiny(amp=amp, augment="strong"), method).run()
    assert mixed["status"] == "finished"
    assert mixed["batches_checksum"] == plain["batches_checksum"]
    assert mixed["test_loss"] != plain["test_loss"]
    assert mixed["test_loss"] == pytest.approx(plain["test_loss"], rel=0.05)


def test_a_step_that_overflowed_has_its_row_and_no_gradient(tmp_path):
    one = make_trial(tmp_path, tiny(amp="fp16"))
    scaler = one.learner._scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**24})  # overflows float16
    result = one.run()
    steps, _layers = recorded(tmp_path)
    assert steps["step"].to_pylist() == list(range(12))
    norms, losses = steps["grad_norm"].to_pylist(), steps["loss"].to_pylist()
    assert math.isnan(norms[0])
    assert math.isfinite(norms[-1])
    assert all(map(math.isfinite, losses))
    assert result["status"] == "finished"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_process_own_and_not_that_of_its_parent():
    block = bytearray(900 * 2**20)
    block[:: 2**12] = b"x" * len(block[:: 2**12])  # every page is really there
    code = (
        "import torch; from gradwise.lab.outcome import peak_memory\n"
        "before = peak_memory(torch.device('cpu'))\n"
        "torch.ones(64 * 2**20 // 4)\n"
        "print(before, peak_memory(torch.device('cpu')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    before, after = map(int, out.stdout.split())
    assert len(block) > after > before > 50 * 2**20
    assert after - before > 60 * 2**20
