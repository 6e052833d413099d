# SPDX-License-Identifier: Apache-2.0
"""A CoAP server over DTLS: one UDP socket, one handler for every request, nothing without an authenticated session."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fl_tiny.net import transport
from fl_tiny.net.assembly import Assembly
from fl_tiny.net.budget import Budget, Verdict
from fl_tiny.net.dtls import PskLookup
from fl_tiny.net.endpoint import Counters, ServerEndpoint
from fl_tiny.net.messages import Handler, Request, Response, block1_of, cut, from_response, refusal, to_request
from fl_tiny.net.noise import EVERY_S, Noise
from fl_tiny.net.sessions import Association, Limits
from fl_tiny.net.udp import bound_socket, split_address

log = logging.getLogger(__name__)

PAYLOAD_BYTES = 4096  # largest request body a server takes
HANDLERS = 512  # requests being handled at a time; more are told to come back
HANDLERS_EACH = 32  # of these for one identity; our own clients have at most 16 requests in flight
BURST = 8192  # requests of one identity at once
BUSY_S = 5
DEAF_S = 1.0  # to an identity that goes on asking after it was told to wait
HANDLERS_S = 2.0  # for what is being handled when the server closes


class ServerSession:
    """What a handler may do with the session its request came over."""

    def __init__(self, who: Association) -> None:
        self.who = who
        self.identity = who.session.identity
        self.closing = False

    def exporter(self, label: bytes, length: int) -> bytes:
        """Keying material that only the two ends of the session have. Source: RFC 5705."""
        return self.who.session.exporter(label, length)

    def close(self) -> None:
        """End the session, once the request in hand is answered."""
        self.closing = True


@dataclass(slots=True)
class _Watch:
    """An observed answer. told: as the peer has it.   changed: set when it may be another by now."""

    told: Response
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Server:
    """CoAP resources over DTLS on one UDP socket; nothing is served without DTLS."""

    _endpoint: ServerEndpoint
    _interface: transport.Interface
    _context: Any
    _noise: Noise
    _budget: Budget
    _timer: asyncio.TimerHandle

    def __init__(self, handler: Handler, payload_bytes: int, lan_timing: bool) -> None:
        """Use ``start``."""
        self._handler, self._payload_bytes = handler, payload_bytes
        self._timing = transport.Timing(lan_timing)
        self._remotes: dict[Association, transport.Remote] = {}
        self._bodies = Assembly()
        self._body_bytes: Callable[[str], int] = lambda identity: 0
        self._watched: dict[transport.Remote, _Watch] = {}  # one a session
        self._running: set[asyncio.Future[Response]] = set()
        self._at_work: Counter[str] = Counter()  # of these, by identity
        self._burst: Callable[[], float] = lambda: BURST
        self._on_wrong_key: Callable[[str], None] | None = None
        self._on_busy: Callable[[str, float], None] = lambda identity, seconds: None
        self.fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.uri = ""

    @classmethod
    async def start(
        cls,
        handler: Handler,
        lookup: PskLookup,
        bind: str = "[::]:5684",
        *,
        limits: Limits | None = None,
        payload_bytes: int = PAYLOAD_BYTES,
        constrained_peers: bool = False,
        lan_timing: bool = False,
        on_wrong_key: Callable[[str], None] | None = None,
        body_bytes: Callable[[str], int] | None = None,
        on_busy: Callable[[str, float], None] | None = None,
        burst: Callable[[], float] | None = None,
    ) -> Server:
        """A server that answers until ``close``.

        ``on_wrong_key`` is told the identity of each handshake that used another key than the one ``lookup`` gave.
        ``body_bytes`` says how much an identity may send in blocks; without it nobody may.
        ``on_busy`` is told who was asked to come again, by 5.03, and in how many seconds.
        ``burst`` says how many requests an identity may make at once; asked when a session begins.
        What ``handler`` raises is our own fault: the peer gets 5.00, and ``fault`` the first such exception.
        Raises: ConfigError for ``bind``; EnvironmentFault when the address or OpenSSL cannot be had.
        """
        self = cls(handler, payload_bytes, lan_timing)
        self._on_wrong_key = on_wrong_key
        self._body_bytes = body_bytes or self._body_bytes
        self._on_busy = on_busy or self._on_busy
        self._burst = burst or self._burst
        limits = limits or Limits()
        self._budget = Budget(limits.requests_per_s, self._burst())
        host = split_address(bind)[0]
        self._context, self._interface = await transport.attach(self._answer, self._later)
        self._endpoint = ServerEndpoint(bound_socket(bind), lookup, limits, constrained_peers, self)
        self._noise = Noise(self.counters)
        self._listen()
        shown = "localhost" if host in ("::", "0.0.0.0") else f"[{host}]" if ":" in host else host  # noqa: S104
        self.uri = f"coaps://{shown}:{self.port}"
        return self

    @property
    def port(self) -> int:
        """The UDP port in use."""
        return self._endpoint.port

    @property
    def counters(self) -> Counters:
        """What passed since the start; always the same object."""
        return self._endpoint.counters

    @property
    def sessions(self) -> int:
        """Authenticated sessions now."""
        return self._endpoint.sessions

    @property
    def handshakes(self) -> int:
        """Handshakes in flight now."""
        return self._endpoint.handshakes

    def limit_sessions(self, most: int) -> None:
        """Change how many authenticated sessions there may be, as devices are enrolled; acts at the next handshake."""
        self._endpoint.limit_sessions(most)

    def drop_identity(self, identity: str) -> None:
        """End the sessions and handshakes of a revoked identity."""
        self._endpoint.drop_identity(identity, "revoked")

    def changed(self) -> None:
        """Watched answers may differ from now on: whoever watches is told, if its own does."""
        for watch in self._watched.values():
            watch.changed.set()

    @property
    def watching(self) -> int:
        """Sessions that are told of changes."""
        return len(self._watched)

    async def close(self) -> None:
        """Tell every peer, let the handlers end, free the port. May be called twice."""
        self._endpoint.close()
        self._timer.cancel()
        await asyncio.sleep(0)  # what ``closed`` has put off
        if self._running:
            await asyncio.wait(self._running, timeout=HANDLERS_S)
        for task in self._running:
            task.cancel()
        if self._context is not None:
            context, self._context = self._context, None
            await context.shutdown()
        if not self.fault.done():
            self.fault.cancel()

    def opened(self, who: Association) -> None:
        """Called by the endpoint: a peer is authenticated."""
        host = f"[{who.peer.host}]:{who.peer.port}"
        self._budget.allow(self._burst())
        write = lambda data: self._endpoint.send(who, data)  # noqa: E731 - a closure over one association
        self._remotes[who] = transport.Remote(write, host, ServerSession(who))

    def received(self, who: Association, data: bytes) -> None:
        """Called by the endpoint: one message of an authenticated peer."""
        remote = self._remotes.get(who)
        if remote is None:
            return
        now = asyncio.get_running_loop().time()
        verdict = self._budget.judge(who.session.identity, now)
        if verdict is Verdict.DROP:
            who.deaf_until = now + DEAF_S
        if verdict is Verdict.DROP or not self._interface.receive(remote, data):
            self.counters.dropped += 1

    def closed(self, who: Association, why: str) -> None:
        """Called by the endpoint: an authenticated session has ended."""
        remote = self._remotes.pop(who)
        self._budget.forget(who.session.identity)
        # One step later: aiocoap ends what it serves for this peer, also what came with the close and has not begun.
        asyncio.get_running_loop().call_soon(self._interface.gone, remote, why)

    def failed(self, identity: str, wrong_key: bool) -> None:
        """Called by the endpoint: a handshake came to nothing."""
        if wrong_key and self._on_wrong_key is not None:
            self._on_wrong_key(identity)

    def _listen(self) -> None:
        if line := self._noise.line():
            log.info("%s", line)
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._listen)

    async def _answer(self, received: Any) -> Any:
        refused, identity = refusal(received, self._payload_bytes), received.remote.session.identity
        if refused is None and (
            len(self._running) >= HANDLERS or self._at_work[identity] >= HANDLERS_EACH or self._budget.is_over(identity)
        ):
            refused = self._busy(identity)
        if refused is not None:
            return from_response(refused, self._timing)
        remote, block1 = received.remote, block1_of(received)
        request = to_request(received, remote.session)
        if block1 is not None and (block1[0] or block1[1]):  # a part
            limit, now = self._body_bytes(request.identity), asyncio.get_running_loop().time()
            target = (request.method, *request.path)
            whole = self._bodies.take(request.identity, target, block1, request.payload, limit, now)
            if isinstance(whole, str):
                made = self._busy(request.identity) if whole == "5.03" else Response(whole)
                return from_response(replace(made, block1=block1), self._timing)
            request = replace(request, payload=whole)
        last = None if block1 is None else (block1[0], False, block1[2])  # "more" would say that another answer comes
        response = replace(await self._handled(request), block1=last)
        made = from_response(cut(response, request.block2), self._timing)
        if received.opt.observe == 0 and response.watched and remote.open and remote not in self._watched:
            self._watched[remote] = _Watch(response)
            made.opt.observe = 0
        return made

    def _busy(self, identity: str) -> Response:
        self._on_busy(identity, BUSY_S)
        return Response("5.03", max_age=BUSY_S)

    async def _later(self, received: Any) -> AsyncIterator[Any]:
        """What became of a watched answer, each time it differs, until it is none any more."""
        remote, number = received.remote, 0
        request = replace(to_request(received, remote.session), etag=None)
        watch = self._watched[remote]
        try:
            while remote.open:
                await watch.changed.wait()
                watch.changed.clear()
                response = await self._handled(request)
                if response == watch.told:
                    continue
                watch.told, number = response, number + 1
                made = from_response(cut(response, request.block2), self._timing)
                if response.watched:
                    made.opt.observe = number
                yield made
        finally:
            del self._watched[remote]

    def _done(self, task: asyncio.Future[Response], identity: str) -> None:
        self._running.discard(task)
        self._at_work[identity] -= 1
        if not self._at_work[identity]:
            del self._at_work[identity]

    async def _handled(self, request: Request) -> Response:
        """What the handler answers, or 5.00 when it raises."""
        task = asyncio.ensure_future(self._handler(request))
        self._running.add(task)
        self._at_work[request.identity] += 1
        task.add_done_callback(lambda task: self._done(task, request.identity))
        session = request.session
        try:  # shielded: the peer may go, or ask again, while the handler writes; it is never cut short
            return await asyncio.shield(task)
        except Exception as e:
            if not self.fault.done():
                self.fault.set_exception(e)
            return Response("5.00")
        finally:
            if isinstance(session, ServerSession) and session.closing:  # after the answer, which leaves in this step
                close = self._endpoint.close_association
                asyncio.get_running_loop().call_soon(close, session.who, "closed by the handler")
