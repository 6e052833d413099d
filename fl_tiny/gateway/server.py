# SPDX-License-Identifier: Apache-2.0
"""The gateway daemon: one store, one service, one CoAP server, and the operator's page when it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_tiny import config, notify, statedir
from fl_tiny.errors import ConfigError
from fl_tiny.gateway import keys
from fl_tiny.gateway.announce import announced, interface_of
from fl_tiny.gateway.budget import Quiet
from fl_tiny.gateway.encodings import Encodings
from fl_tiny.gateway.gather import ExactOptions
from fl_tiny.gateway.models import Models
from fl_tiny.gateway.resources import Resources
from fl_tiny.gateway.service import Emit, Gateway
from fl_tiny.gateway.setup import hint_address
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.strategies import strategy_named
from fl_tiny.net.coap import Limits, Server
from fl_tiny.protocol.rounds import RoundSettings
from fl_tiny.protocol.strategy import Options
from fl_tiny.protocol.wire import Train

log = logging.getLogger(__name__)

MAX_SESSIONS = 8192  # 64 KB each; only enrolled devices get that far, one session each


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says of a run; None leaves it to DIR/fl-tiny.toml."""

    bind: str | None = None
    web: str | None = None
    rounds: int | None = None
    clients: int | None = None
    quorum: float | None = None
    deadline: float | None = None
    interval: float | None = None
    start: str | None = None
    strategy: str | None = None
    encoding: str | None = None


def run(directory: Path, options: RunOptions, emit: Emit) -> bool:
    """Serve DIR's fleet until ``options.rounds`` heads are published in all, or until a signal.

    True: the rounds are done or SIGTERM came.  Raises: ConfigError, EnvironmentFault, KeyboardInterrupt.
    """
    chosen: dict[str, Any] = {
        key: value
        for key in ("bind", "web", "clients", "quorum", "deadline", "interval", "start", "strategy", "encoding")
        if (value := getattr(options, key)) is not None
    }
    config.check(chosen, config.GatewaySettings, "command line")
    settings = replace(config.load(directory / statedir.SETTINGS, config.GatewaySettings), **chosen)
    if settings.clients is not None and (settings.min_updates or 0) > settings.clients:
        raise ConfigError(
            f"min_updates = {settings.min_updates} is above clients = {settings.clients}",
            hint="a round closes with `clients` updates: ask for as many or more",
        )
    settings = replace(settings, bind=_bound(settings.bind, config.address(settings.bind, 5684)[1]))
    store = Store.open(directory / statedir.DATABASE)
    statedir.check_modes(directory)
    with statedir.locked(directory):
        return asyncio.run(_serve(directory, store, settings, options.rounds, emit))


async def _serve(
    directory: Path, store: Store, settings: config.GatewaySettings, total: int | None, emit: Emit
) -> bool:
    keys.finish(directory, store)
    seed = keys.seed_of(directory, store)
    gateway = Gateway(
        store,
        Models(store, directory, seed),
        seed,
        RoundSettings(
            settings.clients,
            settings.quorum,
            settings.deadline,
            settings.interval,
            settings.over_selection,
            settings.min_updates,
        ),
        _train(settings),
        settings.max_samples,
        ExactOptions(settings.start == "exact", settings.min_samples),
        strategy_named(settings.strategy, Options(settings.server_rate, settings.server_momentum, settings.proximal)),
        Encodings(settings.encoding, settings.kept),
    )

    def say(event: str, facts: dict[str, Any]) -> None:
        if event == "round":
            notify.status(f"round {facts['number']} {facts['state']}")
        emit(event, facts)

    resources = Resources(gateway)
    limits = Limits(
        handshakes_per_s=settings.handshakes_per_s, pairings_per_s=settings.handshakes_per_s, sessions=MAX_SESSIONS
    )
    if settings.constrained_peers:
        log.warning("constrained peers: PSK-AES128-CCM8 is served, which needs OpenSSL's security level 0")
    server = await Server.start(
        resources.handle,
        resources.key_of,
        settings.bind,
        limits=limits,
        constrained_peers=settings.constrained_peers,
        on_wrong_key=gateway.identities.wrong_key,
        body_bytes=resources.body_bytes,
        on_busy=resources.put_off,
        burst=resources.burst,
    )
    quiet = Quiet()
    for handler in logging.getLogger().handlers:
        handler.addFilter(quiet)

    gateway.emit, gateway.published = say, server.changed
    gateway.identities.cut = lambda who: server.drop_identity(who.text)
    web = None
    try:
        store.put(uri=server.uri, bound=_bound(settings.bind, server.port))
        if settings.web:
            web = asyncio.create_task(_serve_web(directory, gateway, server, settings.web, emit))
            await asyncio.sleep(0)
        stop = _stopped()  # before anybody knows that we run
        emit("listening", {"uri": server.uri})
        log.info("listening uri=%s", server.uri)
        async with notify.serving(f"listening at {server.uri}"), _announced(directory, store, settings):
            return await _until_done(gateway.run(total), stop, [server.fault, *([web] if web else [])])
    finally:
        if web:
            web.cancel()
        resources.close()
        gateway.save_all()
        await server.close()
        store.close()


def _announced(
    directory: Path, store: Store, settings: config.GatewaySettings
) -> contextlib.AbstractAsyncContextManager[None]:
    interface = interface_of(settings.bind) if settings.announce else None
    if interface is None:
        return contextlib.nullcontext()
    return announced(hint_address(directory, store), keys.public_keys(store), interface)


def _train(settings: config.GatewaySettings) -> Train:
    """What devices are told of training; what is off stays out of the offer."""
    return Train(
        settings.epochs,
        settings.batch,
        None if settings.find_rate else settings.rate,
        None,
        settings.smoothing or None,
        1 if settings.balanced else None,
        settings.patience,
        1 if settings.adam else None,
    )


def _stopped() -> asyncio.Future[int]:
    """The number of the first SIGTERM or SIGINT from now on."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def stopped(number: int) -> None:
        if not stop.done():
            stop.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped, number)
    return stop


async def _until_done(work: Any, stop: asyncio.Future[int], beside: list[asyncio.Future[None]]) -> bool:
    """Wait for the rounds, SIGTERM (True) or SIGINT (KeyboardInterrupt); a fault of what runs beside ends it too."""
    running = asyncio.ensure_future(work)
    try:
        await asyncio.wait([running, stop, *beside], return_when=asyncio.FIRST_COMPLETED)
        if stop.done() and stop.result() == signal.SIGINT:
            raise KeyboardInterrupt
        for task in (*beside, running):
            if task.done():
                task.result()
        return True
    finally:
        running.cancel()


async def _serve_web(directory: Path, gateway: Gateway, server: Server, bind: str, emit: Emit) -> None:
    try:
        from fl_tiny.gateway import web  # noqa: PLC0415 - only with the extra
    except ImportError as cause:
        raise ConfigError(
            f"--web needs {cause.name}, which is not installed", hint="pip install 'fl-tiny[gateway]'"
        ) from cause
    await web.serve(directory, gateway, server, config.address(bind, 8080), emit)


def _bound(bind: str, port: int) -> str:
    host = config.address(bind, port)[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
