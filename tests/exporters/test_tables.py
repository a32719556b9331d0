from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from recserve.exporters.errors import TableError
from recserve.exporters.tables import TableColumn, read_table
from recserve.kernels.features import MISSING_TIME

SMALL = pa.table({"item_id": ["007", "NA", "x"], "price": [1.5, None, 3.0]})


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def column(values: Any, kind: pa.DataType | None = None) -> TableColumn:
    return TableColumn("items, column 'x'", pa.chunked_array([pa.array(values, kind)]))


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".parquet", pa.parquet.write_table),
        (".csv", pa.csv.write_csv),
        (".arrow", pa.feather.write_feather),
        (".arrow", write_stream),
    ],
)
def test_every_format_gives_the_same_table(
    tmp_path: Path, suffix: str, write: Callable[[pa.Table, Path], None]
) -> None:
    path = tmp_path / f"items{suffix}"
    write(SMALL, path)
    table = read_table(path, "items", text=["item_id"])
    assert table.column("item_id").strings().to_pylist() == ["007", "NA", "x"]
    np.testing.assert_array_equal(table.column("price").numbers(), [1.5, np.nan, 3.0])


def test_csv_columns_have_the_types_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('id,category,tags,when,flag\n1,007,a|b,2024-01-02 03:04:05,true\n2,,,,false\n3,"",c,,true\n')
    table = read_table(path, "items", text=["id", "category"], lists=["tags"])
    assert table.column("id").strings().to_pylist() == ["1", "2", "3"]
    assert table.column("category").strings().to_pylist() == ["007", None, ""]
    strings, offsets = table.column("tags").lists()
    assert strings.to_pylist() == ["a", "b", "c"]
    assert offsets.tolist() == [0, 2, 2, 3]
    assert table.column("when").times().tolist() == [1704164645000000, MISSING_TIME, MISSING_TIME]
    assert table.column("flag").flags().tolist() == [1, 0, 1]


