# SPDX-License-Identifier: Apache-2.0
"""The gateway's new key: what a cut leaves, what devices are served, and how each of them follows."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from inprocess import enrolled, running

from fl_tiny import statedir
from fl_tiny.device import newkey
from fl_tiny.device.enrol import enrol
from fl_tiny.device.gatewaykey import with_key
from fl_tiny.device.link import Link
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import ConfigError, DataError, RemoteError
from fl_tiny.gateway import backup, keys, setup
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.trouble import troubles
from fl_tiny.protocol import handover, signed, wire

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"


@pytest.fixture
def gw(tmp_path: Path) -> Path:
    setup.initialise(tmp_path / "gw", MODEL, None, Wanted(None))
    return tmp_path / "gw"


def sound(gw: Path) -> keys.GatewayKey:
    """The key in use; every head is signed by it, and one file has its secret half."""
    with closing(Store.open(gw / statedir.DATABASE)) as store:
        with statedir.locked(gw):
            keys.finish(gw, store)
        key = keys.key_of(store)
        for number in range(store.head().number + 1):
            signed.verify(store.version(number).signed, key.pk)
        assert signed.public_key((gw / "secret/gateway.key").read_bytes()) == key.pk
        assert signed.public_key(keys.seed_of(gw, store)) == key.pk
        assert not (gw / "secret/gateway.key.next").exists()
        assert not store.faults()
        return key


def test_a_new_key_signs_every_head_and_the_old_secret_is_gone(gw: Path) -> None:
    old = (gw / "secret/gateway.key").read_bytes()
    inode = os.open(gw / "secret/gateway.key", os.O_RDONLY)  # the file that is given up
    first, second = keys.rekey(gw)
    assert (first.serial, second.serial) == (0, 1) and first.pk == signed.public_key(old)
    assert sound(gw) == second
    assert os.pread(inode, 64, 0) == bytes(32), "overwritten before its name went to the new one"
    os.close(inode)
    assert all(old not in path.read_bytes() for path in gw.rglob("*") if path.is_file())
    assert (gw / "secret/gateway.key").stat().st_mode & 0o777 == 0o600
    with statedir.locked(gw), pytest.raises(ConfigError, match="in use"):
        keys.rekey(gw)
    assert sound(gw) == second, "beside a running gateway nothing is changed"


STEPS = ("write_secret", "write", "overwrite", "replace", "sync_directory")


class Cut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_cut_at_any_step_leaves_one_key_that_signs_every_head(
    gw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    before = sound(gw)
    homes: dict[str, Any] = {"write_secret": statedir, "write": Store, "replace": Path}
    home = homes.get(step, keys)
    real: Callable[..., Any] = getattr(home, step)

    def cut(*args: Any, **kwargs: Any) -> Any:
        if step == "replace" and args[0].name != keys.NEW_KEY:
            return real(*args, **kwargs)
        if after:
            done = real(*args, **kwargs)
            if step == "write":
                with done:
                    pass
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(home, step, cut)
        with pytest.raises(Cut):
            keys.rekey(gw)
    with closing(Store.open(gw / statedir.DATABASE)) as store:
        keys.seed_of(gw, store)  # also before anything is put right: a backup may come now
    backup.write(gw, tmp_path / "f")
    backup.restore(tmp_path / "gw2", tmp_path / "f")
    assert sound(tmp_path / "gw2") == sound(gw)
    assert sound(gw).serial - before.serial in (0, 1)
    assert keys.rekey(gw)[1].serial == sound(gw).serial


def test_a_gateway_has_so_many_keys_and_no_more(gw: Path) -> None:
    with closing(Store.open(gw / statedir.DATABASE)) as store, store.write() as db:
        db.execute("INSERT INTO handover VALUES(?,?,?)", (wire.MOST_KEYS, b"p", b"s"))
    with pytest.raises(ConfigError, match="begin a new fleet"):
        keys.rekey(gw)


def test_a_gateway_whose_key_is_anothers_does_not_sign(gw: Path) -> None:
    statedir.write_secret(gw, keys.GATEWAY_KEY, os.urandom(32))
    with closing(Store.open(gw / statedir.DATABASE)) as store, pytest.raises(DataError, match="not this gateway's key"):
        keys.seed_of(gw, store)


# ---- at a device ---------------------------------------------------------------------------------------------


async def follow(device: Path) -> tuple[bytes, int]:
    """What a device's daemon does when it fetches a head; the key that it holds then."""
    settings = newkey.config.load(device / statedir.SETTINGS, newkey.config.DeviceSettings)
    with closing(DeviceStore.open(device / statedir.DATABASE)) as store:
        address = newkey.config.address(store.get("gateway"), 5684)
        async with newkey.connected(device, store, settings, address) as link:
            await link.register(store.get("did"))
            manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
            digest = signed.digest(signed.payload_of(store.get("manifest")))

            async def ask(pk: bytes) -> object:
                return await link.head(digest, manifest.body_size, pk, store.head(), manifest.shapes)

            try:
                await with_key(store, link, ask)
            finally:
                held: tuple[bytes, int] = store.get("gateway_pk"), store.get("gateway_serial")
    return held


