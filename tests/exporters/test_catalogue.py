from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pytest

from recserve.exporters import strings
from recserve.exporters.catalogue import read_items
from recserve.exporters.errors import ExportError, TableError
from recserve.exporters.spec import CatalogueSpec, ItemColumn, Roles
from recserve.kernels.features import FeatureSchema
from recserve.server.bundle.reader import open_bundle

Make = Callable[..., Path]


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def with_id(table: pa.Table, row: int, value: str | None) -> pa.Table:
    ids = table.column("item_id").to_pylist()
    ids[row] = value
    return with_column(table, "item_id", pa.array(ids, pa.string()))


def test_ids_may_be_any_utf8_of_256_bytes(tiny_bundle: Make, tiny_items: pa.Table) -> None:
    chosen = {3: "ü" * 128, 4: " ", 5: "a/b\n\0c", 6: "東屋🛒", 7: "\u202e", 8: "e\u0301", 9: "é"}
    for row, value in chosen.items():
        tiny_items = with_id(tiny_items, row, value)
    catalogue = open_bundle(tiny_bundle(items=tiny_items)).catalogue
    assert catalogue.rows_of_ids(list(chosen.values())).tolist() == list(chosen)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("item-000", r"column 'item_id': 1 are there again: 'item-000' in row 0 and 'item-000' in row 7"),
        (None, "1 are null, row 7"),
        ("", "1 are empty, row 7"),
        ("x" * 257, "longer than 256 bytes, row 7"),
        ("ü" * 129, "longer than 256 bytes, row 7"),
    ],
)
def test_ids_that_cannot_be_stored(
    tiny_bundle: Make, tiny_items: pa.Table, tmp_path: Path, value: str | None, message: str
) -> None:
    with pytest.raises(TableError, match=message):
        tiny_bundle(items=with_id(tiny_items, 7, value))
    assert not list(tmp_path.iterdir())


def test_ids_that_are_numbers(tiny_bundle: Make, tiny_items: pa.Table) -> None:
    with pytest.raises(TableError, match="'item_id': expected strings, found int64"):
        tiny_bundle(items=with_column(tiny_items, "item_id", pa.array(range(200))))


