# SPDX-License-Identifier: Apache-2.0
"""The gateway's CoAP resources: one function a path, from an authenticated request to a response."""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import os
import time
import weakref
from collections.abc import Awaitable, Callable

from fl_tiny.errors import Conflict, EnvironmentFault, FlTinyError, RemoteError
from fl_tiny.gateway import trouble
from fl_tiny.gateway.budget import MEMBER, Shares, TooMuch
from fl_tiny.gateway.commit import Commits
from fl_tiny.gateway.keys import handover_to, key_of
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.space import check_room
from fl_tiny.gateway.tables import Device, Entry, Version
from fl_tiny.net.coap import SPREAD, Request, Response, SessionHandle
from fl_tiny.protocol import problem, signed, wire
from fl_tiny.protocol.identity import Identity, Kind, identity_of
from fl_tiny.protocol.rekey import Rekeyed, checked
from fl_tiny.protocol.rounds import Answered, Submitting, raise_refusal
from fl_tiny.protocol.submission import Submission
from fl_tiny.protocol.wire import Code

log = logging.getLogger(__name__)

CBOR, COSE, OCTETS, LINKS, PROBLEM = 60, 18, 42, 40, 257  # content formats (docs/protocol.md, "Resources")
BUSY_S = 10  # Max-Age while the disk is full or slow
COSTLY = {("POST", "d"), ("POST", "o"), ("PUT", "u"), ("POST", "u"), ("GET", "u"), ("POST", "k")}  # but chunks
BLOCK_BYTES = 1024  # of a body at full speed
REQUESTS = 4096  # at once, besides those that carry bodies
ETAGS = 16  # of bodies, remembered
BODY_BYTES = Submission.LIMIT  # of a request that comes in blocks, from a device on another CoAP stack
NOT_FOUND, NOT_ALLOWED, UNAUTHORISED = "4.04", "4.05", "4.01"
DIRECTORY = '</d>;rt="fl.device";ct=60,</m>;rt="fl.head";ct=18;obs,</o>;rt="fl.offer";ct=60,</u>;rt="fl.update"'
UNCOUNTED = (("POST", ("d",)), ("GET", ("d",)), ("POST", ("k",)))  # before a session has said which start it is of
WHOLE = ("u",)  # the path that takes an update in one piece, in blocks

Answer = Response | Awaitable[Response]  # awaitable: it waits for the disk
Resource = Callable[[Request, Device], Answer]


