# SPDX-License-Identifier: Apache-2.0
"""A gateway's key handed over to the next: what a device takes, and what it refuses."""

from __future__ import annotations

import pytest

from fl_tiny.errors import RemoteError
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.handover import Handover, checked, handed_over, statement

OLD, NEW, THIEF = b"o" * 32, b"n" * 32, b"t" * 32
OLD_PK, NEW_PK, THIEF_PK = map(signed.public_key, (OLD, NEW, THIEF))


def test_a_hand_over_shows_the_old_key_and_the_new_one() -> None:
    assert checked(handed_over(1, OLD, NEW), 1, OLD_PK) == NEW_PK
    assert checked(handed_over(wire.MOST_KEYS, OLD, NEW), wire.MOST_KEYS, OLD_PK) == NEW_PK


def proved(serial: int, pk: bytes, proof: bytes, by: bytes = OLD) -> bytes:
    return signed.sign(wire.encode(Handover(serial, pk, proof)), by)


FORGED = {
    "by a key that is not the one before": handed_over(1, THIEF, NEW),
    "to a key that was not shown": proved(1, THIEF_PK, b"s" * 64),
    "with the proof of another number": proved(1, NEW_PK, signed.bare_signature(statement(2, OLD_PK, NEW_PK), NEW)),
    "with the proof of another old key": proved(1, NEW_PK, signed.bare_signature(statement(1, THIEF_PK, NEW_PK), NEW)),
    "with a proof by the old key": proved(1, NEW_PK, signed.bare_signature(statement(1, OLD_PK, NEW_PK), OLD)),
    "to itself": handed_over(1, OLD, OLD),
    "of another number": handed_over(2, OLD, NEW),
    "of another kind": signed.sign(wire.encode(wire.Own("active", 3)), OLD),
    "cut off": handed_over(1, OLD, NEW)[:-1],
    "nothing": b"",
}


@pytest.mark.parametrize("message", FORGED.values(), ids=FORGED)
def test_a_forged_hand_over_is_refused(message: bytes) -> None:
    with pytest.raises(RemoteError):
        checked(message, 1, OLD_PK)


def test_every_bit_of_a_hand_over_counts() -> None:
    message = handed_over(1, OLD, NEW)
    for at in range(8 * len(message)):
        changed = bytearray(message)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(RemoteError):
            checked(bytes(changed), 1, OLD_PK)


def test_there_is_no_key_beyond_the_last_number() -> None:
    with pytest.raises(AssertionError):
        handed_over(wire.MOST_KEYS + 1, OLD, NEW)
    with pytest.raises(AssertionError):
        handed_over(0, OLD, NEW)
