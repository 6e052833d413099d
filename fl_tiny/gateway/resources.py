# SPDX-License-Identifier: Apache-2.0
"""The gateway's CoAP resources: one function a path, from an authenticated request to a response."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable

from fl_tiny.errors import EnvironmentFault, FlTinyError, RemoteError
from fl_tiny.gateway import trouble
from fl_tiny.gateway.commit import Commits
from fl_tiny.gateway.identity import device_of
from fl_tiny.gateway.keys import handover_to, key_of
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.space import check_room
from fl_tiny.gateway.tables import Device, Entry, Version
from fl_tiny.net.coap import SPREAD, Request, Response
from fl_tiny.protocol import problem, signed, wire
from fl_tiny.protocol.pairing import PAIR
from fl_tiny.protocol.rekey import NEXT, Rekeyed, checked
from fl_tiny.protocol.rounds import Answered, Submitting, raise_refusal
from fl_tiny.protocol.submission import Submission
from fl_tiny.protocol.wire import Code

log = logging.getLogger(__name__)

CBOR, COSE, OCTETS, LINKS, PROBLEM = 60, 18, 42, 40, 257  # content formats (docs/protocol.md, "Resources")
BUSY_S = 10  # Max-Age while the disk is full or slow
BODY_BYTES = Submission.LIMIT  # of a request that comes in blocks, from a device on another CoAP stack
NOT_FOUND, NOT_ALLOWED, UNAUTHORISED = "4.04", "4.05", "4.01"
DIRECTORY = '</d>;rt="fl.device";ct=60,</m>;rt="fl.head";ct=18;obs,</o>;rt="fl.offer";ct=60,</u>;rt="fl.update"'
PEER = "peer:"
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
        if identity.startswith(PAIR):
            code = self._store.pairing(device_of(identity[len(PAIR) :]))
            return code.secret if code else None
        if identity.startswith(PEER):
            return self._store.peer(identity[len(PEER) :])
        return self._identities.key_of(identity)

    def body_bytes(self, identity: str) -> int:
        """How much an identity may send in blocks: devices alone have reason to."""
        return 0 if identity.startswith((PAIR, PEER)) else BODY_BYTES

    async def handle(self, request: Request) -> Response:
        """The response to one request; a refusal is a counted 4.xx with a problem body, never an exception."""
        try:
            answer = self._dispatch(request)
            return answer if isinstance(answer, Response) else await answer
        except RemoteError as fault:
            self.refused += 1
            return Response(problem.COAP_CODE[Code(fault.code)], problem.encode(fault), PROBLEM)
        except EnvironmentFault as fault:
            log.error("request failed path=/%s: %s", "/".join(request.path), fault)
            self.put_off(request.identity, BUSY_S)
            return Response("5.03", problem.encode(fault), PROBLEM, max_age=BUSY_S)

    def put_off(self, identity: str, seconds: float) -> None:
        """An identity was told to come again in so many seconds: until then a device's silence means nothing."""
        if not identity.startswith((PAIR, PEER)):
            self._gateway.attendance.put_off(device_of(identity), time.monotonic(), seconds * SPREAD)

    def _dispatch(self, request: Request) -> Answer:
        if request.identity.startswith(PAIR):
            return self._for_newcomer(request)
        if request.method == "GET" and request.path == (".well-known", "core"):
            return Response("2.05", DIRECTORY.encode(), LINKS)
        if request.identity.startswith(PEER):
            return self._for_peer(request)
        if request.method == "GET" and request.path[:1] == ("m",):
            did = self._active(request).did
            return self._model(request, self._gateway.models.head(did, self._gateway.head), did)
        first = request.path[0] if request.path else ""
        resource = self._table.get((request.method, first))
        if resource is None or (first not in ("u", "b") and len(request.path) > 1):
            return _refusal(NOT_ALLOWED if first in ("d", "o", "u", "k", "b") else NOT_FOUND, "no such resource")
        return resource(request, self._active(request))

    def _for_newcomer(self, request: Request) -> Response:
        if (request.method, request.path) != ("POST", ("e",)):
            return _refusal(UNAUTHORISED, "a pairing code opens /e only")
        return self._enrol(request)

    def _for_peer(self, request: Request) -> Response:
        if request.method == "GET" and request.path[:1] == ("m",):
            return self._model(request, self._gateway.head)
        if (request.method, request.path) != ("GET", ("d",)):
            return _refusal(UNAUTHORISED, "a peer may read /.well-known/core, /d and /m")
        return Response("2.05", wire.encode(wire.Own("peer", self._gateway.head.number)), CBOR)

    def _active(self, request: Request) -> Device:
        device = self._store.device(device_of(request.identity))
        if device is None or device.state == "revoked":
            request.session.close()
            raise RemoteError("this device is revoked", code=Code.REVOKED)
        if device.state == "quarantined" and (request.method, request.path) != ("GET", ("d",)):
            raise RemoteError(*self._identities.trouble(device.did))
        if device.state != "active" and (request.method, request.path) != ("POST", ("d",)):
            raise RemoteError("register first", code=Code.PHASE)
        self._gateway.attendance.is_at_work(device.did, time.monotonic())
        return device

    # ---- enrolment and presence -----------------------------------------------------------------------------

    def _enrol(self, request: Request) -> Response:
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
            self._store.enrol(device_of(request.identity[len(PAIR) :]), did, enrol.pk, psk, enrol.name)
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
        self._identities.started(device, register)
        if device.state == "pending":
            self._store.activate(device.did)
        if request.identity.startswith(NEXT):
            self._identities.use_new_key(device.did)
        self._gateway.able[device.did] = register.encodings or (wire.Encoding.INT8,)
        self._gateway.bundles.registered(device.did, register)
        told = self._gateway.registered(device)
        return Response("2.04", wire.encode(wire.Registered(wire.VERSION, told.poll_ms, told.epoch)), CBOR)

    def _rekey(self, request: Request, device: Device) -> Response:
        asked = checked(request.payload, device.did, device.pk)
        psk = self._identities.rekey(device, asked)
        return Response("2.04", wire.encode(Rekeyed(asked.gen, psk)), CBOR)

    def _heartbeat(self, request: Request, device: Device) -> Response:
        beat = wire.decode(wire.Heartbeat, request.payload)
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
        return Response("2.05", body, OCTETS, hashlib.sha256(body).digest()[:8])

    def _handover(self, path: tuple[str, ...], did: bytes | None) -> Response:
        """The hand-over to a key of ours by its number. Who asks for one holds the key before it."""
        if len(path) != 1 or not path[0].isdecimal() or len(path[0]) > 3:
            return _refusal(NOT_FOUND, "a hand-over is /m/k/NUMBER")
        message = handover_to(self._store, int(path[0]))
        if message is not None:
            return Response("2.05", message, COSE)
        if did is not None:
            trouble.holds_key(self._store, did, int(path[0]) - 1)
        return _refusal(NOT_FOUND, "no later key")

    def _octets(self, name: str, part: tuple[str, ...], head: Version) -> bytes | None:
        """A body, or below it ``d``: what leads to the newest head from the one before."""
        newest = self._gateway.head
        if part == ("d",) and name == wire.name_of(newest.digest):
            return self._gateway.promised.delta(newest, self._gateway.manifest)
        return None if part else self._gateway.models.named(name, head, newest)

    def _piece(self, request: Request, device: Device) -> Response:
        match request.path:
            case ("b", name, number) if number.isdecimal() and len(number) <= 6:
                found = self._gateway.bundles.piece(device.did, name, int(number))
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
            case ("u", sid, unit) if unit.isdecimal() and len(unit) <= 6:
                self._may_submit(device)
                check_room(self._store.folder)
                self._gateway.uploads.put(device.did, sid, int(unit), request.payload)
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
        self._gateway.gathering.check(codes, update)
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
    if len(request.path) == 2:
        sid = request.path[1]
        try:
            raw = base64.urlsafe_b64decode(sid + "=" * (-len(sid) % 4))
        except ValueError:
            raw = b""
        if len(raw) == 8:
            return sid, raw
    raise RemoteError("an upload is named by 8 bytes in base64url", code=Code.SCHEMA)