class Resources:
    """Answers requests for one gateway. Every request comes over DTLS; ``identity`` is who its PSK belongs to."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._store = gateway.store
        self._identities = gateway.identities
        self._commits = Commits(gateway)
        self._shares = Shares()
        self._etags: dict[str, bytes] = {}
        self._counted: weakref.WeakSet[SessionHandle] = weakref.WeakSet()  # sessions of a start that has been counted
        self.refused = 0
        self._table: dict[tuple[str, str], Resource] = {
            ("POST", "d"): self._register,
            ("PUT", "d"): self._heartbeat,
            ("GET", "d"): self._own,
            ("GET", "o"): self._offer,
            ("POST", "o"): self._answer,
            ("PUT", "u"): self._put,
            ("GET", "u"): self._held,
            ("POST", "u"): self._post,
            ("POST", "k"): self._rekey,
            ("GET", "b"): self._piece,
        }

    def close(self) -> None:
        """Write what waits for the next transaction."""
        self._commits.flush()

    def key_of(self, identity: str) -> bytes | None:
        """The PSK of an identity, or None: what the DTLS front door asks."""
        return self._identities.key_of(identity)

    def body_bytes(self, identity: str) -> int:
        """How much an identity may send in blocks: devices alone have reason to."""
        who = identity_of(identity)
        return BODY_BYTES if who is not None and who.is_device else 0

    def burst(self) -> float:
        """How many requests a member may make at once: a model, a head, an update and as much again, at full speed."""
        models = self._gateway.models
        staged = models.staged or models.current
        bodies = len(models.current.data) + len(staged.data) + 2 * self._gateway.manifest.body_size
        return REQUESTS + 2 * bodies / BLOCK_BYTES

    async def handle(self, request: Request) -> Response:
        """The response to one request; a refusal is a counted 4.xx with a problem body, never an exception.

        Runs in a task of its own, whose context says for whom it works.
        """
        MEMBER.set(request.identity)
        try:
            answer = self._dispatch(request)
            return answer if isinstance(answer, Response) else await answer
        except TooMuch as fault:
            self.refused += 1
            wait_s = math.ceil(fault.wait_s)
            self.put_off(request.identity, wait_s)
            return Response("5.03", problem.encode(fault), PROBLEM, max_age=wait_s)
        except RemoteError as fault:
            self.refused += 1
            if isinstance(fault, Conflict):  # a check of ours is missing: the tables were the last fence
                log.error("request refused path=/%s: %s", "/".join(request.path), fault)
            return Response(problem.COAP_CODE[Code(fault.code)], problem.encode(fault), PROBLEM)
        except EnvironmentFault as fault:
            log.error("request failed path=/%s: %s", "/".join(request.path), fault)
            self.put_off(request.identity, BUSY_S)
            return Response("5.03", problem.encode(fault), PROBLEM, max_age=BUSY_S)

    def put_off(self, identity: str, seconds: float) -> None:
        """An identity was told to come again in so many seconds: until then a device's silence means nothing."""
        who = identity_of(identity)
        if who is not None and who.is_device:
            self._gateway.attendance.put_off(who.id, time.monotonic(), seconds * SPREAD)

    def _dispatch(self, request: Request) -> Answer:
        who = _who(request)
        if who.kind is Kind.PAIRING:
            return self._for_newcomer(request, who.id)
        if request.method == "GET" and request.path == (".well-known", "core"):
            return Response("2.05", DIRECTORY.encode(), LINKS)
        if who.kind is Kind.PEER:
            return self._for_peer(request, who.id)
        if request.method == "GET" and request.path[:1] == ("m",):
            did = self._active(request).did
            return self._model(request, self._gateway.models.head(did, self._gateway.head), did)
        first = request.path[0] if request.path else ""
        resource = self._table.get((request.method, first))
        if resource is None or (first not in ("u", "b") and len(request.path) > 1):
            return _refusal(NOT_ALLOWED if first in ("d", "o", "u", "k", "b") else NOT_FOUND, "no such resource")
        device = self._active(request)
        if (request.method, first) in COSTLY and (request.method != "PUT" or request.path == WHOLE):
            self._shares.costly(request.identity, time.monotonic())
        return resource(request, device)

    def _for_newcomer(self, request: Request, token: bytes) -> Response:
        if (request.method, request.path) != ("POST", ("e",)):
            return _refusal(UNAUTHORISED, "a pairing code opens /e only")
        return self._enrol(request, token)

    def _for_peer(self, request: Request, name: bytes) -> Response:
        if name not in self._store.peers():
            request.session.close()
            raise RemoteError("this peer is revoked", code=Code.REVOKED)
        if request.method == "GET" and request.path[:1] == ("m",):
            return self._model(request, self._gateway.head)
        if (request.method, request.path) != ("GET", ("d",)):
            return _refusal(UNAUTHORISED, "a peer may read /.well-known/core, /d and /m")
        return Response("2.05", wire.encode(wire.Own("peer", self._gateway.head.number)), CBOR)

    def _active(self, request: Request) -> Device:
        device = self._store.device(_who(request).id)
        if device is None or device.state == "revoked":
            request.session.close()
            raise RemoteError("this device is revoked", code=Code.REVOKED)
        if device.state == "quarantined" and (request.method, request.path) != ("GET", ("d",)):
            raise RemoteError(*self._identities.trouble(device.did))
        if device.state != "active" and (request.method, request.path) != ("POST", ("d",)):
            raise RemoteError("register first", code=Code.PHASE)
        if request.session not in self._counted and (request.method, request.path) not in UNCOUNTED:
            self._identities.check_uncounted(device.did)
        self._gateway.attendance.is_at_work(device.did, time.monotonic())
        return device

    # ---- enrolment and presence -----------------------------------------------------------------------------

    def _enrol(self, request: Request, token: bytes) -> Response:
        binding = request.session.exporter(signed.EXPORTER_LABEL, signed.EXPORTER_BYTES)
        enrol = wire.decode(wire.Enrol, signed.payload_of(request.payload))
        signed.verify(request.payload, enrol.pk, binding=binding)
        did = signed.device_id(enrol.pk)
        known = self._store.device(did)
        if known is not None and known.state == "revoked":
            raise RemoteError("this device is revoked", code=Code.REVOKED)
        check_room(self._store.folder)
        psk = os.urandom(32)
        try:
            self._store.enrol(token, did, enrol.pk, psk, enrol.name)
        except RemoteError as fault:  # the operator sees both: whose card was read by somebody, or copied
            log.warning("enrolment refused device=%s name=%s why=%r", did.hex()[:8], enrol.name, fault.what)
            raise
        self._identities.enrolled(did, time.monotonic())
        self._gateway.models.forget(did)
        trouble.holds_our_key(self._store, did)
        log.info("device enrolled device=%s name=%s", did.hex()[:8], enrol.name)
        key = key_of(self._store)
        enrolled = wire.Enrolled(did, psk, key.pk, self._store.get("model_pk"), key.serial or None)
        return Response("2.04", wire.encode(enrolled), CBOR)

    def _register(self, request: Request, device: Device) -> Response:
        register = wire.decode(wire.Register, request.payload)
        if register.did != device.did:
            raise RemoteError("registered under another id", code=Code.SIGNATURE)
        if wire.VERSION not in register.versions:
            raise RemoteError(f"this gateway speaks version {wire.VERSION}", code=Code.VERSION)
        anew = self._identities.started(device, register)
        if None not in (register.boots, register.boot):
            self._counted.add(request.session)
        if device.state == "pending":
            self._store.activate(device.did)
        if _who(request).kind is Kind.NEXT:
            self._identities.use_new_key(device.did)
        else:
            self._identities.cut(Identity(Kind.NEXT, device.did))  # one session a device
        self._gateway.able[device.did] = register.encodings or (wire.Encoding.INT8,)
        self._gateway.bundles.registered(device.did, register)
        told = self._gateway.registered(device, anew=anew)
        return Response("2.04", wire.encode(wire.Registered(wire.VERSION, told.poll_ms, told.epoch)), CBOR)

    def _rekey(self, request: Request, device: Device) -> Response:
        asked = checked(request.payload, device.did, device.pk)
        psk = self._identities.rekey(device, asked)
        return Response("2.04", wire.encode(Rekeyed(asked.gen, psk)), CBOR)

    def _heartbeat(self, request: Request, device: Device) -> Response:
        beat = wire.decode(wire.Heartbeat, request.payload)
        if beat.bundle or beat.refusal or beat.model not in (None, self._gateway.models.knows(device.did)):
            self._shares.costly(request.identity, time.monotonic())  # it is going to be written
        if beat.bundle is not None:
            self._gateway.bundles.refused(device.did, beat.bundle)
        return Response("2.04", wire.encode(self._gateway.heard(device, beat)), CBOR)

    def _own(self, _request: Request, device: Device) -> Response:
        why = self._identities.trouble(device.did)[0] if device.state == "quarantined" else None
        own = wire.Own(device.state, self._store.counted(device.did), device.did, why)
        return Response("2.05", wire.encode(own), CBOR)

    # ---- models and heads -----------------------------------------------------------------------------------

    def _model(self, request: Request, head: Version, did: bytes | None = None) -> Response:
        """head: the newest one for the model that the device ``did`` holds; None: a peer asks."""
        if request.path == ("m",):
            etag = signed.digest(head.signed)[:8]  # a head that is published again has the body of an earlier one
            fresh = Response("2.05", head.signed, COSE, etag, watched=True)
            return Response("2.03", etag=etag, watched=True) if request.etag == etag else fresh
        if request.path == ("m", "new") and did is not None:
            signed_head = self._gateway.models.new_head(did, self._gateway.head)
            return Response("2.05", signed_head, COSE) if signed_head else _refusal(NOT_FOUND, "no newer model")
        name, part = request.path[1], request.path[2:]
        if name == "k":
            return self._handover(part, did)
        message = self._gateway.models.manifest(name) if part == ("s",) else None
        if message is not None:
            return Response("2.05", message, COSE)
        body = self._octets(name, part, head)
        if body is None:
            return _refusal(NOT_FOUND, "no head or model of this name; GET /m names the current ones")
        return Response("2.05", body, OCTETS, hashlib.sha256(body).digest()[:8] if part else self._etag(name, body))

    def _handover(self, path: tuple[str, ...], did: bytes | None) -> Response:
        """The hand-over to a key of ours by its number. Who asks for one holds the key before it."""
        serial = _number(path[0]) if len(path) == 1 else 0
        message = handover_to(self._store, serial)
        if message is not None:
            return Response("2.05", message, COSE)
        if did is not None and serial:
            trouble.holds_key(self._store, did, serial - 1)
        return _refusal(NOT_FOUND, "no later key")

    def _etag(self, name: str, body: bytes) -> bytes:
        """Of a body that its name stands for; made once, since it is asked for with each block."""
        if name not in self._etags:
            if len(self._etags) >= ETAGS:
                self._etags.clear()
            self._etags[name] = hashlib.sha256(body).digest()[:8]
        return self._etags[name]

    def _octets(self, name: str, part: tuple[str, ...], head: Version) -> bytes | None:
        """A body, or below it ``d``: what leads to the newest head from the one before."""
        newest = self._gateway.head
        if part == ("d",) and name == wire.name_of(newest.digest):
            return self._gateway.promised.delta(newest, self._gateway.manifest)
        return None if part else self._gateway.models.named(name, head, newest)

    def _piece(self, request: Request, device: Device) -> Response:
        match request.path:
            case ("b", name, number):
                found = self._gateway.bundles.piece(device.did, name, _number(number))
                if found is not None:
                    return Response("2.05", found, OCTETS, hashlib.sha256(found).digest()[:8])
        return _refusal(NOT_FOUND, "no such piece of a bundle for this device")

    # ---- a round --------------------------------------------------------------------------------------------

    def _offer(self, _request: Request, device: Device) -> Response:
        if self._gateway.rounds.rid is None:
            return _refusal(NOT_FOUND, "no round is open", Code.LATE)
        return Response("2.05", wire.encode(self._gateway.offer(device.did)), CBOR)

    async def _answer(self, request: Request, device: Device) -> Response:
        answer = wire.decode(wire.Answer, request.payload)
        await self._commits.answer(Answered(device.did, answer.rid, answer.said))
        return Response("2.04", wire.encode(self._gateway.saw(device)), CBOR)

    def _chunk(self, request: Request, device: Device) -> Response:
        match request.path:
            case ("u", sid, unit):
                _raw(sid)
                at = _number(unit)
                self._may_submit(device)
                check_room(self._store.folder)
                if not self._gateway.uploads.is_under_way(device.did, sid):
                    self._shares.costly(request.identity, time.monotonic())
                self._gateway.uploads.put(device.did, sid, at, request.payload)
                return Response("2.04")
        return _refusal(NOT_FOUND, "a chunk goes to /u/SID/UNIT")

    def _held(self, request: Request, device: Device) -> Response:
        sid, raw = _sid(request)
        return Response("2.05", wire.encode(self._gateway.uploads.held(device.did, sid, raw)), CBOR)

    def _put(self, request: Request, device: Device) -> Answer:
        return self._submit(request, device) if request.path == WHOLE else self._chunk(request, device)

    def _post(self, request: Request, device: Device) -> Answer:
        return self._submit(request, device) if request.path == WHOLE else self._finalise(request, device)

    async def _submit(self, request: Request, device: Device) -> Response:
        submission = wire.decode(Submission, request.payload, limit=Submission.LIMIT)
        update, counted = self._update(submission.signed, device)
        if counted:
            return self._receipt(update, submission.signed, device, wire.Status.DUPLICATE)
        if hashlib.sha256(submission.codes).digest() != update.digest:
            raise RemoteError("the codes have another digest than the update says", code=Code.CONFLICT)
        return await self._take(update, submission.signed, device, submission.codes)

    async def _finalise(self, request: Request, device: Device) -> Response:
        sid, raw = _sid(request)
        update, counted = self._update(request.payload, device)
        if counted:
            return self._receipt(update, request.payload, device, wire.Status.DUPLICATE)
        codes = self._gateway.uploads.whole(device.did, update.digest, update.size)
        if codes is None:
            held = self._gateway.uploads.held(device.did, sid, raw, update.size)
            return Response("4.08", wire.encode(held), CBOR)
        return await self._take(update, request.payload, device, codes)

    def _update(self, message: bytes, device: Device) -> tuple[wire.Update, bool]:
        """A signed update that may be delivered; whether it has been, by the same bytes. Raises: RemoteError."""
        update = wire.decode(wire.Update, signed.verify(message, device.pk))
        if update.did != device.did:
            raise RemoteError("an update of another device", code=Code.SIGNATURE)
        earlier = self._store.entry(update.rid, device.did)
        if earlier is not None:
            if earlier[0] != message:
                raise RemoteError("this device has delivered other bytes in this round", code=Code.CONFLICT)
            return update, True
        self._may_submit(device, update.rid)
        self._gate(update)
        return update, False

    async def _take(self, update: wire.Update, message: bytes, device: Device, codes: bytes) -> Response:
        """The receipt, once the update is in the ledger."""
        member = device.did.hex()
        self._shares.check(member, time.monotonic())
        self._gateway.gathering.check(codes, update)
        self._shares.passed(member, time.monotonic())
        metrics = update.metrics
        entry = Entry(
            device.did,
            message,
            update.samples,
            metrics.samples if metrics else None,
            metrics.loss if metrics else None,
            metrics.accuracy if metrics else None,
            update.ranges,
            codes,
        )
        status = await self._commits.receive(update.rid, entry)
        return self._receipt(update, message, device, status)

    def _receipt(self, update: wire.Update, message: bytes, device: Device, status: wire.Status) -> Response:
        digest = hashlib.sha256(message).digest()
        receipt = wire.Receipt(update.rid, status, digest, self._gateway.saw(device).poll_ms)
        return Response("2.04", wire.encode(receipt), CBOR)

    def _may_submit(self, device: Device, rid: bytes | None = None) -> None:
        """Raises: RemoteError unless the device has joined the open round (``rid``, when given)."""
        rid = rid if rid is not None else self._gateway.rounds.rid or b""
        raise_refusal(self._gateway.handle(Submitting(device.did, rid)))

    def _gate(self, update: wire.Update) -> None:
        """What is checked of an update before its codes are looked at (docs/protocol.md, "Gates")."""
        gateway = self._gateway
        if update.base != gateway.head.digest:
            raise RemoteError("the update starts from another head", code=Code.STALE_BASE)
        if not gateway.gathering.takes(update.size, update.encoding or wire.Encoding.INT8):
            raise RemoteError(f"{update.size} B of codes do not fit this head", code=Code.SHAPE)
        if update.ranges is not None and len(update.ranges) != 2 * gateway.manifest.layers:
            raise RemoteError("as many ranges as layers, lo and hi each", code=Code.SHAPE)


