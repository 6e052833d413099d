# SPDX-License-Identifier: Apache-2.0
"""A CoAP server over DTLS: one UDP socket, one handler for every request, nothing without an authenticated session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fl_tiny.net import transport
from fl_tiny.net.blocks import BUSY, Assembler
from fl_tiny.net.dtls import PskLookup
from fl_tiny.net.endpoint import Counters, ServerEndpoint
from fl_tiny.net.messages import Handler, Response, block1_of, cut, from_response, refusal, to_request
from fl_tiny.net.sessions import Association, Limits
from fl_tiny.net.udp import bound_socket, split_address

PAYLOAD_BYTES = 4096  # largest request body a server takes
HANDLERS = 512  # requests being handled at a time; more are told to come back
BUSY_S = 5
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


class Server:
    """CoAP resources over DTLS on one UDP socket; nothing is served without DTLS."""

    _endpoint: ServerEndpoint
    _interface: transport.Interface
    _context: Any

    def __init__(
        self, handler: Handler, payload_bytes: int, lan_timing: bool, assembled: tuple[str, ...] | None
    ) -> None:
        """Use ``start``."""
        self._assembled, self._assembler = assembled, Assembler()
        self._handler, self._payload_bytes = handler, payload_bytes
        self._timing = transport.Timing(lan_timing)
        self._remotes: dict[Association, transport.Remote] = {}
        self._running: set[asyncio.Future[Response]] = set()
        self._on_wrong_key: Callable[[str], None] | None = None
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
        assembled: tuple[str, ...] | None = None,
    ) -> Server:
        """A server that answers until ``close``.

        ``on_wrong_key`` is told the identity of each handshake that used another key than the one ``lookup`` gave.
        ``assembled`` is the one path whose requests may come in several blocks (Block1).
        What ``handler`` raises is our own fault: the peer gets 5.00, and ``fault`` the first such exception.
        Raises: ConfigError for ``bind``; EnvironmentFault when the address or OpenSSL cannot be had.
        """
        self = cls(handler, payload_bytes, lan_timing, assembled)
        self._on_wrong_key = on_wrong_key
        host = split_address(bind)[0]
        self._context, self._interface = await transport.attach(self._answer)
        self._endpoint = ServerEndpoint(bound_socket(bind), lookup, limits or Limits(), constrained_peers, self)
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

    async def close(self) -> None:
        """Tell every peer, let the handlers end, free the port. May be called twice."""
        self._endpoint.close()
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
        write = lambda data: self._endpoint.send(who, data)  # noqa: E731 - a closure over one association
        self._remotes[who] = transport.Remote(write, host, ServerSession(who))

    def received(self, who: Association, data: bytes) -> None:
        """Called by the endpoint: one message of an authenticated peer."""
        remote = self._remotes.get(who)
        if remote is not None and not self._interface.receive(remote, data):
            self.counters.dropped += 1

    def closed(self, who: Association, why: str) -> None:
        """Called by the endpoint: an authenticated session has ended."""
        self._interface.gone(self._remotes.pop(who), why)

    def failed(self, identity: str, wrong_key: bool) -> None:
        """Called by the endpoint: a handshake came to nothing."""
        if wrong_key and self._on_wrong_key is not None:
            self._on_wrong_key(identity)

    async def _answer(self, received: Any) -> Any:
        refused = refusal(received, self._payload_bytes, self._assembled)
        if refused is None and len(self._running) >= HANDLERS:
            refused = Response("5.03", max_age=BUSY_S)
        if refused is not None:
            return from_response(refused, self._timing)
        session: ServerSession = received.remote.session
        request = to_request(received, session)
        block1 = block1_of(received)
        if block1 is not None:
            now = asyncio.get_running_loop().time()
            whole = self._assembler.take(request.identity, request.path, block1, request.payload, now)
            if isinstance(whole, str):
                busy = BUSY_S if whole == BUSY else None
                return from_response(Response(whole, block1=block1, max_age=busy), self._timing)
            request = replace(request, payload=whole)
        task = asyncio.ensure_future(self._handler(request))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:  # shielded: the peer may go, or ask again, while the handler writes; it is never cut short
            answer = cut(await asyncio.shield(task), request.block2)
            return from_response(replace(answer, block1=block1), self._timing)
        except Exception as e:
            if not self.fault.done():
                self.fault.set_exception(e)
            return from_response(Response("5.00"), self._timing)
        finally:
            if session.closing:  # after the answer, which aiocoap sends in this same step of the loop
                close = self._endpoint.close_association
                asyncio.get_running_loop().call_soon(close, session.who, "closed by the handler")
