# SPDX-License-Identifier: Apache-2.0
"""A PSK identity has one spelling, and a text that is shown shows what it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol import cbor, wire
from fl_tiny.protocol.fields import is_shown, shown
from fl_tiny.protocol.identity import Identity, Kind, identity_of, name_fault

DID, TOKEN = bytes(range(0xA0, 0xB0)), bytes(range(0xC0, 0xC8))
IDENTITIES = [
    (DID.hex(), Identity(Kind.DEVICE, DID)),
    (f"next:{DID.hex()}", Identity(Kind.NEXT, DID)),
    (f"pair:{TOKEN.hex()}", Identity(Kind.PAIRING, TOKEN)),
    ("peer:dashboard", Identity(Kind.PEER, b"dashboard")),
    ("peer:next:x", Identity(Kind.PEER, b"next:x")),
]
OTHERWISE = [
    "",
    DID.hex().upper(),
    f" {DID.hex()}",
    f"{DID.hex()}\n",
    f"{DID.hex()[:2]} {DID.hex()[2:]}",
    DID.hex()[:-2],
    DID.hex() + "00",
    f"NEXT:{DID.hex()}",
    f"next:next:{DID.hex()}",
    f"pair:next:{TOKEN.hex()}",
    f"pair:{TOKEN.hex().upper()}",
    f"pair:{DID.hex()}",
    "pair:",
    "peer:",
    "".join(chr(0xFF10 + int(c)) if c.isdigit() else c for c in DID.hex()),  # digits of full width
]


@pytest.mark.parametrize(("text", "found"), IDENTITIES)
def test_an_identity_is_read_as_it_is_spelled(text: str, found: Identity) -> None:
    assert identity_of(text) == found and found.text == text


@pytest.mark.parametrize("text", OTHERWISE)
def test_another_spelling_is_nobodys(text: str) -> None:
    assert identity_of(text) is None


@given(st.text(st.sampled_from("0123456789abcdefABCDEF: nextpair\u0660"), max_size=48))
def test_no_two_texts_are_one_identity(text: str) -> None:
    found = identity_of(text)
    assert found is None or found.text == text


@pytest.mark.parametrize("name", ["kitchen", "K\u00fcche 2", "\u53f0\u6240", "board-7", "cafe", "\U0001f600"])
def test_a_name_may_be_of_any_script(name: str) -> None:
    assert not name_fault(name) and shown(name) == name
    assert wire.decode(wire.Enrol, wire.encode(wire.Enrol(bytes(32), name))).name == name


@pytest.mark.parametrize(
    "name", ["", "a" * 65, DID.hex(), DID.hex().upper(), "a\x1b[2J", "a\nb", "a\u202eb", "\u200ba", "a "]
)
def test_a_name_that_misleads_is_none(name: str) -> None:
    assert name_fault(name)
    with pytest.raises(MalformedMessage, match="name"):
        wire.decode(wire.Enrol, cbor.encode({0: wire.Enrol.KIND, 1: bytes(32), 3: name}))


@given(st.text(max_size=40))
def test_what_is_shown_can_be_seen_whatever_came(text: str) -> None:
    assert shown(text).isprintable() and is_shown(shown(text).strip())
    assert (shown(text) == text) == (shown(shown(text)) == text)


def test_a_sentence_of_a_peer_comes_escaped_and_is_not_refused() -> None:
    said = wire.Heartbeat(0, 0, refusal=wire.Refusal(2, 21, "no\n\x1b[31mroom\u202e"))
    found = wire.decode(wire.Heartbeat, wire.encode(said)).refusal
    assert found is not None and found.why == "no\\n\\x1b[31mroom\\u202e"
