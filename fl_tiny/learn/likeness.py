# SPDX-License-Identifier: Apache-2.0
"""Which samples show the same thing: features that are nearly equal, and samples that came in one stretch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int8]
Groups = NDArray[np.int64]

BOUND = 0.1  # share of the features' length that two alike samples differ by at most (adr/0070, measured)
CHUNK = 256  # stored samples that are in memory at a time


def alike(a: Codes, b: Codes, zero_point: int) -> NDArray[np.bool_]:
    """(len(a), len(b)): True where two samples differ by ``BOUND`` of the longer one's length, or less.

    a, b: (n, features) int8 codes.   zero_point: the code that stands for 0.
    """
    return _squares(a, b, zero_point) <= BOUND**2


def join(
    codes: Codes,
    zero_point: int,
    stored: Iterable[tuple[bytes, int]] = (),
    stretches: Sequence[int] | None = None,
) -> Groups:
    """The group of each new sample, (n,): a stored one's number, or for a new group a negative number.

    New samples are of one group when a chain of alike ones or a common stretch leads from one to the other; alike to a
    stored one, they are of its group. stored: codes and groups (0 or more).   stretches: one number a sample.
    """
    own = np.arange(len(codes)) if stretches is None else np.asarray(stretches, np.int64)
    labels = np.unique(own, return_inverse=True)[1].reshape(-1).astype(np.int64)
    for row, near in enumerate(_alike_to_earlier(codes, zero_point)):
        found = labels[: len(near)][near]
        for other in np.unique(found[found != labels[row]]):
            labels[labels == other] = labels[row]
    groups = _nearest_stored(codes, zero_point, stored)
    for label in np.unique(labels):
        rows = labels == label
        reached = groups[rows & (groups >= 0)]
        groups[rows & (groups < 0)] = reached[0] if len(reached) else -1 - label
    return groups


def _alike_to_earlier(codes: Codes, zero_point: int) -> Iterator[NDArray[np.bool_]]:
    """For each sample in turn: which of those before it are alike, (row,)."""
    starts = range(0, len(codes), CHUNK)
    for start in starts:
        block = codes[start : start + CHUNK]
        earlier = [alike(block, codes[other : other + CHUNK], zero_point) for other in starts if other <= start]
        for row, near in enumerate(np.hstack(earlier)):
            yield near[: start + row]


def _nearest_stored(codes: Codes, zero_point: int, stored: Iterable[tuple[bytes, int]]) -> Groups:
    """The group of the stored sample that each sample is most alike to, -1 where there is none."""
    groups = np.full(len(codes), -1, np.int64)
    least = np.full(len(codes), BOUND**2, np.float32)
    for part, numbers in _chunks(stored, codes.shape[1]):
        for start in range(0, len(codes), CHUNK):
            rows = slice(start, start + CHUNK)
            squares = _squares(codes[rows], part, zero_point)
            place = squares.argmin(axis=1)
            found = squares[np.arange(len(place)), place]
            nearer = (found < least[rows]) | ((found <= least[rows]) & (groups[rows] < 0))
            groups[rows] = np.where(nearer, numbers[place], groups[rows])
            least[rows] = np.where(nearer, found, least[rows])
    return groups


def _squares(a: Codes, b: Codes, zero_point: int) -> NDArray[np.float32]:
    """Squared distances as shares of the longer vector's squared length, (len(a), len(b)); 0 for equal ones."""
    x, y = (codes.astype(np.float32) - np.float32(zero_point) for codes in (a, b))
    x2, y2 = (x * x).sum(axis=1)[:, None], (y * y).sum(axis=1)[None]
    found: NDArray[np.float32] = np.maximum(x2 + y2 - 2 * (x @ y.T), 0) / np.maximum(np.maximum(x2, y2), 1)
    return found


def _chunks(stored: Iterable[tuple[bytes, int]], width: int) -> Iterator[tuple[Codes, Groups]]:
    rows = iter(stored)
    while part := list(islice(rows, CHUNK)):
        codes = np.frombuffer(b"".join(features for features, _ in part), np.int8).reshape(len(part), width)
        yield codes, np.array([group for _, group in part], np.int64)
