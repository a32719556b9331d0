"""ColumnValues and recent_items."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.kernels.features import MISSING_CODE, MISSING_TIME, ColumnLayout, ColumnSpec, ColumnValues, recent_items

LAYOUT = ColumnLayout(
    (
        ColumnSpec("tags", "categories"),
        ColumnSpec("age", "number"),
        ColumnSpec("joined", "time"),
        ColumnSpec("gender", "category"),
        ColumnSpec("income", "number"),
        ColumnSpec("brands", "categories"),
    )
)


def row(age: float, gender: int, joined: int, tags: list[int], brands: list[int]) -> ColumnValues:
    values = {"age": age, "gender": gender, "joined": joined, "tags": tags, "brands": brands}
    return ColumnValues.missing(LAYOUT, 1).with_overrides(LAYOUT, values)


ROWS = [row(30.0, 1, 5, [1, 2], []), row(40.0, 0, 6, [], [3]), row(50.0, -1, 7, [4], [5, 6])]


def lists_of(values: ColumnValues) -> list[list[int]]:
    return [
        values.list_codes[start:end].tolist()
        for start, end in zip(values.list_offsets[:-1], values.list_offsets[1:], strict=True)
    ]


def assert_equal(found: ColumnValues, expected: ColumnValues) -> None:
    for name in ("numbers", "codes", "times", "list_codes", "list_offsets"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype
        assert a.flags.c_contiguous
        np.testing.assert_array_equal(a, b)


def test_layout():
    assert LAYOUT.places == {
        "age": ("number", 0),
        "income": ("number", 1),
        "gender": ("category", 0),
        "joined": ("time", 0),
        "tags": ("categories", 0),
        "brands": ("categories", 1),
    }
    assert [column.name for column in LAYOUT.numbers] == ["age", "income"]


def test_missing():
    values = ColumnValues.missing(LAYOUT, 3)
    assert values.rows == 3
    assert values.numbers.shape == (3, 2)
    assert np.isnan(values.numbers).all()
    assert (values.codes == MISSING_CODE).all()
    assert (values.times == MISSING_TIME).all()
    assert np.iinfo(np.int64).min == MISSING_TIME
    assert lists_of(values) == [[]] * 6


def test_overrides():
    values = ROWS[0]
    assert values.numbers[0, 0] == 30
    assert np.isnan(values.numbers[0, 1])
    assert values.codes.tolist() == [[1]]
    assert values.times.tolist() == [[5]]
    assert lists_of(values) == [[1, 2], []]


def test_overrides_reach_every_row_and_leave_the_original_alone():
    both = ColumnValues.concat(ROWS[:2])
    changed = both.with_overrides(LAYOUT, {"income": 9.0, "brands": (7,)})
    assert changed.numbers[:, 1].tolist() == [9, 9]
    assert lists_of(changed) == [[1, 2], [7], [], [7]]
    assert np.isnan(both.numbers[:, 1]).all()
    assert lists_of(both) == [[1, 2], [], [], [3]]


def test_no_overrides():
    assert ROWS[0].with_overrides(LAYOUT, {}) is ROWS[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("age", "30"), ("age", [1]), ("gender", 1.5), ("joined", 1.5), ("tags", 1), ("tags", [1.5])],
)
def test_override_of_another_type(name, value):
    with pytest.raises(TypeError, match=f'column "{name}"'):
        ROWS[0].with_overrides(LAYOUT, {name: value})


def test_override_of_an_unknown_column():
    with pytest.raises(KeyError, match="nobody"):
        ROWS[0].with_overrides(LAYOUT, {"nobody": 1})


def test_rows_of_a_concatenation_are_its_parts():
    together = ColumnValues.concat(ROWS)
    assert lists_of(together) == [[1, 2], [], [], [3], [4], [5, 6]]
    for index, part in enumerate(ROWS):
        assert_equal(together.row(index), part)
    assert_equal(ColumnValues.concat([ColumnValues.concat(ROWS[:2]), ROWS[2]]), together)


def test_concat_of_nothing_and_of_one():
    assert ColumnValues.concat(ROWS[:1]) is ROWS[0]
    with pytest.raises(ValueError, match="at least one array"):
        ColumnValues.concat([])


@pytest.mark.parametrize("index", [-1, 1])
def test_row_out_of_range(index):
    with pytest.raises(IndexError, match=f"row {index} of 1"):
        ROWS[0].row(index)


def test_layout_without_columns():
    empty = ColumnLayout(())
    together = ColumnValues.concat([ColumnValues.missing(empty, 1)] * 3)
    assert together.rows == 3
    assert_equal(together.row(2), ColumnValues.missing(empty, 1))


def test_recent_items():
    session, history = np.array([5, 3, 5], np.int64), np.array([-1, 3, 9, 5, 1, 9], np.int64)
    assert recent_items(session, history).tolist() == [5, 3, 9, 1]
    assert recent_items(session[:0], history[:0]).dtype == np.int64


rows = st.lists(st.integers(-1, 5), max_size=8).map(lambda values: np.array(values, np.int64))


@given(session=rows, history=rows)
def test_recent_items_like_a_dict(session, history):
    expected = list(dict.fromkeys(row for row in [*session.tolist(), *history.tolist()] if row >= 0))
    assert recent_items(session, history).tolist() == expected
