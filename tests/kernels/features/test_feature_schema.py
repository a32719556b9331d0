"""features.json: what is refused and how, the round trip, and the hashes."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.kernels.features import (
    ColumnSpec,
    FeatureProgram,
    FeatureSchema,
    FeatureSchemaError,
    FeatureSpec,
)

VOCABULARIES = {"gender": ["f", "m"], "category": ["a", "b", "c", "d", "e"], "device": ["app", "web", "tv"]}


def problems_of(document: dict) -> tuple[str, ...]:
    with pytest.raises(FeatureSchemaError) as caught:
        FeatureSchema.from_json(json.dumps(document))
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def feature(op: str, *inputs: str, **options: object) -> dict:
    return {"name": "x", "op": op, "inputs": list(inputs), **options}


ONE_ERROR = [
    (feature("cuont", "history.item"), 'unknown op "cuont"; did you mean "count"?'),
    (feature("value", "item.prcie"), 'inputs[0]: unknown item column "prcie"; did you mean "price"?'),
    (feature("value", "context.weekdy"), 'inputs[0]: unknown context column "weekdy"; did you mean "weekday"?'),
    (feature("value", "user.zzz"), 'unknown user column "zzz"; valid: age, gender, signup, top_categories'),
    (feature("value", "itm.price"), '"itm.price" starts with no known source; did you mean "item"?'),
    (feature("value", "source.ann"), '"source.ann" must read source.NAME.score or source.NAME.rank'),
    (feature("value", "source.ann.scores"), '"source.ann.scores" must read source.NAME.score or source.NAME.rank'),
    (feature("value", "source..rank"), '"source..rank" must read source.NAME.score or source.NAME.rank'),
    (feature("dot", "space."), '"space." must read space.NAME'),
    (feature("count", "history.price"), 'history has no key "price"'),
    (feature("count", "history.categry"), 'did you mean "category"?'),
    (feature("count", "history.item", event="buy"), 'unknown event type "buy"; valid: view, cart, purchase'),
    (feature("count", "history.item", event="purchse"), 'did you mean "purchase"?'),
    (feature("value", "item.price", event="view"), "event: only features over history select an event type"),
    (feature("value", "item.price", last=3), "last: op value does not take it"),
    (feature("max_similarity", "space.ann"), "last: op max_similarity looks at the last 1 to 1000 items, not 0"),
    (feature("mean_similarity", "space.ann", last=1001), "looks at the last 1 to 1000 items, not 1001"),
    (feature("value", "user.signup"), "op value takes inputs of types (number) or (category), not (time)"),
    (feature("ratio", "item.price"), "op ratio takes inputs of types (number, number), not (number)"),
    (feature("value"), "op value takes inputs of types (number) or (category), not ()"),
    (feature("dot", "item.price"), "op dot takes inputs of types (space), not (number)"),
    (feature("rank_in", "user.gender", "user.top_categories"), 'the inputs have "gender" and "category"'),
    (feature("equal", "user.gender", "item.category"), 'the inputs have "gender" and "category"'),
    (feature("value", "item.price", evnt="view"), 'unknown key "evnt"; did you mean "event"?'),
    (feature("value", "item.price") | {"name": "a b"}, '"a b" is not a name'),
    (feature("max_similarity", "space.ann", last="3"), 'features[0].last: expected a whole number, found "3"'),
]


@pytest.mark.parametrize(("bad", "message"), ONE_ERROR)
def test_bad_feature(shop_json, bad, message):
    problems = problems_of(shop_json | {"features": [bad]})
    assert any(message in problem and "features[0]" in problem for problem in problems), problems


def test_every_error_at_once(shop_json):
    document = shop_json | {
        "colour": 1,
        "user": [{"name": "age", "type": "numbr"}, {"name": "age", "type": "time", "vocabulary": "v"}],
        "context": [{"name": "hour", "type": "number"}, {"name": "age", "type": "number"}],
        "item": [{"name": "tags", "type": "categories"}, {"name": "b", "type": "category", "vocabulary": "x y"}],
        "event_types": ["view", "view"],
        "features": [feature("valu", "user.agee"), feature("value", "item.b"), feature("ratio", "item.b", "item.b")],
    }
    expected = [
        'unknown key "colour"',
        'user[0] "age": type "numbr" is not possible here; did you mean "number"?',
        'user: "age" is there 2 times',
        'user[1] "age": only columns of type category or categories have a vocabulary',
        'context[0] "hour": the name is taken by a built-in input',
        'context column "age" has the name of a user column',
        'item[0] "tags": type "categories" is not possible here',
        'item[1] "b": vocabulary "x y" is not a name',
        'event_types: "view" is there 2 times',
        'features: "x" is there 3 times',
        'features[0] "x": inputs[0]: unknown user column "agee"; did you mean "age"?',
        'features[0] "x": unknown op "valu"; did you mean "value"?',
        'features[2] "x": op ratio takes inputs of types (number, number), not (category, category)',
    ]
    problems = problems_of(document)
    assert len(problems) == len(expected), problems
    for sentence in expected:
        assert any(sentence in problem for problem in problems), sentence


def test_a_column_of_invalid_type_is_told_once(shop_json):
    document = shop_json | {
        "item": [{"name": "price", "type": "numbr"}],
        "features": [feature("log1p", "item.price")],
    }
    assert len(problems_of(document)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a JSON object, found []"),
        ("{}", "schema_version: this build reads version 1, found null"),
        ('{"schema_version": 2}', "schema_version: this build reads version 1, found 2"),
        ('{"schema_version": 1, "user": {}}', "user: expected a list, found {}"),
        ('{"schema_version": 1, "user": [3]}', "user[0]: expected an object, found 3"),
        ('{"schema_version": 1, "event_types": [true]}', "event_types[0]: expected a string, found true"),
        ('{"schema_version": 1, "user": [], "user": []}', 'an object has the key "user" repeatedly'),
    ],
)
def test_malformed_document(text, message):
    with pytest.raises(FeatureSchemaError, match="in the feature schema") as caught:
        FeatureSchema.from_json(text)
    assert any(message in problem for problem in caught.value.problems)


@given(
    text=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "item.x", "value", "number"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["user", "item", "features", "event_types", "name", "type", "op", "inputs", "last", "event"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    ).map(lambda value: json.dumps({"schema_version": 1, **value} if isinstance(value, dict) else value))
)
@settings(max_examples=200, deadline=None)
def test_any_document_is_read_or_refused(text):
    try:
        schema = FeatureSchema.from_json(text)
    except FeatureSchemaError:
        return
    assert FeatureSchema.from_json(schema.to_json()) == schema


def test_schema_built_in_python_is_checked_too():
    with pytest.raises(FeatureSchemaError, match="unknown item column"):
        FeatureSchema(features=(FeatureSpec("x", "value", ("item.price",)),))


FULL = [
    {"name": "price", "op": "value", "inputs": ["item.price"]},
    {"name": "rank", "op": "rank_in", "inputs": ["item.category", "user.top_categories"]},
    {"name": "als_rank", "op": "value", "inputs": ["source.als.rank"]},
    {"name": "ann_score", "op": "value", "inputs": ["source.ann.score"]},
    {"name": "als_score", "op": "value", "inputs": ["source.als.score"]},
    {"name": "bought", "op": "share", "inputs": ["history.category"], "event": "purchase"},
    {"name": "near", "op": "max_similarity", "inputs": ["space.content"], "last": 10},
    {"name": "dot", "op": "dot", "inputs": ["space.ann"]},
]


@pytest.fixture
def full(shop_json) -> FeatureSchema:
    return FeatureSchema.from_json(json.dumps(shop_json | {"features": FULL}))


def test_json_round_trip(full):
    text = full.to_json()
    assert FeatureSchema.from_json(text) == full
    assert FeatureSchema.from_json(text).to_json() == text
    assert json.loads(text)["features"] == FULL


def test_json_does_not_repeat_defaults(full):
    columns = json.loads(full.to_json())["user"]
    assert {"name": "gender", "type": "category"} in columns
    assert {"name": "top_categories", "type": "categories", "vocabulary": "category"} in columns


def test_what_others_read_of_a_schema(full):
    assert full.names == tuple(entry["name"] for entry in FULL)
    assert full.sources == ("als", "ann")
    assert full.spaces == ("content", "ann")
    assert full.dot_spaces == ("ann",)
    assert full.vocabularies == ("gender", "category", "device")
    assert full.item_feature_columns == ("price", "category", "target_gender")
    assert full.item_time_columns == ("launch_time",)
    assert full.user_layout["gender"] == ("category", 0)
    assert full.user_layout["top_categories"] == ("categories", 0)
    assert "basket_value" in full.context_layout
    assert "age" not in full.context_layout


def test_hash_is_stable(full):
    # Stored in bundles and snapshots: a change of these values makes every existing one unusable.
    assert full.schema_hash(VOCABULARIES) == "6912a6c657635078d69989995e74007fb7777ffa609c6e8bd8a3373a6847fba9"
    assert full.user_hash(VOCABULARIES) == "c9897e3f813079cd82155df6c56195429edbfbbecd248b61a88d0092dd144e37"


def test_hash_depends_on_content_not_on_form(full):
    same = FeatureSchema.from_json(json.dumps(json.loads(full.to_json()), indent=7, sort_keys=True))
    assert same.schema_hash(VOCABULARIES) == full.schema_hash(VOCABULARIES)
    assert same.schema_hash(VOCABULARIES | {"unused": ["x"]}) == full.schema_hash(VOCABULARIES)
    assert same.schema_hash({name: tuple(v) for name, v in VOCABULARIES.items()}) == full.schema_hash(VOCABULARIES)


CHANGES = [
    ("a feature's name", lambda s: replace(s, features=(replace(s.features[0], name="p"), *s.features[1:])), False),
    ("the features' order", lambda s: replace(s, features=s.features[::-1]), False),
    ("an operation", lambda s: replace(s, features=(replace(s.features[0], op="log1p"), *s.features[1:])), False),
    ("an item column", lambda s: replace(s, item=(*s.item, ColumnSpec("stock", "number"))), False),
    ("the item columns' order", lambda s: replace(s, item=s.item[::-1]), False),
    ("a context column", lambda s: replace(s, context=(*s.context, ColumnSpec("lat", "number"))), False),
    ("a user column", lambda s: replace(s, user=(*s.user, ColumnSpec("income", "number"))), True),
    ("the user columns' order", lambda s: replace(s, user=s.user[::-1]), True),
    ("the event types' order", lambda s: replace(s, event_types=s.event_types[::-1]), True),
]


@pytest.mark.parametrize(("change", "of_user"), [pytest.param(c, u, id=name) for name, c, u in CHANGES])
def test_hashes_tell_schemas_apart(full, change, of_user):
    changed = change(full)
    assert changed.schema_hash(VOCABULARIES) != full.schema_hash(VOCABULARIES)
    assert (changed.user_hash(VOCABULARIES) != full.user_hash(VOCABULARIES)) == of_user


@pytest.mark.parametrize(("vocabulary", "of_user"), [("category", True), ("gender", True), ("device", False)])
def test_hashes_tell_vocabularies_apart(full, vocabulary, of_user):
    turned = VOCABULARIES | {vocabulary: VOCABULARIES[vocabulary][::-1]}
    assert full.schema_hash(turned) != full.schema_hash(VOCABULARIES)
    assert (full.user_hash(turned) != full.user_hash(VOCABULARIES)) == of_user


def test_hash_without_a_vocabulary(full):
    with pytest.raises(FeatureSchemaError, match='vocabulary "device" is missing'):
        full.schema_hash({name: VOCABULARIES[name] for name in ("gender", "category")})


def test_cardinalities(shop):
    with pytest.raises(FeatureSchemaError) as caught:
        FeatureProgram(shop, {"gendr": 2, "category": 2**24 + 1, "device": -1})
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        'vocabulary "gender" is missing',
        'vocabulary "category" has 16777217 values',
        'vocabulary "device" has -1 values',
    ]


@pytest.mark.parametrize(("size", "fits"), [(2**24 // 7, True), (2**24 // 7 + 1, False)])
def test_pairs_must_be_exact_in_float32(shop, cardinalities, size, fits):
    schema = replace(shop, features=(FeatureSpec("cross", "pair", ("context.device", "context.weekday")),))
    sizes = cardinalities | {"device": size}
    if fits:
        FeatureProgram(schema, sizes)
    else:
        with pytest.raises(FeatureSchemaError, match=r'features\[0\] "cross": .* pairs are more than the 16777216'):
            FeatureProgram(schema, sizes)


def test_scopes_say_what_a_feature_depends_on(shop_json):
    expected = {
        "item": [
            feature("value", "item.price"),
            feature("log1p", "item.price"),
            feature("pair", "item.category", "item.target_gender"),
            feature("hour_sin", "item.launch_time"),
        ],
        "request": [
            feature("value", "user.age"),
            feature("pair", "context.device", "context.weekday"),
            feature("equal", "user.gender", "user.gender"),
            feature("days_since", "user.signup"),
            feature("hour_cos", "context.time"),
        ],
        "cross": [
            feature("days_since", "item.launch_time"),
            feature("ratio", "item.price", "user.age"),
            feature("value", "source.ann.score"),
            feature("dot", "space.als"),
            feature("count", "history.item"),
            feature("count", "history.category"),
        ],
    }
    for scope, features in expected.items():
        for each in features:
            document = shop_json | {"features": [each]}
            assert FeatureSchema.from_json(json.dumps(document)).scopes == (scope,), each


def test_select_cuts_features_and_keeps_columns(shop):
    names = ("age", "price", "ann", "als")
    inputs = ("user.age", "item.price", "source.ann.rank", "source.als.rank")
    features = (FeatureSpec(name, "value", (address,)) for name, address in zip(names, inputs, strict=True))
    schema = replace(shop, features=tuple(features))
    part = schema.select([3, 1])
    assert part.names == ("als", "price")
    assert part.sources == ("als",)
    assert part.scopes == ("cross", "item")
    assert (part.user, part.context, part.item) == (shop.user, shop.context, shop.item)
    assert schema.select([]).features == ()
