# SPDX-License-Identifier: Apache-2.0
"""A CoAP client over DTLS: one gateway, one session at a time, made anew whenever it has gone stale."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.net import bulk, transport
from fl_tiny.net.connection import Connection
from fl_tiny.net.dtls import FIRST_RETRANSMIT_S, Context
from fl_tiny.net.endpoint import Counters
from fl_tiny.net.messages import BLOCK_BYTES, Response, from_request, to_response
from fl_tiny.net.patience import Patience
from fl_tiny.net.udp import resolve
from fl_tiny.net.window import Piece, Way, Window

log = logging.getLogger(__name__)

HANDSHAKE_S = 12.0  # a wrong key is dropped in silence, so only time ends such a handshake
ATTEMPT_S = 6.0  # one forged or damaged datagram spoils a handshake for good: begin anew once
REFUSED_S = 3.5  # two more hellos after a first ICMP error, when nobody has ever answered
ALERT_PAUSE_S = 1.1  # an alert is forgeable: asked once more; a gateway admits one pairing a second
STALE_S, LAN_STALE_S = 8.0, 4.0
LAN_RETRANSMIT_S = 0.4  # of a handshake's flight
HINT_S = 1.0  # silence that is enough after an ICMP error
ANSWER_S, LAN_ANSWER_S = 2.0, 0.5  # before a first round trip was measured
POLL_S = 0.5  # while a request is outstanding
FAILURES = 3
FIRST_OF_MANY_S = 4.0  # for each address of a name but the last
RESTARTS = 3  # of a block-wise transfer whose resource changed on the way


@dataclass(frozen=True, slots=True)
class Greeting:
    """A request that goes first over a new session. check: is told the answer; what it raises ends the session."""

    method: str
    path: tuple[str, ...]
    payload: bytes
    content_format: int | None
    check: Callable[[Response], None]


class Client:
    """A device's link to its gateway: one DTLS session at a time, made anew whenever the old one has gone stale."""

    _interface: transport.Interface

    def __init__(self, host: str, port: int, identity: str, key: bytes, lan_timing: bool) -> None:
        """Use ``connect``."""
        self._host, self._port, self._identity = host, port, identity
        self._lan_timing = lan_timing
        self._stale_s = LAN_STALE_S if lan_timing else STALE_S
        self._way = Way(LAN_ANSWER_S if lan_timing else ANSWER_S)
        self._dtls = Context.client(identity, key, LAN_RETRANSMIT_S if lan_timing else FIRST_RETRANSMIT_S)
        self._link: Connection | None = None
        self._opening: asyncio.Task[Connection] | None = None
        self._context: Any = None
        self._closed = False
        self.counters = Counters()
        self.is_patient = True  # waits while the gateway answers 5.03
        self.greeting: Greeting | None = None  # goes first over each session that follows the present one
        self.took: Callable[[float, bool], None] = _nobody_asks  # told of each request, see ``_exchange``
        self.kept: bulk.Bodies = {}  # the body that did not come whole; another client may go on with it

    @classmethod
    async def connect(cls, host: str, port: int, identity: str, key: bytes, *, lan_timing: bool = False) -> Client:
        """A client with an authenticated session.

        Raises: EnvironmentFault, when there is no way to the address or nothing listens there; RemoteError, when
        nobody answered in time, or the gateway refused the identity.
        """
        self = cls(host, port, identity, key, lan_timing)
        self._context, self._interface = await transport.attach()
        try:
            await self._connected(REFUSED_S)
        except _NoAnswer as e:
            await self.close()
            if e.refused:
                raise EnvironmentFault(f"nothing listens on {host} port {port}", "is the gateway up?") from None
            hint = f'address {host} port {port}, identity "{identity}"'
            raise RemoteError("no answer, or the key is wrong", hint) from None
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def reconnects(self) -> int:
        """Sessions after the first one."""
        return max(0, self.counters.handshakes_ok - 1)

    async def request(
        self,
        method: str,
        path: tuple[str, ...],
        payload: bytes = b"",
        content_format: int | None = None,
        etag: bytes | None = None,
        *,
        block2: tuple[int, int] | None = None,
        confirmable: bool = True,
    ) -> Response:
        """The gateway's answer, whatever its code. It may be asked more than once: requests must be idempotent.

        ``block2`` is number and size in bytes of the one block wanted. Where a session came to nothing, the next one
        asks for a smaller block that begins at the same byte. A 5.03 is waited for, unless ``is_patient`` is False.
        Raises: EnvironmentFault, after three sessions without an answer, or when the gateway has said 5.03 for two
        minutes; RemoteError, when the identity is refused.
        """
        patience = Patience()
        while True:
            answer = await self._answered(
                method, path, payload, block2, confirmable, content_format=content_format, etag=etag
            )
            wait_s = patience.wait_s(answer, asyncio.get_running_loop().time()) if self.is_patient else 0.0
            if not wait_s:
                return answer
            log.info("gateway busy path=/%s again_s=%.0f", "/".join(path), wait_s)
            await asyncio.sleep(wait_s)

    async def _answered(
        self,
        method: str,
        path: tuple[str, ...],
        payload: bytes,
        block2: tuple[int, int] | None,
        confirmable: bool,
        **options: Any,
    ) -> Response:
        """What the gateway says to a request, perhaps over another session."""
        for _ in range(FAILURES):
            try:
                link = await self._connected(HANDSHAKE_S)
            except _NoAnswer:
                continue
            timing = transport.Timing(self._lan_timing, confirmable, self._way.timeout_s)
            asked = from_request(
                method,
                path,
                payload,
                block2=block2,
                timing=timing,
                remote=link.remote,
                **options,
            )
            answer = await self._exchange(link, asked, timing.ACK_TIMEOUT)
            if answer is not None:
                return to_response(answer)
            self._drop(link)
            if method != "GET":
                continue
            self._way.starved(asyncio.get_running_loop().time())  # the answer may have been too long for the way
            if block2 is None:
                block2 = 0, self._way.size
            elif self._way.size < block2[1]:
                block2 = block2[0] * block2[1] // self._way.size, self._way.size
        raise self._lost()

    async def put_all(
        self,
        path_of: Callable[[int], tuple[str, ...]],
        body: bytes,
        content_format: int,
        *,
        held: bytes = b"",
        check: Callable[[Response], None],
    ) -> None:
        """PUT the pieces of ``body`` through a window, each to ``path_of`` the byte it begins at.

        ``held``: a bit for each unit of 128 B that need not be sent, as ``Window`` has it. ``check`` is told each
        answer, and ends the upload by what it raises. It goes on over a new session when the old one has gone stale.
        An answer 5.03 ends nothing: its piece waits as it says.
        Raises: EnvironmentFault, after three sessions in a row without an answer, or when the gateway has said 5.03 for
        two minutes; what ``check`` raises.
        """

        def request(piece: Piece, link: Connection) -> Any:
            payload = body[piece.at : piece.at + piece.length]
            return self._from(link, "PUT", path_of(piece.at), payload, content_format=content_format)

        await self._carry(Window(self._way, len(body), held), request, lambda _, answer: check(answer))

    async def fetch(self, path: tuple[str, ...], *, size_limit: int) -> bytes:
        """The whole body at ``path``. Raises: RemoteError, when it is refused, and as ``get``."""
        answer = await self.get(path, size_limit=size_limit)
        if answer.code != "2.05":
            raise RemoteError(
                f"GET /{'/'.join(path)} was answered {answer.code}", "is the gateway of the same version?"
            )
        return answer.payload

    async def get(self, path: tuple[str, ...], *, size_limit: int) -> Response:
        """What GET ``path`` is answered, its body whole: block by block, in blocks that pass, ``size_limit`` B at most.

        Raises: RemoteError, when it is too long or changes all the time; EnvironmentFault as ``request``.
        """
        for _ in range(RESTARTS):
            answer = await self._get_once(path, size_limit)
            if answer is not None:
                return answer
        raise RemoteError(f"/{'/'.join(path)} changed {RESTARTS} times while it was read", "try again later")

    async def fetch_whole(self, path: tuple[str, ...], size: int) -> bytes:
        """The body of ``size`` bytes at ``path``, its blocks through a window.

        What has come is kept, in ``kept``, over sessions and calls for the same path.
        Raises: RemoteError, when it is refused, of another size, or changes all the time; EnvironmentFault, after three
        sessions in a row without an answer or two minutes of 5.03.
        """
        for _ in range(RESTARTS):
            body = self.kept.pop((path, size), None) or bulk.Incoming(path, size)
            try:
                await self._carry(
                    Window(self._way, size, body.held),
                    lambda piece, link: self._from(link, "GET", path, block2=(piece.at // piece.size, piece.size)),
                    body.took,
                )
            except bulk.Changed:
                continue
            except EnvironmentFault:
                self.kept.clear()  # one at a time
                self.kept[path, size] = body
                raise
            return bytes(body.data)
        raise RemoteError(f"/{'/'.join(path)} changed {RESTARTS} times while it was read", "try again later")

    def exporter(self, label: bytes, length: int) -> bytes:
        """Keying material of the present session. Raises: EnvironmentFault, when there is none. Source: RFC 5705."""
        if self._link is None or not self._link.is_open:
            raise EnvironmentFault(f"no session with {self._host}:{self._port}", "send a request first")
        return self._link.endpoint.session.exporter(label, length)

    async def close(self) -> None:
        """Send a close_notify and free everything. May be called twice."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        if self._link is not None:
            self._drop(self._link)
        if self._context is not None:
            context, self._context = self._context, None
            await context.shutdown()
        self._dtls.close()

    async def _carry(
        self, window: Window, request: Callable[[Piece, Connection], Any], took: Callable[[Piece, Response], None]
    ) -> None:
        told, silent = bulk.unless_busy(took), 0
        while silent < FAILURES:
            left = window.left
            try:
                link = await self._connected(HANDSHAKE_S)
            except _NoAnswer:
                silent += 1
                continue

            def ask(piece: Piece, link: Connection = link) -> bulk.Asked | None:
                if not link.is_open or not link.may_ask(asyncio.get_running_loop().time()):
                    return None
                return transport.ask(self._context, request(piece, link))

            answered = lambda piece, answer: told(piece, to_response(answer))  # noqa: E731 - two lines less
            if await bulk.carry(window, ask, answered, self._stale_s):
                return
            self._drop(link)
            if window.left < left:
                silent = 0
                continue
            silent += 1
            self._way.starved(asyncio.get_running_loop().time())  # who shook hands is there: too long for the way?
        raise self._lost()

    def _lost(self) -> EnvironmentFault:
        return EnvironmentFault(
            f"no answer from {self._host}:{self._port} in {FAILURES} tries", "is the gateway up, and the network?"
        )

    def _from(self, link: Connection, method: str, path: tuple[str, ...], payload: bytes = b"", **options: Any) -> Any:
        """A non-confirmable request of aiocoap."""
        asked = {"content_format": None, "etag": None, "block2": None, **options}
        timing = transport.Timing(self._lan_timing, False)
        return from_request(method, path, payload, timing=timing, remote=link.remote, **asked)

    async def _get_once(self, path: tuple[str, ...], size_limit: int) -> Response | None:
        """The answer with its whole body, or None when it changed on the way."""
        name, body, etag = f"/{'/'.join(path)}", bytearray(), None
        while True:
            asked = min(
                self._way.size, len(body) & -len(body) or BLOCK_BYTES
            )  # blocks begin at multiples of their size
            wanted = (len(body) // asked, asked) if body or asked < BLOCK_BYTES else None
            answer = await self.request("GET", path, block2=wanted)
            if answer.code != "2.05":
                return answer
            if body and answer.etag != etag:
                return None
            at, more, size = answer.block2 or (0, False, asked)
            if at * size != len(body) or (more and len(answer.payload) != size) or size > asked:
                raise RemoteError(f"GET {name}: block {at} of {size} B does not follow {len(body)} B")
            body += answer.payload
            if max(len(body), answer.size2 or 0) > size_limit:
                raise RemoteError(f"GET {name}: longer than {size_limit} B")
            if not more:
                return replace(answer, payload=bytes(body), block2=None, size2=None)
            self._way.passed(size, asyncio.get_running_loop().time())
            etag = answer.etag

    async def _exchange(self, link: Connection, asked: Any, timeout_s: float) -> Any:
        """The answer, or None when the session has gone stale or has ended.

        ``took`` is told how long that was, and whether it was longer than ``timeout_s``: then it was sent again.
        """
        loop = asyncio.get_running_loop()
        sent = loop.time()
        answer, give_up = transport.ask(self._context, asked)
        try:
            while not answer.done():
                since = max(sent, link.endpoint.heard)
                patience = HINT_S if link.endpoint.refused > since else self._stale_s
                left = since + patience - loop.time()
                if left <= 0 or not link.is_open:
                    return None
                await asyncio.wait({answer}, timeout=min(left, POLL_S))
            took_s = loop.time() - sent
            if took_s < self._way.timeout_s:  # else it may answer any of several transmissions
                self._way.measured(took_s)
            return answer.result()
        except transport.CoapError:  # retransmitted in vain, or the session ended
            return None
        finally:
            self.took(loop.time() - sent, loop.time() - sent > timeout_s)
            give_up()
            answer.cancel()

    async def _connected(self, refused_s: float) -> Connection:
        """The present session, or a new one, made once for all who wait. Raises: _NoAnswer and as ``request``."""
        if self._closed:
            raise EnvironmentFault("the client is closed")
        if self._link is not None and self._link.is_open:
            if self._link.may_ask(asyncio.get_running_loop().time()):
                return self._link
            self._drop(self._link)
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(refused_s))
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, opening: asyncio.Task[Connection]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # whoever waits has it; nobody may be waiting any more

    async def _open(self, refused_s: float) -> Connection:
        if self._link is not None:
            self._drop(self._link)
        addresses = await resolve(self._host, self._port)
        fault: Exception = _NoAnswer()
        for address in addresses:
            patience = HANDSHAKE_S if address == addresses[-1] else FIRST_OF_MANY_S
            try:
                until = asyncio.get_running_loop().time() + patience
                link = await self._shake_hands(address, until, refused_s)
                await self._greet(link)
                self._link = link
                return link
            except OSError as e:
                fault = EnvironmentFault(f"no way to {address[0]} port {address[1]}: {e.strerror}", "check the network")
                fault.__cause__ = e
            except _NoAnswer as e:
                fault = e
        raise fault

    async def _greet(self, link: Connection) -> None:
        """Say what goes first over a session, which is closed unless it is taken. Raises: as ``Greeting.check``."""
        said, patience, wait_s = self.greeting, Patience(), 0.0
        try:
            while said is not None:
                await asyncio.sleep(wait_s)
                timing = transport.Timing(self._lan_timing, True, self._way.timeout_s)
                options: Any = {"content_format": said.content_format, "etag": None, "block2": None}
                asked = from_request(said.method, said.path, said.payload, timing=timing, remote=link.remote, **options)
                answer = await self._exchange(link, asked, timing.ACK_TIMEOUT)
                if answer is None:
                    raise _NoAnswer
                wait_s = patience.wait_s(to_response(answer), asyncio.get_running_loop().time())
                if not wait_s:
                    said.check(to_response(answer))
                    return
        except BaseException:
            link.close("session not greeted")
            raise

    async def _shake_hands(self, address: tuple[str, int, int], until: float, refused_s: float) -> Connection:
        loop, alerts, refused = asyncio.get_running_loop(), 0, False
        while loop.time() < until and not refused:
            link = Connection(address, self._dtls, self.counters, self._interface)
            end = min(until, loop.time() + ATTEMPT_S)
            try:
                done = await link.endpoint.handshake(end, refused_s)
            finally:
                if not link.endpoint.session.established:
                    link.close("no session")
            if done:
                self.counters.handshakes_ok += 1
                return link
            self.counters.handshakes_failed += 1
            alert = link.endpoint.session.alert
            refused = link.endpoint.refused > 0 and not alert and loop.time() < end
            alerts += alert > 0
            if alerts > 1:
                raise RemoteError(
                    f'{address[0]} port {address[1]} refused "{self._identity}" (TLS alert {alert})',
                    "was the device revoked, the pairing code used up, or the gateway restored from a backup?",
                )
            if alert:
                await asyncio.sleep(ALERT_PAUSE_S)
        raise _NoAnswer(refused)

    def _drop(self, link: Connection) -> None:
        if self._link is link:
            self._link = None
        link.close("session given up")


def _nobody_asks(_seconds: float, _again: bool) -> None:
    """A client that nobody judges the link by."""


class _NoAnswer(Exception):
    """A handshake that nobody answered, or that was answered with another key."""

    def __init__(self, refused: bool = False) -> None:
        self.refused = refused  # an ICMP error came
