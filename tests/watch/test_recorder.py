"""The recorder: rows that agree with the gradients, no waiting for the device, no lost rows."""

import errno
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gradwise as gw
from gradwise.errors import UserError
from gradwise.watch import Recorder, load
from gradwise.watch.page import ROWS
from gradwise.watch.store import WriteError
from gradwise.watch.store import files as store_files


def network(width: int = 5) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def learn(model, optimizer, steps, recorder=None, **log):
    for i in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        if recorder is not None:
            recorder.log(loss=loss, **{name: value(i) for name, value in log.items()})


def test_rows_agree_with_the_gradients(tmp_path):
    model, optimizer = network()
    attachment = gw.attach(optimizer, gw.transforms.ClipNorm(0.05), model=model)
    norms, losses, layers, applied = [], [], [], []
    with Recorder(attachment, tmp_path, meta={"seed": 3}) as recorder:
        for _ in range(ROWS + 3):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            grads = [p.grad.double().clone() for p in model.parameters()]
            optimizer.step()
            recorder.log(loss=loss, doubled=2 * loss.item())
            flat = torch.cat([g.flatten() for g in grads])
            norms.append(flat.norm().item())
            applied.append(
                torch.cat([p.grad.double().flatten() for p in model.parameters()]).norm()
            )
            losses.append(loss.item())
            layers.append([[g.mean(), g.std(correction=0), g.norm(), 0.0] for g in grads])
    run = load(tmp_path)
    assert run.meta == {"seed": 3}
    assert run.layer_names == ("0.weight", "0.bias", "1.weight", "1.bias")
    steps = run.steps.to_pydict()
    assert steps["step"] == list(range(ROWS + 3))
    assert steps["grad_norm"] == pytest.approx(norms, rel=1e-6)
    assert steps["applied_norm"] == pytest.approx([float(a) for a in applied], rel=1e-5)
    assert max(steps["applied_norm"]) <= 0.05 * (1 + 1e-6)
    assert steps["alpha"] == pytest.approx([min(1.0, 0.05 / norm) for norm in norms], rel=1e-4)
    assert steps["loss"] == losses
    assert steps["doubled"] == [2 * loss for loss in losses]
    expected = np.array(layers, dtype=np.float64)
    for at, metric in enumerate(("mean", "std", "norm", "nonfinite")):
        found = run.metric(metric)[1]
        np.testing.assert_allclose(found, expected[:, :, at], rtol=1e-5, atol=1e-9)


def test_where_nothing_is_transformed_the_factor_is_one(tmp_path):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer), tmp_path):
        learn(model, optimizer, 3)
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)
        learn(model, optimizer, 1)
    steps = load(tmp_path).steps.to_pydict()
    assert steps["alpha"] == [1.0] * 4
    assert steps["applied_norm"][:3] == steps["grad_norm"][:3]
    assert [math.isnan(norm) for norm in steps["grad_norm"]] == [False, False, False, True]
    assert load(tmp_path).metric("nonfinite")[1][:, 0].tolist()[:3] == [0, 0, 0]
    assert load(tmp_path).metric("nonfinite")[1][3, 0] > 0


def test_totals_keep_their_digits_where_the_mean_is_large(tmp_path):
    weights = [torch.nn.Parameter(torch.zeros(500)), torch.nn.Parameter(torch.zeros(20, 5))]
    optimizer = torch.optim.SGD(weights, lr=0.0)
    grads = [1e4 + 1e-2 * torch.randn(500), 1e4 + 1e-2 * torch.randn(20, 5)]
    with Recorder(gw.attach(optimizer), tmp_path):
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        optimizer.step()
    flat = torch.cat([grad.double().flatten() for grad in grads])
    found = load(tmp_path).steps.to_pydict()
    assert found["grad_mean"][0] == pytest.approx(flat.mean().item(), rel=1e-12)
    assert found["grad_std"][0] == pytest.approx(flat.std(correction=0).item(), rel=1e-5)
    assert found["grad_norm"][0] == pytest.approx(flat.norm().item(), rel=1e-12)


def test_a_layer_without_a_gradient_now_and_then(tmp_path):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer, gw.transforms.Center(per="row")), tmp_path):
        learn(model, optimizer, 2)
        optimizer.zero_grad()
        model[1].weight.square().sum().backward()
        optimizer.step()
    norms = load(tmp_path).metric("norm")[1]
    assert (norms[:2] > 0).all()
    assert (norms[2] > 0).tolist() == [False, False, True, False]
    last = {name: column[2] for name, column in load(tmp_path).steps.to_pydict().items()}
    grad = model[1].weight.grad.double()  # centred by then
    assert last["grad_norm"] == pytest.approx(norms[2, 2], rel=1e-6)
    assert last["grad_mean"] == pytest.approx(load(tmp_path).metric("mean")[1][2, 2], rel=1e-6)
    assert last["applied_norm"] == pytest.approx(grad.norm().item(), rel=1e-5)


