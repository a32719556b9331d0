"""What a bundle stores of its golden requests: the requests in names and ids, users' states, the stages' arrays."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Final, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from recserve.kernels.features import MISSING_CODE, ColumnLayout, ColumnValues
from recserve.server.bundle import checks
from recserve.server.bundle.errors import BundleCorruptError
from recserve.server.bundle.files import ANY
from recserve.server.bundle.reader import Bundle
from recserve.server.pipeline.assemble import Subject, subject
from recserve.server.pipeline.types import (
    Cap,
    Freshness,
    History,
    ItemFilter,
    Query,
    QueryKind,
    Quota,
    RerankOptions,
    UserState,
)

REQUESTS_FILE: Final = "golden/requests.json"
STAGES_FILE: Final = "golden/stages.npz"

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]
Positive = Annotated[int, Field(ge=1)]
ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRequest:
    """A complete request in names and ids, as stored."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    user_id: str
    time_us: Annotated[int, Field(ge=checks.FIRST_TIME, lt=checks.END_OF_TIME)]
    count: Positive
    candidates: Positive
    quotas: dict[str, float]
    session_item_ids: tuple[str, ...] = ()
    price_max: float | None = None
    cap_attribute: str = ""
    cap_max: Positive = 1
    mmr_weight: float | None = None
    freshness_boost: float = 0.0
    freshness_half_life_days: float = 30.0

    def query(self, bundle: Bundle, context: ColumnValues) -> Query:
        """The request against a bundle; `context` is one row of context columns."""
        session = bundle.catalogue.rows_of_ids(self.session_item_ids)
        caps = (Cap(self.cap_attribute, self.cap_max),) if self.cap_attribute else ()
        fresh = Freshness(self.freshness_boost, self.freshness_half_life_days) if self.freshness_boost else None
        return Query(
            kind=QueryKind.RECOMMEND,
            user_id=self.user_id,
            count=self.count,
            time_us=self.time_us,
            context=context,
            session_rows=session[session >= 0],
            filter=ItemFilter(price_max=self.price_max),
            rerank=RerankOptions(caps=caps, mmr_weight=self.mmr_weight, freshness=fresh),
            candidates=self.candidates,
            quotas=tuple(Quota(name, weight) for name, weight in self.quotas.items()),
        )


_REQUESTS: Final = TypeAdapter(list[GoldenRequest])


