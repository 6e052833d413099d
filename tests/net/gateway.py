# SPDX-License-Identifier: Apache-2.0
"""A small gateway in a process of its own, to be killed: ``gateway.py PORT`` prints its port and serves."""

from __future__ import annotations

import asyncio
import sys

from fl_tiny.net.coap import Request, Response, Server

KEY = bytes(range(1, 33))


async def answer(request: Request) -> Response:
    return Response("2.05", b" ".join((request.identity.encode(), request.method.encode(), request.payload)), 0)


async def main() -> None:
    server = await Server.start(answer, lambda identity: KEY, f"127.0.0.1:{sys.argv[1]}")
    print(server.port, flush=True)
    await server.fault


if __name__ == "__main__":
    asyncio.run(main())