def test_different_ids_with_one_key(tiny_bundle: Make, tiny_items: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def collide(*parts: Any) -> Any:
        keys = hash_strings(*parts)
        keys[7] = keys[3]
        return keys

    hash_strings = strings.hash_strings
    monkeypatch.setattr(strings, "hash_strings", collide)
    with pytest.raises(TableError, match=r"same 64-bit key: 'item-003' in row 3 and 'item-007' in row 7"):
        tiny_bundle(items=tiny_items)


def test_an_empty_table(tiny_bundle: Make, tiny_items: pa.Table) -> None:
    with pytest.raises(TableError, match="empty"):
        tiny_bundle(items=tiny_items.slice(0, 0))


def test_a_price_of_strings(tiny_bundle: Make, tiny_items: pa.Table) -> None:
    prices = pc.cast(tiny_items.column("price"), pa.string())
    with pytest.raises(TableError, match="'price': expected numbers, found string"):
        tiny_bundle(items=with_column(tiny_items, "price", prices))


def test_a_number_that_a_feature_cannot_hold(tiny_bundle: Make, tiny_items: pa.Table, tiny_columns: Any) -> None:
    """float32 ends at 3.4e38; columns that no feature reads hold any double."""
    largest = 3.4028235677973366e38  # the first double that is rounded to infinity
    numbers = [largest if row in (7, 11) else None if row == 5 else -3.4e38 for row in range(200)]
    for name in ("price", "popularity"):
        with pytest.raises(TableError, match=rf"'{name}': 2 values are beyond float32, .*, rows 7, 11"):
            tiny_bundle(items=with_column(tiny_items, name, pa.array(numbers)))
    unread = tiny_items.append_column("weight", pa.array(numbers))
    columns = (*tiny_columns, ItemColumn(name="weight", kind="number"))
    catalogue = open_bundle(tiny_bundle(items=unread, columns=columns)).catalogue
    assert catalogue.attributes(7, ["weight"]) == {"weight": largest}


@pytest.mark.filterwarnings("error")
def test_a_score_that_float32_cannot_hold(tiny_items: pa.Table) -> None:
    """Popularity, and what a source ranks by, are refused where no feature reads them, too."""
    numbers = pa.array([1e300 if row == 7 else float(row) for row in range(200)])
    columns = [ItemColumn(name=name, kind="number") for name in ("popularity", "trend")]
    spec = CatalogueSpec(
        items=with_column(tiny_items, "popularity", numbers).append_column("trend", pa.array(range(200))),
        columns=columns,
        roles=Roles(popularity="popularity"),
    )
    with pytest.raises(TableError, match=r"'popularity': 1 values are beyond float32, .*scale them, row 7"):
        read_items(spec, FeatureSchema())
    spec = replace(spec, items=tiny_items.append_column("trend", numbers))
    assert len(read_items(spec, FeatureSchema()).ids) == 200
    with pytest.raises(TableError, match=r"'trend': 1 values are beyond float32, .*scale them, row 7"):
        read_items(spec, FeatureSchema(), ["trend"])


def test_a_repeated_value_of_a_large_vocabulary_is_told_soon(tiny_bundle: Make) -> None:
    values = [f"value {number}" for number in range(60_000)]
    start = time.process_time()
    with pytest.raises(ExportError, match=r"vocabulary 'brand' holds a value twice: 'value 7'$"):
        tiny_bundle(vocabularies={"brand": [*values, "value 7"]})
    assert time.process_time() - start < 10  # comparing each with each takes a minute


def test_every_contradiction_of_the_specification_is_told(tiny_bundle: Make, tiny_roles: Any) -> None:
    columns = [
        ItemColumn(name="category", kind="category", vocabulary="kinds"),
        ItemColumn(name="price", kind="string"),
        ItemColumn(name="price", kind="number"),
        ItemColumn(name="../x", kind="number"),
        ItemColumn(name="in_stock", kind="bool"),  # type: ignore[arg-type]
    ]
    with pytest.raises(ExportError) as caught:
        tiny_bundle(columns=columns, roles=tiny_roles(popularity="", launch_time="when", in_stock=""))
    for problem in (
        "column 'price' is there 2 times",
        "'../x' cannot be part of a file name",
        "column 'in_stock' has the unknown kind 'bool'",
        "role launch_time names the column 'when'",
        "role regions names the column 'regions'",
        "role popularity is not filled",
        "need an item column 'launch_time'",
        "the vocabulary 'category', and the catalogue 'kinds'",
    ):
        assert problem in str(caught.value)


def test_a_role_of_another_kind(tiny_bundle: Make, tiny_roles: Any) -> None:
    with pytest.raises(ExportError, match="role price needs a column of kind number, and 'title'"):
        tiny_bundle(roles=tiny_roles(price="title"))


def test_a_column_that_the_table_lacks(tiny_bundle: Make, tiny_items: pa.Table) -> None:
    with pytest.raises(TableError, match="there is no column 'brand'"):
        tiny_bundle(items=tiny_items.drop_columns(["brand"]))


def test_vocabularies_are_sorted_unless_they_are_given(tiny_bundle: Make) -> None:
    given = {"device": ["tv"], "gender": ["x", "f", "m"], "country": ["DE", "AT", "CH", "FR", "NA"], "flag": ["adult"]}
    bundle = open_bundle(tiny_bundle(vocabularies=given))
    assert bundle.vocabularies["gender"].values == ("x", "f", "m")
    assert bundle.vocabularies["country"].values == tuple(given["country"])
    assert bundle.vocabularies["brand"].values == ("Acme", "Böhm", "Čapek", "東屋")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": None}, "vocabulary 'device' is used by user or context columns alone"),
        ({"country": ["DE"]}, r"'regions', values of lists|'regions': 4 values are not in the vocabulary"),
        ({"gender": ["f", "f"]}, "holds a value twice: 'f'"),
        ({"../x": ["f"]}, "cannot be part of a file name"),
    ],
)
def test_vocabularies_that_do_not_fit(tiny_bundle: Make, changes: dict[str, list[str] | None], message: str) -> None:
    given = {"device": ["tv"], "gender": ["f"], "country": ["AT", "CH", "DE", "FR", "NA"], "flag": ["adult"], **changes}
    with pytest.raises(ExportError, match=message):
        tiny_bundle(vocabularies={name: values for name, values in given.items() if values is not None})


def test_a_file_and_a_table_in_memory_give_the_same_bundle(
    tiny_bundle: Make, tiny_items: pa.Table, tmp_path: Path
) -> None:
    pa.parquet.write_table(tiny_items, tmp_path / "items.parquet")
    one = open_bundle(tiny_bundle(target=tmp_path / "one"))
    other = open_bundle(tiny_bundle(target=tmp_path / "other", items=tmp_path / "items.parquet"))
    assert {n: f.sha256 for n, f in one.manifest.files.items()} == {
        n: f.sha256 for n, f in other.manifest.files.items()
    }