@dataclass(frozen=True, slots=True, eq=False)
class GoldenSet:
    """Requests with their users' states and the stages' arrays.

    Attributes:
        requests: as stored.
        states: one per request.
        contexts: one row of context columns per request.
        arrays: expectations and stage inputs; the names are those that `replay` reads.
    """

    requests: Sequence[GoldenRequest]
    states: Sequence[UserState]
    contexts: Sequence[ColumnValues]
    arrays: Arrays = field(default_factory=dict)

    def to_json(self) -> str:
        """The content of `requests.json`."""
        return json.dumps([asdict(each) for each in self.requests], indent=1, ensure_ascii=False)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The content of `stages.npz`."""
        return {**_pack_states(self.states), **_pack_columns("context", self.contexts), **self.arrays}

    @staticmethod
    def load(bundle: Bundle) -> GoldenSet:
        """Read what the bundle stores.

        Raises:
            BundleCorruptError: a file is malformed, or not of this bundle.
        """
        requests, stored = _read_requests(bundle), GoldenSet((), (), (), _read_arrays(bundle))
        states = _unpack_states(stored, bundle, len(requests))
        contexts = _unpack_columns(stored, "context", bundle.schema.context_layout, bundle, len(requests))
        return GoldenSet(requests, states, contexts, stored.arrays)

    def array(self, name: str, dtype: type[ScalarT], *shape: int) -> NDArray[ScalarT]:
        """A stored array.

        Args:
            name: of it.
            dtype: its elements' type.
            shape: its lengths; ANY where the array itself decides.

        Raises:
            BundleCorruptError: it is missing, or of another type or shape.
        """
        found = self.arrays.get(name)
        expected = f"{np.dtype(dtype).name} {_shape_text(shape)}"
        if found is None:
            raise _malformed(name, expected, "no such array")
        fits = len(shape) == found.ndim and all(a in (ANY, b) for a, b in zip(shape, found.shape, strict=True))
        # Texts have any length; of a number the byte order has to be this machine's, too.
        same = np.issubdtype(found.dtype, dtype) if dtype is np.str_ else found.dtype == np.dtype(dtype)
        if not (fits and same):
            raise _malformed(name, expected, f"{found.dtype.str} {list(found.shape)}")
        return cast("NDArray[ScalarT]", found)

    def parts(self, name: str, count: int, total: int) -> list[slice]:
        """Where each of `count` parts of `total` entries lies, from their offsets [count + 1].

        Raises:
            BundleCorruptError: the offsets are missing, or do not cut the entries into as many parts.
        """
        offsets = self.array(name, np.int64, count + 1)
        checks.check_ends(offsets, total, f"{STAGES_FILE}:{name}")
        checks.check_monotone(offsets, f"{STAGES_FILE}:{name}")
        return [slice(int(start), int(end)) for start, end in itertools.pairwise(offsets)]

    def queries(self, bundle: Bundle) -> list[Query]:
        """The requests against a bundle."""
        return [each.query(bundle, context) for each, context in zip(self.requests, self.contexts, strict=True)]

    def subjects(self, bundle: Bundle) -> list[Subject]:
        """The requests' users in terms of the bundle's rows, without vectors."""
        return [
            subject(state, bundle.catalogue, context=q.context, time_us=q.time_us, session_rows=q.session_rows)
            for q, state in zip(self.queries(bundle), self.states, strict=True)
        ]


def _read_requests(bundle: Bundle) -> list[GoldenRequest]:
    try:
        requests = _REQUESTS.validate_json(bundle.file(REQUESTS_FILE).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleCorruptError(
            f"the golden requests are malformed: {first['msg']}",
            file=REQUESTS_FILE,
            field=".".join(map(str, first["loc"])),
        ) from error
    if len(requests) != bundle.manifest.golden.requests:
        raise BundleCorruptError(
            "the manifest tells of another number of golden requests",
            file=REQUESTS_FILE,
            field="golden.requests",
            expected=bundle.manifest.golden.requests,
            found=len(requests),
        )
    return requests


def _read_arrays(bundle: Bundle) -> dict[str, NDArray[np.generic]]:
    path = bundle.file(STAGES_FILE)
    try:
        # np.load would leave a file open that it opened itself, if it is a broken archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # Whatever meets the damage first: zipfile, a decompressor, NumPy, Python's tokenizer on a header, or the allocator.
    except Exception as error:
        raise BundleCorruptError(f"the golden stages are malformed: {error}", file=STAGES_FILE) from error


def _malformed(name: str, expected: object, found: object) -> BundleCorruptError:
    return BundleCorruptError(
        "the golden stages are malformed: export the bundle again",
        file=STAGES_FILE,
        field=name,
        expected=expected,
        found=found,
    )


def _shape_text(shape: Sequence[int]) -> str:
    return f"[{', '.join('any' if length == ANY else str(length) for length in shape)}]"


def _pack_columns(prefix: str, rows: Sequence[ColumnValues]) -> dict[str, NDArray[np.generic]]:
    columns = ColumnValues.concat(rows)
    return {
        f"{prefix}.numbers": columns.numbers,
        f"{prefix}.codes": columns.codes,
        f"{prefix}.times": columns.times,
        f"{prefix}.list_codes": columns.list_codes,
        f"{prefix}.list_offsets": columns.list_offsets,
    }


def _unpack_columns(
    stored: GoldenSet, prefix: str, layout: ColumnLayout, bundle: Bundle, count: int
) -> list[ColumnValues]:
    list_codes = stored.array(f"{prefix}.list_codes", np.int32, ANY)
    stored.parts(f"{prefix}.list_offsets", count * len(layout.lists), list_codes.size)
    columns = ColumnValues(
        stored.array(f"{prefix}.numbers", np.float64, count, len(layout.numbers)),
        stored.array(f"{prefix}.codes", np.int32, count, len(layout.codes)),
        stored.array(f"{prefix}.times", np.int64, count, len(layout.times)),
        list_codes,
        stored.array(f"{prefix}.list_offsets", np.int64, ANY),
    )
    for index, column in enumerate(layout.codes):
        most = bundle.cardinalities[column.vocabulary]
        checks.check_between(columns.codes[:, index], MISSING_CODE, most, f"{STAGES_FILE}:{prefix}.codes")
    return [columns.row(row) for row in range(count)]


def _pack_states(states: Sequence[UserState]) -> dict[str, NDArray[np.generic]]:
    histories = [state.history for state in states]
    return {
        **_pack_columns("user", [state.columns for state in states]),
        "known": np.array([state.known for state in states], np.uint8),
        "history.offsets": np.cumsum([0, *(each.keys.size for each in histories)], dtype=np.int64),
        "history.keys": np.concatenate([each.keys for each in histories]),
        "history.events": np.concatenate([each.events for each in histories]),
        "history.counts": np.concatenate([each.counts for each in histories]),
        "history.last_us": np.concatenate([each.last_us for each in histories]),
    }


def _unpack_states(stored: GoldenSet, bundle: Bundle, count: int) -> list[UserState]:
    keys = stored.array("history.keys", np.uint64, ANY)
    histories = History(
        keys,
        stored.array("history.events", np.int32, keys.size),
        stored.array("history.counts", np.float64, keys.size),
        stored.array("history.last_us", np.int64, keys.size),
    )
    known, parts = stored.array("known", np.uint8, count), stored.parts("history.offsets", count, keys.size)
    users = _unpack_columns(stored, "user", bundle.schema.user_layout, bundle, count)
    return [
        UserState(known=bool(flag), columns=columns, history=histories.slice(part))
        for flag, columns, part in zip(known, users, parts, strict=True)
    ]
