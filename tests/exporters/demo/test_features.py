"""The demo's schema shows all that feature definitions can say."""

from __future__ import annotations

from recserve.exporters.demo.features import CATEGORICAL_FEATURES, SOURCES, demo_schema
from recserve.exporters.demo.words import VOCABULARIES
from recserve.kernels.features import OPERATIONS, FeatureProgram, FeatureSchema


def test_it_has_over_a_hundred_features_and_uses_every_operation() -> None:
    schema = demo_schema()
    assert len(schema.features) >= 100
    assert {feature.op for feature in schema.features} == set(OPERATIONS)


def test_it_reads_every_kind_of_source() -> None:
    schema = demo_schema()
    scopes = {address.split(".")[0] for feature in schema.features for address in feature.inputs}
    assert scopes == {"user", "item", "context", "source", "history", "space"}
    assert set(schema.sources) == set(SOURCES)
    assert set(schema.spaces) == {"ann", "als", "content"}
    assert {feature.event for feature in schema.features} == {"", *schema.event_types}


def test_it_compiles_and_survives_json() -> None:
    schema = demo_schema()
    cardinalities = {name: len(values) for name, values in VOCABULARIES.items()}
    assert FeatureProgram(schema, cardinalities).names == schema.names
    assert FeatureSchema.from_json(schema.to_json()) == schema


def test_categorical_features_are_codes() -> None:
    ops = {feature.name: feature.op for feature in demo_schema().features}
    assert {ops[name] for name in CATEGORICAL_FEATURES} == {"value", "pair"}
