# SPDX-License-Identifier: Apache-2.0
"""Signed messages: COSE_Sign1 by Ed25519 over a payload, with one protected header and one external AAD.

Source: RFC 9052, sections 4.2 and 4.4; algorithm -19 is Ed25519 (RFC 9864).
"""

from __future__ import annotations

import hashlib

from nacl.bindings import (
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import BadSignatureError

from fl_tiny.errors import MalformedMessage, RemoteError
from fl_tiny.protocol import cbor
from fl_tiny.protocol.wire import Code

COSE_SIGN1 = 18
PROTECTED = bytes.fromhex("a10132")  # {1: -19}
AAD = b"fl-tiny/1"
EXPORTER_LABEL = b"EXPORTER-fl-tiny-enrol"
EXPORTER_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64


def public_key(seed: bytes) -> bytes:
    """The Ed25519 public key (32 B) of a secret seed (32 B)."""
    return crypto_sign_seed_keypair(seed)[0]


def device_id(pk: bytes) -> bytes:
    """A device's id: the first 16 bytes of SHA-256 of its first public key."""
    return hashlib.sha256(pk).digest()[:16]


def digest(data: bytes) -> bytes:
    """SHA-256, by which manifests, models, heads and keys are known."""
    return hashlib.sha256(data).digest()


def sign(payload: bytes, seed: bytes, *, binding: bytes = b"") -> bytes:
    """``payload`` as COSE_Sign1. ``binding`` ties it to a DTLS session (the exporter's value, at enrolment)."""
    secret = crypto_sign_seed_keypair(seed)[1]
    signature = crypto_sign(_structure(payload, binding), secret)[:SIGNATURE_BYTES]
    return cbor.tagged(COSE_SIGN1, [PROTECTED, {}, payload, signature])


def payload_of(message: bytes) -> bytes:
    """The payload of a COSE_Sign1, its signature not yet checked: for finding out whose key to check it with.

    Raises: MalformedMessage.
    """
    return _parts(message)[0]


def verify(message: bytes, pk: bytes, *, binding: bytes = b"") -> bytes:
    """The payload of ``message`` when ``pk`` signed it.

    Raises: MalformedMessage; RemoteError with Code.SIGNATURE when another key signed, or another session's binding.
    """
    payload, signature = _parts(message)
    try:
        crypto_sign_open(signature + _structure(payload, binding), pk)
    except (BadSignatureError, ValueError) as cause:
        raise RemoteError("a signature does not fit its message and key", code=Code.SIGNATURE) from cause
    return payload


def bare_signature(statement: bytes, seed: bytes) -> bytes:
    """An Ed25519 signature (64 B) of a statement that says itself what it is for."""
    return crypto_sign(statement, crypto_sign_seed_keypair(seed)[1])[:SIGNATURE_BYTES]


def check_bare(statement: bytes, signature: bytes, pk: bytes) -> None:
    """Raises: RemoteError with Code.SIGNATURE when ``pk`` did not sign the statement."""
    try:
        crypto_sign_open(signature + statement, pk)
    except (BadSignatureError, ValueError) as cause:
        raise RemoteError("a signature does not fit its statement and key", code=Code.SIGNATURE) from cause


def _parts(message: bytes) -> tuple[bytes, bytes]:
    value = cbor.decode(message, tag=COSE_SIGN1)
    match value:
        case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)]:
            if protected == PROTECTED and not unprotected and payload and len(signature) == SIGNATURE_BYTES:
                return payload, signature
    raise MalformedMessage("not a COSE_Sign1 by Ed25519")


def _structure(payload: bytes, binding: bytes) -> bytes:
    """The bytes that are signed: Sig_structure of RFC 9052, section 4.4."""
    return cbor.encode(["Signature1", PROTECTED, AAD + binding, payload])
