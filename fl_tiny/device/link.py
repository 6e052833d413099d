# SPDX-License-Identifier: Apache-2.0
"""What a device says to its gateway, one method a message; a refusal comes back as RemoteError with its code."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from fl_tiny.device.quality import Quality
from fl_tiny.device.store import HeldHead
from fl_tiny.errors import EnvironmentFault, MalformedMessage, RemoteError
from fl_tiny.net.coap import Bodies, Client, Greeting, Response
from fl_tiny.protocol import problem, signed, wire
from fl_tiny.protocol.delta import Shapes, applied
from fl_tiny.protocol.rekey import Rekeyed

log = logging.getLogger(__name__)

CBOR, COSE, OCTETS = 60, 18, 42
MODEL_LIMIT = 64 << 20
SIGNED_LIMIT = 4096  # bytes of a signed message
UPLOAD_TRIES = 5
ENCODINGS = tuple(encoding.value for encoding in wire.Encoding)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model as its gateway gave it: the manifest's signature and the file's digest are checked."""

    manifest: wire.Manifest
    signed: bytes
    data: bytes


class Link:
    """One device's authenticated channel."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.quality = Quality()
        client.took = self.quality.took

    @classmethod
    async def open(cls, address: tuple[str, int], identity: str, key: bytes, *, lan_timing: bool = False) -> Link:
        """Connect. Raises: EnvironmentFault, RemoteError when nobody answers or the key is wrong."""
        return cls(await Client.connect(*address, identity, key, lan_timing=lan_timing))

    async def close(self) -> None:
        """End the session."""
        await self._client.close()

    def go_on_with(self, kept: Bodies) -> None:
        """Begin with what an earlier link left in ``kept`` of a body that did not come whole; leave it there, too."""
        self._client.kept = kept

    async def enrol(self, seed: bytes, name: str | None) -> wire.Enrolled:
        """Show the device's key and get its id, PSK and the keys to believe in."""
        self._client.is_patient = False  # somebody waits, who would rather read why
        binding = self._client.exporter(signed.EXPORTER_LABEL, signed.EXPORTER_BYTES)
        enrol = wire.Enrol(signed.public_key(seed), name)
        answer = await self._ask("POST", ("e",), signed.sign(wire.encode(enrol), seed, binding=binding), COSE)
        return wire.decode(wire.Enrolled, answer.payload)

    async def register(
        self,
        did: bytes,
        boots: int | None = None,
        boot: bytes | None = None,
        board: str | None = None,
        release: str | None = None,
    ) -> wire.Registered:
        """Say who has come. boots and what follows: as in ``wire.Register``; a daemon says them."""
        register = wire.encode(wire.Register(did, (wire.VERSION,), boots, boot, ENCODINGS, board, release))
        told = wire.decode(wire.Registered, (await self._ask("POST", ("d",), register, CBOR)).payload)
        if boot is not None:  # another session must show that it is of this start, too (docs/identities.md)
            self._client.greeting = Greeting("POST", ("d",), register, CBOR, _check)
        return told

    async def rekey(self, message: bytes) -> Rekeyed:
        """Ask for a PSK that goes with a new key."""
        return wire.decode(Rekeyed, (await self._ask("POST", ("k",), message, COSE)).payload)

    async def heartbeat(self, beat: wire.Heartbeat) -> wire.Next:
        """A sign of life; the answer says what to do next."""
        answer = await self._ask("PUT", ("d",), wire.encode(beat), CBOR)
        return wire.decode(wire.Next, answer.payload)

    async def offer(self) -> wire.Offer:
        """The open round."""
        return wire.decode(wire.Offer, (await self._ask("GET", ("o",))).payload)

    async def answer(self, rid: bytes, said: wire.Said, code: int = 0) -> wire.Next:
        """Join or decline. code: a problem code that says why, 0 for none."""
        answer = await self._ask("POST", ("o",), wire.encode(wire.Answer(rid, said, code or None)), CBOR)
        return wire.decode(wire.Next, answer.payload)

    async def head(
        self, manifest: bytes, body_size: int, gateway_pk: bytes, held: HeldHead | None = None, shapes: Shapes = ()
    ) -> HeldHead:
        """The current head, its signature, manifest and digest checked. manifest: SHA-256 of the manifest held.

        held: the head held: its body is not fetched again, and a delta may begin at it.   shapes: of the manifest's
        tensors.
        """
        message = (await self._ask("GET", ("m",))).payload
        head = wire.decode(wire.Head, signed.verify(message, gateway_pk))
        if head.manifest != manifest:
            raise RemoteError("the fleet has moved to another model", hint="enrol again")
        if head.size != body_size:
            raise MalformedMessage(f"a head of {head.size} B for a model whose head has {body_size}")
        if held is None:
            return HeldHead(head.version, message, await self.body(head.digest, head.size))
        if hashlib.sha256(held.body).digest() == head.digest:
            return HeldHead(head.version, message, held.body)
        body = await self._by_delta(head, held, shapes)
        return HeldHead(head.version, message, body or await self.body(head.digest, head.size))

    async def _by_delta(self, head: wire.Head, held: HeldHead, shapes: Shapes) -> bytes | None:
        """The body of ``head`` by its delta from the one held; None where there is none, or it leads elsewhere."""
        delta = head.delta
        if delta is None or delta.size >= head.size or hashlib.sha256(held.body).digest() != delta.base:
            return None
        try:
            found = await self._client.fetch_whole(("m", wire.name_of(head.digest), "d"), delta.size)
            body = applied(held.body, found, delta.encoding, shapes)
        except RemoteError as fault:  # of a gateway that no longer has it, or by another rule: the whole is there
            log.warning("no delta number=%d why=%r", head.version, str(fault))
            return None
        return body if hashlib.sha256(body).digest() == head.digest else None

    async def model(self, model_pk: bytes) -> tuple[wire.Head, Fetched]:
        """The model of the fleet, by the manifest that the model key signed. The head returned only names it."""
        head = wire.decode(wire.Head, signed.payload_of((await self._ask("GET", ("m",))).payload))
        path = ("m", wire.name_of(head.manifest), "s")  # with many labels it is longer than one block
        message = await self._client.fetch(path, size_limit=SIGNED_LIMIT)
        payload = signed.verify(message, model_pk)
        if hashlib.sha256(payload).digest() != head.manifest:
            raise RemoteError("the head names another manifest", code=wire.Code.CONFLICT)
        manifest = wire.decode(wire.Manifest, payload)
        if manifest.size > MODEL_LIMIT:
            raise RemoteError(f"the fleet's model has {manifest.size} B, at most {MODEL_LIMIT}", code=wire.Code.QUOTA)
        return head, Fetched(manifest, message, await self.body(manifest.digest, manifest.size))

    async def newer(self, gateway_pk: bytes) -> tuple[bytes, bytes] | None:
        """The signed head that names the model which this device should take, and that model's signed manifest.

        The head's signature is checked, the manifest's is not. None: there is no newer model.
        """
        answer = await self._client.get(("m", "new"), size_limit=SIGNED_LIMIT)
        if answer.code == "4.04":
            return None
        message = _good(answer).payload
        head = wire.decode(wire.Head, signed.verify(message, gateway_pk))
        path = ("m", wire.name_of(head.manifest), "s")
        return message, await self._client.fetch(path, size_limit=SIGNED_LIMIT)

    async def handover(self, serial: int) -> bytes | None:
        """The gateway's hand-over to its key number ``serial``, not checked; None: it has no such key."""
        answer = await self._client.get(("m", "k", str(serial)), size_limit=SIGNED_LIMIT)
        return None if answer.code == "4.04" else _good(answer).payload

    async def body(self, digest: bytes, size: int) -> bytes:
        """What a digest names. Raises: RemoteError when it is something else."""
        data = await self._client.fetch_whole(("m", wire.name_of(digest)), size)
        if hashlib.sha256(data).digest() != digest:
            raise RemoteError("a body does not have the digest that was signed", code=wire.Code.CONFLICT)
        return data

    async def piece(self, digest: bytes, number: int, size: int) -> bytes:
        """A piece of a bundle, ``size`` bytes. Raises: RemoteError when the gateway offers that no more."""
        data = await self._client.fetch(("b", wire.name_of(digest), str(number)), size_limit=size)
        if len(data) != size:
            raise RemoteError(f"a piece of {len(data)} B where {size} were due", code=wire.Code.CONFLICT)
        return data

    async def upload(self, message: bytes, codes: bytes, *, again: bool) -> wire.Receipt:
        """Deliver an update. again: it may have arrived before, so ask first. Raises: RemoteError, refused."""
        sid = wire.name_of(hashlib.sha256(codes).digest())
        held, whole = b"", again
        for _ in range(UPLOAD_TRIES):
            if not whole:
                await self._client.put_all(
                    lambda at: ("u", sid, str(at // wire.UNIT)), codes, OCTETS, held=held, check=_check
                )
            answer = await self._client.request("POST", ("u", sid), message, COSE)
            if answer.code != "4.08":
                return wire.decode(wire.Receipt, _good(answer).payload)
            held, whole = wire.decode(wire.Held, answer.payload).bitmap, False
        raise RemoteError("the gateway does not take the update's chunks")

    async def _ask(self, method: str, path: tuple[str, ...], payload: bytes = b"", form: int | None = None) -> Response:
        if method == "GET":
            answer = await self._client.get(path, size_limit=SIGNED_LIMIT)
        else:
            answer = await self._client.request(method, path, payload, form)
        return _good(answer)


def raise_if_out(fault: RemoteError) -> None:
    """Raises: ``fault``, when it says that nothing of this device counts now. A gateway may say so only once."""
    if fault.code in (wire.Code.REVOKED, wire.Code.QUARANTINED, wire.Code.RESTORED):
        raise fault


def _check(answer: Response) -> None:
    _good(answer)


def _good(answer: Response) -> Response:
    """``answer`` when it is 2.xx. Raises: RemoteError."""
    if answer.code.startswith("2."):
        return answer
    if answer.code == "5.03":  # no room or no time, and no word on what was asked
        raise EnvironmentFault(f"the gateway cannot take this now (5.03, Max-Age {answer.max_age})")
    found = problem.decode(answer.payload)
    raise RemoteError(f"the gateway answered {answer.code}: {found.detail or 'no reason given'}", code=found.code)
