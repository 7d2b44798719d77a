"""TensorBoard, read back with its own EventAccumulator."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from gradwise.errors import UserError
from gradwise.watch.block import Block
from gradwise.watch.sinks import SinkFeed, TensorBoard, events
from gradwise.watch.sinks import feed as feeds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")


def read(folder) -> dict[str, list]:
    """tag -> events (wall_time, step, value)."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def ends_well(file) -> bool:
    """Whether the last record is whole: length, its checksum, data, their checksum."""
    raw, at = file.read_bytes(), 0
    while at < len(raw):
        at += 8 + 4 + int.from_bytes(raw[at : at + 8], "little") + 4
    return at == len(raw)


def points(folder, tag) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder)[tag]]


def test_names_steps_values_and_times(play, tmp_path) -> None:
    play(TensorBoard(tmp_path / "new" / "folder", layers="head.*"))
    found = read(tmp_path / "new" / "folder")
    assert set(found) == {
        "grad/norm",
        "grad/applied/norm",
        "grad/noise_scale",
        "grad/nonfinite",
        "grad/layer/head.bias/norm",
        "grad/layer/head.bias/std",
        "lr",
        "lr/1",
        "loss",
    }
    events = found["grad/norm"]
    assert [(e.step, e.value) for e in events] == [(0, 0), (10, 10), (20, 20), (30, 30), (39, 39)]
    assert [e.wall_time for e in events] == [1e9, 1e9 + 10, 1e9 + 20, 1e9 + 30, 1e9 + 39]
    assert [e.step for e in found["grad/noise_scale"]] == [10, 20, 30, 39]
    assert found["grad/layer/head.bias/std"][1].value == pytest.approx(110.1)


def test_infinite_values_are_sent(play, tmp_path) -> None:
    norm = np.array([1.0, np.inf, 1e300])  # the last has no place in single precision
    play(TensorBoard(tmp_path, every=1), [Block(("w",), np.arange(3), {}, {"grad_norm": norm})])
    assert points(tmp_path, "grad/norm") == [(0, 1.0), (1, np.inf), (2, np.inf)]


def test_a_writer_that_is_given_stays_the_users(play, tmp_path) -> None:
    writer = SummaryWriter(str(tmp_path))
    writer.add_scalar("mine", 1.0, 0)
    play(TensorBoard(writer))
    events = read(tmp_path)["grad/norm"]  # there without the user's doing
    assert [(e.step, e.value, e.wall_time) for e in events[::4]] == [
        (0, 0, 1e9),
        (39, 39, 1e9 + 39),
    ]
    writer.add_scalar("mine", 2.0, 1)
    writer.close()
    assert points(tmp_path, "mine") == [(0, 1.0), (1, 2.0)]
    assert len(list(tmp_path.iterdir())) == 1


def test_other_writers_get_scalars_one_by_one(play) -> None:
    class Foreign:
        def __init__(self):
            self.rows = []

        def add_scalar(self, tag, value, step, walltime):
            self.rows.append((tag, value, step, walltime))

        def flush(self):
            self.rows.append("flush")

    writer = Foreign()
    play(TensorBoard(writer, scalars=["grad/norm"], layer_metrics=[], every=20))
    assert writer.rows == [
        ("grad/norm", 0, 0, 1e9),
        ("grad/norm", 20, 20, 1e9 + 20),
        ("grad/norm", 39, 39, 1e9 + 39),
        "flush",
    ]


def test_a_resumed_run_hides_what_the_first_wrote_later(play, blocks, tmp_path) -> None:
    for folder, purge_step in ((tmp_path / "a", 20), (tmp_path / "b", None)):
        play(TensorBoard(folder))  # steps 0 to 39; the checkpoint was after step 19
        play(TensorBoard(folder, purge_step=purge_step), blocks(40, first=20))
    steps = [step for step, _ in points(tmp_path / "a", "grad/norm")]
    assert steps == [0, 10, 20, 30, 40, 50, 59]
    steps = [step for step, _ in points(tmp_path / "b", "grad/norm")]
    assert steps == [0, 10, 20, 30, 39, 20, 30, 40, 50, 59]


def test_a_full_disk_leaves_no_half_record(blocks, until, tmp_path, monkeypatch, said) -> None:
    monkeypatch.setattr(feeds, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(feeds, "LONGEST_PAUSE", 0.01)
    write, room = os.write, [1000]

    def small(file, data):
        """A disk with so much room: the last piece is written in part."""
        if len(data) > room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(file, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(events, "os", SimpleNamespace(**{**vars(os), "write": small}))
    feed = SinkFeed(TensorBoard(tmp_path), patience=20)
    first, *others = blocks()
    feed.take(first)
    for block in others:
        feed.take(block)
    until(lambda: feed.errors)
    stopped = read(tmp_path)["grad/norm"]  # what arrived can be read
    assert 0 < len(stopped) < 4
    (file,) = tmp_path.iterdir()
    assert ends_well(file)
    room[0] = 10**6
    feed.close()
    assert feed.lost + feed.sent == 5
    assert feed.sent > len(stopped)
    assert len(points(tmp_path, "grad/norm")) == feed.sent
    assert list(tmp_path.iterdir()) == [file]
    assert ends_well(file)
    assert len(said()) == 1
    assert "No space left" in said()[0]


def test_a_folder_that_cannot_be_made(blocks, tmp_path, said) -> None:
    (tmp_path / "file").write_text("mine")
    feed = SinkFeed(TensorBoard(tmp_path / "file"), patience=20)
    for block in blocks():
        feed.take(block)
    feed.close()
    assert (feed.sent, feed.lost) == (0, 5)
    assert len(said()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_two_sinks_in_one_folder(play, tmp_path) -> None:
    play(TensorBoard(tmp_path, scalars="grad/norm", layer_metrics=[]))
    play(TensorBoard(tmp_path, scalars="loss", layer_metrics=[]))
    assert set(read(tmp_path)) == {"grad/norm", "loss"}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_writer_that_was_closed_too_early(blocks, tmp_path, said) -> None:
    writer = SummaryWriter(str(tmp_path))
    feed = SinkFeed(TensorBoard(writer), patience=20)
    writer.close()
    for block in blocks():
        feed.take(block)
    feed.close()
    assert feed.sent == 0
    assert feed.lost == 5
    assert "close the watch before it" in said()[0]
    assert len(list(tmp_path.iterdir())) == 1  # no second file


@pytest.mark.parametrize(
    ("target", "purge_step", "message"),
    [
        (7, None, "expected a folder or a SummaryWriter for TensorBoard, got int"),
        ("folder", -1, "purge_step=-1"),
    ],
)
def test_mistakes(target, purge_step, message) -> None:
    with pytest.raises(UserError, match=message):
        TensorBoard(target, purge_step=purge_step)


def test_purge_step_belongs_to_the_one_who_makes_the_writer(tmp_path) -> None:
    with SummaryWriter(str(tmp_path)) as writer, pytest.raises(UserError, match="purge_step=5"):
        TensorBoard(writer, purge_step=5)
