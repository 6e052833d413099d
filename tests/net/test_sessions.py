# SPDX-License-Identifier: Apache-2.0
"""A server's table of associations: front door, replacement, bounds and time, in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dtls_pair import HOME, KEY, client, converse, sent, step, table, told

from fl_tiny.net.dtls import Session
from fl_tiny.net.sessions import Association, Closed, Failed, Limits, Opened, Peer, Received, Table


def opened(server: Table, session: Session, peer: Peer = HOME, now: float = 0.0) -> Association:
    events = converse(server, session, peer, now)
    assert isinstance(events[-1], Opened)
    return events[-1].who


def half_open(server: Table, peer: Peer, now: float = 0.0) -> Session:
    """A client whose cookie was accepted and that then falls silent."""
    session = client()
    step(server, session, peer, now)
    for data in session.take():
        server.receive(peer, data, now)
    return session


def test_lone_hellos_leave_no_state_and_get_less_than_they_cost() -> None:
    server = table()
    [hello] = client().take()
    for n in range(1000):
        [answer] = sent(server.receive(Peer("198.51.100.1", n + 1), hello, 0.0))
        assert len(answer) < len(hello)
    assert server.handshakes == 0 and len(server) == 0 and server.deadline() is None


def test_a_cookie_is_good_for_one_address_only() -> None:
    server, session = table(), client()
    [hello] = session.take()
    [cookie] = sent(server.receive(HOME, hello, 0.0))
    session.receive(cookie)
    [hello] = session.take()
    for other in (Peer(HOME.host, 9), Peer("192.0.2.8", HOME.port), Peer(HOME.host, HOME.port, local=b"\x7f\0\0\1")):
        server.receive(other, hello, 0.0)
        assert server.handshakes == 0
    server.receive(HOME, hello, 0.0)
    assert server.handshakes == 1


def returned(server: Table, session: Session, peer: Peer = HOME, now: float = 0.0) -> bytes:
    """The ClientHello with the cookie that the server gave for it."""
    [hello] = session.take()
    [cookie] = sent(server.receive(peer, hello, now))
    session.receive(cookie)
    [hello] = session.take()
    return hello


@pytest.mark.parametrize(("later", "good"), [(29.0, True), (59.0, True), (60.5, False), (100.0, False)])
def test_a_cookie_lives_for_half_a_minute_to_a_minute(later: float, good: bool) -> None:
    server, session = table(), client()
    hello = returned(server, session)
    step(server, client(), Peer("198.51.100.9", 1), 29.9)  # somebody knocks in between
    server.receive(HOME, hello, later)
    assert server.handshakes == int(good)


def test_a_cookie_is_good_for_the_hello_it_was_made_for() -> None:
    server = table(limits=Limits(handshakes_per_s=1000))
    hello = returned(server, client())
    for at in (27, 58, 95, 98):  # random, random, the first suites
        other = bytearray(hello)
        other[at] ^= 1
        assert len(sent(server.receive(HOME, bytes(other), 0.0))) == 1, "another cookie, and no handshake"
    assert server.handshakes == 0


def test_a_cookie_is_good_for_one_handshake() -> None:
    server = table()
    first, second = returned(server, client(key=b"no" * 8)), returned(server, client(key=b"no" * 8))
    server.receive(HOME, first, 1.0)
    server.receive(HOME, second, 1.0)  # takes its place
    for later in (1.1, 14.0, 16.0, 59.0):
        server.tick(later)
        assert server.receive(HOME, first, later) == []
        assert server.handshakes == (later < 15)


def test_replays_and_hellos_without_a_cookie_spend_no_share_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server, device = table(limits=Limits(handshakes_per_s=8)), client()
    hello = returned(server, device)
    server.receive(HOME, hello, 0.0)
    asked: list[str] = []
    monkeypatch.setattr(server._context, "accept", lambda hello: asked.append("OpenSSL"))
    used = len(server._shares._own), len(server._shares._prefix)
    for n in range(2000):
        server.receive(Peer(f"203.0.{n % 250}.1", 5), client_hello(n), 0.0)
        server.receive(Peer(HOME.host, 9), hello, 0.0)
    assert asked == [] and server.handshakes == 1
    assert (len(server._shares._own), len(server._shares._prefix)) == used == (1, 1)


def client_hello(n: int, hello: list[bytes] = []) -> bytes:  # noqa: B006 - made once
    hello = hello or client().take()
    return hello[0][:27] + n.to_bytes(32, "big") + hello[0][59:]


def test_used_cookies_are_remembered_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_tiny.net.door.USED", 8)
    server = table(limits=Limits(handshakes_per_s=1000))
    old = [returned(server, client(), Peer("192.0.2.1", n + 1)) for n in range(30)]
    for n, hello in enumerate(old):
        server.receive(Peer("192.0.2.1", n + 1), hello, 0.0)
        assert sum(len(used) for _, used in server._cookies._periods) <= 16
    assert server.handshakes == 16, "cookies of two secrets were good, those after these have to be asked for anew"
    for n, hello in enumerate(old):
        server.tick(20.0)
        server.receive(Peer("192.0.2.1", n + 1), hello, 20.0)
    assert server.handshakes == 0


def test_anything_but_a_hello_from_an_unknown_address_is_dropped_and_counted() -> None:
    server = table()
    for noise in (b"\x40\x01\0\1", b"", b"\x17\xfe\xfd" + bytes(40), b"\x16\xfe\xfd" + bytes(80), os.urandom(200)):
        assert server.receive(HOME, noise, 0.0) == []
    assert server.dropped == 5 and server.handshakes == 0


def test_a_rebooted_device_on_the_same_port_replaces_its_session_once_authenticated() -> None:
    server, old = table(), client()
    who = opened(server, old)
    new = client()
    step(server, new)
    step(server, new)
    assert len(server) == 1 and server.handshakes == 1  # the candidate runs beside
    old.send(b"old still works")
    assert step(server, old) == [Received(who, b"old still works")]
    assert [type(e) for e in converse(server, new)] == [Closed, Opened]
    assert len(server) == 1 and server.handshakes == 0
    new.send(b"new")
    [received] = step(server, new)
    assert isinstance(received, Received) and received.data == b"new"
    old.send(b"ghost")
    assert step(server, old) == []


def test_records_of_both_sessions_may_interleave_and_none_is_lost() -> None:
    server, old = table(), client()
    who = opened(server, old)
    new, got = client(), []
    for n in range(6):
        old.send(b"%d" % n)
        interleaved = [*old.take(), *new.take()]
        events = [e for data in interleaved for e in server.receive(HOME, data, 0.0)]
        got += [e.data for e in events if isinstance(e, Received)]
        for data in sent(events):
            old.receive(data)
            new.receive(data)
        if new.established:
            break
    assert got == [b"0", b"1", b"2"] and not old.ended
    assert new.established and len(server) == 1
    new.send(b"after")
    assert [e.data for e in step(server, new) if isinstance(e, Received)] == [b"after"]
    assert who.session.pointer is None


def test_a_cookie_exchange_from_a_known_address_without_the_key_changes_nothing() -> None:
    server, device = table(), client()
    who = opened(server, device)
    for _ in range(3):
        converse(server, client(key=b"wrong" * 4))
    assert server.handshakes == 1
    device.send(b"alive")
    assert step(server, device) == [Received(who, b"alive")]
    assert told(server.tick(15.0)) == [Failed("dev", wrong_key=True)]
    assert len(server) == 1


def test_a_replayed_hello_of_the_living_session_opens_nothing() -> None:
    server, device = table(), client()
    step(server, device)
    [hello] = device.take()
    for data in sent(server.receive(HOME, hello, 0.0)):
        device.receive(data)
    opened(server, device)
    assert told(server.receive(HOME, hello, 1.0)) == [] and server.handshakes == 0


def test_a_servers_lost_flight_is_sent_again_after_a_second() -> None:
    server = table()
    session = half_open(server, HOME)  # ServerHello was lost
    assert server.deadline() == 1.0
    assert server.tick(1.0) == []  # ahead of OpenSSL's clock
    began = time.monotonic()
    flight: list[bytes] = []
    while not flight:
        assert time.monotonic() < began + 3
        time.sleep(0.05)
        flight = sent(server.tick(1.0 + time.monotonic() - began))
    for data in flight:
        session.receive(data)
    assert isinstance(converse(server, session, now=2.0)[-1], Opened)


def test_one_identity_has_one_session_wherever_it_comes_from() -> None:
    server, first, second = table(), client(), client()
    who = opened(server, first)
    events = converse(server, second, Peer("192.0.2.9", 5))
    assert events[0] == Closed(who, "replaced") and isinstance(events[1], Opened)
    assert len(server) == 1


def test_handshakes_in_flight_are_bounded_and_end_by_time() -> None:
    server = table(limits=Limits(handshakes=8, handshakes_per_s=1000))
    for n in range(20):
        half_open(server, Peer("192.0.2.1", n + 1))
    assert server.handshakes == 4 and server.dropped == 16, "an address has half of the table"
    for n in range(20):
        half_open(server, Peer(f"198.51.100.{n}", 1))
    assert server.handshakes == 8
    assert len(told(server.tick(15.0))) == 8 and server.handshakes == 0
    opened(server, client(), now=16.0)


def test_in_a_full_table_the_address_with_the_most_in_flight_gives_way() -> None:
    server = table(limits=Limits(handshakes=8, handshakes_per_s=1000))
    hosts = ["192.0.2.9"] * 4 + ["192.0.2.8"] * 3 + ["192.0.2.7"]
    for n, host in enumerate(hosts):
        half_open(server, Peer(host, n + 1))
    for n in range(3):
        opened(server, client("dev"), Peer(f"192.0.2.{n + 1}", 1))
    assert [peer.host for peer in server._candidates] == ["192.0.2.9"] * 3 + ["192.0.2.8"] * 3 + ["192.0.2.7"]
    assert all(peer.port > 1 for peer in server._candidates), "its oldest"


def test_a_handshake_gives_way_to_another_of_its_own_address_when_it_has_had_its_time() -> None:
    server = table(limits=Limits(handshakes=8, handshakes_per_s=1000))
    for n in range(4):
        half_open(server, Peer("192.0.2.9", n + 1))
    fifth = Peer("192.0.2.9", 5)
    hello = returned(server, client(), fifth, 2.9)
    server.receive(fifth, hello, 2.9)
    assert server.handshakes == 4 and fifth not in server._candidates
    server.receive(fifth, hello, 3.0)  # sent again
    assert server.handshakes == 4 and fifth in server._candidates


def test_an_address_alone_has_its_prefixs_whole_rate_and_beside_others_a_share() -> None:
    server = table(limits=Limits(handshakes_per_s=16, handshakes=10_000))
    for n in range(100):
        half_open(server, Peer("192.0.2.1", n + 1))
    assert server.handshakes == 8, "one second's worth, of which half stays for others"
    for n in range(160):
        half_open(server, Peer("192.0.2.1", n + 1000), now=n / 16)
    assert server.handshakes == 8 + 159
    for n in range(8):
        half_open(server, Peer(f"192.0.2.{n + 10}", 1), now=10.0)
    assert server.handshakes == 8 + 159 + 8


def test_a_prefix_gets_its_share_of_handshakes_and_another_prefix_its_own() -> None:
    server = table(limits=Limits(handshakes_per_s=8))
    for n in range(20):
        half_open(server, Peer(f"192.0.2.{n}", 1))
        half_open(server, Peer(f"2001:db8::{n}", 1))
    assert server.handshakes == 16
    half_open(server, Peer("192.0.2.99", 1), now=0.1)
    assert server.handshakes == 16
    half_open(server, Peer("192.0.3.1", 1), now=0.1)
    half_open(server, Peer("::ffff:192.0.4.1", 1), now=0.1)
    half_open(server, Peer("192.0.2.99", 1), now=1.0)
    assert server.handshakes == 19


def test_pairing_identities_get_so_many_handshakes_a_second_of_a_prefix() -> None:
    server = table()
    for n in range(8):
        opened(server, client("pair:x"), Peer(f"192.0.2.{n}", 1))
    assert not any(isinstance(e, Opened) for e in converse(server, client("pair:x"), Peer("192.0.2.9", 1)))
    opened(server, client("dev"), Peer("192.0.2.9", 2))
    opened(server, client("pair:x"), Peer("198.51.100.1", 1))
    opened(server, client("pair:x"), Peer("192.0.2.9", 3), now=8.0)


def test_the_session_cap_evicts_who_was_heard_longest_ago_and_only_for_the_authenticated() -> None:
    server = table(lambda identity: KEY, Limits(sessions=3))
    peers = [Peer("192.0.2.1", n + 1) for n in range(5)]
    devices = []
    for n in range(3):
        devices.append(client(f"d{n}"))
        opened(server, devices[n], peers[n], float(n))
    devices[0].send(b"heard")
    step(server, devices[0], peers[0], 5.0)
    for n in range(10):
        half_open(server, Peer("192.0.2.2", n + 1), 5.0)
    converse(server, client("d9", key=b"no" * 8), Peer("192.0.2.3", 1), 5.0)
    assert len(server) == 3
    events = converse(server, client("d3"), peers[3], 6.0)
    assert [e.who.session.identity for e in events if isinstance(e, Closed)] == ["d1"]
    assert len(server) == 3


def test_an_idle_session_ends_after_its_time_with_a_word_to_the_peer() -> None:
    server, device = table(limits=Limits(idle_s=300)), client()
    who = opened(server, device)
    device.send(b"x")
    step(server, device, now=200.0)
    assert server.deadline() == 500.0
    assert server.tick(499.0) == []
    events = server.tick(500.0)
    assert told(events) == [Closed(who, "idle")]
    for data in sent(events):
        device.receive(data)
    assert device.ended == "closed by the peer" and server.deadline() is None


def test_noise_from_its_address_does_not_keep_a_session_awake() -> None:
    server, device = table(limits=Limits(idle_s=300)), client()
    opened(server, device)
    server.receive(HOME, b"\x17\xfe\xfd\0\1" + bytes(5) + b"\x99\0\x20" + bytes(32), 200.0)
    assert server.deadline() == 300.0


def test_a_revoked_identity_loses_sessions_and_handshakes() -> None:
    server, device = table(), client()
    who = opened(server, device)
    other = opened(server, client("other"), Peer("192.0.2.9", 1))
    liar = client(key=b"wrong" * 4)
    converse(server, liar, Peer("192.0.2.10", 1))
    assert server.handshakes == 1
    events = server.drop_identity("dev", "revoked")
    assert told(events) == [Closed(who, "revoked")] and server.handshakes == 0
    for data in sent(events):
        device.receive(data)
    assert device.ended == "closed by the peer"
    assert len(server) == 1 and server.send(other, b"x")
    assert server.send(who, b"late") == [] and server.close(who, "again") == []


def test_a_closed_table_has_told_every_peer() -> None:
    server, device = table(), client()
    who = opened(server, device)
    half_open(server, Peer("192.0.2.1", 1))
    events = server.close_all()
    assert told(events) == [Closed(who, "server closed")] and len(sent(events)) == 1
    assert server.deadline() is None


@pytest.mark.slow
@pytest.mark.parametrize("perturb", ["0", "165"])
def test_no_order_of_feeding_sending_timing_and_closing_enters_a_freed_session(perturb: str) -> None:
    storm = Path(__file__).with_name("storm.py")
    here = {**os.environ, "MALLOC_PERTURB_": perturb, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-X", "faulthandler", storm, "25"]
    done = subprocess.run(command, check=False, env=here, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
