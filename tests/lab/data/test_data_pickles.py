"""CIFAR as python pickles: what the originals need is read, nothing else is admitted."""

import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.errors import UserError
from gradwise.lab.data import load
from gradwise.lab.data.unpickle import byte_array, read_pickle

WRITERS = ["python 2", 2, 3, 4, 5]


def writer(forms, which):
    return forms.python2_pickle if which == "python 2" else forms.python3_pickle(which)


@pytest.mark.parametrize("bytes_keys", [False, True], ids=["text", "bytes"])
@pytest.mark.parametrize("which", WRITERS)
def test_cifar10_of_every_writer_is_read(forms, cifar10, tmp_path, which, bytes_keys):
    batches = forms.cifar10_batches(cifar10, writer(forms, which), bytes_keys)
    forms.files(tmp_path / "cifar-10-batches-py", batches)
    dataset = load("cifar10", tmp_path)
    cifar10.assert_equals(dataset)
    assert dataset.class_names[3] == "kind 3"
    assert (dataset.crop_padding, dataset.flip, dataset.num_classes) == (4, True, 10)


@pytest.mark.parametrize("which", WRITERS)
def test_cifar100_takes_the_fine_labels(forms, cifar100, tmp_path, which):
    folder = forms.files(tmp_path / "x", forms.cifar100_batches(cifar100, writer(forms, which)))
    dataset = load("cifar100", folder)
    cifar100.assert_equals(dataset)
    assert dataset.num_classes == 100
    assert dataset.class_names[99] == "kind 99"


def test_names_of_old_and_new_numpy_are_known(forms, cifar100, tmp_path):
    new = forms.cifar100_batches(cifar100, forms.python3_pickle(2))
    assert b"numpy._core.multiarray" in new["train"] or b"numpy.core.multiarray" in new["train"]
    for old_name, new_name in (
        (b"numpy._core.", b"numpy.core."),
        (b"numpy.core.", b"numpy._core."),
    ):
        files = {name: data.replace(old_name, new_name) for name, data in new.items()}
        folder = forms.files(tmp_path / new_name.decode(), files)
        cifar100.assert_equals(load("cifar100", folder))


def test_batches_without_their_meta_file_have_the_published_names(forms, cifar10, tmp_path):
    batches = forms.cifar10_batches(cifar10)
    del batches["batches.meta"]
    dataset = load("cifar10", forms.files(tmp_path, batches))
    assert dataset.class_names[:2] == ("airplane", "automobile")


def test_an_array_in_column_order_is_read_in_its_order(forms, cifar100, tmp_path):
    def dump(value):
        if "data" in value:
            value["data"] = np.asfortranarray(value["data"])
        return pickle.dumps(value, protocol=4)

    cifar100.assert_equals(
        load("cifar100", forms.files(tmp_path, forms.cifar100_batches(cifar100, dump)))
    )


