"""A keyed permutation of 0 .. size-1 with random access and no memory: which sample comes n-th in an epoch.

A balanced Feistel network on the smallest even number of bits that holds `size`, walked in cycles until the value is
inside. The domain is less than 4 times `size`, so the walk takes under 4 rounds on average.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data.types import Int64

ROUNDS = 6


def permute(places: Int64, size: int, key: bytes) -> Int64:
    """Sample numbers at `places` (each in [0, size)) of the order that `key` names. A bijection of [0, size)."""
    return _walk(_network, places, size, key)


def place_of(samples: Int64, size: int, key: bytes) -> Int64:
    """Inverse of `permute`: where in the order each sample comes."""
    return _walk(_network_back, samples, size, key)


def _walk(network: Callable[..., NDArray[np.uint64]], numbers: Int64, size: int, key: bytes) -> Int64:
    assert 0 < size < 1 << 62 and numbers.min(initial=0) >= 0 and numbers.max(initial=0) < size, size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(key)
    values = network(numbers.astype(np.uint64), half, keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values[outside] = network(values[outside], half, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def order_key(*words: str | int) -> bytes:
    """A key from words such as (seed, source name, epoch); distinct words never collide by concatenation."""
    return hashlib.blake2b(repr(words).encode(), digest_size=32).digest()


def _round_keys(key: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(hashlib.blake2b(key, digest_size=8 * ROUNDS).digest(), dtype="<u8").astype(np.uint64)


def _network(values: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _network_back(values: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys[::-1]:
        left, right = right ^ (_mix(left ^ key) & mask), left
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
