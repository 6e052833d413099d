# SPDX-License-Identifier: Apache-2.0
"""The socket that programs connect to: bounded in connections, in the size of a message and in its time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from fl_tiny.device.sources import messages
from fl_tiny.errors import DataError, EnvironmentFault, MalformedMessage
from fl_tiny.protocol.fields import cut_text

log = logging.getLogger(__name__)

CONNECTIONS = 8
MESSAGE_S = 30.0  # from its length to its end
Handle = Callable[[messages.Request], Awaitable[messages.Answer]]


@contextlib.asynccontextmanager
async def listening(path: Path, handle: Handle) -> AsyncIterator[None]:
    """Serve within the block. Who may connect is said by the socket's mode, 0660, and its directory's.

    Raises: EnvironmentFault when the socket cannot be made.
    """
    open_now: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(open_now) >= CONNECTIONS:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        open_now.add(task)
        try:
            await _serve(reader, writer, handle)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, asyncio.CancelledError):
            pass  # the program is gone, is too slow, or we are
        finally:
            open_now.discard(task)
            writer.close()

    try:
        path.unlink(missing_ok=True)  # of a service that was killed; a live one holds DIR's lock
        server = await asyncio.start_unix_server(connected, path)
        path.chmod(0o660)
    except OSError as fault:
        raise EnvironmentFault(f"{path}: {fault.strerror}", hint="is its directory there?") from fault
    try:
        yield
    finally:
        server.close()
        for task in open_now:
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)
        path.unlink(missing_ok=True)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handle) -> None:
    while True:
        head = await reader.readexactly(messages.LENGTH.size)
        size = messages.LENGTH.unpack(head)[0]
        if size > messages.LIMIT:
            writer.write(messages.framed(_refusal(f"a message of {size} B, at most {messages.LIMIT}")))
            await writer.drain()
            return  # what follows cannot be told apart
        data = await asyncio.wait_for(reader.readexactly(size), MESSAGE_S)
        try:
            answer = await handle(messages.request_of(data))
        except (DataError, MalformedMessage) as fault:
            answer = _refusal(str(fault))
        except EnvironmentFault as fault:
            log.warning("request waits why=%r", str(fault))
            answer = messages.Answer(messages.LATER, why=_short(str(fault)))
        writer.write(messages.framed(answer))
        await writer.drain()


def _refusal(why: str) -> messages.Answer:
    return messages.Answer(messages.REFUSED, why=_short(why))


def _short(why: str) -> str:
    return cut_text(why, 1000)