class Hostile:
    """Runs a shell command when an ordinary unpickler meets it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def hostile_batches(forms, content, marker, protocol):
    batches = forms.cifar10_batches(content)
    batches["data_batch_3"] = pickle.dumps(
        {"data": Hostile(marker), "labels": [1]}, protocol=protocol
    )
    return batches


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_a_hostile_pickle_is_refused_and_does_not_run(forms, cifar10, tmp_path, protocol, packed):
    marker = tmp_path / "it-ran"
    batches = hostile_batches(forms, cifar10, marker, protocol)
    if packed:
        forms.archive(tmp_path / "cifar-10-python.tar.gz", batches, "cifar-10-batches-py")
    else:
        forms.files(tmp_path, batches)
    with pytest.raises(UserError, match=r"refused to read the pickle .*data_batch_3"):
        load("cifar10", tmp_path)
    assert not marker.exists()
    # The payload is a real one: the ordinary unpickler runs it.
    pickle.loads(batches["data_batch_3"])
    assert marker.exists()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x80\x02cbuiltins\neval\nU\x011\x85R.", "asks for builtins.eval"),
        (b"\x80\x02cnumpy\nload\nU\x01x\x85R.", "asks for numpy.load"),
        (b"\x80\x02c_codecs\ndecode\nU\x01x\x85R.", "asks for _codecs.decode"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.", "asks for numpy.f2py.os.system"),
        (b"\x80\x02cx\x1b[31m\ny\n.", r"asks for 'x\\x1b\[31m.y'"),
        (b"\x80\x02" + b"c" + b"m" * 5000 + b"\ny\n.", "asks for 'm{80}', which"),
        (b"\x80\x02}Pid\n.", "instruction PERSID"),
        (b"\x80\x02(U\x01xios\nsystem\n.", "instruction INST"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "instruction NEWOBJ"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "numbers an object 2147483647"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "tries to change a function"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}b.", "tries to change a function"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "calls what is only to be named"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aU\x06base64\x86R.", "text as latin1"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01tb.", "in an unknown way"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_data_has_no_use_for_is_refused(payload, message):
    with pytest.raises(UserError, match=rf"refused to read the pickle here: .*{message}"):
        read_pickle(payload, "here")


def test_stand_ins_cannot_be_changed_for_the_next_file(forms):
    with pytest.raises(UserError):
        read_pickle(b"\x80\x02cnumpy\ndtype\n}U\x04codeU\x01xsb.", "here")
    content = read_pickle(forms.python2_pickle({"a": np.ones((2, 3), np.uint8)}), "here")
    assert byte_array(content["a"], 3, "a").tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 3), np.int64), r"array of bytes \(u1\) as it, got type 'i8'"),
        (np.ones((2, 3), object), "got type 'O8'"),
        (np.ones((2, 4), np.uint8), r"expected shape \(N, 3\) of it, got \(2, 4\)"),
        (np.ones(6, np.uint8), r"expected shape \(N, 3\) of it, got \(6,\)"),
        (np.ones((0, 3), np.uint8), r"expected shape \(N, 3\) of it, got \(0, 3\)"),
        ([1, 2, 3], "expected an array as it, got a value of type list"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, message):
    content = read_pickle(pickle.dumps({"a": array}, protocol=4), "here")
    with pytest.raises(UserError, match=message):
        byte_array(content["a"], 3, "it")


def test_an_array_that_claims_more_than_it_holds_costs_no_memory(forms):
    honest = forms.python2_pickle({"a": np.ones((2, 3), np.uint8)})
    shape = b"K\x02K\x03"
    assert honest.count(shape) == 1
    lie = honest.replace(shape, b"J" + struct.pack("<i", 2**31 - 1) + b"K\x03")
    content = read_pickle(lie, "here")
    with pytest.raises(UserError, match=f"expected {(2**31 - 1) * 3} bytes in it, got 6"):
        byte_array(content["a"], 3, "it")


@pytest.mark.parametrize("which", ["python 2", 5])
def test_a_pickle_cut_anywhere_is_one_sentence(forms, which):
    whole = writer(forms, which)({"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "n": [1]})
    for length in range(len(whole)):
        with pytest.raises(UserError, match="truncated or damaged"):
            read_pickle(whole[:length], "here")


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(forms, position, value):
    batch = bytearray(forms.cifar100_batches(forms.content(classes=100, train=2, test=2))["train"])
    # Most of the file is pixels; the program around them is what can go wrong.
    around = [*range(200), *range(len(batch) - 200, len(batch))]
    batch[around[int(position * len(around))]] = value
    sentence = ""
    try:
        content = read_pickle(bytes(batch), "here")
        if "data" in content:
            byte_array(content["data"], 3072, "it")
    except UserError as error:
        sentence = str(error)
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch["labels"].__setitem__(2, 10), r"data_batch_2, got 10 in row 2"),
        (lambda batch: batch["labels"].__setitem__(1, -1), r"data_batch_2, got -1 in row 1"),
        (lambda batch: batch["labels"].__setitem__(1, "x"), r"numbers as labels .* row 1"),
        (lambda batch: batch["labels"].__setitem__(1, 2**40), rf"got {2**40} in row 1"),
        (lambda batch: batch["labels"].pop(), "4 images and 3 labels"),
        (lambda batch: batch.pop("labels"), r"the entry 'labels' in .*data_batch_2, got "),
        (lambda batch: batch.pop("data"), r"the entry 'data' in .*data_batch_2, got "),
        (lambda batch: batch.update(labels=5), "expected a list as labels"),
    ],
)
def test_batches_that_do_not_fit_are_refused(forms, cifar10, tmp_path, change, message):
    batches = forms.cifar10_batches(cifar10, forms.python3_pickle(4))
    batch = pickle.loads(batches["data_batch_2"])
    change(batch)
    batches["data_batch_2"] = pickle.dumps(batch, protocol=4)
    with pytest.raises(UserError, match=message):
        load("cifar10", forms.files(tmp_path, batches))


def test_a_pickle_of_something_else_and_meta_of_something_else_are_refused(
    forms, cifar10, tmp_path
):
    batches = forms.cifar10_batches(cifar10)
    forms.files(tmp_path / "a", {**batches, "test_batch": pickle.dumps([1, 2])})
    with pytest.raises(UserError, match=r"expected a dictionary in the pickle .*test_batch"):
        load("cifar10", tmp_path / "a")
    for number, names in enumerate((["x"], [1] * 10, "x" * 10)):
        meta = pickle.dumps({"label_names": names})
        forms.files(tmp_path / str(number), {**batches, "batches.meta": meta})
        with pytest.raises(UserError, match=r"as label_names in .*batches.meta"):
            load("cifar10", tmp_path / str(number))


def test_a_missing_batch_is_named(forms, cifar10, tmp_path):
    batches = forms.cifar10_batches(cifar10)
    del batches["data_batch_4"]
    with pytest.raises(UserError, match="expected data_batch_4 beside data_batch_1"):
        load("cifar10", forms.files(tmp_path / "a", batches))
    forms.archive(tmp_path / "b" / "cifar-10-python.tar.gz", batches, "cifar-10-batches-py")
    with pytest.raises(UserError, match=r"found no cifar-10-batches-py/data_batch_4 in .*tar.gz"):
        load("cifar10", tmp_path / "b")
