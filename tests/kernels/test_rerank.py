"""One suite over the kernel and its NumPy reference, then the two against each other on random input."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import CalibrationKind
from recserve.kernels import rerank as kernel
from recserve.kernels.reference import rerank as reference
from recserve.kernels.reference import vectors as reference_vectors

DAY_US = 86_400_000_000
MISSING_TIME = np.iinfo(np.int64).min


class Cap(NamedTuple):
    codes: Sequence[int] | str
    max: int
    window: int = 0
    sliding: bool = False


@pytest.fixture(params=[kernel, reference], ids=["kernel", "reference"])
def rerank(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def cap_arrays(caps: Sequence[Cap], n: int) -> tuple[NDArray[np.int32], ...]:
    codes = np.array([cap.codes for cap in caps], np.int32).reshape(len(caps), n).T
    numbers = [
        np.array([cap[field] for cap in caps], dtype) for field, dtype in ((1, np.int32), (2, np.int32), (3, np.uint8))
    ]
    return np.ascontiguousarray(codes), *numbers


def choose(
    select: Callable[..., tuple[NDArray[np.int64], bool]],
    scores: Sequence[float],
    k: int,
    *caps: Cap,
    vectors: NDArray[np.float32] | None = None,
    weight: float = 1.0,
    rows: Sequence[int] | None = None,
    lowest: float = -math.inf,
    deadline: float = math.inf,
) -> tuple[list[int], bool]:
    n = len(scores)
    positions, relaxed = select(
        np.array(scores, np.float64),
        np.arange(n) if rows is None else np.array(rows, np.int64),
        k,
        *cap_arrays(caps, n),
        vectors,
        weight,
        lowest,
        deadline,
    )
    assert positions.dtype == np.int64
    return positions.tolist(), relaxed


# ----------------------------------------------------------------------------------------------------- calibration


def test_sigmoid_gives_half_at_minus_intercept_over_slope(rerank: ModuleType) -> None:
    relevance = rerank.calibrate(np.array([-1.5, 0.0]), 1, np.array([2.0, 3.0]), np.empty(0))
    assert relevance.tolist() == [0.5, 1 / (1 + math.exp(-3.0))]


def test_sigmoid_stays_inside_the_open_interval(rerank: ModuleType) -> None:
    margins = np.array([-np.inf, -1e308, -800.0, -709.5, 40.0, 800.0, 1e308, np.inf])
    relevance = rerank.calibrate(margins, 1, np.array([1.0, 0.0]), np.empty(0))
    assert relevance.min() == sys.float_info.min
    assert relevance.max() == math.nextafter(1.0, 0.0)
    assert (np.diff(relevance) >= 0).all()


def test_isotonic_is_linear_between_knots_and_constant_outside(rerank: ModuleType) -> None:
    margins = np.array([-9.0, -1.0, 0.0, 1.0, 2.0, 2.5, 9.0])
    relevance = rerank.calibrate(margins, 2, np.array([-1.0, 1.0, 2.0]), np.array([0.25, 0.5, 0.75]))
    assert relevance.tolist() == [0.25, 0.25, 0.375, 0.5, 0.75, 0.75, 0.75]


def test_isotonic_with_one_knot_is_constant_and_clipped(rerank: ModuleType) -> None:
    relevance = rerank.calibrate(np.array([-1.0, 0.0, 1.0]), 2, np.array([0.0]), np.array([1.0]))
    assert relevance.tolist() == [math.nextafter(1.0, 0.0)] * 3


def test_isotonic_knots_that_almost_meet(rerank: ModuleType) -> None:
    """From 0 to the smallest double the slope is infinite."""
    x, y = np.array([-1.0, 0.0, 5e-324]), np.array([0.1, 0.2, 0.9])
    margins = np.array([-1.0, -5e-324, 0.0, 5e-324, 1.0])
    assert rerank.calibrate(margins, 2, x, y).tolist() == [0.1, 0.2, 0.2, 0.9, 0.9]


@pytest.mark.parametrize(("kind", "x", "y"), [(1, [1.0, 0.0], []), (2, [0.0, 1.0], [0.2, 0.3])])
def test_calibration_of_nan_is_nan(rerank: ModuleType, kind: int, x: list[float], y: list[float]) -> None:
    relevance = rerank.calibrate(np.array([0.0, np.nan, 0.5]), kind, np.array(x), np.array(y, np.float64))
    assert np.isnan(relevance).tolist() == [False, True, False]


def test_kinds_are_the_manifests() -> None:
    assert (kernel.SIGMOID, kernel.ISOTONIC) == (CalibrationKind.SIGMOID, CalibrationKind.ISOTONIC)


@pytest.mark.parametrize(
    ("kind", "x", "y", "message"),
    [
        (0, [1.0, 0.0], [], "kind"),
        (1, [1.0], [], "slope, intercept"),
        (1, [1.0, 0.0], [1.0], "slope, intercept"),
        (2, [], [], "at least one"),
        (2, [1.0], [0.1, 0.2], "as many x as y"),
    ],
)
def test_calibration_refuses(kind: int, x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel.calibrate(np.zeros(1), kind, np.array(x, np.float64), np.array(y, np.float64))


finite = st.floats(-1e6, 1e6)


@settings(deadline=None, max_examples=100)
@given(margins=st.lists(finite, max_size=20), slope=st.floats(1e-3, 1e3), intercept=finite)
def test_sigmoid_equals_reference(margins: list[float], slope: float, intercept: float) -> None:
    arguments = (np.array(sorted(margins), np.float64), 1, np.array([slope, intercept]), np.empty(0))
    relevance = kernel.calibrate(*arguments)
    np.testing.assert_array_equal(relevance, reference.calibrate(*arguments))
    assert (np.diff(relevance) >= 0).all()


@settings(deadline=None, max_examples=100)
@given(
    margins=st.lists(finite, max_size=20),
    x=st.lists(finite, min_size=1, max_size=8, unique=True),
    data=st.data(),
)
def test_isotonic_equals_reference_and_never_falls(margins: list[float], x: list[float], data: st.DataObject) -> None:
    y = data.draw(st.lists(st.floats(0, 1), min_size=len(x), max_size=len(x)))
    probes = [probe for knot in x for probe in (math.nextafter(knot, -math.inf), knot, math.nextafter(knot, math.inf))]
    arguments = (np.array(sorted(margins + probes)), 2, np.array(sorted(x)), np.array(sorted(y)))
    relevance = kernel.calibrate(*arguments)
    np.testing.assert_array_equal(relevance, reference.calibrate(*arguments))
    assert (np.diff(relevance) >= 0).all()


def test_isotonic_knots_too_close_for_a_slope() -> None:
    knots = np.array([0.0, 2.225073858507e-311])
    margins = np.array([0.0, 5e-324, knots[1]])
    arguments = margins, 2, knots, np.array([0.0, 0.75])
    np.testing.assert_array_equal(kernel.calibrate(*arguments)[1:], [0.75, 0.75])
    np.testing.assert_array_equal(kernel.calibrate(*arguments), reference.calibrate(*arguments))


# ------------------------------------------------------------------------------------------------------- freshness


def test_freshness_halves_with_the_half_life(rerank: ModuleType) -> None:
    now = 20_000 * DAY_US
    launch = np.array([now, now - 7 * DAY_US, now - 14 * DAY_US, now + DAY_US, MISSING_TIME])
    fresh = rerank.freshness(np.full(5, 0.5), launch, now, 1.0, 7.0)
    assert fresh.tolist() == [1.0, 0.75, 0.625, 1.0, 0.5]


def test_freshness_of_extreme_times_does_not_overflow(rerank: ModuleType) -> None:
    launch = np.array([MISSING_TIME + 1, np.iinfo(np.int64).max])
    assert rerank.freshness(np.ones(2), launch, np.iinfo(np.int64).max, 1.0, 1.0).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("boost", "half_life"), [(-0.1, 1.0), (np.nan, 1.0), (np.inf, 1.0), (1.0, 0.0), (1.0, np.nan)])
def test_freshness_refuses(boost: float, half_life: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        kernel.freshness(np.ones(1), np.zeros(1, np.int64), 0, boost, half_life)


@settings(deadline=None, max_examples=100)
@given(
    ages=st.lists(st.one_of(st.none(), st.integers(-(10**15), 10**16)), max_size=20),
    boost=st.floats(0, 10),
    half_life=st.floats(1e-3, 1e3),
)
def test_freshness_equals_reference(ages: list[int | None], boost: float, half_life: float) -> None:
    now = 1_700_000_000_000_000
    launch = np.array([MISSING_TIME if age is None else now - age for age in ages], np.int64)
    arguments = (np.linspace(0.1, 0.9, len(ages)), launch, now, boost, half_life)
    np.testing.assert_array_equal(kernel.freshness(*arguments), reference.freshness(*arguments))


# -------------------------------------------------------------------------------------------------------- selection


def test_without_rules_order_is_by_score_then_row(rerank: ModuleType) -> None:
    assert choose(rerank.select, [0.5, 0.9, 0.5, 0.7], 4, rows=[30, 10, 20, 40]) == ([1, 3, 2, 0], False)


def test_fewer_candidates_than_places(rerank: ModuleType) -> None:
    assert choose(rerank.select, [0.1, 0.2], 5) == ([1, 0], False)
    assert choose(rerank.select, [], 5) == ([], False)
    assert choose(rerank.select, [0.1], 0) == ([], False)


CAPS = {
    "whole list": (Cap("AAAB", 2), 3, "AAB", False),
    "whole list, relaxed at its end": (Cap("AAAB", 2), 4, "AABA", True),
    "first places only": (Cap("AAAB", 1, window=2), 4, "ABAA", False),
    "first places, exhausted": (Cap("AAAA", 1, window=2), 3, "AAA", True),
    "every pair of neighbours": (Cap("AAABBC", 1, window=2, sliding=True), 6, "ABABAC", False),
    "every run of three": (Cap("AAABBC", 2, window=3, sliding=True), 6, "AABABC", False),
    "every run of three, one each": (Cap("AABBCC", 1, window=3, sliding=True), 6, "ABCABC", False),
    "every pair of neighbours, relaxed at its end": (Cap("AAAB", 1, window=2, sliding=True), 4, "ABAA", True),
    "sliding window 1 forbids nothing": (Cap("AAA", 1, window=1, sliding=True), 3, "AAA", False),
    "sliding window 0 is the whole list": (Cap("AAB", 1, sliding=True), 2, "AB", False),
    "window beyond the list": (Cap("AAB", 1, window=99), 2, "AB", False),
    "sliding window beyond the list": (Cap("AAB", 1, window=99, sliding=True), 3, "ABA", True),
    "missing values are not capped": (Cap("..AA", 1), 4, "..AA", True),
}


@pytest.mark.parametrize(("cap", "k", "expected", "relaxed"), CAPS.values(), ids=CAPS.keys())
def test_cap(rerank: ModuleType, cap: Cap, k: int, expected: str, relaxed: bool) -> None:
    """Candidates in the order of their scores, written by value ('.' is missing), and the list that they become."""
    coded = cap._replace(codes=[-1 if value == "." else ord(value) - ord("A") for value in cap.codes])
    positions, found_relaxed = choose(rerank.select, [-float(i) for i in range(len(cap.codes))], k, coded)
    assert "".join(cap.codes[position] for position in positions) == expected
    assert found_relaxed == relaxed


def test_a_relaxed_place_ignores_every_cap_and_still_counts_in_them(rerank: ModuleType) -> None:
    # At place 1 the seller forbids 1 and the category 2: the better one is taken, and place 2 has nothing to wait for.
    category, seller = Cap([0, 1, 0, 2], 1, window=3), Cap([7, 7, 8, 7], 1, window=3)
    assert choose(rerank.select, [4.0, 3.0, 2.0, 1.0], 4, category, seller) == ([0, 1, 2, 3], True)


def test_all_caps_hold_together(rerank: ModuleType) -> None:
    category, seller = Cap([0, 0, 1, 1], 1), Cap([0, 1, 0, 1], 1)
    assert choose(rerank.select, [4.0, 3.0, 2.0, 1.0], 2, category, seller) == ([0, 3], False)


def test_mmr_avoids_a_near_duplicate(rerank: ModuleType) -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert choose(rerank.select, [0.9, 0.8, 0.5], 3, vectors=vectors, weight=0.5) == ([0, 2, 1], False)


def test_mmr_follows_its_formula(rerank: ModuleType) -> None:
    # Second place: 0.7*0.8 - 0.3*0.5 = 0.41 against 0.7*0.55 - 0.3*(-0.5) = 0.535: negative similarity helps.
    vectors = np.array([[1, 0], [0.5, 0], [-0.5, 0]], np.float32)
    assert choose(rerank.select, [0.9, 0.8, 0.55], 2, vectors=vectors, weight=0.7)[0] == [0, 2]


def test_mmr_measures_against_the_most_similar_of_the_list(rerank: ModuleType) -> None:
    # Candidate 2 is orthogonal to the second member but equal to the first: the latest alone must not count.
    vectors = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0.6, 0.6, 0]], np.float32)
    assert choose(rerank.select, [1.0, 0.9, 0.5, 0.4], 3, vectors=vectors, weight=0.5)[0] == [0, 1, 3]


def test_mmr_with_weight_zero_starts_with_the_best_score(rerank: ModuleType) -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert choose(rerank.select, [0.1, 0.9, 0.5], 3, vectors=vectors, weight=0.0)[0] == [1, 2, 0]


def test_mmr_with_weight_one_is_by_score(rerank: ModuleType) -> None:
    vectors = np.ones((3, 4), np.float32)
    assert choose(rerank.select, [0.1, 0.9, 0.5], 3, vectors=vectors, weight=1.0)[0] == [1, 2, 0]


def test_mmr_obeys_caps_and_relaxes_by_value(rerank: ModuleType) -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    chosen = choose(rerank.select, [0.9, 0.8, 0.7], 3, Cap([0, 0, 0], 1), vectors=vectors, weight=0.5)
    assert chosen == ([0, 2, 1], True)


def test_vectors_are_taken_by_item_row(rerank: ModuleType) -> None:
    vectors = np.zeros((100, 2), np.float32)
    vectors[[70, 80]], vectors[90] = [1, 0], [0, 1]
    assert choose(rerank.select, [0.9, 0.8, 0.5], 2, vectors=vectors, weight=0.5, rows=[70, 80, 90])[0] == [0, 2]


class Case(NamedTuple):
    scores: list[float]
    k: int
    caps: list[Cap]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(0, 14))
    codes = st.lists(st.integers(-1, 3), min_size=n, max_size=n)
    caps = st.builds(Cap, codes, st.integers(1, 4), st.integers(0, 6), st.booleans())
    scores = st.lists(st.integers(-4, 4).map(lambda score: score / 4), min_size=n, max_size=n)  # ties are common
    return Case(draw(scores), draw(st.integers(0, n + 2)), draw(st.lists(caps, max_size=3)))


@settings(deadline=None, max_examples=300)
@given(cases())
def test_caps_equal_reference(case: Case) -> None:
    assert choose(kernel.select, case.scores, case.k, *case.caps) == choose(
        reference.select, case.scores, case.k, *case.caps
    )


@settings(deadline=None, max_examples=300)
@given(cases(), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(1, 20), st.integers(0, 2**32 - 1), st.booleans())
def test_mmr_equals_reference(case: Case, weight: float, dim: int, seed: int, bounded: bool) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(30, dim)).astype(np.float32)
    rows = random.permutation(30)[: len(case.scores)].tolist()
    arguments = {"vectors": vectors, "weight": weight, "rows": rows}
    lowest = min(reference_vectors.dot_rows(vectors, each, np.arange(30)).min() for each in vectors)
    assert choose(
        kernel.select, case.scores, case.k, *case.caps, **arguments, lowest=lowest if bounded else -math.inf
    ) == choose(reference.select, case.scores, case.k, *case.caps, **arguments)


def violations(codes: Sequence[int], cap: Cap) -> int:
    """Runs of places in which a value stands more often than the cap allows; the definition, without any greed."""
    if cap.window == 0:
        runs = [codes]
    elif cap.sliding:
        runs = [codes[start : start + cap.window] for start in range(len(codes))]
    else:
        runs = [codes[: cap.window]]
    return sum(max(Counter(code for code in run if code >= 0).values(), default=0) > cap.max for run in runs)


@settings(deadline=None, max_examples=300)
@given(cases())
def test_caps_hold_unless_relaxed(case: Case) -> None:
    positions, relaxed = choose(kernel.select, case.scores, case.k, *case.caps)
    assert len(positions) == len(set(positions)) == min(case.k, len(case.scores))
    broken = sum(violations([cap.codes[position] for position in positions], cap) for cap in case.caps)
    assert (broken > 0) == relaxed


@pytest.mark.parametrize("lowest", [-math.inf, -1.01])
def test_a_larger_list_equals_the_reference(lowest: float) -> None:
    random = np.random.default_rng(3)
    vectors = random.normal(size=(500, 40)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    caps = [Cap(random.integers(-1, 12, 300).tolist(), 3), Cap(random.integers(0, 9, 300).tolist(), 1, 3, True)]
    arguments = {"vectors": vectors, "weight": 0.6, "rows": random.permutation(500)[:300].tolist()}
    scores = random.random(300).tolist()
    assert choose(kernel.select, scores, 25, *caps, **arguments, lowest=lowest) == choose(
        reference.select, scores, 25, *caps, **arguments
    )


def test_what_cannot_be_chosen_is_not_read() -> None:
    """The list is filled from a few, whose values are above what the others can reach with any similarity."""
    random = np.random.default_rng(6)
    vectors = random.normal(size=(300, 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.sort(random.random(300))[::-1]
    scores[40:] -= 10
    expected = choose(reference.select, scores, 20, vectors=vectors, weight=0.5)
    vectors[80:] = -1e6 * vectors[0]  # chosen at once where they are read
    assert choose(kernel.select, scores, 20, vectors=vectors, weight=0.5, lowest=-1.01) == expected


@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize("caps", [(), (Cap([0, 0, 1], 1),)], ids=["no caps", "a cap"])
@pytest.mark.parametrize("deadline", [-math.inf, 0.0, "now"])
def test_after_the_deadline_no_place_is_filled(
    rerank: ModuleType, caps: tuple[Cap, ...], weight: float, deadline: float | str
) -> None:
    moment = time.monotonic() if deadline == "now" else float(deadline)
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(TimeoutError, match="when 0 of 2 places were filled"):
        choose(rerank.select, [0.9, 0.8, 0.5], 2, *caps, vectors=vectors, weight=weight, deadline=moment)


def test_an_empty_list_is_in_time(rerank: ModuleType) -> None:
    assert choose(rerank.select, [0.5], 0, deadline=0.0) == ([], False)
    assert choose(rerank.select, [], 5, deadline=0.0) == ([], False)


@settings(deadline=None, max_examples=100)
@given(cases(), st.sampled_from([0.3, 1.0]), st.floats(3600, 1e9) | st.just(math.inf))
def test_a_deadline_that_is_met_changes_nothing(case: Case, weight: float, seconds: float) -> None:
    vectors = np.random.default_rng(2).normal(size=(14, 5)).astype(np.float32)
    arguments = {"vectors": vectors, "weight": weight}
    expected = choose(kernel.select, case.scores, case.k, *case.caps, **arguments)
    for select in (kernel.select, reference.select):
        timed = choose(select, case.scores, case.k, *case.caps, **arguments, deadline=time.monotonic() + seconds)
        assert timed == expected


def test_looks_at_the_clock_do_not_disturb_a_long_list() -> None:
    """With the formula for all candidates at once, over a dozen looks."""
    random = np.random.default_rng(8)
    vectors, scores = random.normal(size=(800, 40)).astype(np.float32), random.random(800)
    rows, expected, highest = np.arange(800), [int(scores.argmax())], np.full(800, -np.inf)
    while len(expected) < 800:
        highest = np.maximum(highest, reference_vectors.dot_rows(vectors, vectors[expected[-1]], rows))
        values = 0.5 * scores - 0.5 * highest
        values[expected] = -np.inf
        expected.append(int(values.argmax()))
    found = choose(kernel.select, scores.tolist(), 800, vectors=vectors, weight=0.5, deadline=time.monotonic() + 3600)
    assert found == (expected, False)


def test_a_long_list_is_given_up_on_its_way() -> None:
    """All of 5,000 takes a hundred times as long; how far it came tells more than a clock, which others' work moves."""
    random = np.random.default_rng(9)
    n = 5000
    vectors = random.normal(size=(n, 64)).astype(np.float32)
    codes = random.integers(0, 50, (n, 16)).astype(np.int32)
    caps = np.full(16, 2, np.int32), np.full(16, 10, np.int32), np.ones(16, np.uint8)
    for c, diversity in ((0, (vectors, 0.5)), (16, ()), (16, (vectors, 0.5))):
        described = np.ascontiguousarray(codes[:, :c]), *(each[:c] for each in caps)
        selection = random.random(n), np.arange(n), n, *described
        with pytest.raises(TimeoutError, match=f"of {n} places") as error:
            kernel.select(*selection, *diversity, deadline=time.monotonic() + 0.002)
        filled = int(str(error.value).split()[4])
        assert filled < n / 2


