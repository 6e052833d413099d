# SPDX-License-Identifier: Apache-2.0
"""The operator's page: one read-only HTML page over HTTP, and the JSON it asks for every two seconds."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib.resources
import ipaddress
import json
import logging
import re
import shlex
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fl_tiny import statedir
from fl_tiny.errors import EnvironmentFault
from fl_tiny.gateway import setup
from fl_tiny.gateway.service import Emit, Gateway
from fl_tiny.gateway.store import Store
from fl_tiny.net.coap import Server
from fl_tiny.protocol.fields import shown

log = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PAGE = "page.html"
FRESH_S = 1.0  # a state this young is given to the next viewer too, so that many cost no more than one
REST = 4  # times as long as a read took: a large ledger (1.2 s at 300,000 updates) gets a fifth of a core at most
ROUNDS_SHOWN = 500  # the youngest; `fl-tiny gateway rounds` lists all
CONNECTIONS = 32  # guess; without a bound, idle strangers take every descriptor, and asyncio logs 69 MB a minute of it
MISDIRECTED = 421  # RFC 9110 section 15.5.20
POLICY = (  # the page's own script and style, by digest, and nothing else; trusted types make innerHTML throw
    "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; base-uri 'none'"
    "; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class View:
    """The state as JSON, read on a connection of its own and beside the event loop, which rounds must not wait for."""

    def __init__(self, directory: Path, gateway: Gateway, server: Server) -> None:
        self._gateway, self._server = gateway, server
        self._path = directory / statedir.DATABASE
        self._pair = f"fl-tiny gateway pair {shlex.quote(str(directory))}"
        self._lock = asyncio.Lock()
        self._good_until = 0.0
        self._json = b""

    async def document(self) -> bytes:
        """The document of ``/state.json``."""
        async with self._lock:
            now = time.monotonic()
            if now >= self._good_until:
                rounds = self._gateway.rounds
                left_s = None if rounds.rid is None else round(max(0.0, rounds.left_s(now)), 1)
                online = {did.hex() for did in self._gateway.attendance.here(now)}  # heard, whatever they hold
                traffic = asdict(self._server.counters)
                self._json = await asyncio.to_thread(self._read, left_s, online, traffic)
                took_s = time.monotonic() - now
                self._good_until = now + took_s + max(FRESH_S, REST * took_s)
            return self._json

    def _read(self, left_s: float | None, online: set[str], traffic: dict[str, int]) -> bytes:
        """Runs in a thread: touches nothing of the gateway that changes."""
        model = ("name", "counter", "layers", "parameters", "size", "labels")
        with contextlib.closing(Store.open(self._path, reading=True)) as store:
            state = {
                "status": {**setup.summary(store, running=True), "published": store.head().number, "left_s": left_s},
                "model": {name: getattr(self._gateway.manifest, name) for name in model},
                "rounds": store.rounds()[-ROUNDS_SHOWN:],
                "devices": [{**row, "online": row["id"] in online} for row in setup.device_rows(store)],
                "traffic": traffic,
                "pair": self._pair,
            }
        return json.dumps(_seen(state)).encode()


def _seen(value: Any) -> Any:
    """A document whose texts show all that they are (``protocol.fields.shown``); an older ledger's may not."""
    if isinstance(value, dict):
        return {key: _seen(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_seen(each) for each in value]
    return shown(value) if isinstance(value, str) else value


class Connection(H11Protocol):
    """A browser's connection; one too many closes all others, and who still wants the page opens another."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Called by asyncio."""
        if len(self.connections) >= CONNECTIONS:
            for other in self.connections:
                other.transport.abort()
            self.connections.clear()
        super().connection_made(transport)


async def serve(directory: Path, gateway: Gateway, server: Server, where: tuple[str, int], emit: Emit) -> None:
    """Serve the page at ``where`` (port 0: any free one) until cancelled; emits ``web`` with its uri once it listens.

    Raises: EnvironmentFault when the address cannot be had.
    """
    sock = await _listener(*where)
    host, port = sock.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    config = uvicorn.Config(
        application(View(directory, gateway, server), Hosts(address, where[0])),
        http=Connection,
        backlog=64,  # asyncio accepts as many in one go, before the first of them is counted
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        log_level="error",  # no line for what a stranger sends
        timeout_graceful_shutdown=1,
    )
    http = uvicorn.Server(config)
    http.capture_signals = contextlib.nullcontext  # type: ignore[assignment]  # signals are server.py's
    uri = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    try:
        emit("web", {"uri": uri})  # the socket listens already
        log.info("page uri=%s", uri)
        if not address.is_loopback:
            log.warning("page open to the network, without authentication: uri=%s", uri)
        await http.serve(sockets=[sock])
    finally:
        if http.started:  # cancelled, which uvicorn does not take as a reason to clean up
            http.force_exit = True
            await http.shutdown()
        sock.close()


class Hosts:
    """The Host headers that a page answers to: no name that a stranger can point at it is among them.

    Loopback's names; the name that ``--web`` gave; and the address that it listens at or, where that is any address,
    every address in figures, and this machine's name.
    """

    def __init__(self, address: Address, name: str) -> None:
        self._address = address
        machine = socket.gethostname().lower()
        own = (machine, machine.partition(".")[0] + ".local") if address.is_unspecified else ()
        self._names = {"localhost", name.lower().rstrip("."), *own} - {""}

    def take(self, header: str) -> bool:
        """Is this Host header one of ours? With any port: the page may be reached through a tunnel."""
        name = re.sub(r":\d{1,5}$", "", header.lower())
        if name.rstrip(".") in self._names:
            return True
        try:
            asked = ipaddress.ip_address(name[1:-1] if name.startswith("[") else name)
        except ValueError:
            return False
        return asked.is_loopback or self._address.is_unspecified or asked == self._address


def application(view: View, hosts: Hosts) -> ASGIApp:
    """The ASGI application."""
    page = importlib.resources.files(__package__).joinpath(PAGE).read_text(encoding="utf-8")
    policy = POLICY.format(script=_digest(page, "script"), style=_digest(page, "style"))

    async def answer(request: Request) -> Response:
        if len(request.headers.getlist("host")) != 1 or not hosts.take(request.headers["host"]):
            return PlainTextResponse(
                "this page answers to the addresses and names that it was bound for\n", MISDIRECTED
            )
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("this page is read-only\n", 405, {"allow": "GET, HEAD"})
        match request.scope["path"]:
            case "/":
                return HTMLResponse(page)
            case "/state.json":
                return Response(await view.document(), media_type="application/json")
            case "/healthz":
                return PlainTextResponse("ok")
        return PlainTextResponse("no such page\n", 404)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await answer(Request(scope))
        response.headers.update({**HEADERS, "content-security-policy": policy})
        await response(scope, receive, send)

    return app


def _digest(page: str, element: str) -> str:
    """The one ``element`` of the page as a source of the policy. Source: CSP Level 3, section 2.3.1, hash-source."""
    (text,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


async def _listener(host: str, port: int) -> socket.socket:
    """A listening TCP socket; ``::`` listens for IPv4 too, as the CoAP server does. Raises: EnvironmentFault."""
    try:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, address = found[0][0], found[0][4]
        return socket.create_server(address, family=family, dualstack_ipv6=address[0] == "::")
    except (OSError, UnicodeError) as cause:
        why = getattr(cause, "strerror", None) or str(cause)
        raise EnvironmentFault(
            f"--web: cannot listen on {host} port {port}: {why.partition(' (')[0]}",
            hint="choose an address of this machine and a free port, such as --web 127.0.0.1:8080",
        ) from cause
