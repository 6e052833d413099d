# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: a function a reader of foreign bytes, which returns, or raises a fault of ours, for any input.

What else it raises, an input that takes more than a second, and memory that grows are findings (engine.py).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import hashlib
import io
import os
import random
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fl_tiny import board, config, statedir
from fl_tiny.device import sound
from fl_tiny.device.codefile import blanked
from fl_tiny.device.dataset import Expected, open_dataset
from fl_tiny.device.faults import Faults
from fl_tiny.device.series import windows
from fl_tiny.device.sources import messages
from fl_tiny.errors import ConfigError, DataError, FlTinyError, MalformedMessage, ModelError, RemoteError
from fl_tiny.gateway import setup
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.models import Models
from fl_tiny.gateway.resources import Resources
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.store import Store
from fl_tiny.learn.head import candidates, head_spec, read_parameters
from fl_tiny.learn.tflite import Model, read_model
from fl_tiny.net import transport
from fl_tiny.net.dtls import Context
from fl_tiny.net.messages import METHODS, Request, Response, cut, from_response, to_response
from fl_tiny.net.server import Server
from fl_tiny.net.sessions import Datagram, Limits, Opened, Peer, Received, Table
from fl_tiny.net.sieve import sift
from fl_tiny.protocol import aggregate, cbor, handover, manifest, pairing, problem, rekey, signed, submission, wire
from fl_tiny.protocol.preprocess import Series
from fl_tiny.protocol.rounds import RoundSettings
from fl_tiny.protocol.update import HeadBody, decode_head

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests/models/bench/head_64x10.tflite"
KEY = bytes(range(1, 33))
CLASSES: tuple[type[Any], ...] = (
    wire.Enrol, wire.Enrolled, wire.Register, wire.Registered, wire.Heartbeat, wire.Next, wire.Own, wire.Manifest,
    wire.Head, wire.Offer, wire.Answer, wire.Update, wire.Receipt, wire.Held, rekey.Rekey, rekey.Rekeyed,
    handover.Handover, manifest.ManifestFile, submission.Submission,
)  # fmt: skip

RID, DID, BASE = b"ROUNDrid", b"DEVICEdidDEVICEd", b"HEADdigestHEADdigestHEADdigestHE"  # stand for the real ones
CODES = bytes(650)
BOUND = wire.encode(wire.Update(RID, DID, BASE, 100, hashlib.sha256(CODES).digest(), len(CODES), None))


@dataclass(frozen=True, slots=True)
class Target:
    """run: takes any bytes.   expected: what it may raise.   words: bytes that mean something in its format."""

    run: Callable[[bytes], object]
    expected: tuple[type[BaseException], ...] = (MalformedMessage,)
    words: tuple[bytes, ...] = ()


# ---- messages ---------------------------------------------------------------------------------------------------


def read_cbor(data: bytes) -> None:
    """What is accepted is in its one encoding."""
    value = cbor.decode(data, tag=18 if data[:1] == b"\xd2" else None)
    assert (cbor.tagged(18, value) if data[:1] == b"\xd2" else cbor.encode(value)) == data


def read_message(data: bytes) -> None:
    """The first byte chooses the message; what is accepted is written and read back the same."""
    kind, body = data[0] if data else 0, data[1:]
    if kind == 254:
        problem.decode(body)
    elif kind == 255:
        pairing.from_text(body.decode("utf-8", "replace"))
    else:
        cls = CLASSES[kind % len(CLASSES)]
        limit = getattr(cls, "LIMIT", cbor.CONTROL_LIMIT)
        found = wire.decode(cls, body, limit=limit)
        assert wire.decode(cls, wire.encode(found), limit=limit) == found


def read_request(data: bytes) -> None:
    """What a program says to a device's sources; what is accepted is written and read back the same."""
    found = messages.request_of(data)
    assert messages.request_of(messages.framed(found)[messages.LENGTH.size :]) == found


def read_card(data: bytes) -> None:
    """A card's file: settings or every fault, and no secret left in what is erased of it."""
    blanked(data, board.KEPT)
    config.check_whole(config.parse(data, "card"), config.DeviceSettings, "card")


