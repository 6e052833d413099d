# SPDX-License-Identifier: Apache-2.0
"""A device's side of a round, signed messages, and pairing codes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from fl_tiny.errors import MalformedMessage, OutOfTurn, RemoteError
from fl_tiny.protocol import cbor, pairing, problem, session, signed, wire
from fl_tiny.protocol.consent import Reply
from fl_tiny.protocol.session import Session, State

EVENTS = [
    session.OfferSeen(Reply(wire.Said.JOIN)),
    session.JoinTaken(),
    session.Trained(),
    session.TrainingFailed(),
    session.Receipted(wire.Status.ACCEPTED),
    session.Refused(wire.Code.LATE),
]


def test_a_board_that_may_not_take_part_says_why_and_stays_idle() -> None:
    device = Session()
    reply = Reply(wire.Said.NOT_ALLOWED, wire.Code.PRIVACY, "sums of 3 samples")
    assert device.handle(session.OfferSeen(reply)) == [session.SendAnswer(wire.Said.NOT_ALLOWED, 14)]
    assert device.state is State.IDLE


def test_a_child_that_would_not_is_told_from_one_that_could_not() -> None:
    for code, said in ((0, wire.Said.NO_BUDGET), (wire.Code.PRIVACY, wire.Said.NOT_ALLOWED)):
        assert Session(State.TRAINING).handle(session.TrainingFailed(code)) == [session.SendAnswer(said, code)]


def test_a_round_runs_from_offer_to_receipt() -> None:
    device = Session()
    assert device.handle(EVENTS[0]) == [session.SendAnswer(wire.Said.JOIN)]
    device.handle(session.JoinTaken())
    assert device.state is State.TRAINING
    device.handle(session.Trained())
    assert device.state is State.SENDING
    assert device.handle(session.Receipted(wire.Status.DUPLICATE)) == [session.Settle(delivered=True)]
    assert device.state is State.IDLE


@pytest.mark.parametrize(
    ("event", "settled"),
    [
        (session.Refused(wire.Code.LATE), session.Settle(delivered=False)),
        (session.Refused(wire.Code.STALE_BASE), session.Settle(delivered=False)),
        (session.Refused(wire.Code.SHAPE), session.Settle(delivered=False, drop=True)),
        (session.Receipted(wire.Status.SUPERSEDED), session.Settle(delivered=False)),
        (session.Receipted(wire.Status.REJECTED), session.Settle(delivered=False, drop=True)),
    ],
)
def test_an_update_that_did_not_count_goes_on_or_is_dropped(event: session.Event, settled: session.Settle) -> None:
    device = Session(State.SENDING)
    assert device.handle(event) == [settled]


@given(st.sampled_from(list(State)), st.lists(st.sampled_from(EVENTS), max_size=20))
def test_an_event_out_of_turn_changes_nothing(state: State, events: list[session.Event]) -> None:
    device = Session(state)
    for event in events:
        before = device.state
        try:
            device.handle(event)
        except OutOfTurn:
            assert device.state is before


def test_a_signature_is_plain_ed25519_over_the_cose_structure() -> None:
    seed = bytes(range(32))
    message = signed.sign(b"payload", seed)
    # RFC 9052 section 4.4, written out by hand, checked with another entry of libsodium
    structure = cbor.encode(["Signature1", bytes.fromhex("a10132"), b"fl-tiny/1", b"payload"])
    VerifyKey(signed.public_key(seed)).verify(structure, message[-64:])
    assert signed.verify(message, signed.public_key(seed)) == b"payload"


def test_a_signature_by_another_key_or_of_another_session_is_refused() -> None:
    seed = os.urandom(32)
    message = signed.sign(b"payload", seed, binding=b"a" * 32)
    pk = signed.public_key(seed)
    assert signed.verify(message, pk, binding=b"a" * 32) == b"payload"
    for key, binding in ((pk, b"b" * 32), (pk, b""), (signed.public_key(os.urandom(32)), b"a" * 32)):
        with pytest.raises(RemoteError) as refused:
            signed.verify(message, key, binding=binding)
        assert refused.value.code == wire.Code.SIGNATURE


@given(st.data())
def test_a_signed_message_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    seed = b"s" * 32
    raw = bytearray(signed.sign(b"payload", seed))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteError):
        signed.verify(bytes(raw), signed.public_key(seed))


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=16, max_size=16))
def test_a_pairing_code_survives_being_typed(token: bytes, secret: bytes) -> None:
    for address in ("", "gateway.local:5684", "[fe80::1]:5684", "192.0.2.7:5684"):
        code = pairing.PairingCode(token, secret, address)
        text = pairing.to_text(code)
        assert pairing.from_text(f"  {text}\n") == code
        assert pairing.from_text(text.lower()) == code


@given(st.data())
def test_one_wrong_letter_in_a_code_is_noticed_mostly(data: st.DataObject) -> None:
    text = pairing.to_text(pairing.PairingCode(b"t" * 8, b"s" * 16, "gw:5684"))
    at = data.draw(st.integers(4, 43))
    wrong = data.draw(st.sampled_from([c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" if c != text[at]]))
    try:
        found = pairing.from_text(text[:at] + wrong + text[at + 1 :])
    except RemoteError as fault:
        assert fault.EXIT == 69
        return
    assert found != pairing.from_text(text) or at in (16, 43)  # one of 32 passes the check digit; unused low bits


@pytest.mark.parametrize("text", ["", "FL1:", "hello", "FL1:A:B", "FL2:" + "A" * 13 + ":" + "A" * 27, "x" * 5000])
def test_what_is_no_pairing_code_says_so(text: str) -> None:
    with pytest.raises(RemoteError, match="pairing code"):
        pairing.from_text(text)


@given(st.binary(max_size=100))
def test_a_refusal_of_any_bytes_is_read_without_harm(data: bytes) -> None:
    assert isinstance(problem.decode(data).code, int)
    fault = RemoteError("x" * 300, code=wire.Code.SHAPE)
    assert problem.decode(problem.encode(fault)) == problem.Problem(3, "x" * 128)


def test_a_malformed_message_travels_as_bad_request() -> None:
    assert problem.COAP_CODE[wire.Code(MalformedMessage("x").code)] == "4.00"
