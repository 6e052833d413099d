# SPDX-License-Identifier: Apache-2.0
"""Every message goes both ways, fits the CDDL, and refuses what the CDDL refuses."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import cbor2
import pycddl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol import cbor, wire
from fl_tiny.protocol.fields import fields_of

from .samples import MESSAGES

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = pycddl.Schema((DOCS / "protocol.cddl").read_text())
every = pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)


def body(message: Any) -> dict[int, Any]:
    found: dict[int, Any] = cbor2.loads(wire.encode(message))
    return found


def refused(cls: type, value: Any) -> None:
    with pytest.raises(MalformedMessage):
        wire.decode(cls, cbor.encode(value))


@every
def test_a_message_comes_back_as_it_was_sent(message: Any) -> None:
    assert wire.decode(type(message), wire.encode(message)) == message


@every
def test_a_message_fits_the_published_rules(message: Any) -> None:
    SCHEMA.validate_cbor(wire.encode(message))


@every
def test_an_extra_positive_key_is_refused_and_a_negative_one_ignored(message: Any) -> None:
    refused(type(message), {**body(message), 99: 0})
    assert wire.decode(type(message), cbor.encode({**body(message), -99: 0})) == message


@every
def test_a_wrong_kind_a_missing_key_and_a_short_id_are_refused(message: Any) -> None:
    whole = body(message)
    refused(type(message), {**whole, 0: 98})
    optional = {field.key.number for field in fields_of(type(message)) if field.optional}
    for key, value in whole.items():
        if key not in optional:
            refused(type(message), {k: v for k, v in whole.items() if k != key})
        if isinstance(value, bytes) and len(value) in (8, 16, 32):
            refused(type(message), {**whole, key: value[:-1]})


@every
def test_the_published_rules_refuse_what_the_code_refuses(message: Any) -> None:
    whole = body(message)
    for broken in ({**whole, 0: 98}, {**whole, 99: 0}):
        with pytest.raises(pycddl.ValidationError):
            SCHEMA.validate_cbor(cbor.encode(broken))


def test_the_vectors_in_the_docs_are_those_of_the_code() -> None:
    published = json.loads((DOCS / "vectors/messages.json").read_text())
    assert {name: vector["cbor"] for name, vector in published.items()} == {
        name: wire.encode(message).hex() for name, message in MESSAGES.items()
    }


@pytest.mark.parametrize(
    ("value", "encoded"),  # RFC 8949 appendix A, and its section 4.2.1 for the order of keys
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (1_000_000, "1a000f4240"),
        (-1, "20"),
        (-1000, "3903e7"),
        (0.0, "f90000"),
        (1.5, "f93e00"),
        (65504.0, "f97bff"),
        (100000.0, "fa47c35000"),
        (1.1, "fb3ff199999999999a"),
        (5.960464477539063e-8, "f90001"),
        (b"\x01\x02\x03\x04", "4401020304"),
        ("\u00fc", "62c3bc"),
        ([1, [2, 3]], "8201820203"),
        ({-1: 0, 65001: 1, 10: 2}, "a30a0219fde9012000"),
    ],
)
def test_the_encoding_is_that_of_the_rfc(value: Any, encoded: str) -> None:
    assert cbor.encode(value).hex() == encoded
    assert cbor.decode(bytes.fromhex(encoded)) == value


HOSTILE = {  # failures.md row 64; each must be refused in 5 ms, before cbor2 sees a byte
    "depth of 100,000": b"\x81" * 4000,
    "length of 2^62": b"\x5b\x40" + bytes(7),
    "array of 2^32": b"\x9a\xff\xff\xff\xff",
    "indefinite bytes": b"\x5f\x41a\x41b\xff",
    "indefinite array": b"\x9f\x01\xff",
    "bignum": bytes.fromhex("c249010000000000000000"),
    "decimal": bytes.fromhex("c48221196ab3"),
    "regular expression": bytes.fromhex("d82361" + "61"),
    "shared reference": bytes.fromhex("d81c81d81d00"),
    "duplicate keys": bytes.fromhex("a201000100"),
    "keys out of order": bytes.fromhex("a202000100"),
    "text key": bytes.fromhex("a1616100"),
    "NaN": bytes.fromhex("f97e00"),
    "infinity": bytes.fromhex("f97c00"),
    "NaN as a key": bytes.fromhex("a1f97e0000"),
    "integer longer than needed": bytes.fromhex("1800"),
    "length longer than needed": bytes.fromhex("580161"),
    "float wider than needed": bytes.fromhex("fa3fc00000"),
    "undefined": b"\xf7",
    "simple value 32": bytes.fromhex("f820"),
    "no UTF-8": bytes.fromhex("62c328"),
    "trailing bytes": bytes.fromhex("0000"),
    "nothing": b"",
    "110 kB of colliding keys": b"\xb9\x27\x10"
    + b"".join(b"\x1b" + (n * (2**61 - 1)).to_bytes(8, "big") + b"\0" for n in range(1, 8)) * 1600,
    "64 pairs of colliding keys": b"\xb8\x40"
    + b"".join(b"\x1b" + (n * (2**61 - 1)).to_bytes(8, "big") + b"\0" for n in (7, 6, 5)) * 22,
    "4 KiB and a byte": b"\x59\x10\x00" + bytes(4096),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused_at_once(data: bytes) -> None:
    took = []
    for _ in range(5):
        started = time.perf_counter()
        with pytest.raises(MalformedMessage):
            cbor.decode(data)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.005  # the least: a busy machine makes any of them longer
    tracemalloc.start()
    with pytest.raises(MalformedMessage):
        cbor.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 65_536


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_in_its_one_encoding_or_refused(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except MalformedMessage:
        return
    assert cbor.encode(value) == data


@given(st.sampled_from(list(MESSAGES.values())), st.data())
def test_a_message_with_any_byte_changed_is_refused_or_well_formed(message: Any, data: st.DataObject) -> None:
    raw = bytearray(wire.encode(message))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = wire.decode(type(message), bytes(raw))
    except MalformedMessage:
        return
    assert wire.decode(type(message), wire.encode(found)) == found


def test_what_breaks_a_rule_is_not_sent_either_and_is_our_own_fault() -> None:
    with pytest.raises(AssertionError, match=r"update\.samples"):
        wire.encode(wire.Update(b"r" * 8, b"d" * 16, b"h" * 32, 0, b"h" * 32, 1))