@cache
def _model() -> Model:
    return read_model(MODEL.read_bytes())


def read_manifest(data: bytes) -> None:
    """As signed bytes, as a file of ``fleet sign``, and as a manifest that our key signed, beside a real model."""
    for read in (
        lambda: signed.verify(data, signed.public_key(KEY)),
        lambda: wire.decode(manifest.ManifestFile, data, limit=manifest.ManifestFile.LIMIT).manifest(),
    ):
        try:
            read()
        except RemoteError:
            continue
    found = wire.decode(wire.Manifest, data)
    assert found.body_size >= 0 and found.parameters >= 0
    file = manifest.ManifestFile(signed.public_key(KEY), signed.sign(data, KEY))
    assert file.manifest() == found
    manifest.spec_of(_model(), found)


def read_codes(data: bytes) -> None:
    """As a head's body, and as one device's codes into a sum."""
    shapes = head_spec(_model(), 1).tensors
    total = aggregate.RunningSum(shapes)
    with contextlib.suppress(MalformedMessage):
        decode_head(HeadBody(data, (0.5,)), shapes)
    aggregate.check_codes(data, sum(int(np.prod(shape)) for shape in shapes))
    total.add(data, aggregate.Share(65_535))


# ---- files ------------------------------------------------------------------------------------------------------


def read_tflite(data: bytes) -> None:
    """The reader, the search for heads, and each head that it offers."""
    model = read_model(data)
    _ = model.input, model.output
    for candidate in candidates(model):
        if candidate.trainable:
            read_parameters(head_spec(model, candidate.layers))


def archive(members: bytes) -> bytes:
    """An input of ``read_npz`` whose members are valid, so that mutations reach behind the checksum."""
    parts = []
    for name in members.decode():
        out = io.BytesIO()
        np.save(out, np.zeros((3, 8, 8, 1), np.int8) if name == "x" else np.arange(3))
        parts.append(len(out.getvalue()).to_bytes(2, "big") + out.getvalue())
    return b"\x01" + b"".join(parts)


@cache
def _scratch() -> Path:
    shm = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="fl-tiny-fuzz-", dir=shm if os.access(shm, os.W_OK) else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def read_npz(data: bytes) -> None:
    """Byte 0 even: the rest is the file. Odd: it is x.npy and y.npy, each behind its length; zipped here."""
    path = _scratch() / "data.npz"
    if not data or data[0] % 2 == 0:
        path.write_bytes(data[1:])
    else:
        x_end = 3 + int.from_bytes(data[1:3], "big")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if data[0] & 2 else zipfile.ZIP_STORED) as made:
            made.writestr("x.npy", data[3:x_end])
            made.writestr("y.npy", data[x_end + 2 :])
    source = replace(_model().input, shape=(1, 8, 8, 1))
    for expected in (None, Expected(10, optional=True), Expected(10, outputs=2)):
        try:
            found = open_dataset(path, source, expected=expected)
            for _ in found.batches():
                pass
        except DataError:
            continue


def read_sound(data: bytes) -> None:
    """A recording, and the numbers that it begins with."""
    path = _scratch() / "data.wav"
    path.write_bytes(data)
    with contextlib.suppress(DataError), sound.opened(path) as found:
        found.mono(0, min(found.frames, 10_000))


def read_table(data: bytes) -> None:
    """A table of two columns and a label."""
    path = _scratch() / "data.csv"
    path.write_bytes(data)
    faults = Faults(path, unit="rows")
    how = Series(columns=("x", "y"), window=2, hop=1)
    with contextlib.suppress(DataError):
        for _ in windows(path, how, replace(_model().input, shape=(1, 2, 2)), faults, labelled=True):
            pass
        faults.check(1)


# ---- the network ------------------------------------------------------------------------------------------------


class _Session:
    """A session as a handler sees it."""

    def __init__(self, identity: str) -> None:
        self.identity, self.closing, self.who = identity, False, None

    def exporter(self, label: bytes, length: int) -> bytes:
        return hashlib.sha256(label).digest()[:length]

    def close(self) -> None:
        return None


