# SPDX-License-Identifier: Apache-2.0
"""A whole gateway in the test's own process: real store, real DTLS, a port of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fl_tiny import statedir
from fl_tiny.device.enrol import enrol
from fl_tiny.gateway import setup
from fl_tiny.gateway.models import Models
from fl_tiny.gateway.resources import Resources
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.store import Store
from fl_tiny.net.coap import Limits, Server
from fl_tiny.protocol import wire
from fl_tiny.protocol.rounds import RoundSettings


@contextlib.asynccontextmanager
async def running(gw: Path) -> AsyncIterator[tuple[Gateway, Server]]:
    """The gateway of DIR, without its rounds."""
    store = Store.open(gw / statedir.DATABASE)
    seed = statedir.read_secret(gw, setup.GATEWAY_KEY)
    gateway = Gateway(store, Models(store, gw, seed), seed, RoundSettings(), wire.Train(1, 16), 100)
    resources = Resources(gateway)
    limits = Limits(pairings_per_s=1000.0, handshakes_per_s=1000)
    wrong = gateway.identities.wrong_key
    server = await Server.start(resources.handle, resources.key_of, "127.0.0.1:0", limits=limits, on_wrong_key=wrong)
    gateway.identities.cut = lambda who: server.drop_identity(who.text)
    try:
        yield gateway, server
    finally:
        await server.close()
        if server.fault.done() and not server.fault.cancelled():
            server.fault.exception()  # the test has seen what came of it
        gateway.uploads.save()
        store.close()


async def enrolled(gw: Path, port: int, device: Path) -> bytes:
    """A device of this gateway, over a port that leads to it; its id."""
    code = setup.new_codes(gw, 1, 600)[0]
    return bytes.fromhex((await enrol(device, code, f"127.0.0.1:{port}", None)).id)
