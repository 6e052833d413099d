# SPDX-License-Identifier: Apache-2.0
"""Who a device is: codes that are guessed at, enrolments left half-way, copies, and a new key cut at any step."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inprocess import enrolled, running

from fl_tiny import config, statedir
from fl_tiny.device import newkey
from fl_tiny.device.enrol import enrol
from fl_tiny.device.enrol import enrolled as enrolled_as
from fl_tiny.device.link import Link
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.gateway import identity, setup
from fl_tiny.gateway.identity import PENDING_S, WRONG_TRIES, Identities
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Device
from fl_tiny.net.coap import Server
from fl_tiny.protocol import pairing, rekey, signed, wire
from fl_tiny.protocol.wire import Code

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"


@pytest.fixture
def gw(tmp_path: Path) -> Path:
    return made(tmp_path / "gw")


def opened(gw: Path) -> Store:
    return Store.open(gw / statedir.DATABASE)


def a_device(store: Store, code: str, seed: bytes) -> Device:
    pk = signed.public_key(seed)
    did = signed.device_id(pk)
    store.enrol(pairing.from_text(code).token, did, pk, os.urandom(32), None)
    found = store.device(did)
    assert found is not None
    return found


# ---- codes ----------------------------------------------------------------------------------------------------


def test_five_wrong_tries_burn_a_code_and_no_other_restarts_or_not(gw: Path) -> None:
    guessed, other = (pairing.from_text(code) for code in setup.new_codes(gw, 2, 600))
    for tries in range(WRONG_TRIES):
        with closing(opened(gw)) as store:  # the gateway is restarted between any two
            assert store.pairing(guessed.token) is not None, f"{tries} tries are too few"
            Identities(store).wrong_key(guessed.identity)
    with closing(opened(gw)) as store:
        assert store.pairing(guessed.token) is None
        assert store.pairing(other.token) is not None
        for name in ("pair:", "pair:zz", "pair:" + "00" * 8, "0" * 32, "next:" + "0" * 32, "peer:x", ""):
            for _ in range(WRONG_TRIES):
                Identities(store).wrong_key(name)  # what names no code changes nothing
        assert store.pairing(other.token) is not None


def test_a_code_ages_by_running_time_alone_and_a_restart_renews_nothing(gw: Path) -> None:
    code = pairing.from_text(setup.new_codes(gw, 1, 30)[0])
    for _ in range(5):
        with closing(opened(gw)) as store:
            assert store.pairing(code.token) is not None
            store.pass_time(6.5)
    with closing(opened(gw)) as store:
        assert store.pairing(code.token) is None


def test_an_enrolment_left_half_way_is_dropped_and_may_begin_anew(gw: Path) -> None:
    code = setup.new_codes(gw, 1, 600)[0]
    with closing(opened(gw)) as store:
        identities = Identities(store)
        device = a_device(store, code, b"\x01" * 32)
        identities.enrolled(device.did, 100.0)
        identities.tick(100.0 + PENDING_S)
        assert store.device(device.did) is not None
        identities.tick(101.0 + PENDING_S)
        assert store.device(device.did) is None
        again = a_device(store, code, b"\x01" * 32)
        assert again.did == device.did and again.psk != device.psk
        with pytest.raises(RemoteError) as refused:
            a_device(store, code, b"\x02" * 32)
        assert refused.value.code == Code.PAIRING
        store.activate(again.did)
        identities.tick(1e6)
        assert store.device(again.did) is not None, "an active device stays"


# ---- copies ---------------------------------------------------------------------------------------------------

A, B, C = b"A" * 8, b"B" * 8, b"C" * 8
STARTS: dict[str, tuple[list[tuple[int | None, bytes | None]], Code | None]] = {
    "one board that restarts": ([(1, A), (1, A), (2, B), (2, B), (3, C)], None),
    "a board whose starts did not all reach us": ([(1, A), (9, B), (40, C)], None),
    "one that never says": ([(None, None), (None, None)], None),
    "two at once": ([(1, A), (1, B)], Code.QUARANTINED),
    "two that take turns": ([(1, A), (2, B), (1, A)], Code.QUARANTINED),
    "a copy that restarts a lot": ([(1, A), (2, B), (3, C), (1, A)], Code.RESTORED),
    "an old image": ([(7, A), (3, B)], Code.RESTORED),
}


@pytest.mark.parametrize("name", STARTS)
def test_starts_tell_copies_from_restarts(gw: Path, name: str) -> None:
    starts, code = STARTS[name]
    with closing(opened(gw)) as store:
        identities = Identities(store)
        device = a_device(store, setup.new_codes(gw, 1, 600)[0], b"\x01" * 32)
        store.activate(device.did)

        def start(boots: int | None, boot: bytes | None) -> None:
            found = store.device(device.did)
            assert found is not None
            identities.started(found, wire.Register(device.did, (1,), boots, boot))

        for boots, boot in starts[:-1]:
            start(boots, boot)
        if code is None:
            start(*starts[-1])
            return
        for again in (starts[-1], starts[0], (99, b"Z" * 8)):  # and from then on whoever comes
            with pytest.raises(RemoteError) as refused:
                start(*again)
            assert refused.value.code == code
        row = setup.device_rows(store)[0]
        assert row["state"] == "quarantined" and row["trouble"] == refused.value.what
        identity.release(store, device.did)
        start(100, b"Y" * 8)
        assert setup.device_rows(store)[0]["trouble"] is None


class Board:
    """A state folder, and the start of its daemon that runs; what it says to a gateway's identities."""

    def __init__(self, path: Path, did: bytes) -> None:
        self.path, self.did, self.start = path, did, (0, b"")

    def begin(self) -> None:
        with closing(DeviceStore.create(self.path)) as store:
            self.start = (store.count_start(), os.urandom(8))

    def register(self, store: Store) -> None:
        """Over a new session; whether its answer arrives changes nothing. Raises: RemoteError in quarantine."""
        found = store.device(self.did)
        assert found is not None
        Identities(store).started(found, wire.Register(self.did, (1,), *self.start))  # a gateway that was restarted