async def _echo(request: Request) -> Response:
    if request.path == ("long",):
        return Response("2.05", bytes(5000), 42)
    return Response("2.05", request.payload[:1000], request.content_format, request.etag, watched=True)


class _Coap:
    """A server of ours without its socket, and a client's reading of answers."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.raised: list[BaseException] = []
        self.loop.set_exception_handler(lambda _, c: self.raised.append(c.get("exception") or AssertionError(str(c))))
        self.server = self.loop.run_until_complete(self._start())

    async def _start(self) -> Server:
        server = Server(_echo, 4096, True)
        server._context, server._interface = await transport.attach(server._answer, server._later)
        server._body_bytes = lambda identity: 10_000
        return server

    def run(self, data: bytes) -> None:
        """One message from a new peer; whatever it was, afterwards nothing of it is left."""
        self.loop.run_until_complete(self._one(data))
        if self.raised:
            raise self.raised.pop()
        if self.server.fault.done():
            fault, self.server.fault = self.server.fault, self.loop.create_future()
            raise fault.exception() or AssertionError("a fault without a cause")

    async def _one(self, data: bytes) -> None:
        out: list[bytes] = []
        interface = self.server._interface
        remote = transport.Remote(out.append, "peer", _Session("dev"))
        interface.receive(remote, data)
        interface.receive(remote, data)  # a duplicate
        for _ in range(6):
            await asyncio.sleep(0)
        assert sum(map(len, out)) <= 2 * (len(data) + 1152)
        self.server.changed()
        await asyncio.sleep(0)
        interface.gone(remote, "end")
        self.server._bodies._bodies.clear()  # it is an identity's, not a session's: the next peer is another
        for _ in range(3):
            await asyncio.sleep(0)
        assert self.server.watching == 0
        manager = interface._manager
        assert not remote.recent and not manager._active_exchanges and not manager._recent_messages
        clean, _ = sift(data)
        if clean:
            try:
                parsed = transport.Message.decode(clean, remote)
            except ValueError:
                return
            if parsed.code.is_response():
                to_response(parsed)


@cache
def _coap() -> _Coap:
    return _Coap()


def read_coap(data: bytes) -> None:
    """One decrypted message at a server, and as an answer at a client."""
    _coap().run(data)


class _Door:
    """A table with one living session, and a second client whose datagrams the input damages."""

    HOME, AWAY, ELSE = Peer("192.0.2.1", 1), Peer("192.0.2.2", 2), Peer("198.51.100.3", 3)

    def __init__(self) -> None:
        self.limits = Limits(handshakes=8, handshakes_per_s=1e9, sessions=4)
        self.now = 0.0
        self.table = Table({"dev": KEY, "other": KEY}.get, self.limits, random.Random(3).randbytes, self.now)
        self.contexts = Context.client("dev", KEY), Context.client("other", KEY)
        self.living = self.contexts[0].connect()
        self.got: list[bytes] = []
        for _ in range(6):
            for waiting in self.living.take():
                self.feed(self.HOME, waiting)
        assert self.living.established

    def feed(self, peer: Peer, data: bytes) -> list[bytes]:
        back = []
        stranger = not (self.table._live.get(peer) or self.table._candidates.get(peer))
        for event in self.table.receive(peer, data, self.now):
            if isinstance(event, Datagram) and event.peer == self.HOME:
                self.living.receive(event.data)
            elif isinstance(event, Datagram):
                back.append(event.data)
            elif isinstance(event, Received):
                self.got.append(event.data)
            elif isinstance(event, Opened):
                pass
        if stranger and not self.table._candidates.get(peer):  # no cookie of ours has come back from there
            assert sum(map(len, back)) <= len(data), "a stranger got more than it sent"
        return back

    def run(self, program: bytes) -> None:
        """Steps of an operation, a length and that many bytes."""
        victim, waiting, at = self.contexts[1].connect(), [], 0
        while at + 2 <= len(program):
            op, size = program[at], program[at + 1]
            body, at = program[at + 2 : at + 2 + size], at + 2 + size
            waiting += victim.take()
            data = waiting.pop(0) if op % 8 in (1, 2, 3) and waiting else b""
            if op % 8 == 2:  # damaged: pairs of place and mask
                spoilt = bytearray(data)
                for place, mask in zip(body[::2], body[1::2], strict=False):
                    if spoilt:
                        spoilt[place * 5 % len(spoilt)] ^= mask
                data = bytes(spoilt)
            elif op % 8 == 3:
                data = data[: len(body) * 8]
            elif op % 8 == 4:  # a record of the input's own
                data = b"\x16\xfe\xfd" + body[:1] + bytes(7) + len(body).to_bytes(2, "big") + body
            elif op % 8 in (0, 5):
                data = body
            elif op % 8 == 6:
                self.now += 1.1
                self.table.tick(self.now)
            peer = self.HOME if op & 64 else self.ELSE if op & 128 else self.AWAY
            for answer in self.feed(peer, data) if data else ():
                victim.receive(answer)
        victim.close()
        self.now += 20.0
        self.table.tick(self.now)
        assert self.table.handshakes == 0 and len(self.table) <= 2 and len(self.table._context.sessions) <= 4
        self.got.clear()
        self.living.send(b"still here")
        for waiting_data in self.living.take():
            self.feed(self.HOME, waiting_data)
        assert self.got == [b"still here"], "a stranger ended another's session"


@cache
def _door() -> _Door:
    return _Door()


def read_datagrams(data: bytes) -> None:
    """A program of datagrams at a DTLS server that has a living session; the session must survive it."""
    try:
        _door().run(data)
    except BaseException:
        _door.cache_clear()
        raise


class _Fleet:
    """A gateway with an open round that one device has joined, and a code for another."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(dir=_scratch()))
        setup.initialise(folder / "gw", MODEL, None, Wanted(None))
        codes = [pairing.from_text(code) for code in setup.new_codes(folder / "gw", 3, 600)]
        self.newcomer = codes[2].identity
        self.folder = folder
        self.store = Store.open(folder / "gw" / statedir.DATABASE)
        seed = statedir.read_secret(folder / "gw", setup.GATEWAY_KEY)
        models = Models(self.store, folder / "gw", seed)
        self.gateway = Gateway(self.store, models, seed, RoundSettings(quorum=1.0), wire.Train(1, 16), 100)
        self.resources = Resources(self.gateway)
        self.loop = asyncio.new_event_loop()
        dids = []
        for code, secret in zip(codes, (KEY, bytes(32)), strict=False):
            dids.append(signed.device_id(signed.public_key(secret)))
            self.store.enrol(code.token, dids[-1], signed.public_key(secret), bytes(32), None)
            self.store.activate(dids[-1])
            device = self.store.device(dids[-1])
            assert device is not None
            self.gateway.registered(device)
        self.gateway._open(time.monotonic())
        rid = self.gateway.rounds.rid
        assert rid is not None
        for did in dids:  # the other one never delivers, so the round stays open
            self.ask("POST", ("o",), wire.encode(wire.Answer(rid, wire.Said.JOIN)), did.hex())

    def close(self) -> None:
        self.store.close()
        self.loop.close()
        shutil.rmtree(self.folder)

    @property
    def is_used(self) -> bool:
        """Whether an input has changed what the next one would meet."""
        rid = self.gateway.rounds.rid
        device = self.store.device(DEVICE)
        return rid is None or self.store.entry(rid, DEVICE) is not None or device is None or device.state != "active"

    def real(self, data: bytes) -> bytes:
        """``data`` with the names of this round, device and head in place of those that stand for them."""
        rid = self.gateway.rounds.rid or b""
        return data.replace(RID, rid).replace(DID, DEVICE).replace(BASE, self.gateway.head.digest)

    def ask(self, method: str, path: tuple[str, ...], payload: bytes, identity: str = "") -> Response:
        session = _Session(identity or DEVICE.hex())
        request = Request(method, path, payload, None, None, None, session.identity, session)
        response = self.loop.run_until_complete(self.resources.handle(request))
        assert response.code[0] in "24", f"{method} /{'/'.join(path)} gives {response.code}"
        from_response(cut(response, None), transport.Timing())
        return response

    def update_of(self, codes: bytes) -> bytes:
        """A signed update with these codes, of the device that has joined."""
        update = wire.Update(RID, DID, BASE, 100, hashlib.sha256(codes).digest(), max(1, len(codes)), None)
        return signed.sign(self.real(wire.encode(update)), KEY)

    def run(self, data: bytes) -> None:
        op, body = (data[0] if data else 0), self.real(data[1:])
        if op % 6 == 0:
            line, _, payload = body[1:].partition(b"\n")
            path = tuple(line.decode("utf-8", "replace").split("/"))
            self.ask(METHODS[(body[0] if body else 0) % len(METHODS)], path, payload, ("", "peer:x")[op // 6 % 2])
        elif op % 6 == 1:
            self.ask("POST", ("u", "A" * 11), body if op & 64 else signed.sign(body, KEY))
        elif op % 6 == 2:
            digest = hashlib.sha256(body).digest()
            for at in range(0, min(len(body), 4096), 1024):
                self.ask("PUT", ("u", wire.name_of(digest), str(at // wire.UNIT)), body[at : at + 1024])
            self.ask("POST", ("u", wire.name_of(digest)), self.update_of(body))
        elif op % 6 == 3:
            self.ask("POST", ("k",), signed.sign(body, KEY))
        elif op % 6 == 4:
            bound = _Session("").exporter(signed.EXPORTER_LABEL, signed.EXPORTER_BYTES)
            self.ask("POST", ("e",), signed.sign(body, KEY, binding=bound) if op & 64 else body, self.newcomer)
        elif op & 64:
            whole = wire.encode(submission.Submission(self.update_of(body), body)) if body and op & 128 else body
            self.ask("POST", ("u",), whole)
        else:
            self.ask("POST", ("u", body[:11].decode("latin1")), body)


DEVICE = signed.device_id(signed.public_key(KEY))


@cache
def _fleet() -> _Fleet:
    return _Fleet()


def read_submission(data: bytes) -> None:
    """Requests of an enrolled device at a gateway with an open round: 2.xx or 4.xx, whatever they hold."""
    fleet = _fleet()
    done = False
    try:
        fleet.run(data)
        done = True
    finally:
        if not done or fleet.is_used:
            fleet.close()
            _fleet.cache_clear()


_HEADS = tuple(bytes([m << 5 | i]) for m in range(8) for i in (0, 1, 23, 24, 25, 26, 27, 31))
_CBOR_WORDS = (*_HEADS, b"\xfb\x7f\xf0" + bytes(6))
TARGETS = {
    "coap": Target(read_coap, (), (b"\xff", b"\xd1\x0e", b"\xe1", b"\xb1m", b"\xc1", b"\x60", b"\x41\xfe")),
    "cbor": Target(read_cbor, words=_CBOR_WORDS),
    "wire": Target(read_message, (FlTinyError,), words=_CBOR_WORDS),
    "submission": Target(read_submission, (), (*_CBOR_WORDS, RID, DID, BASE, BOUND, b"u/", b"d\n", b"o\n", b"m/new\n")),
    "request": Target(read_request, words=_CBOR_WORDS),
    "card": Target(read_card, (ConfigError,), (b"[network]\n", b'password = "', b"pairing_code = ", b'"""', b"=")),
    "manifest": Target(read_manifest, (RemoteError, ModelError), words=_CBOR_WORDS),
    "dtls": Target(read_datagrams, (), (b"\x01\x00", b"\x02\x02", b"\x16\xfe\xfd", b"\x41\x00", b"\x06\x00")),
    "tflite": Target(read_tflite, (ModelError,), (b"TFL3", b"\xff\xff\xff\xff", b"\x04\0\0\0")),
    "npz": Target(read_npz, (), (b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY\x01\0", b"'fortran_order': True", b"'<f8'")),
    "sound": Target(read_sound, (), (b"data", b"fmt ", b"ds64", b"RF64", b"\xfe\xff", b"fLaC", b"OggS")),
    "table": Target(read_table, (), (b"sep=;", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"#", b"1,5", b"1e999", b"\r")),
    "codes": Target(read_codes, (RemoteError,), (b"\x80", b"\x00\x7c", b"\xff\x7f")),
}  # fmt: skip
