# SPDX-License-Identifier: Apache-2.0
"""Our DTLS sessions as an aiocoap transport; the only module that imports aiocoap, and where its traps are closed."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

# aiocoap carries no type information.
from aiocoap import Context, Message  # type: ignore[import-untyped]
from aiocoap.error import Error as CoapError  # type: ignore[import-untyped]
from aiocoap.error import NetworkError, UnparsableMessage
from aiocoap.interfaces import EndpointAddress, MessageInterface  # type: ignore[import-untyped]
from aiocoap.numbers.constants import TransportTuning  # type: ignore[import-untyped]
from aiocoap.pipe import Pipe  # type: ignore[import-untyped]

from fl_tiny.net.sieve import is_confirmable, is_request, message_id, sift

__all__ = ["CoapError", "Interface", "Remote", "Timing", "ask", "attach", "message"]

RECENT = 32  # requests a session whose answers are kept for duplicates, without a timer each
RECENT_BYTES = 256  # longer answers are not kept: every request is idempotent and is served again
ACK_TIMEOUT_S, LAN_ACK_TIMEOUT_S = 2.0, 0.3
LOGGER = "fl_tiny.net.aiocoap"


Answer = Callable[[Message], Awaitable[Message]]
Later = Callable[[Message], AsyncIterator[Message]]


class Timing(TransportTuning):  # type: ignore[misc]
    """RFC 7252's transmission parameters; the acknowledgement time-out is a LAN's if asked, or as it was measured."""

    def __init__(self, lan_timing: bool = False, confirmable: bool | None = None, measured_s: float = 60.0) -> None:
        self.reliability = confirmable
        self.ACK_TIMEOUT: float = min(LAN_ACK_TIMEOUT_S if lan_timing else ACK_TIMEOUT_S, measured_s)


class Remote(EndpointAddress):  # type: ignore[misc]
    """The peer of one DTLS session, to aiocoap; a new session is another remote (RFC 7252 section 9.1.2)."""

    scheme = "coaps"
    hostinfo = hostinfo_local = ""
    is_multicast = is_multicast_locally = False

    def __init__(self, write: Callable[[bytes], None], host: str, session: object = None) -> None:
        self.write = write
        self.session = session  # a server's handle of it, for the handler
        self.open = True
        self.hostinfo = self.hostinfo_local = host
        self.recent: OrderedDict[int, bytes | None] = OrderedDict()  # message ID -> answer, None while there is none

    @property
    def uri_base(self) -> str:
        return f"coaps://{self.hostinfo}"

    uri_base_local = uri_base

    @property
    def blockwise_key(self) -> object:
        return self

    def is_repeated(self, data: bytes) -> bool:
        """Whether a request was seen before on this session; a kept answer is then sent again."""
        mid = message_id(data)
        if mid in self.recent:
            answer = self.recent[mid]
            if answer is not None and is_confirmable(data):
                self.write(answer)
            return True
        self.recent[mid] = None
        if len(self.recent) > RECENT:
            self.recent.popitem(last=False)
        return False

    def remember(self, answer: bytes) -> None:
        """Keep an acknowledgement for repetitions of the request it belongs to, or forget the request if it is long."""
        mid = message_id(answer)
        if mid not in self.recent:
            return
        if len(answer) <= RECENT_BYTES:
            self.recent[mid] = answer
        else:
            del self.recent[mid]


class Interface(MessageInterface):  # type: ignore[misc]
    """Messages of aiocoap as plaintext of DTLS sessions, and back."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def receive(self, remote: Remote, data: bytes) -> bool:
        """Whether one decrypted message could be read; anything else is dropped."""
        known, answer = sift(data)
        if answer:
            remote.write(answer)
        if not known:
            return False
        if is_request(known) and remote.is_repeated(known):
            return True
        try:
            parsed = Message.decode(known, remote)
        except (UnparsableMessage, ValueError):  # ValueError: 41fe41fe0131d7 raises UnicodeDecodeError in 0.4.17
            return False
        self._manager.dispatch_message(parsed)
        return True

    def gone(self, remote: Remote, why: str) -> None:
        """Forget everything that waits for a session that has ended."""
        if remote.open:
            remote.open = False
            remote.recent.clear()
            self._manager.dispatch_error(NetworkError(why), remote)

    def send(self, message: Message) -> None:
        data = message.encode()
        if data[0] >> 4 & 3 == 2:  # acknowledgement
            message.remote.remember(data)
        if message.remote.open:
            message.remote.write(data)

    async def recognize_remote(self, remote: object) -> bool:
        return isinstance(remote, Remote) and remote.open

    async def determine_remote(self, message: Message) -> None:
        """None: a request names its session as remote, no address leads to one."""

    async def shutdown(self) -> None:
        """Nothing: the sessions belong to the endpoint."""


class Site:
    """aiocoap's serversite: every request goes to one function, and another tells what an answer has become since."""

    def __init__(self, answer: Answer, later: Later | None) -> None:
        self._answer, self._later = answer, later

    async def render_to_pipe(self, pipe: Any) -> None:
        first = await self._answer(pipe.request)
        if self._later is None or first.opt.observe is None:
            pipe.add_response(first, is_last=True)
            return
        pipe.add_response(first)
        async for message in self._later(pipe.request):
            pipe.add_response(message, is_last=message.opt.observe is None)


async def attach(answer: Answer | None = None, later: Later | None = None) -> tuple[Context, Interface]:
    """A context of aiocoap over an interface of ours, a server's if it has an ``answer``.

    later: what follows an answer with the option Observe, until one without it.
    This function holds all that is private to aiocoap: the hook that adds a transport, and the table of duplicates,
    which keeps 2.1 KB a request for 247 s and after 65,536 of them gives stale answers. ``Remote.recent`` replaces it.
    """
    logging.getLogger(LOGGER).setLevel(logging.CRITICAL)  # aiocoap logs a line for each odd message of a peer
    context = Context(
        loop=asyncio.get_running_loop(), serversite=None if answer is None else Site(answer, later), loggername=LOGGER
    )
    made: list[Interface] = []

    async def construct(manager: Any) -> Interface:
        assert callable(manager._deduplicate_message), "aiocoap has another table of duplicates"
        manager._deduplicate_message = lambda message: False
        made.append(Interface(manager))
        return made[0]

    await context._append_tokenmanaged_messagemanaged_transport(construct)
    return context, made[0]


def ask(context: Context, request: Message) -> tuple[asyncio.Future[Message], Callable[[], None]]:
    """The answer to come, and a call that gives up waiting. Raises, by the future: CoapError.

    Not by ``Context.request``: in 0.4.17 its future, cancelled in the same step of the loop in which the session ends,
    raises InvalidStateError inside ``dispatch_error``, and the session's other requests hang. It costs a task, too.
    """
    pipe = Pipe(request, context.log)
    answer: asyncio.Future[Message] = context.loop.create_future()

    def on_event(event: Any) -> bool:
        if answer.done():
            return False
        if event.message is not None:
            answer.set_result(event.message)
        else:
            answer.set_exception(event.exception)
        return False

    give_up = pipe.on_event(on_event)
    context.request_interfaces[0].request(pipe)
    return answer, give_up


def message(code: int, payload: bytes, timing: Timing, remote: Remote | None = None, **options: object) -> Message:
    """A message of aiocoap; options that are None are left out."""
    made = Message(code=code, payload=payload, transport_tuning=timing)
    made.remote = remote
    for name, value in options.items():
        if value is not None:
            setattr(made.opt, name, value)
    return made