def moved(device: Path, port: int) -> None:
    with closing(DeviceStore.open(device / statedir.DATABASE)) as store:
        store.put(gateway=f"127.0.0.1:{port}")


def test_a_device_follows_over_many_keys_at_once_and_one_that_enrols_later_needs_not(gw: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with running(gw) as (_, server):
            await enrolled(gw, server.port, tmp_path / "early")
            assert (await follow(tmp_path / "early"))[1] == 0
        for _ in range(20):
            last = keys.rekey(gw)[1]
        async with running(gw) as (_, server):
            await enrolled(gw, server.port, tmp_path / "late")
            assert await follow(tmp_path / "late") == (last.pk, 20)
            moved(tmp_path / "early", server.port)
            assert await follow(tmp_path / "early") == (last.pk, 20)

    asyncio.run(story())


def test_a_gateway_from_before_the_new_key_is_not_followed_back_and_says_so(gw: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with running(gw) as (_, server):
            await enrolled(gw, server.port, tmp_path / "d")
            backup.write(gw, tmp_path / "f")
        key = keys.rekey(gw)[1]
        async with running(gw) as (_, server):
            moved(tmp_path / "d", server.port)
            assert await follow(tmp_path / "d") == (key.pk, 1)
        backup.restore(tmp_path / "old", tmp_path / "f")
        async with running(tmp_path / "old") as (gateway, server):
            moved(tmp_path / "d", server.port)
            with pytest.raises(RemoteError, match="another key than number 1"):
                await follow(tmp_path / "d")
            (found,) = troubles(gateway.store)
            assert "key number 1 (1, such as " in found.what and "the newest here is 0" in found.what
            code = setup.new_codes(tmp_path / "old", 1, 600)[0]  # the way out
            (tmp_path / "d").rename(tmp_path / "before")
            statedir.create(tmp_path / "d")
            shutil.copy(tmp_path / "before/secret/device.key", tmp_path / "d/secret/device.key")
            await enrol(tmp_path / "d", code, f"127.0.0.1:{server.port}", None)
            assert troubles(gateway.store) == []
        with closing(DeviceStore.open(tmp_path / "before" / statedir.DATABASE)) as store:
            assert (store.get("gateway_pk"), store.get("gateway_serial")) == (key.pk, 1)
            assert "another key than number 1" in store.get("trouble")

    asyncio.run(story())


def test_what_is_no_number_of_a_key_is_refused(gw: Path, tmp_path: Path) -> None:
    keys.rekey(gw)

    async def story() -> None:
        async with running(gw) as (gateway, server):
            did = await enrolled(gw, server.port, tmp_path / "d")
            psk = statedir.read_secret(tmp_path / "d", "psk")
            link = await Link.open(("127.0.0.1", server.port), did.hex(), psk)
            await link.register(did)
            message = await link.handover(1)
            assert message and handover.checked(message, 1, keys.public_keys(gateway.store)[1])
            assert await link.handover(2) is None and await link.handover(0) is None
            for path in (("m", "k"), ("m", "k", "x"), ("m", "k", "-1"), ("m", "k", "1", "1"), ("m", "k", "99999999")):
                assert (await link._client.get(path, size_limit=4096)).code in ("4.00", "4.04")
            assert troubles(gateway.store) == []
            await link.close()

    asyncio.run(story())
