"""The numbers of the contract (recserve/v1/recommender.proto), and those that it leaves to the server.

Sizes of texts are bytes of UTF-8.
"""

from __future__ import annotations

from typing import Final

from recserve.server.bundle.layout import MAX_ID_BYTES

ID_BYTES: Final = MAX_ID_BYTES
"""Longest user or item id; the shortest has 1 byte."""

TEXT_BYTES: Final = 256
"""Longest name or other short text: request id, bundle, placement, device, language, category, field, feature."""

MAX_COUNT: Final = 500
"""Items in an answer of Recommend or SimilarItems; without a count, `recserve.server.pipeline.types.DEFAULT_COUNT`."""

MAX_RANKED: Final = 5_000
"""Items that RankItems takes, and therefore answers."""

MAX_SEEDS: Final = 20
"""Items that SimilarItems takes."""

MAX_BATCH_REQUESTS: Final = 256
MAX_BATCH_ITEMS: Final = 10_000
"""Sum of the counts of a BatchRecommend."""

MAX_SESSION_ITEMS: Final = 100
MAX_EXCLUDED_ITEMS: Final = 10_000

MAX_NAMES: Final = 1_000
"""Entries of a list of names: categories, flags, fields, features, objectives, values of all category lists."""

MAX_CAPS: Final = 16
MAX_SOURCES: Final = 64

MAX_EXPLORATION: Final = 0.5

MAX_NUMBER: Final = 3.4028234663852886e38
"""The largest float32: models compute with these."""

MAX_TIME_S: Final = 253_402_300_799
"""9999-12-31T23:59:59Z, the last second of a protobuf Timestamp; the first that a request may name is 1970-01-01."""
