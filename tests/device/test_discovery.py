# SPDX-License-Identifier: Apache-2.0
"""A gateway that has moved, or was never named: which addresses are tried, what may propose them, which one is kept."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import re
import subprocess
import sys
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inprocess import enrolled, running
from responder import answer, answering

from fl_tiny import config, statedir
from fl_tiny.device import find, proposals
from fl_tiny.device.enrol import enrol
from fl_tiny.device.proposals import MOST_TAKEN, MOST_TRIED, OUTPUT_LIMIT, Proposal
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.gateway import setup
from fl_tiny.gateway.announce import announced, interface_of
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.protocol import signed
from fl_tiny.protocol.announced import MOST_MARKS, mark_of, txt_of

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"
HERE = "127.0.0.1"
DEAD = "255.255.255.255:5684"  # the kernel refuses to send there, so that a try costs no time
MARKS = st.sampled_from(["00" * 8, "11" * 8, "22" * 8])
HOSTS = st.one_of(st.ip_addresses().map(str), st.text(max_size=20), st.sampled_from(["224.0.0.1", "fe80::1%3", "::1"]))
PROPOSALS = st.lists(
    st.builds(
        Proposal, st.ip_addresses(v=4).map(str), st.integers(1, 3), st.lists(MARKS, min_size=1, max_size=6).map(tuple)
    ),
    max_size=3 * MOST_TAKEN,
)
TXT = st.dictionaries(
    st.sampled_from([b"fl", b"gw", b"x"]),
    st.one_of(
        st.none(), st.binary(max_size=20), st.just(b"1"), st.just(b"a" * 16), st.just(b"a" * 16 + b"," + b"b" * 16)
    ),
)


@given(PROPOSALS, MARKS, st.integers())
def test_at_most_eight_of_the_proposed_addresses_are_tried_each_once(
    found: list[Proposal], mark: str, seed: int
) -> None:
    failed = found[0].address if found else None
    tried = proposals.in_order(found, mark, failed, random.Random(seed))
    distinct = {p.address for p in found} - {failed}
    assert len(tried) == len(set(tried)) == min(MOST_TRIED, len(distinct))
    assert set(tried) <= distinct
    known = {p.address for p in found if mark in p.marks}
    first = min(MOST_TRIED, len(known - {failed}))
    assert set(tried[:first]) <= known, "the gateway that the device knows comes first"


def test_false_proposals_do_not_keep_the_right_one_out_for_ever() -> None:
    found = [Proposal(f"192.0.2.{n}", 5684, ("00" * 8,)) for n in range(60)]
    looks = [proposals.in_order(found, "00" * 8, None, random.Random(seed)) for seed in range(200)]
    assert all(any(p.address in tried for tried in looks) for p in found)


def test_a_device_that_holds_a_former_key_tries_its_gateway_first() -> None:
    keys = [bytes([n]) * 32 for n in range(9)]
    txt: dict[bytes, bytes | None] = {key.encode(): value.encode() for key, value in txt_of(keys).items()}
    (ours,) = proposals.proposed(txt, ["fd00:1111:2222:3333:4444:5555:6666:7777"], 65_535, loopback=False)
    assert len(proposals.to_line(ours)) <= proposals.LINE_LIMIT
    assert proposals.from_lines(proposals.to_line(ours).encode()) == [ours]
    others = [Proposal(f"192.0.2.{n}", 5684, ("00" * 8,)) for n in range(60)]
    for held in keys[:MOST_MARKS]:
        assert proposals.in_order([*others, ours], mark_of(held), None, random.Random(1))[0] == ours.address


@given(TXT, st.lists(HOSTS, max_size=30), st.one_of(st.none(), st.integers(-1, 70_000)))
def test_an_answer_proposes_addresses_of_hosts_and_few(
    txt: dict[bytes, bytes | None], hosts: list[str], port: int | None
) -> None:
    found = proposals.proposed(txt, hosts, port, loopback=False)
    assert len(found) <= proposals.ADDRESSES
    for proposal in found:
        address = ipaddress.ip_address(proposal.host)
        assert not (address.is_multicast or address.is_loopback or address.is_unspecified)
        assert config.address(proposal.address, 0) == (proposal.host, proposal.port)
        assert proposals.from_lines(proposals.to_line(proposal).encode()) == [proposal]


@given(
    st.one_of(
        st.binary(max_size=2000),
        st.integers(1, 500).map(lambda n: b'["192.0.2.1", 1, "0011223344556677"]\n' * n),
        st.sampled_from([b"[" * 20_000, b'{"a": 1, "b": 2, "c": 3}', b'["\\ud800", 1, "\\ud800"]', b"[1, 2, 3]"]),
    )
)
def test_whatever_the_child_prints_is_read_or_passed_over(output: bytes) -> None:
    assert len(proposals.from_lines(output)) <= MOST_TAKEN


def test_a_gateway_that_nobody_else_can_reach_is_not_announced() -> None:
    found = {bind: interface_of(bind) for bind in ("127.0.0.1:1", "[::1]:1", "localhost:1", "[::]:1", "0.0.0.0:1")}
    assert list(found.values()) == [None, None, None, "", ""]
    assert interface_of("192.0.2.7:5684") == "192.0.2.7"


def test_without_the_library_a_line_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    caplog.set_level(logging.INFO)

    async def never(address: tuple[str, int]) -> None:
        raise AssertionError(address)

    async def both() -> None:
        async with announced("192.0.2.7:1", [bytes(32)], ""):
            await asyncio.sleep(0)
            assert await find.elsewhere("any", None, None, never) is None  # type: ignore[arg-type]

    asyncio.run(both())
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.INFO] == [
        "not announced: zeroconf is not installed",
        "no discovery: zeroconf is not installed, see docs/install.md",
    ]


# ---- over loopback multicast ----------------------------------------------------------------------------------


def looked() -> tuple[list[Proposal], float, int]:
    """What a look on loopback proposes, how long it took, and the child's peak memory in MiB."""
    began, peak_kib = time.monotonic(), 0
    words = [sys.executable, "-m", "fl_tiny.device.discover", HERE]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None:  # what it may print fits into the pipe
            status = Path(f"/proc/{child.pid}/status").read_text()
            peak_kib = max([peak_kib, *map(int, re.findall(r"VmHWM:\s*(\d+)", status))])
            time.sleep(0.05)
        assert child.stdout is not None
        output = child.stdout.read(OUTPUT_LIMIT + 1)
    assert len(output) <= OUTPUT_LIMIT
    return proposals.from_lines(output), time.monotonic() - began, peak_kib // 1024


