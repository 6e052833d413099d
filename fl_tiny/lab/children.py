# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny`` commands as child processes of the demo: started, listened to, and all ended with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fl_tiny.errors import EnvironmentFault

TERM_WAIT_S = 3.0  # a daemon of ours ends within a second of SIGTERM; a busy machine gets some more
LINE_LIMIT = 1 << 20
LAST_WORDS = 300  # bytes of a log that may reach a message


class Children:
    """Commands of this program in processes of their own; ``end`` leaves none of them, nor of what they started."""

    def __init__(self, logs: Path) -> None:
        """logs: the folder where each child's stderr goes, a file each."""
        self._logs = logs
        self._alive: list[Child] = []

    async def start(self, name: str, *arguments: str | Path, module: str = "fl_tiny") -> Child:
        """Start ``python -m fl_tiny ARGUMENTS``; its log is called ``name``."""
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        log = self._logs / f"{name}.log"
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *map(str, arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=environment,
                limit=LINE_LIMIT,
                start_new_session=True,  # a Ctrl-C reaches the demo alone, which then ends them in order
            )
        child = Child(name, process, log)
        self._alive.append(child)
        return child

    async def call(self, name: str, *arguments: str | Path, module: str = "fl_tiny") -> Any:
        """Run a command with ``--json`` to its end; its document. Raises: EnvironmentFault when it fails."""
        child = await self.start(name, *arguments, *(["--json"] if module == "fl_tiny" else []), module=module)
        output = await child.stdout.read()
        await child.succeeded()
        self._alive.remove(child)
        return json.loads(output)

    async def end(self) -> None:
        """End every child still alive: SIGTERM, and SIGKILL for what does not heed it."""
        alive, self._alive = self._alive, []
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = [child for child in alive if child.process.returncode is None]
            if not left:
                break
            for child in left:
                child.signal(number)
            await asyncio.wait([asyncio.create_task(child.process.wait()) for child in left], timeout=TERM_WAIT_S)
        for child in alive:
            child.signal(signal.SIGKILL)  # a training child that its device left behind


class Child:
    """One running command."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self._log = log

    @property
    def stdout(self) -> asyncio.StreamReader:
        """What it says."""
        assert self.process.stdout is not None
        return self.process.stdout

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects that it prints, one a line, until it ends."""
        while line := await self.stdout.readline():
            yield json.loads(line)

    async def succeeded(self) -> None:
        """Wait for its end. Raises: EnvironmentFault with its last words unless it exited with 0."""
        code = await self.process.wait()
        if code != 0:
            words = self._log.read_bytes()[-LAST_WORDS:].decode(errors="replace").strip().rpartition("\n")[2]
            raise EnvironmentFault(f"{self.name} ended with {code}: {words}", hint=f"its log is {self._log}")

    def signal(self, number: int) -> None:
        """Send a signal to the command and to all it started; none is sent once its group is gone."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)
