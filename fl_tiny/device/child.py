# SPDX-License-Identifier: Apache-2.0
"""The training child as the agent sees it: started with a job, listened to, paused while the board lacks means."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

from fl_tiny.device import budget, job
from fl_tiny.device.budget import NOTHING
from fl_tiny.errors import EnvironmentFault
from fl_tiny.protocol.wire import Lack

KILL_WAIT_S = 1.0
LOOK_EVERY_S = 5.0  # at the board's means, while a child works

Word = job.Answer | Lack | None


class Child:
    """At most one child at a time; what it says, and whether it is paused, is put into ``words``: None behind the last.

    A ``Lack`` among the words: it is paused for that, or goes on when there is none; the last word: it had to end.
    """

    def __init__(self, directory: Path, limits: budget.Limits, *, background: bool, sensors: Path = Path("/")) -> None:
        self.words: asyncio.Queue[Word] = asyncio.Queue()
        self.lack = NOTHING
        self._directory = directory
        self._limits = limits
        self._background = background
        self._sensors = sensors
        self._ended_for = NOTHING
        self._task: asyncio.Task[None] | None = None

    @property
    def works(self) -> bool:
        """Is there one, or words of it that nobody has read?"""
        return self._task is not None

    def look(self) -> Lack:
        """What the board lacks for training now."""
        self.lack = budget.lacking(budget.read(self._sensors), self._limits, self.lack)
        return self.lack

    async def heard(self, seconds: float) -> Word:
        """The next word. Raises: asyncio.TimeoutError when none comes in that time.

        Not by ``wait_for``: before Python 3.12 it drops a cancellation that comes together with a word.
        """
        getting = asyncio.ensure_future(self.words.get())
        try:
            await asyncio.wait({getting}, timeout=seconds)
            if not getting.done():
                raise asyncio.TimeoutError
            return getting.result()
        finally:
            getting.cancel()

    def start(self, wanted: bytes) -> None:
        """Start a child with an encoded job."""
        self._ended_for = NOTHING
        self._task = asyncio.create_task(self._work(wanted))

    def ended(self) -> None:
        """The None that stands behind the last word has been read."""
        self._task = None

    async def end(self) -> None:
        """End the child, whatever it is at."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=KILL_WAIT_S)

    async def _work(self, wanted: bytes) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(
            *command(self._directory, background=self._background),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        watching = asyncio.create_task(self._watch(process))
        try:
            await self._listen(process, wanted)
            code = await process.wait()
            if self._ended_for:
                await self.words.put(self._ended_for)
            elif code != 0:
                await self.words.put(job.Failed(f"the training child ended with {code}"))
        finally:
            watching.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()  # else its transport outlives the event loop and complains
            await self.words.put(None)

    async def _listen(self, process: asyncio.subprocess.Process, wanted: bytes) -> None:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(wanted)
        process.stdin.close()
        while True:
            try:
                size = job.LENGTH.unpack(await process.stdout.readexactly(job.LENGTH.size))[0]
                if size > job.FRAME_LIMIT:
                    raise EnvironmentFault(f"the training child sent {size} B")
                await self.words.put(job.parse(await process.stdout.readexactly(size)))
            except asyncio.IncompleteReadError:
                return

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Stop the child while the board lacks something, and let it go on afterwards; without memory it ends."""
        stopped = False
        while process.returncode is None:
            lack = self.look()
            if Lack.MEMORY in lack:
                self._ended_for = lack
                process.kill()  # stopped, it would keep what the board is short of
                return
            if bool(lack) != stopped:
                stopped = bool(lack)
                process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)
                await self.words.put(lack)
            await asyncio.sleep(LOOK_EVERY_S)


def command(directory: Path, *, background: bool) -> list[str]:
    """The training child of DIR. background: in the idle class of I/O, too, where there is ``ionice``."""
    words = [sys.executable, "-m", "fl_tiny.device.worker", str(directory)]
    if not background:
        return words
    ionice = shutil.which("ionice")  # util-linux or busybox; Python has no call for it. -t: go on where it is refused
    return [*([ionice, "-t", "-c", "3"] if ionice else []), *words, job.BACKGROUND]
