# SPDX-License-Identifier: Apache-2.0
"""Chunks in any order, with gateways that end between any two of them."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.gateway import uploads
from fl_tiny.gateway.chunks import GROUP, Chunks
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.uploads import Uploads
from fl_tiny.protocol.wire import UNIT, name_of

DID, RID, SIZE = b"d" * 16, b"r" * 8, 3000
CODES = bytes(range(250)) * 12
UNITS = -(-SIZE // UNIT)
DIGEST = hashlib.sha256(CODES).digest()
SID = name_of(DIGEST)


def opened(path: Path, rid: bytes = RID) -> tuple[Store, Uploads]:
    store = Store.open(path)
    made = Uploads(Chunks(store))
    made.begin(rid, SIZE)
    return store, made


def held(of: Uploads) -> set[int]:
    bitmap = of.held(DID, SID, b"s" * 8).bitmap
    return {unit for unit in range(8 * len(bitmap)) if bitmap[unit // 8] >> unit % 8 & 1}


@settings(max_examples=25)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, UNITS + 2), st.integers(1, 1200)),
            st.tuples(st.just("wrong"), st.integers(0, UNITS - 1), st.integers(1, 4)),
            st.tuples(st.just("restart"), st.just(0), st.just(0)),
        ),
        max_size=30,
    )
)
def test_what_is_held_is_what_came_restarts_or_not(steps: list[tuple[str, int, int]]) -> None:
    async def test(path: Path) -> None:
        Store.create(path).close()
        store, made = opened(path)
        came: set[int] = set()
        for what, unit, length in steps:
            at = unit * UNIT
            body = CODES[at : at + (length if what == "put" else length * UNIT)]
            units = set(range(unit, unit + -(-len(body) // UNIT)))
            if what == "restart":
                made.held(DID, SID, b"s" * 8)  # what was said to be held must be there again
                store.close()
                store, made = opened(path)
            elif what == "wrong":
                if units & came and len(body) % UNIT == 0:
                    with pytest.raises(RemoteError, match="other bytes"):
                        made.put(DID, SID, unit, bytes(b ^ 1 for b in body))
            elif body and (len(body) % UNIT == 0 or at + len(body) == SIZE):
                made.put(DID, SID, unit, body)
                came |= units
            else:
                with pytest.raises(RemoteError):
                    made.put(DID, SID, unit, body)
            assert held(made) == came
        assert (made.whole(DID, DIGEST, SIZE) == CODES) == (len(came) == UNITS)
        store.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(test(Path(directory) / "state.db"))


def rows(store: Store) -> int:
    return int(store.rows("SELECT count(*) FROM chunk")[0][0])


def test_chunks_are_written_in_groups_and_soon_and_go_with_their_upload(tmp_path: Path) -> None:
    async def test() -> None:
        Store.create(tmp_path / "state.db").close()
        store, made = opened(tmp_path / "state.db")
        for unit in range(GROUP + 1):
            made.put(DID, SID, unit, CODES[unit * UNIT : (unit + 1) * UNIT])
        assert rows(store) == GROUP
        await asyncio.sleep(0.15)
        assert rows(store) == GROUP + 1
        made.put(DID, name_of(b"another upload of the same device"), 0, CODES[:UNIT])
        await asyncio.sleep(0.15)
        assert rows(store) == 1
        made.clear()
        assert rows(store) == 0
        made.put(DID, SID, 0, CODES[:UNIT])
        made.save()
        store.close()
        store, made = opened(tmp_path / "state.db", b"q" * 8)
        assert rows(store) == 0 and held(made) == set()
        store.close()

    asyncio.run(test())


def test_uploads_are_bounded_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        Store.create(tmp_path / "state.db").close()
        store, made = opened(tmp_path / "state.db")
        monkeypatch.setattr(uploads, "LIMIT_BYTES", 2 * SIZE)
        for device in (b"a", b"b"):
            made.put(device * 16, SID, 0, CODES[:UNIT])
        with pytest.raises(EnvironmentFault, match="on their way"):
            made.put(DID, SID, 0, CODES[:UNIT])
        made.drop(b"a" * 16)
        made.put(DID, SID, 0, CODES[:UNIT])
        made.save()
        store.close()

    asyncio.run(test())


def test_an_upload_shorter_than_the_longest_outlives_a_restart(tmp_path: Path) -> None:
    short = CODES[:1505]

    def begun(store: Store) -> Uploads:
        made = Uploads(Chunks(store))
        made.begin(RID, SIZE, lambda size: size in (SIZE, len(short)))
        return made

    async def test() -> None:
        Store.create(tmp_path / "state.db").close()
        store = Store.open(tmp_path / "state.db")
        made, sid, digest = begun(store), name_of(hashlib.sha256(short).digest()), hashlib.sha256(short).digest()
        made.put(DID, sid, 8, short[1024:])
        with pytest.raises(RemoteError, match="not whole units"):
            made.put(DID, sid, 0, short[:1000])
        assert made.held(DID, sid, b"s" * 8, len(short)).bitmap == bytes([0, 0b1111])
        store.close()
        store = Store.open(tmp_path / "state.db")
        made = begun(store)
        made.put(DID, sid, 0, short[:1024])
        assert made.whole(DID, digest, len(short)) == short
        store.close()

    asyncio.run(test())


def test_a_round_closes_and_another_opens_though_the_disk_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise EnvironmentFault("no room")

    async def test() -> None:
        Store.create(tmp_path / "state.db").close()
        store, made = opened(tmp_path / "state.db")
        made.put(DID, SID, 0, CODES[:UNIT])
        made.save()
        monkeypatch.setattr(store, "write", full)
        made.clear()
        made.begin(b"q" * 8, SIZE)
        assert held(made) == set(), "what was left behind is not taken for another round's"
        monkeypatch.undo()
        made.put(DID, SID, 1, CODES[UNIT : 2 * UNIT])
        assert held(made) == {1}
        store.close()

    asyncio.run(test())
