"""Features: one definition, computed by one program for training and for serving.

    features.json ──> FeatureSchema ──lower──> Plan ──> FeatureProgram.compute(items, batch) -> float32 [n, F]
                      (definition)             (lowering)     └ _program    one call: looks at the arrays, then
                                                                            runs without GIL and allocation

Whoever trains calls the program for the training matrix, the pipeline calls it for a request's candidates: there is no
second place where a feature is computed.

    specs        columns, features, and where a column's values lie in arrays
    operations   what features read and what they compute, with every formula
    definition   the schema with its JSON and its hashes; document reads the JSON's form, validation judges its content
    batch        the arrays that come in: items, and a micro-batch of requests with their candidates
    checks       what is demanded of them, in words: asked where the compiled program finds that something does not fit
    reference    the same features in plain NumPy, which the program equals bit for bit

Within a request the program computes features of user and context once, sums the history once by item and by category,
and compares a candidate with the recent items and with the user once, in one reading of its vector. Features then go
over columns of some dozens of candidates.
"""

from recserve.kernels.features._program import first_bad_list_code
from recserve.kernels.features.batch import (
    MISSING_CODE,
    MISSING_TIME,
    ColumnValues,
    FeatureBatch,
    ItemArrays,
    recent_items,
)
from recserve.kernels.features.definition import FeatureSchema
from recserve.kernels.features.operations import BUILTIN_CARDINALITIES, OPERATIONS
from recserve.kernels.features.program import FeatureProgram
from recserve.kernels.features.reference import reference_features
from recserve.kernels.features.specs import ColumnLayout, ColumnSpec, ColumnType, FeatureSpec
from recserve.kernels.features.validation import FeatureSchemaError

__all__ = [
    "BUILTIN_CARDINALITIES",
    "MISSING_CODE",
    "MISSING_TIME",
    "OPERATIONS",
    "ColumnLayout",
    "ColumnSpec",
    "ColumnType",
    "ColumnValues",
    "FeatureBatch",
    "FeatureProgram",
    "FeatureSchema",
    "FeatureSchemaError",
    "FeatureSpec",
    "ItemArrays",
    "first_bad_list_code",
    "recent_items",
    "reference_features",
]
