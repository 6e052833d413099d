# SPDX-License-Identifier: Apache-2.0
"""A fleet of real processes on loopback for the tests: every child is ended by its id, whatever happens."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

MODEL = Path(__file__).parents[1] / "models/bench/head_224-16-4.tflite"
PATIENCE_S = 60.0
COMMAND = [sys.executable, "-m", "fl_tiny"]


def cli(*args: object, code: int = 0, stdin: str = "") -> Any:
    """Run a command to its end and return its JSON, or its stderr line when ``code`` is not 0."""
    words = [*COMMAND, *map(str, args), *(["--json"] if "--json" not in args else [])]
    done = subprocess.run(words, check=False, input=stdin, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == code, f"{args}: exit {done.returncode}: {done.stderr}"
    if code == 0:
        return json.loads(done.stdout)
    assert done.stdout == "" and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.strip().split("\n") if line.startswith("fl-tiny: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


class Daemon:
    """A daemon with ``--json``: its events as they come."""

    def __init__(self, *args: object, command: Sequence[object] = COMMAND) -> None:
        self.process = subprocess.Popen(
            [*map(str, command), *map(str, args), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.seen: list[dict[str, Any]] = []
        self.log: list[str] = []
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        assert self.process.stdout and self.process.stderr
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._read_log, args=(self.process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def _read_log(self, stream: IO[str]) -> None:
        self.log.extend(stream)

    def event(self, name: str, patience: float = PATIENCE_S, **wanted: Any) -> dict[str, Any]:
        """The next event of this name with these values."""
        until = time.monotonic() + patience
        while True:
            try:
                found = self._queue.get(timeout=max(0.01, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {name} {wanted}; saw {self.seen}; log {''.join(self.log)}") from None
            assert found is not None, f"ended before {name} {wanted}; saw {self.seen}; log {''.join(self.log)}"
            self.seen.append(found)
            if found["event"] == name and all(found.get(key) == value for key, value in wanted.items()):
                return found

    def wait(self, patience: float = PATIENCE_S) -> int:
        code = self.process.wait(patience)
        for thread in self._threads:
            thread.join(5)
        while not self._queue.empty():
            found = self._queue.get()
            if found is not None:
                self.seen.append(found)
        return code

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            for thread in self._threads:
                thread.join(5)
            stream.close()


class Fleet:
    """A gateway's directory, devices' directories, and the daemons that run on them."""

    def __init__(self, root: Path, model: Path = MODEL, layers: int | None = 2, *options: object) -> None:
        self.root = root
        self.gw = root / "gw"
        self.daemons: list[Daemon] = []
        self.port = 0
        self.init = cli(
            "gateway", "init", self.gw, "--model", model, *(("--layers", layers) if layers else ()), *options
        )

    def gateway(self, *options: object, bind: str | None = None, command: Sequence[object] = COMMAND) -> Daemon:
        """Run the gateway; a later one takes the same port. command: what stands for ``fl-tiny``."""
        address = bind or f"127.0.0.1:{self.port}"
        daemon = Daemon("gateway", "run", self.gw, "--bind", address, *options, command=command)
        self.daemons.append(daemon)
        self.port = int(daemon.event("listening")["uri"].rsplit(":", 1)[1])
        return daemon

    def device(self, name: str, samples: int = 60, seed: int = 0) -> Path:
        """Enrol a device and give it samples that can be learnt."""
        directory = self.root / name
        code = cli("gateway", "pair", self.gw)["code"]
        cli("device", "enroll", directory, "--code", code, "--name", name)
        if samples:
            cli("samples", "add", directory, "--data", self.data(name, samples, seed))
        return directory

    def run(self, directory: Path, *options: object) -> Daemon:
        daemon = Daemon("device", "run", directory, *options)
        self.daemons.append(daemon)
        return daemon

    def data(self, name: str, samples: int, seed: int) -> Path:
        """Noise whose pattern depends on the class, in the codes of the model's input."""
        found = cli("model", "inspect", MODEL)["input"]
        pattern = np.random.default_rng(99).normal(size=(4, *found["shape"][1:])) * 40
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 4, samples)
        x = pattern[y] + rng.normal(size=(samples, *found["shape"][1:])) * 20
        path = self.root / f"{name}.npz"
        np.savez(path, x=np.clip(x, -128, 127).astype(np.int8), y=y)
        return path

    def end(self) -> None:
        for daemon in self.daemons:
            daemon.end()


def stop(daemon: Daemon) -> int:
    daemon.signal(signal.SIGTERM)
    return daemon.wait(10)
