import numpy as np
from numpy.typing import NDArray

SIGMOID: int
"""Kind of calibration; the numbers are those of CalibrationKind in manifest.proto."""

ISOTONIC: int

def calibrate(
    margins: NDArray[np.float64], kind: int, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Relevance of margins: a monotone map into the open interval (0, 1).

    SIGMOID is 1 / (1 + exp(-(slope * margin + intercept))), with the C library's exp. ISOTONIC is linear between
    knots and constant outside them. Both are held within [2**-1022, 1 - 2**-53], the ends of (0, 1) among normal
    doubles, so that margins far out do not become 0 or 1. Releases the GIL.

    Args:
        margins: float64 [n]; a NaN margin has NaN relevance.
        kind: SIGMOID or ISOTONIC.
        x: SIGMOID: [slope, intercept]; ISOTONIC: the knots' margins, strictly ascending by finite steps (not
            checked here).
        y: SIGMOID: empty; ISOTONIC: the knots' relevances, ascending (not checked here).

    Returns:
        float64 [n].

    Raises:
        TypeError: an array is of another dtype.
        ValueError: another kind, or not the number of values that it needs.
    """

def freshness(
    scores: NDArray[np.float64], launch_us: NDArray[np.int64], now_us: int, boost: float, half_life_days: float
) -> NDArray[np.float64]:
    """Scores with the gain of new items: score * (1 + boost * 2 ** (-age / half_life_days)). Releases the GIL.

    Args:
        scores: float64 [n].
        launch_us: int64 [n], microseconds UTC; the smallest int64 is missing, and leaves the score as it is. An item
            that is yet to be launched has age 0.
        now_us: microseconds UTC.
        boost: >= 0; the gain of an item that was launched now.
        half_life_days: > 0; after so many days half of the gain is left.

    Returns:
        float64 [n].

    Raises:
        TypeError: an array is of another dtype.
        ValueError: shapes do not agree, or a parameter is out of range.
    """

def select(
    scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    k: int,
    cap_codes: NDArray[np.int32],
    cap_max: NDArray[np.int32],
    cap_window: NDArray[np.int32],
    cap_sliding: NDArray[np.uint8],
    vectors: NDArray[np.float32] | None = None,
    relevance_weight: float = 1.0,
    lowest_similarity: float = ...,
    deadline: float = ...,
) -> tuple[NDArray[np.int64], bool]:
    """Choose a list of min(k, n) candidates, place by place.

    Each place takes the candidate with the highest value among those that every cap admits. The value is the score,
    or with `vectors` the maximal marginal relevance of Carbonell & Goldstein (SIGIR 1998):
    weight * score - (1 - weight) * (highest inner product with a chosen item's vector; 0 for the first place).
    Ties go to the higher score, then to the smaller row.

    Where the caps admit no remaining candidate, the place takes the one with the highest value regardless, so that
    the list is filled. The choice is greedy: it does not look ahead for an order that would avoid this.

    Cap c allows at most cap_max[c] items with the same value
        - in the whole list, where cap_window[c] is 0;
        - among the first cap_window[c] places; those behind them are free;
        - in every run of cap_window[c] consecutive places, where cap_sliding[c] is set.

    Releases the GIL; allocates only before. Work grows with n * k, so it stops once nobody waits for it: the clock is
    looked at before the first place, and then about every millisecond of work.

    Args:
        scores: float64 [n], finite.
        rows: int64 [n], the candidates' item rows.
        k: how many to choose, >= 0; may exceed n.
        cap_codes: int32 [n, C]: the candidates' values of the capped attributes; -1 is missing and never capped.
        cap_max: int32 [C], >= 1.
        cap_window: int32 [C], >= 0.
        cap_sliding: uint8 [C].
        vectors: float32 [N, d] over item rows, finite; may be read-only and memory-mapped. None: by score alone.
        relevance_weight: MMR's lambda, 0 (diversity only) to 1 (relevance only).
        lowest_similarity: no inner product of two of the candidates' vectors is below it. The answer does not depend on
            it, but candidates that cannot be chosen then go unread; -inf, the default: nothing is known.
        deadline: the moment from which on nobody waits for the list, in seconds of `time.monotonic`; infinity, the
            default: there is none. It decides whether there is an answer, never which.

    Returns:
        (positions int64 [min(k, n)] among the candidates, in the order of the list; whether a place ignored the caps).

    Raises:
        TypeError: an array is of another dtype.
        ValueError: shapes do not agree, an array is not contiguous, a row is outside `vectors`, a score is not finite,
            or a parameter is out of range.
        TimeoutError: the deadline passed before the list was full.
    """
