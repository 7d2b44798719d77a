"""MLflow, in a folder and in SQLite, read back with its own client."""

import uuid

import mlflow
import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.watch.block import Block
from gradwise.watch.sinks import MLflow, SinkFeed
from gradwise.watch.sinks.mlflow import LONGEST, Names

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow.*"),
    pytest.mark.filterwarnings("ignore:.*noload.*loader strategy is deprecated"),
]


@pytest.fixture(params=["file", "sqlite"], scope="module")
def uri(request, tmp_path_factory):
    """Of a store that all tests share: making a database takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    if request.param == "file":
        return f"file:{folder}/mlruns"
    pytest.importorskip("sqlalchemy", reason="SQLite in MLflow needs sqlalchemy and alembic")
    return f"sqlite:///{folder}/runs.db"


@pytest.fixture
def store(uri):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield mlflow.MlflowClient(uri)
    mlflow.set_tracking_uri(before)


@pytest.fixture
def experiment(store, tmp_path):
    return store.create_experiment(uuid.uuid4().hex, artifact_location=f"file:{tmp_path}/artifacts")


@pytest.fixture
def run_id(store, experiment):
    return store.create_run(experiment).info.run_id


def history(client, run_id, name) -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, name)]


def test_names_steps_values_and_times(store, run_id, play) -> None:
    play(MLflow(run_id, store, layers="head.*"))
    assert set(store.get_run(run_id).data.metrics) == {
        "grad/norm",
        "grad/applied/norm",
        "grad/noise_scale",
        "grad/nonfinite",
        "grad/layer/head.bias/norm",
        "grad/layer/head.bias/std",
        "lr",
        "lr_1",
        "loss",
    }
    assert history(store, run_id, "grad/norm") == [
        (step, step, (10**9 + step) * 1000) for step in (0, 10, 20, 30, 39)
    ]
    assert [step for step, _, _ in history(store, run_id, "grad/noise_scale")] == [10, 20, 30, 39]
    assert history(store, run_id, "lr_1")[0][:2] == (0, 0.2)
    assert history(store, run_id, "grad/layer/head.bias/std")[1][1] == pytest.approx(110.1)


def test_more_numbers_than_one_request_takes(store, run_id, play) -> None:
    names = tuple(f"block.{i}.weight" for i in range(600))
    norm = np.arange(600.0)[None]
    record = Block(
        names, np.arange(1), {"norm": norm, "std": norm + 0.5}, {"grad_norm": norm[0, :1]}
    )
    sizes = []

    class Counting:
        def log_batch(self, run_id, metrics, synchronous):
            sizes.append(len(metrics))
            store.log_batch(run_id, metrics=metrics, synchronous=synchronous)

    play(MLflow(run_id, Counting()), [record])
    assert sizes == [1000, 201]
    found = store.get_run(run_id).data.metrics
    assert len(found) == 1201
    assert found["grad/layer/block.599.weight/std"] == 599.5


def test_infinite_values_are_left_out(store, run_id, play) -> None:
    norm = np.array([1.0, np.inf, 3.0])
    record = Block(("w",), np.arange(3), {}, {"grad_norm": norm, "loss": -norm})
    play(MLflow(run_id, store, every=1), [record])
    assert [row[:2] for row in history(store, run_id, "grad/norm")] == [(0, 1), (2, 3)]
    assert [row[:2] for row in history(store, run_id, "loss")] == [(0, -1), (2, -3)]


def test_the_active_run_of_the_thread_that_makes_the_sink(store, experiment, play) -> None:
    with mlflow.start_run(experiment_id=experiment) as run:
        sink = MLflow(every=20)
        play(sink)
        mlflow.log_metric("mine", 1.0, step=7)
    assert [row[0] for row in history(store, run.info.run_id, "grad/norm")] == [0, 20, 39]
    assert [row[0] for row in history(store, run.info.run_id, "mine")] == [7]


def test_names_that_mlflow_does_not_take(store, run_id, play) -> None:
    names = ("w[0]", "w(0)", "../up", "a//b", "größe", "x" * 300 + "1", "x" * 300 + "2")
    record = Block(names, np.arange(1), {"norm": np.arange(7.0)[None]}, {"grad": np.ones(1)})
    play(MLflow(run_id, store, layer_metrics=["norm"]), [record])
    found = store.get_run(run_id).data.metrics
    assert sorted(found.values()) == [0, 1, 1, 2, 3, 4, 5, 6]
    assert found["grad/layer/w_0_/norm"] == 0
    assert "grad" not in found  # the user's: it is the folder of ours


def test_every_name_fits_and_is_its_own() -> None:
    fitted = Names()
    given = ["lr", "lr/1", "lr/2", "lr_1", "a/b", "a", "a/b/c", "a_b_c", "x" * 251, "x" * 252, ".."]
    found = [fitted[name] for name in given]
    assert found[:3] == ["lr", "lr_1", "lr_2"]
    assert len(set(found)) == len(given)
    assert max(map(len, found)) <= LONGEST
    assert not any(other.startswith(name + "/") for name in found for other in found)
    assert [fitted[name] for name in given] == found


def test_a_run_that_is_not_there(store, blocks, said) -> None:
    feed = SinkFeed(MLflow("0" * 32, store), patience=20)
    for block in blocks():
        feed.take(block)
    feed.close()
    assert feed.sent == 0
    assert feed.lost == 5
    assert "MlflowException" in said()[0]


def test_without_a_run(store) -> None:
    with pytest.raises(UserError, match="there is no active MLflow run: call mlflow"):
        MLflow()
    with pytest.raises(UserError, match="expected client to be an MlflowClient, got str"):
        MLflow("id", client="http://localhost")
