# SPDX-License-Identifier: Apache-2.0
"""A short-lived child that asks the network for gateways by DNS-SD and prints a line for each address proposed.

``python -m fl_tiny.device.discover [ADDRESS]``, ADDRESS: of the one interface to ask on. A process of its own, so that
the 17 MiB of zeroconf (measured) go back to the board, and nothing that a hostile answer does to it reaches the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
from typing import Any

from fl_tiny.device.proposals import MOST_TAKEN, Proposal, is_loopback, proposed, to_line
from fl_tiny.net.multicast import opened
from fl_tiny.protocol.announced import SERVICE

LISTEN_S = 4.0  # RFC 6762 section 5.2: questions go out at 0, 1 and 3 s
ANSWER_MS = 2000  # for what a name leaves open
NAMES = 128  # looked at; there may be hundreds
MEMORY_BYTES = 96 << 20  # data of this process; 14 MiB are enough for a quiet network (measured)


def main() -> None:
    """Listen, print, end."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    signal.alarm(round(LISTEN_S) + 2)  # whatever happens
    asyncio.run(_listen(sys.argv[1] if len(sys.argv) > 1 else None))


async def _listen(interface: str | None) -> None:
    from zeroconf import ServiceStateChange  # noqa: PLC0415 - only with the extra
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo  # noqa: PLC0415

    names: set[str] = set()
    lines: set[Proposal] = set()
    asking: set[asyncio.Task[None]] = set()
    loopback = interface is not None and is_loopback(interface)

    async def ask(zeroconf: Any, name: str) -> None:
        with contextlib.suppress(Exception):  # a library with hostile bytes: this answer is passed over
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(zeroconf, ANSWER_MS):
                return
            for proposal in proposed(info.properties, info.parsed_addresses(), info.port, loopback=loopback):
                if proposal not in lines and len(lines) < MOST_TAKEN:
                    lines.add(proposal)
                    print(to_line(proposal), flush=True)

    def changed(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if state_change is ServiceStateChange.Removed or name in names or len(names) >= NAMES:
            return
        names.add(name)
        asking.add(asyncio.ensure_future(ask(zeroconf, name)))

    zeroconf = opened(interface)
    browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[changed])
    await asyncio.sleep(LISTEN_S)
    await browser.async_cancel()
    await zeroconf.async_close()


if __name__ == "__main__":
    main()