def test_malformed_answers_and_other_services_are_passed_over() -> None:
    pytest.importorskip("zeroconf")
    right = [b"fl=1", b"gw=0011223344556677"]
    good = answer("right", "127.0.0.5", 5684, right)
    noise = random.Random(1)
    datagrams = [
        b"",
        noise.randbytes(12),
        noise.randbytes(600),
        b"\0\0\x84\0\0\0\xff\xff\0\0\0\0" + b"\xc0\x0c" * 200,  # a name that points at itself
        *(good[:cut] for cut in range(13, len(good), 7)),
        answer("other", "127.0.0.6", 5684, [b"path=/"]),
        answer("newer", "127.0.0.7", 5684, [b"fl=2", b"gw=0011223344556677"]),
        answer("short", "127.0.0.8", 5684, [b"fl=1", b"gw=00"]),
        answer("cast", "224.0.0.1", 5684, right),
        answer("zero", "127.0.0.9", 0, right),
        answer("bytes", "127.0.0.10", 5684, [b"fl=1", b"gw=\xff\xfe", b"=", b"\0"]),
        good,
    ]
    with answering(datagrams):
        found, seconds, _ = looked()
    assert found == [Proposal("127.0.0.5", 5684, ("0011223344556677",))]
    assert seconds < 8


