# SPDX-License-Identifier: Apache-2.0
"""A refusal as bytes: CoAP code and an RFC 9290 problem map that carries our own code under 65001."""

from __future__ import annotations

from dataclasses import dataclass

from fl_tiny.errors import FlTinyError, RemoteError
from fl_tiny.protocol import cbor
from fl_tiny.protocol.fields import cut_text
from fl_tiny.protocol.wire import Code

PROBLEM_KEY = 65001
_TITLE, _DETAIL, _DETAIL_LIMIT = -1, -2, 128

COAP_CODE = {  # our code -> the CoAP response code it travels under
    Code.NONE: "4.00",
    Code.VERSION: "4.00",
    Code.SCHEMA: "4.00",
    Code.SHAPE: "4.22",
    Code.NOT_FINITE: "4.22",
    Code.SIGNATURE: "4.01",
    Code.LATE: "4.09",
    Code.STALE_BASE: "4.09",
    Code.CONFLICT: "4.09",
    Code.REVOKED: "4.03",
    Code.QUARANTINED: "4.03",
    Code.QUOTA: "4.13",
    Code.PRIVACY: "4.03",
    Code.PHASE: "4.09",
    Code.DOWNGRADE: "4.09",
    Code.PAIRING: "4.03",
    Code.RESTORED: "4.03",
    Code.SUMS: "4.22",
    Code.CANARY: "4.22",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """What a peer refused and why. ``code`` is ours, 0 when the peer gave none."""

    code: int
    detail: str = ""


def encode(fault: FlTinyError) -> bytes:
    """The problem map for a fault; the detail names value and rule, never what a device learned."""
    code = fault.code if isinstance(fault, RemoteError) else Code.NONE
    detail = cut_text(fault.what, _DETAIL_LIMIT)
    return cbor.encode({_TITLE: Code(code).name.lower(), _DETAIL: detail, PROBLEM_KEY: {1: int(code)}})


def decode(payload: bytes) -> Problem:
    """The problem in a refusal's payload; a payload that is none gives code 0. Never raises."""
    try:
        body = cbor.decode(payload)
    except RemoteError:
        return Problem(0)
    if not isinstance(body, dict):
        return Problem(0)
    ours, detail = body.get(PROBLEM_KEY), body.get(_DETAIL)
    code = ours.get(1) if isinstance(ours, dict) else 0
    return Problem(
        code if isinstance(code, int) else 0,
        "".join(c for c in detail if c.isprintable()) if isinstance(detail, str) else "",
    )
