# SPDX-License-Identifier: Apache-2.0
"""One enrolled device that learns kinds of clothes from pictures, and its service as a process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.fleet import Daemon, Fleet, cli

from fl_tiny.device.sources import messages
from fl_tiny.device.store import DeviceStore

FASHION = Path(__file__).parents[2] / "models/fashion.tflite"
NAMES = [f"kind{i}" for i in range(10)]


class Board:
    """A device's directory, its spool and its socket."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.root, self.dir = root, directory
        self.spool, self.socket = root / "spool", root / "socket"
        self.daemons: list[Daemon] = []
        self.spool.mkdir(exist_ok=True)

    def serve(self, **settings: Any) -> Daemon:
        lines = {"spool": str(self.spool), "socket": str(self.socket), "every": 0.05, **settings}
        text = "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in lines.items())
        (self.dir / "fl-tiny.toml").write_text(f"[source]\n{text}")
        daemon = Daemon("samples", "serve", self.dir)
        self.daemons.append(daemon)
        daemon.event("listening")
        return daemon

    def drop(self, name: str, data: bytes) -> Path:
        """As a program does: whole before it has its name."""
        path = self.spool / name
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{path.name}")
        draft.write_bytes(data)
        return draft.rename(path)

    def stats(self) -> Any:
        return cli("samples", "stats", self.dir)

    def samples(self) -> list[Any]:
        store = DeviceStore.open(self.dir / "state.db")
        try:
            return list(store.samples())
        finally:
            store.close()

    def connect(self) -> Client:
        return Client(self.socket)


class Client:
    """A program of another author: docs/sources.md is all it knows."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(os.fspath(path))

    def send(self, data: bytes) -> messages.Answer:
        self.socket.sendall(data)
        return messages.answer_of(self.exactly(int.from_bytes(self.exactly(4), "big")))

    def ask(self, request: messages.Request) -> messages.Answer:
        return self.send(messages.framed(request))

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data


def until(done: Callable[[], Any], what: str, patience: float = 30.0) -> Any:
    end = time.monotonic() + patience
    while not (found := done()):
        assert time.monotonic() < end, f"no {what} in {patience:.0f} s"
        time.sleep(0.05)
    return found


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (28, 28), np.uint8)


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("sources")
    (root / "names.txt").write_text("\n".join(NAMES))
    fleet = Fleet(root, FASHION, 2, "--labels", root / "names.txt")
    fleet.gateway()
    directory = fleet.device("board", samples=0)
    fleet.end()
    yield directory


@pytest.fixture
def board(enrolled: Path, tmp_path: Path) -> Iterator[Board]:
    import shutil

    shutil.copytree(enrolled, tmp_path / "board")
    found = Board(tmp_path, tmp_path / "board")
    yield found
    for daemon in found.daemons:
        daemon.end()
