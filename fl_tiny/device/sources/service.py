# SPDX-License-Identifier: Apache-2.0
"""The service that takes samples as they come: from the spool, the socket, the camera; it holds no numpy."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_tiny.board import Source
from fl_tiny.device.pipes import Header
from fl_tiny.device.recent import Predicted, Recent
from fl_tiny.device.sources import messages, spool, v4l2
from fl_tiny.device.sources.button import Button
from fl_tiny.device.sources.ends import Ends
from fl_tiny.device.sources.inference import Inference
from fl_tiny.device.sources.listener import listening
from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.files import open_plain

log = logging.getLogger(__name__)

Emit = Callable[[str, dict[str, Any]], None]
Label = int | str | None
AGAIN_S, AGAIN_LIMIT_S = 5.0, 300.0  # guess: from a fault of the machine to the next try
FAULTS = 3  # files that wait, one after the other, until the spool as a whole does
STRETCH_S = 60  # frames of one minute are held out together, or not at all
WIDTH, HEIGHT = 640, 480  # what nearly every camera gives; a driver takes the nearest it has


class Service:
    """One device's sources. ``run`` ends by cancellation."""

    def __init__(self, directory: Path, settings: Source, emit: Emit, ioctl: v4l2.Ioctl = fcntl.ioctl) -> None:
        self._ioctl = ioctl  # where the kernel begins
        self._directory, self._settings, self._emit = directory, settings, emit
        self._doubted = False  # the last samples' numbers could not be what the model expects
        self._inference = Inference(directory)
        self._turn = asyncio.Lock()  # one question at a time
        self._recent = Recent(settings.kept, settings.kept_minutes * 60)
        self._label: Label = None  # of the camera's frames, as a program said
        self._last: messages.Answer | None = None
        self._name = os.urandom(8).hex()  # of this run: its stretches of frames are not those of another

    async def run(self) -> None:
        """Take what comes. Raises: EnvironmentFault when there can be no socket."""
        work = {"spool": self._watch_spool, "camera": self._watch_camera}.get(self._settings.kind)
        async with listening(Path(self._settings.socket), self.answer):
            self._emit("listening", {"socket": self._settings.socket, "kind": self._settings.kind})
            log.info("takes samples kind=%s socket=%s", self._settings.kind, self._settings.socket)
            try:
                await asyncio.gather(self._give_back_memory(), *([work()] if work else []))
            finally:
                self._inference.end()

    async def answer(self, request: messages.Request) -> messages.Answer:
        """What becomes of a program's request. Raises: DataError, EnvironmentFault."""
        if isinstance(request, messages.Label):
            self._label = request.label
            return messages.Answer(messages.DONE)
        if isinstance(request, messages.Last):
            return self._last or messages.Answer(messages.REFUSED, why="no frame has been predicted")
        if isinstance(request, messages.Correct):
            return await self._correct(request)
        if isinstance(request, messages.Sample):
            header: Header = {"op": "array", "dtype": request.dtype, "label": request.label}
        else:
            header = {"op": "file", "suffix": f".{request.suffix}", "label": request.label}
        return await self._given(header, request.data, "socket")

    async def _correct(self, request: messages.Correct) -> messages.Answer:
        found = self._recent.get(request.id, time.monotonic())
        if found is None:
            raise DataError("no such prediction is kept", hint="it is corrected already, or too old")
        header = {"op": "correct", "meant": found.meant.hex(), "runtime": found.runtime, "label": request.label}
        answer = await self._given(header, found.features, "correction")
        self._recent.drop(request.id)
        return answer

    async def _given(self, header: Header, body: bytes, origin: str) -> messages.Answer:
        """One question to the child. Raises: DataError, EnvironmentFault."""
        async with self._turn:
            answer, features = await asyncio.to_thread(self._inference.ask, header, body)
        if "added" in answer:
            doubt = answer.pop("doubt", "")
            if doubt and not self._doubted:
                log.warning("samples may be wrong from=%s file=%r why=%r", origin, header.get("name", ""), doubt)
            self._doubted = bool(doubt)
            if answer["added"] or answer["relabelled"] or origin != "camera":  # a camera shows the same all day
                self._emit("sample", {"from": origin, **answer, **({"doubt": doubt} if doubt else {})})
            return messages.Answer(messages.DONE, added=answer["added"], known=answer["known"])
        kept = Predicted(features, bytes.fromhex(answer["meant"]), answer["runtime"])
        name = self._recent.put(kept, time.monotonic())
        self._emit("predicted", {"from": origin, "id": name.hex(), "class": answer["class"], "name": answer["name"]})
        return messages.Answer(messages.DONE, id=name, number=answer["class"], name=answer["name"])

    # ---- the spool ------------------------------------------------------------------------------------------

    async def _watch_spool(self) -> None:
        place, failures = Path(self._settings.spool), 0
        shut: set[Path] = set()  # folders told of
        waits: dict[str, float] = {}  # files that the machine could not deal with: until when
        ends: Ends | None = None
        try:
            while True:
                now, pause = time.monotonic(), 0.0
                waits = {once: until for once, until in waits.items() if until > now}
                try:
                    ends = ends or Ends(self._directory)
                    for found in spool.dropped(place):
                        if not found.removable:
                            if found.path.parent not in shut and len(shut) < spool.MAX_SEEN:
                                shut.add(found.path.parent)
                                log.warning("folder passed over path=%r hint=%r", str(found.path.parent), spool.RIGHTS)
                        elif found.once not in waits:
                            try:
                                await self._take(found, ends)
                                failures = 0
                            except EnvironmentFault as fault:
                                pause = min(AGAIN_S * 2**failures, AGAIN_LIMIT_S)
                                waits[found.once] = time.monotonic() + 3 * pause  # others have their turn before it
                                failures += 1
                                log.warning("spool waits file=%r why=%r", found.name, str(fault))
                                if failures % FAULTS == 0:
                                    break
                                pause = 0.0
                except EnvironmentFault as fault:
                    log.warning("spool waits why=%r", str(fault))
                    pause = min(AGAIN_S * 2**failures, AGAIN_LIMIT_S)
                    failures += 1
                await asyncio.sleep(pause or self._settings.every)
        finally:
            if ends is not None:
                ends.close()

    async def _take(self, found: spool.Dropped, ends: Ends) -> None:
        """Learn a file and remove it, or put it aside. Raises: EnvironmentFault when it must wait, and stays."""
        is_new = found.once not in ends
        if is_new:
            ends.begin(found.once)
            try:
                end = await self._tried(found)
            except (EnvironmentFault, asyncio.CancelledError):
                ends.forget(found.once)
                raise
            ends.note(found.once, end)
        why = ends[found.once]
        try:
            if why is None:
                spool.remove(found)
            else:
                spool.reject(found, why)
        except EnvironmentFault as fault:  # it stays where it is, and is not tried again
            if is_new:
                log.warning("file stays file=%r why=%r", found.name, str(fault))
            return
        ends.forget(found.once)
        if why is not None:
            log.warning("file rejected file=%r why=%r", found.name, why)
            self._emit("rejected", {"file": found.name, "why": why})

    async def _tried(self, found: spool.Dropped) -> str | None:
        """Learn a file. Returns why it is no sample, None when it is stored. Raises: EnvironmentFault."""
        suffix = Path(found.name).suffix.lower()
        if found.fault:
            return found.fault
        if found.label is None and suffix not in (".npz", ".csv"):
            return "nobody says its label (a folder named by it, or FILE.label beside it)"
        where = {"spool": str(found.spool), "folder": found.folder, "name": found.name, "once": found.once}
        try:
            await self._given({"op": "file", "suffix": suffix, "label": found.label, **where}, b"", "spool")
        except DataError as fault:
            return str(fault)
        return None

    # ---- the camera -----------------------------------------------------------------------------------------

    async def _watch_camera(self) -> None:
        failures = 0
        while True:
            try:
                await self._look()
            except EnvironmentFault as fault:
                pause = min(AGAIN_S * 2**failures, AGAIN_LIMIT_S)
                log.warning("camera waits why=%r again_s=%.0f", str(fault), pause)
                failures += 1
                await asyncio.sleep(pause)

    async def _look(self) -> None:
        """Frame after frame, until something is lost. Raises: EnvironmentFault."""
        button = Button(self._settings.button, self._ioctl) if self._settings.button else None
        camera: v4l2.Camera | None = None
        try:
            path = Path(self._settings.camera)
            camera = await asyncio.to_thread(v4l2.Camera, path, WIDTH, HEIGHT, self._ioctl)
            while True:
                frame = await asyncio.to_thread(camera.frame)
                label = self._settings.button_label if button is not None and button.pressed() else self._said()
                shape = {"width": frame.width, "height": frame.height, "stride": frame.stride}
                span = f"{self._name}:{time.monotonic() // STRETCH_S:.0f}"
                header = {"op": "frame", "format": frame.format, **shape, "label": label, "stretch": span}
                try:
                    answer = await self._given(header, frame.data, "camera")
                    self._last = answer if answer.id is not None else self._last
                except DataError as fault:
                    log.warning("frame passed over why=%r", str(fault))
                await asyncio.sleep(self._settings.every)
        finally:
            for each in (camera, button):
                if each is not None:
                    each.close()

    def _said(self) -> Label:
        """The label of what the camera sees: as a program said, else by the file."""
        if self._label is not None or self._settings.label_file is None:
            return self._label
        try:
            with open_plain(Path(self._settings.label_file), 1 << 20) as file:  # a pipe would hold everything up
                return file.readline(spool.MAX_LABEL + 1).decode().strip() or None
        except (OSError, DataError, UnicodeDecodeError):
            return None

    async def _give_back_memory(self) -> None:
        while True:
            await asyncio.sleep(5)
            async with self._turn:
                self._inference.rest()