def test_a_quoted_empty_list_has_no_value(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('id,tags\n1,""\n2,\n3,a|b\n4,"c"\n')
    strings, offsets = read_table(path, "items", text=["id"], lists=["tags"]).column("tags").lists()
    assert strings.to_pylist() == ["a", "b", "c"]
    assert offsets.tolist() == [0, 0, 0, 2, 3]


@pytest.mark.parametrize("tags", ["a||b", "|", "|a", "a|"])
def test_an_empty_value_of_a_list(tmp_path: Path, tags: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(f"id,tags\n1,a\n2,{tags}\n")
    with pytest.raises(TableError, match=r"column 'tags', values of lists: . values are empty.* rows? [1-3]"):
        read_table(path, "items", text=["id"], lists=["tags"]).column("tags").lists()


def test_in_csv_only_an_empty_field_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("id,region,price\n1,NA,1\nnull,NULL,\nN/A,,nan\n")
    table = read_table(path, "items", text=["id", "region"])
    assert table.column("id").strings().to_pylist() == ["1", "null", "N/A"]
    assert table.column("region").strings().to_pylist() == ["NA", "NULL", None]
    np.testing.assert_array_equal(table.column("price").numbers(), [1, np.nan, np.nan])


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such file"):
        read_table(tmp_path / "absent.csv", "items")
    for suffix in ("csv", "parquet", "arrow"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"\xff\xfe\0\1,\n\xff")
        with pytest.raises(TableError, match=r"items.*bad\.|items: .*bad\."):
            read_table(tmp_path / f"bad.{suffix}", "items").column("x")
    (tmp_path / "items.xlsx").touch()
    with pytest.raises(TableError, match=r"unknown suffix '\.xlsx'.*\.parquet"):
        read_table(tmp_path / "items.xlsx", "items")
    with pytest.raises(TableError, match="empty"):
        read_table(SMALL.slice(0, 0), "items")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(TableError, match=r"empty\.csv"):
        read_table(tmp_path / "empty.csv", "items")


def test_columns_that_are_absent_or_there_twice() -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(TableError, match="items: there is no column 'y'; the columns are item_id, price"):
        read_table(SMALL, "items").column("y")
    with pytest.raises(TableError, match="there are 2 columns 'x'"):
        read_table(twice, "items").column("x")


def test_numbers() -> None:
    assert column([1, 2**60]).numbers().tolist() == [1.0, float(2**60)]
    assert column([decimal.Decimal("1.25")]).numbers().tolist() == [1.25]
    assert np.isnan(column([None, float("nan")], pa.float32()).numbers()).all()
    assert np.isnan(column([None, None]).numbers()).all()
    with pytest.raises(TableError, match=r"column 'x': expected numbers, found string"):
        column(["1.5"]).numbers()
    with pytest.raises(TableError, match="expected numbers, found bool"):
        column([True]).numbers()
    with pytest.raises(TableError, match=r"2 values are infinite, rows 1, 2 \(counted from 0\)"):
        column([1.0, float("inf"), -float("inf")]).numbers()


def test_integers() -> None:
    assert column([1, -(2**63)]).integers().tolist() == [1, -(2**63)]
    with pytest.raises(TableError, match="1 values are null, row 1"):
        column([1, None]).integers()
    with pytest.raises(TableError, match="expected integers, found double"):
        column([1.0]).integers()
    with pytest.raises(TableError, match="column 'x'"):
        column([2**63], pa.uint64()).integers()


def test_flags() -> None:
    assert column([True, False]).flags().tolist() == [1, 0]
    assert column([0, 1], pa.int8()).flags().tolist() == [0, 1]
    with pytest.raises(TableError, match="neither 0 nor 1, row 1"):
        column([0, 2]).flags()
    with pytest.raises(TableError, match="null"):
        column([True, None]).flags()
    with pytest.raises(TableError, match="expected booleans"):
        column(["yes"]).flags()


def test_times() -> None:
    noon = datetime.datetime(2024, 2, 29, 12)
    expected = [1709208000000000, MISSING_TIME]
    for unit in ("s", "ms", "us", "ns"):
        for zone in (None, "UTC"):
            assert column([noon, None], pa.timestamp(unit, tz=zone)).times().tolist() == expected
    berlin = column([noon], pa.timestamp("us")).data.cast(pa.timestamp("us", tz="Europe/Berlin"))
    assert TableColumn("x", berlin).times().tolist() == expected[:1]
    assert column([noon.date()]).times().tolist() == [1709164800000000]
    assert column([1709208000000000123], pa.timestamp("ns")).times().tolist() == expected[:1]
    assert column([None]).times().tolist() == [MISSING_TIME]
    with pytest.raises(TableError, match=r"cast numbers to a timestamp.*found int64"):
        column([1709208000]).times()
    with pytest.raises(TableError, match="years 1 to 9999, row 0"):
        column([253402300800], pa.timestamp("s")).times()
    with pytest.raises(TableError, match="column 'x'"):
        column([2**62], pa.timestamp("s")).times()


def test_strings() -> None:
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert column(["ä", None, ""], kind).strings().to_pylist() == ["ä", None, ""]
    with pytest.raises(TableError, match="expected strings, found int64"):
        column([7]).strings()
    with pytest.raises(TableError, match="expected strings, found binary"):
        column([b"x"]).strings()
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff"))
    encoded = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int8()), broken)
    outside = pa.DictionaryArray.from_arrays(pa.array([0, 3], pa.int8()), pa.array(["a"]), safe=False)
    for array, problem in ((broken, "UTF8"), (encoded, "UTF8"), (outside, "out of bounds")):
        with pytest.raises(TableError, match=f"column 'x'.*{problem}"):
            TableColumn("column 'x'", pa.chunked_array([array])).strings()


def test_utf8_of_a_slice_starts_at_its_own_first_string() -> None:
    sliced = TableColumn("x", pa.chunked_array([["zero", "ä"], ["b", None]]).slice(1))
    utf8, offsets = sliced.utf8()
    assert utf8.tobytes().decode() == "äb"
    assert offsets.tolist() == [0, 2, 3, 3]


def test_lists() -> None:
    codes, offsets = column([["a", "b"], None, [], ["b"]]).list_codes(["a", "b"])
    assert codes.tolist() == [0, 1, 1]
    assert offsets.tolist() == [0, 2, 2, 2, 3]
    sliced = TableColumn("x", pa.chunked_array([[["z"], ["a"]], [["b", "a"]]]).slice(1))
    codes, offsets = sliced.list_codes(["a", "b"])
    assert codes.tolist() == [0, 1, 0]
    assert offsets.tolist() == [0, 1, 3]
    with pytest.raises(TableError, match="expected lists of strings, found string"):
        column(["a|b"]).lists()
    with pytest.raises(TableError, match=r"expected lists of strings, found list<.*int64>"):
        column([[1]]).lists()
    with pytest.raises(TableError, match="values of lists: 1 values are null"):
        column([["a", None]]).lists()
    with pytest.raises(
        TableError, match=r"values of lists: 2 values are empty; leave them out of their lists, rows 1, 2"
    ):
        column([["a", ""], [""]]).lists()


def test_codes_follow_the_vocabulary() -> None:
    assert column(["b", None, "a"]).codes(["a", "b", "c"]).tolist() == [1, -1, 0]
    with pytest.raises(TableError, match=r"2 values are not in the vocabulary: 'x', 'y': add them"):
        column(["x", "a", "y", "x"]).codes(["a"])