def _refusal(coap_code: str, why: str, code: Code = Code.NONE) -> Response:
    body: FlTinyError = RemoteError(why, code=code)
    return Response(coap_code, problem.encode(body), PROBLEM)


def _sid(request: Request) -> tuple[str, bytes]:
    """The path's sid as text and as its 8 bytes. Raises: RemoteError."""
    if len(request.path) != 2:
        raise RemoteError("an upload is at /u/SID", code=Code.SCHEMA)
    return request.path[1], _raw(request.path[1])


def _raw(sid: str) -> bytes:
    """The 8 bytes that name an upload. Raises: RemoteError for another spelling than ``wire.name_of`` has."""
    try:
        raw = base64.urlsafe_b64decode(sid + "=" * (-len(sid) % 4))
    except ValueError:
        raw = b""
    if len(raw) != 8 or wire.name_of(raw) != sid:
        raise RemoteError("an upload is named by 8 bytes in base64url", code=Code.SCHEMA)
    return raw


def _number(text: str) -> int:
    """A number in a path. Raises: RemoteError for one that is too long, or spelled otherwise than in plain digits."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and str(int(text)) == text):
        raise RemoteError("a number of up to six digits, without leading zeros, is wanted", code=Code.SCHEMA)
    return int(text)


def _who(request: Request) -> Identity:
    """Whose session a request came over. Raises: RemoteError for an identity that has no key here."""
    who = identity_of(request.identity)
    if who is None:
        raise RemoteError("this is nobody's identity", code=Code.SIGNATURE)
    return who