def test_without_a_common_factor_alpha_is_unknown(tmp_path):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer, gw.transforms.ZNorm()), tmp_path):
        learn(model, optimizer, 2)
    assert all(math.isnan(alpha) for alpha in load(tmp_path).steps["alpha"].to_pylist())


@pytest.mark.parametrize("every", [1, 3, ROWS, 100])
def test_every(tmp_path, every):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer), tmp_path, every=every) as recorder:
        learn(model, optimizer, 2 * ROWS + 5, recorder, at=lambda i: i)
    steps = load(tmp_path).steps
    assert steps["step"].to_pylist() == list(range(0, 2 * ROWS + 5, every))
    assert steps["at"].to_pylist() == steps["step"].to_pylist()


def test_log_takes_tensors_of_any_kind_and_numbers(tmp_path):
    model, optimizer = network()
    total = torch.zeros(())
    with Recorder(gw.attach(optimizer), tmp_path) as recorder:
        recorder.log(early=1.0)  # goes into the first row
        for i in range(3):
            learn(model, optimizer, 1)
            total += 1
            recorder.log(
                total=total,
                half=torch.tensor([0.5 + i], dtype=torch.bfloat16),
                whole=torch.tensor(i),
                wide=torch.tensor(1 / 3, dtype=torch.float64),
                graph=(torch.ones((), requires_grad=True) * i),
                number=i,
            )
            if i == 1:
                recorder.log(late=7.0)
                recorder.log(number=70)
    found = load(tmp_path).steps.to_pydict()
    assert found["early"][0] == 1.0
    assert math.isnan(found["early"][1])
    assert found["total"] == [1, 2, 3]  # as it was then, though it was added to in place
    assert found["half"] == [0.5, 1.5, 2.5]
    assert found["whole"] == found["graph"] == [0, 1, 2]
    assert found["wide"] == [1 / 3] * 3
    assert found["number"] == [0, 70, 2]
    assert found["late"][1] == 7.0
    assert math.isnan(found["late"][0])


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("step", 1.0, "other than"),
        ("alpha", 1.0, "other than"),
        ("loss", torch.ones(2), r"shape \[2\]"),
        ("loss", torch.ones((), dtype=torch.complex64), "complex64"),
    ],
)
def test_log_refuses_at_once_what_cannot_be_written(tmp_path, name, value, told):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer), tmp_path) as recorder:
        learn(model, optimizer, 1)
        with pytest.raises(UserError, match=told):
            recorder.log(**{name: value})
        learn(model, optimizer, 1, recorder)
    assert load(tmp_path).steps["step"].to_pylist() == [0, 1]


def test_a_loop_that_counts_its_own_steps(tmp_path):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer), tmp_path) as recorder:
        for step in (0, 1, 5, 6):
            recorder.begin(step)
            if step != 5:  # as GradScaler skips a step
                learn(model, optimizer, 1)
            recorder.log(at=step)
        with pytest.raises(UserError, match=r"above 6, the last one, got step=6"):
            recorder.begin(6)
    run = load(tmp_path)
    assert run.steps["step"].to_pylist() == [0, 1, 5, 6]
    assert run.steps["at"].to_pylist() == [0, 1, 5, 6]
    assert [math.isnan(n) for n in run.steps["grad_norm"].to_pylist()] == [
        False,
        False,
        True,
        False,
    ]
    assert np.isnan(run.metric("norm")[1]).all(axis=1).tolist() == [False, False, True, False]


def test_a_skipped_step_shows_nothing_of_an_earlier_block(tmp_path):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer), tmp_path) as recorder:
        for step in range(2 * ROWS):
            recorder.begin(step)
            if step != ROWS + 7:
                learn(model, optimizer, 1)
    norms = load(tmp_path).steps["grad_norm"].to_pylist()
    assert [at for at, norm in enumerate(norms) if math.isnan(norm)] == [ROWS + 7]


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer), tmp_path) as recorder:
        learn(model, optimizer, 10, recorder, round=lambda i: 1)
    with Recorder(gw.attach(optimizer), tmp_path, resume_from=6) as recorder:
        assert recorder.step == 5
        learn(model, optimizer, 3, recorder, round=lambda i: 2)
    steps = load(tmp_path).steps
    assert steps["step"].to_pylist() == list(range(9))
    assert steps["round"].to_pylist() == [1] * 6 + [2] * 3


def test_a_run_may_begin_late(tmp_path):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer), tmp_path, first_step=40):
        learn(model, optimizer, 2)
    assert load(tmp_path).steps["step"].to_pylist() == [40, 41]


@pytest.mark.parametrize("bad", [{"every": 0}, {"first_step": -1}, {"resume_from": -1}])
def test_numbers_out_of_bounds(tmp_path, bad):
    _, optimizer = network()
    ((name, value),) = bad.items()
    with pytest.raises(UserError, match=f"got {name}={value}"):
        Recorder(gw.attach(optimizer), tmp_path, **bad)