def test_threads_do_not_disturb_one_another() -> None:
    random = np.random.default_rng(4)
    vectors = random.normal(size=(400, 16)).astype(np.float32)
    jobs = [(random.random(400).tolist(), Cap(random.integers(0, 20, 400).tolist(), 2)) for _ in range(8)]
    expected = [choose(kernel.select, scores, 30, cap, vectors=vectors, weight=0.5) for scores, cap in jobs]
    found: list[tuple[list[int], bool] | None] = [None] * len(jobs)

    def work(job: int) -> None:
        scores, cap = jobs[job]
        for _ in range(20):
            found[job] = choose(kernel.select, scores, 30, cap, vectors=vectors, weight=0.5)

    threads = [threading.Thread(target=work, args=(job,)) for job in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


REFUSED = {
    "NaN score": ({"scores": np.array([np.nan, 1.0])}, ValueError, r"scores\[0\] is not finite"),
    "float32 scores": ({"scores": np.ones(2, np.float32)}, TypeError, "scores: expected dtype float64"),
    "negative k": ({"k": -1}, ValueError, "k: expected at least 0"),
    "weight above 1": ({"relevance_weight": 1.5}, ValueError, "relevance_weight"),
    "NaN weight": ({"relevance_weight": np.nan}, ValueError, "relevance_weight"),
    "NaN bound": ({"lowest_similarity": np.nan}, ValueError, "lowest_similarity"),
    "NaN deadline": ({"deadline": np.nan}, ValueError, "deadline: expected a number, found nan"),
    "cap of 0": ({"cap_max": np.zeros(1, np.int32)}, ValueError, "cap_max: expected at least 1"),
    "negative window": ({"cap_window": np.full(1, -1, np.int32)}, ValueError, "cap_window"),
    "codes of other shape": ({"cap_codes": np.zeros((2, 2), np.int32)}, ValueError, "cap_codes: expected shape"),
    "row outside the vectors": ({"rows": np.array([0, 2])}, ValueError, "outside a table of 2 rows"),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_selection_refuses(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {
        "scores": np.ones(2),
        "rows": np.arange(2),
        "k": 2,
        "cap_codes": np.zeros((2, 1), np.int32),
        "cap_max": np.ones(1, np.int32),
        "cap_window": np.zeros(1, np.int32),
        "cap_sliding": np.zeros(1, np.uint8),
        "vectors": np.ones((2, 3), np.float32),
        "relevance_weight": 0.5,
    }
    with pytest.raises(error, match=message):
        kernel.select(**{**arguments, **change})
