# SPDX-License-Identifier: Apache-2.0
"""What an identity may take: token buckets, verdicts on messages, clients that meet no bound or wait as told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from dtls_pair import KEY
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.net.buckets import Buckets
from fl_tiny.net.budget import TOLD, TOLD_PER_S, Budget, Verdict
from fl_tiny.net.coap import Client, Limits, Request, Response, Server
from fl_tiny.net.door import SHARE, Shares

TIMES = st.lists(st.floats(0, 2), min_size=1, max_size=200)


@settings(max_examples=100)
@given(TIMES, st.floats(0.5, 50), st.floats(1, 50))
def test_a_bucket_gives_its_content_and_its_rate_and_says_when_there_is_more(
    pauses: list[float], per_s: float, most: float
) -> None:
    buckets, now, taken = Buckets(per_s, most), 0.0, 0
    for pause in pauses:
        now += pause
        wait_s = buckets.take("a", now)
        taken += not wait_s
        assert taken <= most + per_s * now + 1e-6
        if wait_s:
            now += wait_s + 1e-6
            assert not buckets.take("a", now), "the wait was long enough"
            taken += 1


@given(st.lists(st.integers(0, 50), max_size=200))
def test_buckets_are_bounded_in_number_and_each_name_has_its_own(names: list[int]) -> None:
    buckets = Buckets(1.0, 1.0, names=8)
    for name in names:
        buckets.take(name, 0.0)
        assert len(buckets) <= 8
    assert not buckets.take("new", 0.0)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 0.1), st.integers(0, 3)), max_size=300), st.sampled_from([1.0, 8.0, 50.0]))
def test_no_address_takes_from_another_what_it_is_sure_of(steps: list[tuple[float, int]], per_s: float) -> None:
    """A flood from one address at every step; three others ask for no more than their shares, and get them."""
    shares, now, last = Shares(per_s), 0.0, [-1e9] * 4
    for pause, other in steps:
        now += pause
        for _ in range(40):
            shares.admits("192.0.2.9", now)
        if other and now >= last[other] + SHARE / per_s + 1e-6:
            last[other] = now
            assert shares.admits(f"192.0.2.{other}", now)


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 60)), max_size=60))
def test_an_identity_gets_its_budget_is_told_so_often_and_then_not_heard(bursts: list[tuple[float, int]]) -> None:
    budget, now, count = Budget(10.0, 20.0), 0.0, dict.fromkeys(Verdict, 0)
    for pause, messages in bursts:
        now += pause
        for _ in range(messages):
            count[budget.judge("greedy", now)] += 1
        assert budget.judge("other", now) is Verdict.SERVE or pause < 0.1
        assert count[Verdict.SERVE] <= 20 + 10 * now + 1e-6
        assert count[Verdict.PUT_OFF] <= TOLD + TOLD_PER_S * now + 1e-6


async def served(limits: Limits, burst: Callable[[], float] | None) -> tuple[list[str], float]:
    """3,000 requests of one client, in a body each way: who was put off, and the seconds it took."""
    body, came, told = bytes(1_500_000), bytearray(1_500_000), list[str]()

    async def answer(request: Request) -> Response:
        if request.method == "GET":
            return Response("2.05", body, etag=b"e")
        at = int(request.path[1])
        came[at : at + len(request.payload)] = request.payload
        return Response("2.04")

    note = lambda identity, seconds: told.append(identity)  # noqa: E731
    server = await Server.start(answer, {"dev": KEY}.get, "127.0.0.1:0", limits=limits, burst=burst, on_busy=note)
    client = await Client.connect("127.0.0.1", server.port, "dev", KEY)
    began = asyncio.get_running_loop().time()
    try:
        assert await client.fetch_whole(("m",), len(body)) == body
        await client.put_all(lambda at: ("u", str(at)), b"x" * len(body), 42, held=b"", check=lambda answer: None)
        assert came == b"x" * len(body)
    finally:
        took = asyncio.get_running_loop().time() - began
        await client.close()
        await server.close()
    return told, took


def test_bodies_at_full_speed_never_meet_the_budget() -> None:
    told, _ = asyncio.run(served(Limits(), None))
    assert told == []


def test_a_client_that_spends_its_budget_waits_as_told_and_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_tiny.net.server.BUSY_S", 1)
    told, took = asyncio.run(served(Limits(requests_per_s=400.0), lambda: 1000.0))
    assert 0 < len(told) < 16 * took + 64 and took > (3000 - 1000) / 400 - 1


def test_one_identity_has_no_more_than_its_part_of_the_handlers() -> None:
    async def test() -> None:
        at_work, most = 0, 0

        async def slow(request: Request) -> Response:
            nonlocal at_work, most
            at_work += 1
            most = max(most, at_work)
            await asyncio.sleep(0.5)
            at_work -= 1
            return Response("2.04")

        told: list[str] = []
        note = lambda identity, seconds: told.append(identity)  # noqa: E731
        lookup = {"greedy": KEY, "dev": KEY}.get
        server = await Server.start(slow, lookup, "127.0.0.1:0", on_busy=note)
        clients = [await Client.connect("127.0.0.1", server.port, who, KEY) for who in ("greedy", "dev")]
        pieces = b"x" * (1024 * 40)
        greedy = asyncio.create_task(
            clients[0].put_all(lambda at: ("u", str(at)), pieces, 42, held=b"", check=lambda answer: None)
        )
        await asyncio.sleep(0.1)
        assert (await clients[1].request("POST", ("d",), b"x")).code == "2.04" and most <= 33
        await greedy
        for client in clients:
            await client.close()
        await server.close()

    asyncio.run(test())