def test_a_folder_in_use_is_refused_and_untouched(tmp_path):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer), tmp_path):
        learn(model, optimizer, 2)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="new or empty run folder"):
        Recorder(gw.attach(optimizer), tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_flush_makes_all_steps_readable(tmp_path):
    model, optimizer = network()
    with Recorder(gw.attach(optimizer), tmp_path) as recorder:
        learn(model, optimizer, 3, recorder)
        assert load(tmp_path).last_step is None
        recorder.flush()
        assert load(tmp_path).steps.num_rows == 3
        assert not math.isnan(load(tmp_path).steps["loss"].to_pylist()[-1])
        recorder.log(loss=5.0, accuracy=0.5)  # late, and not lost
        learn(model, optimizer, 2, recorder)
    steps = load(tmp_path).steps
    assert steps["step"].to_pylist() == [0, 1, 2, 3, 4]
    assert (steps["loss"].to_pylist()[2], steps["accuracy"].to_pylist()[2]) == (5.0, 0.5)


def test_close_drops_later_steps_where_asked(tmp_path):
    for place, steps in (("a", 5), ("b", 2 * ROWS + 5)):
        model, optimizer = network()
        recorder = Recorder(gw.attach(optimizer), tmp_path / place, meta={"kept": 1})
        learn(model, optimizer, steps, recorder)
        recorder.close(last_step=3)
        run = load(tmp_path / place)
        assert run.steps["step"].to_pylist() == [0, 1, 2, 3]
        assert run.layers.num_rows == 16
        assert run.meta == {"kept": 1}
        assert run.closed


def test_an_exception_leaves_the_rows_and_the_optimizer_in_order(tmp_path):
    model, optimizer = network()
    attachment = gw.attach(optimizer)

    def fail():
        nonlocal recorder
        with Recorder(attachment, tmp_path) as recorder:
            learn(model, optimizer, 3, recorder)
            raise ZeroDivisionError

    recorder = None
    with pytest.raises(ZeroDivisionError):
        fail()
    assert load(tmp_path).steps.num_rows == 3
    assert load(tmp_path).closed
    assert attachment.observers == []
    learn(model, optimizer, 2)
    recorder.log(loss=1.0)
    recorder.close()
    assert load(tmp_path).steps.num_rows == 3


def test_attaching_anew_hands_the_recorder_on_and_close_still_ends_it(tmp_path):
    model, optimizer = network()
    recorder = Recorder(gw.attach(optimizer), tmp_path)
    learn(model, optimizer, 1)
    gw.autoscale(optimizer)
    learn(model, optimizer, 1)
    recorder.close()
    learn(model, optimizer, ROWS + 1)
    assert load(tmp_path).steps["step"].to_pylist() == [0, 1]


# The disk


def fill_disk(monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_files, "write_all", full)


def test_a_full_disk_does_not_stop_the_training(tmp_path, monkeypatch):
    model, optimizer = network()
    recorder = Recorder(gw.attach(optimizer), tmp_path)
    recorder._writer._flush_every = 0.0  # every block is written at once
    learn(model, optimizer, 4, recorder)
    fill_disk(monkeypatch)
    learn(model, optimizer, 9, recorder)
    with pytest.raises(WriteError, match="No space"):
        recorder.flush()
    assert recorder.errors > 0
    monkeypatch.undo()
    learn(model, optimizer, 2, recorder)
    recorder.close()
    assert load(tmp_path).steps["step"].to_pylist() == list(range(15))


def test_a_full_disk_does_not_hide_the_error_of_the_caller(tmp_path, monkeypatch):
    model, optimizer = network()

    def fail(place, error=None):
        with monkeypatch.context() as patch, Recorder(gw.attach(optimizer), place) as recorder:
            learn(model, optimizer, 3, recorder)
            fill_disk(patch)
            if error is not None:
                raise error

    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "a", ZeroDivisionError())
    with pytest.raises(WriteError):
        fail(tmp_path / "b")


# The device


class CountSyncs(TorchDispatchMode):
    """Counts the operators by which the host reads a value from the device."""

    READS = ("_local_scalar_dense", "_to_copy", "nonzero", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.READS and not (name == "_to_copy" and "device" not in (kwargs or {})):
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("transform", [None, "autoscale", "znorm", "clip", "agc"])
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, transform):
    monkeypatch.setenv("GRADWISE_BACKEND", "foreach")
    model, optimizer = network()
    transforms = [] if transform is None else [gw.registry.build(transform)]
    attachment = gw.attach(optimizer, *transforms, model=model)
    with Recorder(attachment, tmp_path) as recorder:
        learn(model, optimizer, 2, recorder)  # constants are made once
        with CountSyncs() as counter:
            learn(model, optimizer, 2 * ROWS, recorder)
        assert counter.reads == []
    assert load(tmp_path).steps.num_rows == 2 * ROWS + 2


def test_the_counter_of_syncs_counts():
    with CountSyncs() as counter:
        torch.ones(()).item()
        bool(torch.ones(()) > 0)
    assert counter.reads == ["_local_scalar_dense"] * 2
