# SPDX-License-Identifier: Apache-2.0
"""A device's new key, shown by the old one and by itself, and the PSK that comes for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from fl_tiny.errors import RemoteError
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.fields import Key, blob, uint
from fl_tiny.protocol.wire import DID, PK, U32, Code

_CONTEXT = b"fl-tiny/1 rekey"


@dataclass(frozen=True, slots=True)
class Rekey:
    """A new public key; signed by the old key. gen: one more than the last.   proof: by the new key (``statement``)."""

    KIND: ClassVar[int] = 14
    did: Annotated[bytes, Key(1, DID)]
    gen: Annotated[int, Key(2, uint(1, U32))]
    pk: Annotated[bytes, Key(3, PK)]
    proof: Annotated[bytes, Key(4, blob(64))]


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """The PSK that goes with the new key; the old one works until the first ``register`` with it."""

    KIND: ClassVar[int] = 15
    gen: Annotated[int, Key(1, uint(1, U32))]
    psk: Annotated[bytes, Key(2, blob(32))]


def statement(did: bytes, gen: int, pk: bytes) -> bytes:
    """What the new key signs, so that it is shown to be held and fits nothing else."""
    return _CONTEXT + did + gen.to_bytes(4, "big") + pk


def asked(did: bytes, gen: int, old_seed: bytes, new_seed: bytes) -> bytes:
    """The signed message of a device."""
    pk = signed.public_key(new_seed)
    proof = signed.bare_signature(statement(did, gen, pk), new_seed)
    return signed.sign(wire.encode(Rekey(did, gen, pk, proof)), old_seed)


def checked(message: bytes, did: bytes, old_pk: bytes) -> Rekey:
    """A device's message. Raises: MalformedMessage; RemoteError with Code.SIGNATURE unless both keys are shown."""
    found = wire.decode(Rekey, signed.verify(message, old_pk))
    if found.did != did:
        raise RemoteError("a new key for another device", code=Code.SIGNATURE)
    signed.check_bare(statement(did, found.gen, found.pk), found.proof, found.pk)
    return found
