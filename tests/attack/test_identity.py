# SPDX-License-Identifier: Apache-2.0
"""Attacks on who is who: one key for two devices, spellings of an identity, guessed codes, names, copies, old keys.

They back rows 72 to 74 of docs/failures.md.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from inprocess import running

import fl_tiny.net.client
from fl_tiny import statedir
from fl_tiny.device.link import Link
from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.gateway import identity, setup
from fl_tiny.gateway.identity import TELL_S, WRONG_TRIES, Identities
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.store import Store
from fl_tiny.net.coap import Server
from fl_tiny.protocol import cbor, pairing, rekey, signed, wire
from fl_tiny.protocol.identity import Identity, Kind

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"
SEEDS = (b"\x01" * 32, b"\x02" * 32, b"\x03" * 32)
BEAT = wire.Heartbeat(0, 0)
REFUSED = (RemoteError, EnvironmentFault)


@pytest.fixture
def gw(tmp_path: Path) -> Path:
    setup.initialise(tmp_path / "gw", MODEL, None, Wanted(None))
    with closing(Store.open(tmp_path / "gw" / statedir.DATABASE)) as store:
        store.add_devices([(did_of(seed), signed.public_key(seed), seed) for seed in SEEDS])  # the PSK is the seed
    return tmp_path / "gw"


def did_of(seed: bytes) -> bytes:
    return signed.device_id(signed.public_key(seed))


async def opened(server: Server, identity_text: str, key: bytes) -> Link:
    return await Link.open(("127.0.0.1", server.port), identity_text, key, lan_timing=True)


async def member(server: Server, seed: bytes) -> Link:
    link = await opened(server, did_of(seed).hex(), seed)
    await link.register(did_of(seed))
    return link


async def is_served(server: Server, seed: bytes) -> bool:
    """Does a device that did nothing wrong get an answer?"""
    try:
        link = await member(server, seed)
    except REFUSED:
        return False
    try:
        await link.heartbeat(BEAT)
        return True
    except REFUSED:
        return False
    finally:
        await link.close()


def lenient(text: str) -> Identity | None:
    """The old reading of an identity: capitals and blanks as they come, and ``next:`` below ``pair:``."""
    for kind in (Kind.NEXT, Kind.PAIRING, Kind.PEER):
        if text.startswith(kind.value):
            name = text[len(kind.value) :].removeprefix(Kind.NEXT.value)
            return Identity(kind, bytes.fromhex(name))
    return Identity(Kind.DEVICE, bytes.fromhex(text))


def read_leniently(patched: pytest.MonkeyPatch) -> None:
    for module in ("identity", "resources"):
        patched.setattr(f"fl_tiny.gateway.{module}.identity_of", lenient)


# ---- one key for two ------------------------------------------------------------------------------------------


async def attack_one_key_for_two(gw: Path) -> bool:
    """Two devices ask for the same next key, and use it; does the gateway end of it?"""
    async with running(gw) as (_, server):
        told = {}
        for seed in SEEDS[:2]:
            link = await member(server, seed)
            try:
                told[seed] = (await link.rekey(rekey.asked(did_of(seed), 1, seed, b"\x09" * 32))).psk
            except RemoteError as fault:
                assert fault.code == wire.Code.CONFLICT
            await link.close()
        for seed, psk in told.items():
            link = await opened(server, Identity(Kind.NEXT, did_of(seed)).text, psk)
            with suppress(REFUSED):
                await link.register(did_of(seed))
            await link.close()
        return server.fault.done() or not await is_served(server, SEEDS[2])


async def attack_with_a_key_that_waits(gw: Path) -> bool:
    """A newcomer enrols with a key that a device waits to use, which then uses it; does the gateway end of it?"""
    async with running(gw) as (_, server):
        link = await member(server, SEEDS[0])
        psk = (await link.rekey(rekey.asked(did_of(SEEDS[0]), 1, SEEDS[0], b"\x09" * 32))).psk
        await link.close()
        code = pairing.from_text(setup.new_codes(gw, 1, 600)[0])
        newcomer = await opened(server, code.identity, code.secret)
        try:
            await newcomer.enrol(b"\x09" * 32, None)
        except RemoteError as fault:
            assert fault.code == wire.Code.CONFLICT
        await newcomer.close()
        link = await opened(server, Identity(Kind.NEXT, did_of(SEEDS[0])).text, psk)
        with suppress(REFUSED):
            await link.register(did_of(SEEDS[0]))
        await link.close()
        return server.fault.done() or not await is_served(server, SEEDS[2])


KEYS = pytest.mark.parametrize("attack", [attack_one_key_for_two, attack_with_a_key_that_waits])


@KEYS
def test_one_key_for_two_is_refused_and_the_gateway_serves_others(gw: Path, attack: object) -> None:
    assert not asyncio.run(attack(gw))  # type: ignore[operator]


@KEYS
def test_without_the_checks_the_tables_still_refuse_it(
    gw: Path, attack: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("identity", "store"):
        monkeypatch.setattr(f"fl_tiny.gateway.{module}.check_unused", lambda *_: None)
    assert not asyncio.run(attack(gw))  # type: ignore[operator]


@KEYS
def test_control_one_key_for_two_ends_a_gateway_without_checks(
    gw: Path, attack: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("identity", "store"):
        monkeypatch.setattr(f"fl_tiny.gateway.{module}.check_unused", lambda *_: None)
    monkeypatch.setattr("fl_tiny.database.Conflict", AssertionError)  # as SQLite's exception was: nobody's
    with closing(Store.open(gw / statedir.DATABASE)) as store, store.write() as db:
        db.execute("DROP INDEX rekey_pk")
    assert asyncio.run(attack(gw))  # type: ignore[operator]


# ---- spellings ------------------------------------------------------------------------------------------------


async def attack_several_sessions(gw: Path) -> int:
    """Sessions that one device has at a time, under spellings of its identity; its id has letters."""
    name = did_of(SEEDS[0]).hex()
    links = []
    async with running(gw) as (_, server):
        for spelled in (name, name.upper(), f"{name[:2]} {name[2:]}", f"{name} "):
            with suppress(REFUSED):
                links.append(await opened(server, spelled, SEEDS[0]))
        found = server.sessions
        for link in links:
            await link.close()
    return found


def test_several_sessions_of_one_device_are_not_to_be_had(gw: Path) -> None:
    assert asyncio.run(attack_several_sessions(gw)) == 1


def test_control_several_sessions(gw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_leniently(monkeypatch)
    assert asyncio.run(attack_several_sessions(gw)) == 4


async def attack_past_revocation(gw: Path) -> int:
    """Sessions that a revoked device has once the gateway has looked twice."""
    name = did_of(SEEDS[0]).hex()
    links = []
    async with running(gw) as (gateway, server):
        for spelled in (name, name.upper()):
            with suppress(REFUSED):
                links.append(await opened(server, spelled, SEEDS[0]))
        gateway.store.revoke(did_of(SEEDS[0]))
        gateway.drop_revoked()
        await asyncio.sleep(TELL_S + 0.1)
        gateway.drop_revoked()
        found = server.sessions
        for link in links:
            await link.close()
    return found


def test_past_revocation_no_session_is_left(gw: Path) -> None:
    assert asyncio.run(attack_past_revocation(gw)) == 0


def test_control_past_revocation(gw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_leniently(monkeypatch)
    assert asyncio.run(attack_past_revocation(gw)) == 1


async def attack_by_an_old_psk(gw: Path) -> bool:
    """A session by the PSK that a device has replaced: is it served after that?"""
    seed = SEEDS[0]
    did = did_of(seed)
    async with running(gw) as (_, server):
        link = await member(server, seed)
        psk = (await link.rekey(rekey.asked(did, 1, seed, b"\x09" * 32))).psk
        await link.close()
        thief = await member(server, seed)
        link = await opened(server, Identity(Kind.NEXT, did).text, psk)
        await link.register(did)
        try:
            await thief.heartbeat(BEAT)
            return True
        except REFUSED:
            return False
        finally:
            await thief.close()
            await link.close()


def test_by_an_old_psk_nothing_is_served(gw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fl_tiny.net.client, "HANDSHAKE_S", 2.0)
    assert not asyncio.run(attack_by_an_old_psk(gw))


def test_control_by_an_old_psk(gw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "drop_identity", lambda *_: None)
    assert asyncio.run(attack_by_an_old_psk(gw))


# ---- guessed codes --------------------------------------------------------------------------------------------


async def attack_by_guessing(gw: Path, prefix: str) -> bool:
    """A code's secret is guessed, right at last after one wrong try more than burns it: is the session to be had?"""
    code = pairing.from_text(setup.new_codes(gw, 1, 600)[0])
    async with running(gw) as (_, server):
        for secret in (*(os.urandom(16) for _ in range(WRONG_TRIES + 1)), code.secret):
            try:
                link = await opened(server, prefix + code.token.hex(), secret)
            except REFUSED:
                await asyncio.sleep(0.3)  # the gateway gives the handshake up
                continue
            await link.close()
            return True
    return False


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong key is met with silence; 15 seconds of it a guess are only long."""
    monkeypatch.setattr("fl_tiny.net.sessions.HANDSHAKE_S", 1.0)
    monkeypatch.setattr("fl_tiny.net.client.HANDSHAKE_S", 0.9)


@pytest.mark.parametrize("prefix", ["pair:", "pair:next:"])
def test_by_guessing_no_code_opens_after_five_wrong_tries(gw: Path, quick: None, prefix: str) -> None:
    assert not asyncio.run(attack_by_guessing(gw, prefix))


def test_control_by_guessing_under_next(gw: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read_leniently(monkeypatch)

    def counted_as_it_was(self: Identities, text: str) -> None:
        token = text[len(Kind.PAIRING.value) :]
        assert token.startswith("next:"), "which was no token's spelling, so nothing was counted"

    monkeypatch.setattr(Identities, "wrong_key", counted_as_it_was)
    assert asyncio.run(attack_by_guessing(gw, "pair:next:"))


# ---- names ----------------------------------------------------------------------------------------------------

NAMES = {
    "another's id": did_of(SEEDS[0]).hex(),
    "in capitals": did_of(SEEDS[0]).hex().upper(),
    "clears the screen": "kitchen\x1b[2J",
    "a line of its own": "kitchen\nINFO fl_tiny: all is well",
    "turned round": "kitchen\u202enehctik",
    "without a width": "kit\u200bchen",
    "a filler": "kitchen\u3164",
    "blank at its end": "kitchen ",
}


async def attack_by_a_name(gw: Path, name: str) -> str | None:
    """Enrol under a name that misleads; the name that the operator's list has then."""
    async with running(gw) as (gateway, server):
        code = pairing.from_text(setup.new_codes(gw, 1, 600)[0])
        link = await opened(server, code.identity, code.secret)
        enrol = {0: 1, 1: signed.public_key(b"\x07" * 32), 3: name}  # not by ``wire.encode``, which refuses it
        binding = link._client.exporter(signed.EXPORTER_LABEL, signed.EXPORTER_BYTES)
        await link._client.request("POST", ("e",), signed.sign(cbor.encode(enrol), b"\x07" * 32, binding=binding), 18)
        await link.close()
        found = gateway.store.device(did_of(b"\x07" * 32))
        return found.name if found else None


