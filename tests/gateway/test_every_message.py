# SPDX-License-Identifier: Apache-2.0
"""Every message in every order, by two members and a stranger: none of it ends a gateway, nor what it serves others."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from fl_tiny import statedir
from fl_tiny.gateway import identity, setup
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.models import Models
from fl_tiny.gateway.resources import Resources
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.store import Store
from fl_tiny.net.messages import Request, Response
from fl_tiny.protocol import cbor, pairing, rekey, signed, wire
from fl_tiny.protocol.identity import Identity, Kind
from fl_tiny.protocol.rounds import RoundSettings
from fl_tiny.protocol.submission import Submission

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"
THIRD = b"\x30" * 32  # who does nothing wrong
SEEDS = tuple(bytes([n]) * 32 for n in (1, 2, 3))  # of two members and of the stranger, who hold each other's too
FRESH = tuple(bytes([n]) * 32 for n in (8, 9))  # keys that nobody has yet
WHO = st.sampled_from(SEEDS)
KEYS = SEEDS + FRESH
KEY = st.sampled_from(KEYS)
ODD = st.one_of(
    st.binary(max_size=64),
    st.dictionaries(st.integers(-2, 9), st.one_of(st.integers(-1, 2**33), st.binary(max_size=40), st.text(max_size=9)))
    .filter(lambda found: all(isinstance(value, (int, bytes, str)) for value in found.values()))
    .map(lambda found: cbor.encode({0: 5, **found})),
)


def did_of(seed: bytes) -> bytes:
    return signed.device_id(signed.public_key(seed))


class Session:
    """A session as a handler sees it: it lives on until the gateway ends it, whatever becomes of its key."""

    def __init__(self, name: str) -> None:
        self.identity, self.is_open = name, True

    def exporter(self, label: bytes, length: int) -> bytes:
        return hashlib.sha256(label).digest()[:length]

    def close(self) -> None:
        self.is_open = False


class EveryMessage(RuleBasedStateMachine):
    """The gateway's own store and resources, without sockets; a key that opens a session is taken from its look-up."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        setup.initialise(self.folder / "gw", MODEL, None, Wanted(None))
        self.codes = [pairing.from_text(code) for code in setup.new_codes(self.folder / "gw", 3, 600)]
        self.loop = asyncio.new_event_loop()
        self.sessions: dict[str, Session] = {}
        self.start()
        rows = [(did_of(seed), signed.public_key(seed), seed) for seed in (*SEEDS[:2], THIRD)]
        self.store.add_devices(rows)

    def start(self) -> None:
        self.store = Store.open(self.folder / "gw" / statedir.DATABASE)
        seed = statedir.read_secret(self.folder / "gw", setup.GATEWAY_KEY)
        models = Models(self.store, self.folder / "gw", seed)
        self.gateway = Gateway(self.store, models, seed, RoundSettings(), wire.Train(1, 16), 100)
        self.gateway.identities.cut = self.cut
        self.resources = Resources(self.gateway)

    def cut(self, who: Identity) -> None:
        self.sessions.pop(who.text, None)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.resources.close()
            self.store.close()
            self.loop.close()
            shutil.rmtree(self.folder)

    def ask(self, name: str, method: str, path: tuple[str, ...], payload: bytes = b"") -> Response | None:
        """The answer over an identity's session; None when it can have none. An exception would end the gateway."""
        session = self.sessions.get(name)
        if session is None or not session.is_open:
            if self.resources.key_of(name) is None:
                return None
            session = self.sessions[name] = Session(name)
        asked = Request(method, path, payload, None, None, None, name, session)

        async def answered() -> Response:
            return await asyncio.wait_for(self.resources.handle(asked), 5)

        answer = self.loop.run_until_complete(answered())
        assert answer.code[0] in "24", answer
        return answer

    def as_device(self, seed: bytes, following: bool, method: str, path: tuple[str, ...], payload: bytes = b"") -> Any:
        kind = Kind.NEXT if following else Kind.DEVICE
        return self.ask(Identity(kind, did_of(seed)).text, method, path, payload)

    # ---- what they do ---------------------------------------------------------------------------------------

    @rule(code=st.integers(0, 2), key=KEY, name=st.one_of(st.none(), st.text(max_size=40)))
    def enrol(self, code: int, key: bytes, name: str | None) -> None:
        body = {0: 1, 1: signed.public_key(key)} | ({} if name is None else {3: name})
        try:
            encoded = cbor.encode(body)
        except UnicodeEncodeError:  # a lone surrogate has no bytes
            return
        binding = hashlib.sha256(signed.EXPORTER_LABEL).digest()[: signed.EXPORTER_BYTES]
        self.ask(self.codes[code].identity, "POST", ("e",), signed.sign(encoded, key, binding=binding))

    @rule(who=KEY, following=st.booleans(), boots=st.one_of(st.none(), st.integers(0, 5)), boot=st.integers(0, 3))
    def register(self, who: bytes, following: bool, boots: int | None, boot: int) -> None:
        said = wire.Register(did_of(who), (1,), boots, None if boots is None else bytes([boot]) * 8, (0, 1))
        self.as_device(who, following, "POST", ("d",), wire.encode(said))

    @rule(who=KEY, following=st.booleans(), refusal=st.one_of(st.none(), st.text(max_size=40)))
    def heartbeat(self, who: bytes, following: bool, refusal: str | None) -> None:
        body = {0: 5, 1: 0, 2: 2**32 - 1} | ({} if refusal is None else {7: {1: 2**32 - 1, 2: 6, 3: refusal}})
        try:
            self.as_device(who, following, "PUT", ("d",), cbor.encode(body))
        except UnicodeEncodeError:
            return

    @rule(who=WHO, key=KEY)
    def rekey(self, who: bytes, key: bytes) -> None:
        device = self.store.device(did_of(who))
        rows = self.store.rows("SELECT gen FROM rekey WHERE did=?", did_of(who))
        for by in KEYS:  # it holds what it was given, whichever that is by now
            if device is not None and device.pk == signed.public_key(by):
                gen = rows[0][0] + 1 if rows else 1
                self.as_device(who, False, "POST", ("k",), rekey.asked(did_of(who), gen, by, key))

    @rule(who=KEY, following=st.booleans(), by=KEY, key=KEY, gen=st.integers(1, 3))
    def rekey_somehow(self, who: bytes, following: bool, by: bytes, key: bytes, gen: int) -> None:
        self.as_device(who, following, "POST", ("k",), rekey.asked(did_of(who), gen, by, key))

    @rule(who=WHO)
    def use_new_key(self, who: bytes) -> None:
        self.as_device(who, True, "POST", ("d",), wire.encode(wire.Register(did_of(who), (1,))))

    @rule(who=KEY, following=st.booleans(), said=st.sampled_from(wire.Said), of_round=st.booleans())
    def answer(self, who: bytes, following: bool, said: wire.Said, of_round: bool) -> None:
        rid = self.gateway.rounds.rid if of_round else b"r" * 8
        self.as_device(who, following, "POST", ("o",), wire.encode(wire.Answer(rid or b"r" * 8, said)))

    @rule(who=KEY, following=st.booleans(), by=KEY, size=st.sampled_from((1, 650, 651)), whole=st.booleans())
    def update(self, who: bytes, following: bool, by: bytes, size: int, whole: bool) -> None:
        codes, rid = os.urandom(size), self.gateway.rounds.rid or b"r" * 8
        digest = hashlib.sha256(codes).digest()
        said = wire.Update(rid, did_of(who), self.gateway.head.digest, 7, digest, size)
        message = signed.sign(wire.encode(said), by)
        if whole:
            path, body = ("u",), wire.encode(Submission(message, codes))
        else:
            path, body = ("u", wire.name_of(digest)), message
            self.as_device(who, following, "PUT", (*path, "0"), codes)
        self.as_device(who, following, "POST", path, body)

    @rule(
        who=KEY,
        following=st.booleans(),
        method=st.sampled_from(("GET", "POST", "PUT", "DELETE")),
        path=st.lists(
            st.sampled_from(("d", "m", "o", "b", "u", "k", "e", "s", "new", "0", "00", "AAAAAAAAAAA", "", "٣"))
        )
        .map(tuple)
        .filter(lambda found: len(found) < 5),
        payload=ODD,
    )
    def anything(self, who: bytes, following: bool, method: str, path: tuple[str, ...], payload: bytes) -> None:
        self.as_device(who, following, method, path, payload)

    @rule(name=st.text("0123456789abcdefABCDEF: nextpair", max_size=44))
    def any_identity(self, name: str) -> None:
        if self.resources.key_of(name) is not None:
            self.ask(name, "GET", ("d",))
        self.gateway.identities.wrong_key(name)

    @rule(code=st.integers(0, 2))
    def wrong_secret(self, code: int) -> None:
        self.gateway.identities.wrong_key(self.codes[code].identity)

    @rule(who=KEY)
    def revoked(self, who: bytes) -> None:
        self.store.revoke(did_of(who))

    @rule(who=KEY)
    def released(self, who: bytes) -> None:
        identity.release(self.store, did_of(who))

    @rule(later=st.sampled_from((0.0, 1.0, 100.0)))
    def time_passes(self, later: float) -> None:
        """What ``Gateway.run`` does once a second."""
        now = time.monotonic() + later
        self.gateway.drop_revoked()
        self.gateway.identities.tick(now)
        self.gateway._write_off(now)
        if self.gateway.rounds.rid is None:
            self.gateway._open(now)
        self.gateway.carry_out(self.gateway.rounds.tick(now))
        self.gateway._save(now)

    @rule()
    def restart(self) -> None:
        self.resources.close()
        self.gateway.save_all()
        self.store.close()
        self.sessions.clear()
        self.start()

    # ---- what holds -----------------------------------------------------------------------------------------

    @invariant()
    def the_third_is_served(self) -> None:
        if hasattr(self, "loop"):
            name = did_of(THIRD).hex()
            for method, payload in (("POST", wire.encode(wire.Register(did_of(THIRD), (1,)))), ("PUT", BEAT)):
                answer = self.ask(name, method, ("d",), payload)
                assert answer is not None and answer.code == "2.04", answer


BEAT = wire.encode(wire.Heartbeat(0, 1))
SETTINGS = settings(max_examples=25, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
FIRST: dict[str, Any] = {"phases": [Phase.generate], "report_multiple_bugs": False, "database": None}


def test_every_message_in_every_order_leaves_a_third_served() -> None:
    run_state_machine_as_test(EveryMessage, settings=SETTINGS)


def test_without_the_fences_such_messages_end_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: nobody looks whether a key is in use, and what the tables say is nobody's refusal."""
    for module in ("identity", "store"):
        monkeypatch.setattr(f"fl_tiny.gateway.{module}.check_unused", lambda *_: None)
    monkeypatch.setattr("fl_tiny.database.Conflict", sqlite3.IntegrityError)
    with pytest.raises(sqlite3.IntegrityError):
        run_state_machine_as_test(EveryMessage, settings=settings(SETTINGS, max_examples=300, **FIRST))
