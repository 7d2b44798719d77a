import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_synthetic import unpack

from gradwise.errors import UserError
from gradwise.report.encode import embed, pack, rounded, rounded_list
from gradwise.report.markdown import code, code_block, escape
from gradwise.report.values import interval, number, numbers, read_object, text, whole
from gradwise.report.words import accuracy_points, duration, memory, p_value, plain, span

# Half of it the characters that HTML, JSON and Markdown give a meaning.
TEXTS = st.text() | st.text(alphabet="<>&/|`\\*_[]'\"!-\n\r\u2028ab ")


def test_what_is_not_a_finite_number_is_none() -> None:
    assert number(10**400) is None
    assert number(True) is None
    assert numbers([1, "2", None, math.inf, [3]]) == [1.0, None, None, None, None]
    assert numbers("12") == []
    assert interval([1]) is None
    assert interval([None, 1]) is None
    assert whole(2**53) is None


def test_text_of_nested_values() -> None:
    assert text({"a": [1, 2], "b": None}) == "a: 1, 2, b: –"
    assert text([]) == "–"


def test_four_significant_digits() -> None:
    assert rounded_list([0.00012345678, 123456.0, -0.5, math.nan]) == [
        0.0001235,
        123500,
        -0.5,
        None,
    ]
    assert json.dumps(rounded(3.0)) == "3"


def test_packing_keeps_four_digits_zero_none_and_infinite() -> None:
    rng = np.random.default_rng(0)
    values = 10 ** rng.uniform(-8, 2, (7, 11))
    values[0, 0], values[1, 1], values[2, 2], values[3, 3] = np.nan, 0.0, np.inf, -np.inf
    found = unpack(pack(values))
    assert np.isnan(found[0, 0])
    assert found[1, 1] == 0
    assert found[2, 2] == found[3, 3] == np.inf
    kept = np.isfinite(values) & (values > 0)
    assert np.abs(found[kept] / values[kept] - 1).max() < 2e-4


def test_packing_in_one_byte_is_good_for_pictures() -> None:
    rng = np.random.default_rng(0)
    values = 10 ** rng.uniform(-3, 0, (5, 400)) * 10.0 ** np.arange(-8, 2, 2)[:, None]
    assert np.abs(unpack(pack(values, 1)) / values - 1).max() < 0.02


@pytest.mark.parametrize(("size", "error"), [(1, 0.08), (2, 3e-4)])
def test_packing_keeps_signs_and_is_even_around_zero(size: int, error: float) -> None:
    values = np.random.default_rng(0).normal(0, 1e-4, (3, 500))
    values[0, 7] = 1.0  # an outlier does not cost the others their digits
    found = unpack(pack(values, size))
    near = np.abs(values) < 1e-3
    assert np.abs(found - values)[near].max() < error * 1e-4
    assert np.abs(found - values)[1:].max() < error / 4 * 1e-4
    assert found[0, 7] == pytest.approx(1.0)
    assert (np.sign(found) == np.sign(values)).mean() > 0.98


@pytest.mark.parametrize(
    "values",
    [
        np.full((2, 2), np.nan), np.zeros((1, 3)), np.full((2, 1), 0.3), np.empty((0, 4)),
        np.empty((3, 0)), np.full((1, 2), -2.0), np.full((1, 2), np.inf), np.full((1, 2), 1e300),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 2])
def test_packing_what_has_no_range(values: np.ndarray, size: int) -> None:
    np.testing.assert_allclose(unpack(pack(values, size)), values, rtol=1e-12)


def test_packing_the_largest_and_the_smallest_numbers() -> None:
    values = np.array([[1e308, 5e-324, -1e308, 1.0]])
    found = unpack(pack(values))
    assert found[0, 0] == pytest.approx(1e308, rel=0.01)
    assert found[0, 2] == pytest.approx(-1e308, rel=0.01)


@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
def test_embedded_json_reads_back_and_cannot_break_out(payload: object) -> None:
    embedded = embed(payload)
    assert json.loads(embedded) == payload
    assert embedded.isascii()
    assert not set("<>&") & set(embedded)
    assert "\n" not in embedded


def test_embedding_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        embed([math.nan])


@given(TEXTS)
def test_a_markdown_cell_stays_on_its_line_and_in_its_column(value: str) -> None:
    for shown in (escape(value), str(code(value))):
        assert len(shown.splitlines()) <= 1
        bare = shown.replace("\\\\", "") if shown == escape(value) else shown
        assert bare.replace("\\|", "").count("|") == 0
    assert "<" not in escape(value)


def test_code_keeps_backticks_apart_from_its_fence() -> None:
    assert code("`") == "`` ` ``"
    assert code_block("a\n```\nb").startswith("````\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged"),
        ("[1]", "expected a JSON object, got a list"),
        ('{"format": 2}', "written by a newer gradwise: it has format 2"),
        ('{"format": "1"}', "expected format to be a whole number"),
        ("[" * 100_000, "is damaged"),
        ("\udcff", "is damaged"),
    ],
)
def test_a_broken_file_gets_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=words) as caught:
        read_object(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_in_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": NaN, "b": [-Infinity, 1]}')
    assert read_object(tmp_path / "x.json") == {"a": None, "b": [None, 1]}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        read_object(tmp_path / "x.json")


def test_numbers_as_words() -> None:
    assert accuracy_points(-0.00001) == "0.00"
    assert span((-0.05, -0.01), signed=True) == "−5.00 to −1.00"
    assert p_value(0.0999) == "0.100"
    assert plain(0.0) == "0"
    assert duration(59.99) == "1 min 00 s"
    assert duration(-1.0) == "–"
    assert memory(1023.99 * 1024) == "1.0 MiB"
    assert memory(5 * 2**40) == "5.0 TiB"
