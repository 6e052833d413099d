# SPDX-License-Identifier: Apache-2.0
"""A gateway's new key, handed over by the old one: a link of the chain that leads a device to the key in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from fl_tiny.errors import MalformedMessage, RemoteError
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.fields import Key, blob, uint
from fl_tiny.protocol.wire import MOST_KEYS, PK, Code

_CONTEXT = b"fl-tiny/1 handover"


@dataclass(frozen=True, slots=True)
class Handover:
    """A gateway's next public key; signed by the key before it.

    serial: of the new key; a gateway's first key has 0.   proof: by the new key (``statement``).
    """

    KIND: ClassVar[int] = 20
    serial: Annotated[int, Key(1, uint(1, MOST_KEYS))]
    pk: Annotated[bytes, Key(2, PK)]
    proof: Annotated[bytes, Key(3, blob(64))]


def statement(serial: int, old_pk: bytes, pk: bytes) -> bytes:
    """What the new key signs, so that it is shown to be held and follows this one old key."""
    return _CONTEXT + serial.to_bytes(4, "big") + old_pk + pk


def handed_over(serial: int, old_seed: bytes, new_seed: bytes) -> bytes:
    """The signed message of a gateway."""
    pk = signed.public_key(new_seed)
    proof = signed.bare_signature(statement(serial, signed.public_key(old_seed), pk), new_seed)
    return signed.sign(wire.encode(Handover(serial, pk, proof)), old_seed)


def checked(message: bytes, serial: int, old_pk: bytes) -> bytes:
    """The key number ``serial`` that ``old_pk``, the key before it, hands over to.

    Raises: MalformedMessage; RemoteError with Code.SIGNATURE unless both keys are shown.
    """
    found = wire.decode(Handover, signed.verify(message, old_pk))
    if found.serial != serial:
        raise MalformedMessage(f"a hand-over to key number {found.serial}, {serial} was asked for")
    if found.pk == old_pk:
        raise RemoteError("a key handed over to itself", code=Code.SIGNATURE)
    signed.check_bare(statement(serial, old_pk, found.pk), found.proof, found.pk)
    return found.pk
