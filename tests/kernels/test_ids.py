from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.kernels import ids as kernel
from recserve.kernels.reference import ids as reference

KEYS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1]))
LAST = 2**64 - 1


def as_keys(values):
    return np.array(list(values), np.uint64)


def colliding_keys(n):
    """Keys with one common home slot: the multiplier's inverse takes them to 0, 1, 2, ..., whose top bits are 0."""
    inverse = pow(reference.MULTIPLIER, -1, 2**64)
    return as_keys(i * inverse % 2**64 for i in range(n))


ADVERSARIAL = {
    "ascending from 0": lambda n: np.arange(n, dtype=np.uint64),
    "descending from the last": lambda n: np.uint64(LAST) - np.arange(n, dtype=np.uint64),
    "low bits all zero": lambda n: np.arange(n, dtype=np.uint64) << np.uint64(47),
    "random with 0 and the last": lambda n: np.unique(
        np.append(np.random.default_rng(3).integers(1, LAST, n - 2, np.uint64), as_keys([0, LAST]))
    ),
}


def assert_table(module, keys):
    """Every key is found at its row, and a key that no row has is not found."""
    slots = module.build_slots(keys)
    order = np.random.default_rng(1).permutation(len(keys))
    assert np.array_equal(module.lookup(keys, slots, keys[order]), order)
    absent = np.setdiff1d(keys ^ np.uint64(0x5555_0000_AAAA_0001), keys)
    assert (module.lookup(keys, slots, absent) == -1).all()


@given(values=st.lists(KEYS, unique=True, max_size=200), wanted=st.lists(KEYS, max_size=50))
@settings(max_examples=150, deadline=None)
def test_lookup_equals_a_dictionary(ids, values, wanted):
    keys = as_keys(values)
    slots = ids.build_slots(keys)
    rows = {key: row for row, key in enumerate(values)}
    asked = values + wanted
    assert ids.lookup(keys, slots, as_keys(asked)).tolist() == [rows.get(key, -1) for key in asked]


@given(values=st.lists(KEYS, unique=True, max_size=200))
@settings(max_examples=100, deadline=None)
def test_the_table_is_the_same_bit_for_bit(values):
    keys = as_keys(values)
    slots = kernel.build_slots(keys)
    assert np.array_equal(slots, reference.build_slots(keys))
    assert np.count_nonzero(slots) == len(keys)


@pytest.mark.parametrize(("n", "slots"), [(0, 2), (1, 2), (2, 4), (3, 8), (4, 8), (5, 16), (1024, 2048), (1025, 4096)])
def test_size_is_the_power_of_two_that_keeps_half_the_slots_empty(ids, n, slots):
    assert len(ids.build_slots(np.arange(n, dtype=np.uint64))) == slots


@pytest.mark.parametrize("keys", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_large_tables_of_awkward_keys(keys):
    assert_table(kernel, keys(100_000))


@pytest.mark.parametrize("keys", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_tables_of_awkward_keys(ids, keys):
    assert_table(ids, keys(2_000))


def test_all_keys_in_one_slot(ids):
    keys = colliding_keys(1_000)
    assert_table(ids, keys)
    assert ids.build_slots(keys)[:1000].tolist() == list(range(1, 1001))


@pytest.mark.slow
def test_a_hundred_thousand_keys_in_one_slot():
    keys = colliding_keys(100_000)
    slots = kernel.build_slots(keys)
    asked = [0, 1, 50_000, 99_999]
    assert kernel.lookup(keys, slots, keys[asked]).tolist() == asked
    assert kernel.lookup(keys, slots, colliding_keys(100_001)[-1:]).tolist() == [-1]


def test_a_chain_wraps_around_the_end(ids):
    inverse = pow(reference.MULTIPLIER, -1, 2**64)
    keys = as_keys((LAST - i) * inverse % 2**64 for i in range(4))  # all at home in the last of 8 slots
    slots = ids.build_slots(keys)
    assert slots.tolist() == [2, 3, 4, 0, 0, 0, 0, 1]
    assert ids.lookup(keys, slots, keys).tolist() == [0, 1, 2, 3]


@given(values=st.lists(KEYS, min_size=1, max_size=50, unique=True), data=st.data())
@settings(max_examples=100, deadline=None)
def test_duplicates_name_both_rows(ids, values, data):
    first = data.draw(st.integers(0, len(values) - 1))
    second = data.draw(st.integers(first + 1, len(values)))
    keys = as_keys([*values[:second], values[first], *values[second:], values[first]])
    with pytest.raises(kernel.DuplicateKeyError) as caught:
        ids.build_slots(keys)
    assert (caught.value.first_row, caught.value.second_row) == (first, second)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_mapped_read_only_arrays(ids, tmp_path):
    keys = ADVERSARIAL["random with 0 and the last"](500)
    np.save(tmp_path / "keys.npy", keys)
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    np.save(tmp_path / "slots.npy", ids.build_slots(mapped))
    slots = np.load(tmp_path / "slots.npy", mmap_mode="r")
    assert np.array_equal(ids.lookup(mapped, slots, mapped), np.arange(len(keys)))


def test_threads_agree():
    keys = ADVERSARIAL["random with 0 and the last"](20_000)
    slots = kernel.build_slots(keys)
    wanted = np.random.default_rng(5).permutation(np.append(keys, keys + np.uint64(1)))
    expected = kernel.lookup(keys, slots, wanted)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: kernel.lookup(keys, slots, wanted), range(16)))
    assert all(np.array_equal(answer, expected) for answer in answers)


KEYS_3 = as_keys([5, 6, 7])
SLOTS_3 = reference.build_slots(KEYS_3)


@pytest.mark.parametrize(
    ("keys", "slots", "wanted", "error", "message"),
    [
        (KEYS_3.astype(np.int64), SLOTS_3, KEYS_3, TypeError, "keys: expected dtype uint64, found int64"),
        ([5, 6, 7], SLOTS_3, KEYS_3, TypeError, "keys: expected a NumPy array of uint64, found list"),
        (KEYS_3, SLOTS_3.astype(np.int32), KEYS_3, TypeError, "slots: expected dtype uint32"),
        (KEYS_3, SLOTS_3, KEYS_3.reshape(1, 3), ValueError, r"wanted: expected shape \[any\], found \[1, 3\]"),
        (KEYS_3, SLOTS_3, np.repeat(KEYS_3, 2)[::2], ValueError, "wanted: expected a C-contiguous"),
        (KEYS_3, SLOTS_3, KEYS_3.astype(">u8"), TypeError, "wanted: expected dtype uint64"),
        (KEYS_3, SLOTS_3[:7].copy(), KEYS_3, ValueError, "slots: expected a power of two"),
        (KEYS_3, SLOTS_3[:1].copy(), KEYS_3, ValueError, "slots: expected a power of two"),
        (KEYS_3[:2].copy(), SLOTS_3, KEYS_3, ValueError, "slots: names rows beyond the 2 keys"),
        (KEYS_3, np.ones(8, np.uint32), KEYS_3, ValueError, "has no empty slot"),
    ],
)
def test_what_cannot_be_a_table_is_refused(keys, slots, wanted, error, message):
    with pytest.raises(error, match=message):
        kernel.lookup(keys, slots, wanted)