@given(
    st.lists(st.sampled_from(["power", "cut before it counts", "session", "answer lost", "request lost"]), max_size=30)
)
def test_whatever_is_lost_or_cut_a_lone_device_is_no_copy(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(opened(made(Path(folder) / "gw"))) as store:
        device = a_device(store, setup.new_codes(Path(folder) / "gw", 1, 600)[0], b"\x01" * 32)
        store.activate(device.did)
        board = Board(Path(folder) / "state.db", device.did)
        board.begin()
        for step in steps:
            if step == "power":
                board.begin()
            elif step == "cut before it counts":
                DeviceStore.create(board.path).close()
            elif step != "request lost":
                board.register(store)
        board.register(store)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_two_copies_that_are_both_at_work_are_always_seen(steps: list[tuple[bool, bool]]) -> None:
    """steps: which of the two, and whether it starts or comes over a new session."""
    with tempfile.TemporaryDirectory() as folder, closing(opened(made(Path(folder) / "gw"))) as store:
        device = a_device(store, setup.new_codes(Path(folder) / "gw", 1, 600)[0], b"\x01" * 32)
        store.activate(device.did)
        boards = [Board(Path(folder) / name, device.did) for name in ("state.db", "copy.db")]
        boards[0].begin()
        boards[0].register(store)
        shutil.copy(boards[0].path, boards[1].path)
        boards[1].begin()
        with pytest.raises(RemoteError) as seen:
            for which, starts in steps:
                boards[which].begin() if starts else boards[which].register(store)
            for which in (0, 1, 0, 1):  # and then both go on
                boards[which].register(store)
        assert seen.value.code in (Code.QUARANTINED, Code.RESTORED)


def test_a_device_whose_session_is_lost_says_its_start_again_and_keeps_its_join(gw: Path) -> None:
    async def run() -> None:
        async with running(gw) as (gateway, server):
            with closing(opened(gw)) as store:
                device = a_device(store, setup.new_codes(gw, 1, 600)[0], b"\x01" * 32)
                store.activate(device.did)
            link = await Link.open(("127.0.0.1", server.port), device.did.hex(), device.psk, lan_timing=True)
            await link.register(device.did, 1, A)
            gateway._open(time.monotonic())
            rid = gateway.rounds.rid
            assert rid is not None
            await link.answer(rid, wire.Said.JOIN)
            server.drop_identity(device.did.hex())
            await link.heartbeat(wire.Heartbeat(0, 0))
            assert server.counters.handshakes_ok == 2
            assert gateway.rounds.waited_for() == {device.did}, "nobody else than its own start has come"
            await link.close()
            again = await Link.open(("127.0.0.1", server.port), device.did.hex(), device.psk, lan_timing=True)
            with pytest.raises(RemoteError) as refused:
                await again.heartbeat(wire.Heartbeat(0, 0))  # a session that has not said its start
            assert refused.value.code == Code.PHASE
            await again.register(device.did, 2, B)
            assert gateway.rounds.waited_for() == set(), "a start anew has trained nothing"
            await again.close()

    asyncio.run(run())


def made(gw: Path) -> Path:
    setup.initialise(gw, MODEL, None, Wanted(None))
    return gw


# ---- enrolment ------------------------------------------------------------------------------------------------

MOMENTS = {  # where `device enroll` is cut, and whether behind the step
    "before the key is written": ("write_secret", 1, False),
    "behind it": ("write_secret", 1, True),
    "before the question": ("enrol", 1, False),
    "its answer is lost": ("enrol", 1, True),
    "before the PSK is written": ("write_secret", 2, False),
    "behind the PSK": ("write_secret", 2, True),
    "before it registers": ("register", 1, False),
    "the answer to that is lost": ("register", 1, True),
    "before the model": ("model", 1, False),
    "behind the model": ("model", 1, True),
    "behind the head": ("put_head", 1, True),
    "before it is done": ("put", 1, False),
    "when it is done": ("put", 1, True),
}


async def cut_enrolment(gw: Path, server: Server, device: Path, name: str) -> tuple[str, str]:
    """Cut an enrolment there; its code, and where the gateway is."""
    code, where = setup.new_codes(gw, 1, 600)[0], f"127.0.0.1:{server.port}"
    what, nth, behind = MOMENTS[name]
    with pytest.MonkeyPatch.context() as patched:
        cut(patched, what, nth, behind=behind)
        with pytest.raises(Cut):
            await enrol(device, code, where, None)
    return code, where


@pytest.mark.parametrize("name", MOMENTS)
def test_an_enrolment_cut_anywhere_is_finished_by_the_same_command(gw: Path, tmp_path: Path, name: str) -> None:
    async def run() -> None:
        device = tmp_path / "dev"
        async with running(gw) as (gateway, server):
            code, where = await cut_enrolment(gw, server, device, name)
            if enrolled_as(device) is None:
                gateway.identities.tick(1e9)
                gateway.identities.tick(2e9)  # the gateway has given it up meanwhile, if it was pending
                await enrol(device, code, where, None)
            await opens(device, server)
            assert [d.state for d in gateway.store.devices()] == ["active"], "one row, whatever happened"

    asyncio.run(run())


def test_a_code_that_worked_once_only_would_need_the_operator(
    gw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: without the second chance for the same key a lost answer ends the enrolment."""

    async def run() -> None:
        async with running(gw) as (_, server):
            code, where = await cut_enrolment(gw, server, tmp_path / "dev", "its answer is lost")
            kept = Store.enrol

            def once(store: Store, token: bytes, *rest: Any) -> None:
                found = store.pairing(token)
                if found is None or found.pk is not None:
                    raise RemoteError("used", code=Code.PAIRING)
                kept(store, token, *rest)

            monkeypatch.setattr(Store, "enrol", once)
            with pytest.raises(RemoteError):
                await enrol(tmp_path / "dev", code, where, None)

    asyncio.run(run())


# ---- new keys -------------------------------------------------------------------------------------------------


class Cut(BaseException):
    """The power fails."""


STEPS = {  # where a device is cut in `device rekey`, and whether behind the step
    "before the key is written": ("write_secret", 1, False),
    "behind it": ("write_secret", 1, True),
    "before the question": ("rekey", 1, False),
    "its answer is lost": ("rekey", 1, True),
    "before the PSK is written": ("write_secret", 2, False),
    "behind the PSK": ("write_secret", 2, True),
    "before it registers": ("register", 2, False),
    "the answer to that is lost": ("register", 2, True),
    "before the mark": ("put", 1, False),
    "behind the mark": ("put", 1, True),
    "between the files": ("replace", 1, True),
    "behind the files": ("replace", 2, True),
    "before the mark is wiped": ("write", 1, False),
}


def cut(patched: pytest.MonkeyPatch, what: str, nth: int, *, behind: bool) -> None:
    owner = {
        "write_secret": statedir, "rekey": Link, "enrol": Link, "model": Link, "register": Link,
        "put": DeviceStore, "replace": Path, "write": DeviceStore, "put_head": DeviceStore,
    }[what]  # fmt: skip
    original, count = getattr(owner, what), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if what == "replace" and not str(args[0]).endswith(".next"):
            return original(*args, **kwargs)
        count += 1
        if count != nth:
            return original(*args, **kwargs)
        if not behind:
            raise Cut
        result = original(*args, **kwargs)
        if asyncio.iscoroutine(result):

            async def lost() -> None:
                await result
                raise Cut

            return lost()
        raise Cut

    patched.setattr(owner, what, call)


async def opens(device: Path, server: Server) -> None:
    """Raises unless a credential that the device has opens a session in which it is served."""
    with closing(DeviceStore.open(device / statedir.DATABASE)) as store:
        settings = config.DeviceSettings(lan_timing=True)
        async with newkey.connected(device, store, settings, ("127.0.0.1", server.port)) as link:
            await link.register(store.get("did"))


async def rekeyed(device: Path, server: Server) -> int:
    with closing(DeviceStore.open(device / statedir.DATABASE)) as store:
        settings = config.DeviceSettings(lan_timing=True)
        return await newkey.make_new_key(device, store, settings, ("127.0.0.1", server.port))


@pytest.mark.parametrize("name", STEPS)
def test_a_new_key_cut_anywhere_leaves_one_that_works_and_the_command_goes_on(
    gw: Path, tmp_path: Path, name: str
) -> None:
    async def run() -> None:
        device = tmp_path / "dev"
        async with running(gw) as (gateway, server):
            did = await enrolled(gw, server.port, device)
            what, nth, behind = STEPS[name]
            with pytest.MonkeyPatch.context() as patched:
                cut(patched, what, nth, behind=behind)
                with pytest.raises(Cut):
                    await rekeyed(device, server)
            await opens(device, server)
            assert await rekeyed(device, server) in (1, 2)
            row = gateway.store.device(did)
            assert row is not None and row.psk == statedir.read_secret(device, "psk")
            assert row.pk == signed.public_key(statedir.read_secret(device, "device.key"))
            assert sorted(p.name for p in (device / "secret").iterdir()) == ["device.key", "psk"]

    asyncio.run(run())


def test_without_trying_the_next_psk_a_lost_answer_locks_the_device_out(
    gw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a device that forgets the PSK it was given cannot come back."""

    async def run() -> None:
        device = tmp_path / "dev"
        async with running(gw) as (_, server):
            await enrolled(gw, server.port, device)
            with pytest.MonkeyPatch.context() as patched:
                cut(patched, "register", 2, behind=True)
                with pytest.raises(Cut):
                    await rekeyed(device, server)
            (device / "secret" / newkey.NEW_PSK).unlink()
            monkeypatch.setattr("fl_tiny.net.client.HANDSHAKE_S", 2.0)
            with pytest.raises((RemoteError, EnvironmentFault)):
                await opens(device, server)

    asyncio.run(run())


FORGED: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "the old key did not sign": lambda did, old, new: rekey.asked(did, 1, b"\x09" * 32, new),
    "another device": lambda did, old, new: rekey.asked(b"x" * 16, 1, old, new),
    "a proof by another key": lambda did, old, new: forged(did, old, new, prover=b"\x09" * 32),
    "a proof over another generation": lambda did, old, new: forged(did, old, new, gen=2),
    "a proof over another device": lambda did, old, new: forged(did, old, new, of=b"x" * 16),
    "a proof over another key": lambda did, old, new: forged(did, old, new, shown=b"\x09" * 32),
}


def forged(
    did: bytes, old: bytes, new: bytes, *, prover: bytes = b"", gen: int = 1, of: bytes = b"", shown: bytes = b""
) -> bytes:
    stated = rekey.statement(of or did, gen, signed.public_key(shown or new))
    proof = signed.bare_signature(stated, prover or new)
    return signed.sign(wire.encode(rekey.Rekey(did, 1, signed.public_key(new), proof)), old)


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_new_key_is_refused(name: str) -> None:
    old, new = b"\x01" * 32, b"\x02" * 32
    did = signed.device_id(signed.public_key(old))
    with pytest.raises(RemoteError) as refused:
        rekey.checked(FORGED[name](did, old, new), did, signed.public_key(old))
    assert refused.value.code == Code.SIGNATURE
    assert rekey.checked(rekey.asked(did, 1, old, new), did, signed.public_key(old)).pk == signed.public_key(new)