@pytest.mark.parametrize("name", NAMES)
def test_by_a_name_nobody_is_misled(gw: Path, name: str) -> None:
    assert asyncio.run(attack_by_a_name(gw, NAMES[name])) is None


@pytest.mark.parametrize("name", NAMES)
def test_control_by_a_name(gw: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_tiny.protocol.identity.name_fault", lambda _: "")
    assert asyncio.run(attack_by_a_name(gw, NAMES[name])) == NAMES[name]


# ---- copies ---------------------------------------------------------------------------------------------------


async def attack_beside_the_original(gw: Path) -> tuple[int, str]:
    """A copy that was made of a running device, which counts one start more: both ask in turn, as two daemons do.

    Returns how often they were served after the copy came, and the device's state then.
    """
    seed = SEEDS[0]
    did, served = did_of(seed), 0
    async with running(gw) as (gateway, server):
        original = await opened(server, did.hex(), seed)
        await original.register(did, 5, b"A" * 8)
        copy = await opened(server, did.hex(), seed)
        await copy.register(did, 6, b"B" * 8)
        for link in (original, copy, original, copy):
            try:
                await link.heartbeat(BEAT)
                served += 1
            except REFUSED:
                pass
        await original.close()
        await copy.close()
        return served, _state(gateway, did)


def _state(gateway: Gateway, did: bytes) -> str:
    found = gateway.store.device(did)
    assert found is not None
    return found.state


def test_beside_the_original_a_copy_is_seen_at_its_first_turn(gw: Path) -> None:
    assert asyncio.run(attack_beside_the_original(gw)) == (0, "quarantined")


@pytest.mark.slow
def test_beside_the_original_a_copy_of_an_older_device_must_register_in_each_session(
    gw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fl_tiny.net.client.Client, "_greet", _says_nothing)  # as devices did before
    assert asyncio.run(attack_beside_the_original(gw)) == (0, "active"), "they are refused until they register"


@pytest.mark.slow
def test_control_beside_the_original(gw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fl_tiny.net.client.Client, "_greet", _says_nothing)
    monkeypatch.setattr(identity.Identities, "check_uncounted", lambda *_: None)
    assert asyncio.run(attack_beside_the_original(gw)) == (4, "active")


async def _says_nothing(*_: object) -> None:
    """Goes first over no session."""


# ---- names in paths -------------------------------------------------------------------------------------------


async def attack_by_spellings_of_a_path(gw: Path) -> int:
    """Chunks of one upload under other spellings of its name and its number; how many are taken."""
    seed, taken = SEEDS[0], 0
    async with running(gw) as (gateway, server):
        link = await member(server, seed)
        gateway._open(time.monotonic())
        assert gateway.rounds.rid is not None
        await link.answer(gateway.rounds.rid, wire.Said.JOIN)
        sid = wire.name_of(b"\x00" * 8)  # AAAAAAAAAAA: the last letter stands for four bits, B is the same bytes
        for path in (
            (f"{sid[:-1]}B", "0"),
            (f"{sid}=", "0"),
            (f"{sid[:5]}\n{sid[5:]}", "0"),
            (sid, "00"),
            (sid, "\u0660"),
        ):
            answer = await link._client.request("PUT", ("u", *path), bytes(128), 42)
            taken += answer.code == "2.04"
        assert (await link._client.request("PUT", ("u", sid, "0"), bytes(128), 42)).code == "2.04"
        await link.close()
    return taken


def test_by_spellings_of_a_path_nothing_is_taken(gw: Path) -> None:
    assert asyncio.run(attack_by_spellings_of_a_path(gw)) == 0


def test_control_by_spellings_of_a_path(gw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_tiny.gateway.resources._raw", lambda _: b"")
    monkeypatch.setattr("fl_tiny.gateway.resources._number", int)
    assert asyncio.run(attack_by_spellings_of_a_path(gw)) == 5
