# SPDX-License-Identifier: Apache-2.0
"""What we rely on inside aiocoap, and what never reaches it."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version

import aiocoap
import pytest
from aiocoap.messagemanager import MessageManager
from aiocoap.numbers.contentformat import ContentFormat
from aiocoap.numbers.optionnumbers import OptionNumber
from aiocoap.tokenmanager import TokenManager
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.net import transport
from fl_tiny.net.sieve import KNOWN, is_request, sift


def test_aiocoap_is_the_version_whose_inside_we_know() -> None:
    assert version("aiocoap").split(".")[:3] == ["0", "4", "17"], "read transport.attach and ask again, line by line"


def test_the_private_hook_of_aiocoap_is_as_we_use_it() -> None:
    hook = aiocoap.Context._append_tokenmanaged_messagemanaged_transport
    assert inspect.iscoroutinefunction(hook)
    assert list(inspect.signature(hook).parameters) == ["self", "message_interface_constructor"]
    assert list(inspect.signature(MessageManager._deduplicate_message).parameters) == ["self", "message"]
    assert list(inspect.signature(MessageManager.dispatch_error).parameters) == ["self", "error", "remote"]
    assert list(inspect.signature(TokenManager.request).parameters) == ["self", "request"]
    assert "if self._deduplicate_message(message) is True:" in inspect.getsource(MessageManager.dispatch_message)


def test_a_request_passes_through_the_hook_and_back() -> None:
    async def test() -> None:
        async def answer(asked: aiocoap.Message) -> aiocoap.Message:
            return transport.message(69, b"seen " + asked.payload, timing)

        timing = transport.Timing()
        upper, up = await transport.attach(answer)
        lower, down = await transport.attach()
        soon = asyncio.get_running_loop().call_soon
        there = transport.Remote(lambda data: soon(down.receive, here, data), "client")
        here = transport.Remote(lambda data: soon(up.receive, there, data), "server")
        got, _ = transport.ask(lower, transport.message(2, b"this", timing, here))
        assert (await asyncio.wait_for(got, 2)).payload == b"seen this"
        waiting, _ = transport.ask(lower, transport.message(2, b"late", timing, here))
        await asyncio.sleep(0)
        down.gone(here, "gone")
        with pytest.raises(transport.CoapError):
            await waiting
        for context in (upper, lower):
            await context.shutdown()

    asyncio.run(test())


def encoded(code: int, options: list[tuple[int, bytes]], payload: bytes = b"", token: bytes = b"tk") -> bytes:
    """A confirmable message written by aiocoap."""
    made = aiocoap.Message(code=code, payload=payload, _mtype=0, _mid=7, _token=token)
    for number, value in options:
        made.opt.add_option(aiocoap.optiontypes.OpaqueOption(OptionNumber(number), value))
    return bytes(made.encode())


KNOWN_OPTIONS = st.sampled_from(sorted(KNOWN)).flatmap(
    lambda number: st.tuples(st.just(number), st.binary(max_size=min(KNOWN[number], 1 if number in (12, 17) else 300)))
)
ELECTIVE = st.tuples(st.sampled_from([2, 10, 18, 100, 252, 292, 2048, 65000]), st.binary(max_size=300))


@given(st.lists(KNOWN_OPTIONS, max_size=10), st.lists(ELECTIVE, max_size=5), st.binary(max_size=50))
def test_unknown_elective_options_vanish_and_nothing_else_does(
    known: list[tuple[int, bytes]], elective: list[tuple[int, bytes]], payload: bytes
) -> None:
    clean = encoded(1, known, payload)
    assert sift(clean) == (clean, b"")
    assert sift(encoded(1, known + elective, payload)) == (clean, b"")


@given(st.lists(KNOWN_OPTIONS, max_size=5), st.sampled_from([1, 5, 9, 13, 35, 39, 2049, 65001]))
def test_an_unknown_critical_option_is_answered_4_02_in_an_acknowledgement(
    known: list[tuple[int, bytes]], critical: int
) -> None:
    message = encoded(1, [*known, (critical, b"x")])
    assert sift(message) == (b"", b"\x62\x82\0\x07tk")
    assert sift(bytes([message[0] | 0x10]) + message[1:]) == (b"", b"")  # non-confirmable: silence
    assert sift(message[:1] + b"\x45" + message[2:]) == (b"", b"")  # a response: silence


@given(st.binary(max_size=120))
def test_noise_is_sifted_without_error_and_what_passes_can_be_decoded_or_is_no_text(noise: bytes) -> None:
    for message in (noise, b"\x42\x01\0\x01tk" + noise):
        clean, _ = sift(message)
        if not clean:
            continue
        assert sift(clean) == (clean, b"")
        try:
            decoded = aiocoap.Message.decode(clean)
        except ValueError as e:
            assert isinstance(e, UnicodeDecodeError)
            continue
        assert is_request(clean) == decoded.code.is_request()


def test_no_number_a_peer_sends_stays_in_aiocoaps_tables() -> None:
    async def test() -> None:
        async def answer(asked: aiocoap.Message) -> aiocoap.Message:
            return transport.message(69, b"", transport.Timing())

        context, interface = await transport.attach(answer)
        remote = transport.Remote(lambda data: None, "peer")
        interface.receive(remote, encoded(1, [(12, b"\x2a")]))
        sizes = len(OptionNumber._value2member_map_), len(ContentFormat._value2member_map_)
        for n in range(1024, 5000):
            interface.receive(remote, encoded(1, [(12, n.to_bytes(2, "big"))]))
        message = b"\x40\x01\0\1" + b"\xe0" + (2000).to_bytes(2, "big")
        for n in range(2000):
            interface.receive(remote, message[:5] + (n * 2).to_bytes(2, "big"))
        assert sizes == (len(OptionNumber._value2member_map_), len(ContentFormat._value2member_map_))
        await asyncio.sleep(0.01)
        interface.gone(remote, "end")
        await context.shutdown()

    asyncio.run(test())