def test_hundreds_of_answers_are_bounded_in_number_time_and_memory() -> None:
    pytest.importorskip("zeroconf")
    flood = [answer(f"g{n}", f"127.1.{n >> 8}.{n & 255}", 5684, [b"fl=1", b"gw=0011223344556677"]) for n in range(600)]
    with answering(flood):
        found, seconds, peak_mib = looked()
    assert 0 < len(found) <= MOST_TAKEN
    assert seconds < 8
    assert peak_mib < 64, f"{peak_mib} MiB"


@pytest.mark.slow
def test_a_device_finds_its_gateway_without_an_address_and_again_after_it_moved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside it another fleet's gateway lies: it gives itself out for ours. The key decides, and what is proposed is
    kept only once there was a session; a configured address stays."""
    pytest.importorskip("zeroconf")
    caplog.set_level(logging.INFO)
    ours, other, device = tmp_path / "ours", tmp_path / "other", tmp_path / "device"
    for gw in (ours, other):
        setup.initialise(gw, MODEL, None, Wanted(None))
    pk = signed.public_key(statedir.read_secret(ours, setup.GATEWAY_KEY))
    statedir.create(device)
    (device / statedir.SETTINGS).write_text(f'discovery = "{HERE}"\n')
    code = setup.new_codes(ours, 1, 600)[0]

    async def story() -> None:
        async with AsyncExitStack() as stack:
            _, right = await stack.enter_async_context(running(ours))
            _, false = await stack.enter_async_context(running(other))
            for server in (false, right):
                await stack.enter_async_context(announced(f"{HERE}:{server.port}", [pk], HERE))
            await asyncio.sleep(1.5)
            done = await enrol(device, code, None, None)
            assert done.gateway == f"{HERE}:{right.port}"
            await moved(right.port)

    async def moved(right: int) -> None:
        with closing(DeviceStore.open(device / statedir.DATABASE)) as store:
            settings = config.load(device / statedir.SETTINGS, config.DeviceSettings)
            store.put(gateway=DEAD)
            for _ in range(find.TRIES - 1):
                with pytest.raises((EnvironmentFault, RemoteError)):
                    await find.open_link(device, store, settings)
                assert store.get("gateway") == DEAD
            link, where = await find.open_link(device, store, settings)
            await link.close()
            assert where == store.get("gateway") == f"{HERE}:{right}"
            assert f"proposal fails gateway={HERE}:{right}" not in caplog.text
            configured = config.DeviceSettings(gateway=DEAD, discovery=HERE)
            for _ in range(find.TRIES - 1):
                with pytest.raises((EnvironmentFault, RemoteError)):
                    await find.open_link(device, store, configured)
            link, where = await find.open_link(device, store, configured)
            await link.close()
            assert where == f"{HERE}:{right}"
            assert store.get("missed") == find.TRIES, "the configured one gets one try from now on"

    asyncio.run(story())
    assert "discovery" in (device / statedir.SETTINGS).read_text()
    assert "gateway" not in (device / statedir.SETTINGS).read_text()


def test_a_device_whose_only_proposals_are_false_keeps_the_address_it_has(tmp_path: Path) -> None:
    pytest.importorskip("zeroconf")
    ours, other, device = tmp_path / "ours", tmp_path / "other", tmp_path / "device"
    for gw in (ours, other):
        setup.initialise(gw, MODEL, None, Wanted(None))
    pk = signed.public_key(statedir.read_secret(ours, setup.GATEWAY_KEY))

    async def story() -> None:
        async with running(ours) as (_, right):
            await enrolled(ours, right.port, device)
        async with running(other) as (_, false), announced(f"{HERE}:{false.port}", [pk], HERE):
            await asyncio.sleep(1.5)
            with closing(DeviceStore.open(device / statedir.DATABASE)) as store:
                store.put(gateway=DEAD, missed=find.TRIES)
                with pytest.raises((EnvironmentFault, RemoteError), match="255"):
                    await find.open_link(device, store, config.DeviceSettings(discovery=HERE))
                assert store.get("gateway") == DEAD

    asyncio.run(story())
