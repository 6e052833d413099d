# SPDX-License-Identifier: Apache-2.0
"""A backbone in a child process: a file that crashes the runtime ends the child, and the command says so."""

from __future__ import annotations

import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import numpy as np

from fl_tiny.device.backbone import BATCH, Backbone, Codes, open_backbone
from fl_tiny.device.pipes import Header, receive, send
from fl_tiny.errors import EnvironmentFault, FlTinyError, ModelError
from fl_tiny.learn.tflite import read_model

ANSWER_S = 300.0  # guess: a batch of eight on the slowest board takes a few seconds; more is a model that never ends
FAULTS: dict[str, type[FlTinyError]] = {"ModelError": ModelError, "EnvironmentFault": EnvironmentFault}
LAST_WORDS = 300  # bytes of the child's stderr that may reach a message


class Isolated:
    """The parent's end of a child that serves one model: one question over its stdin, one answer from its stdout."""

    def __init__(self, child: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self._child, self._stderr = child, stderr
        self.name = ""

    def open(self, data: bytes, runtime: str | None) -> None:
        """Let the child open the model. Raises: as ``open_backbone``, and ModelError when the runtime dies of it."""
        answer, _ = self._ask({"runtime": runtime}, data)
        self.name = str(answer["name"])

    def run(self, x: Codes) -> Codes:
        """As ``Backbone.run``. Raises: ModelError when the runtime dies of the model or never answers."""
        assert len(x), "nothing to run"
        outputs = []
        for start in range(0, len(x), BATCH):
            batch = np.ascontiguousarray(x[start : start + BATCH])
            answer, body = self._ask({"dtype": batch.dtype.str, "shape": batch.shape}, batch.tobytes())
            outputs.append(np.frombuffer(body, answer["dtype"]).reshape(answer["shape"]))
        return np.concatenate(outputs)

    def _ask(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        source, sink = self._child.stdout, self._child.stdin
        assert source is not None
        assert sink is not None
        try:
            send(sink, header, body)
            if not select.select([source], [], [], ANSWER_S)[0]:
                raise ModelError(f"the model gave no answer in {ANSWER_S:.0f} s")
            answer, result = receive(source)
        except (EOFError, BrokenPipeError) as gone:
            raise self._death() from gone
        if "fault" in answer:
            raise FAULTS[answer["fault"]](answer["what"], answer["hint"])
        return answer, result

    def _death(self) -> FlTinyError:
        """What to say of a child that has ended: a signal is the model's doing, an exit code is ours."""
        code = self._child.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return ModelError(f"the inference runtime died of the model ({name})", hint="the file is damaged")
        self._stderr.seek(max(0, self._stderr.seek(0, 2) - LAST_WORDS))
        words = self._stderr.read().decode("utf-8", "replace").strip().split("\n")[-1]
        return EnvironmentFault(f"the inference process ended: {words or code}", hint="is the runtime installed whole?")


@contextmanager
def isolated_backbone(data: bytes, *, runtime: str | None = None) -> Iterator[Backbone]:
    """A backbone for files that nobody vouches for; its process ends with the block. Raises: as ``Isolated.open``."""
    read_model(data)  # no process for what our own reader refuses
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as stderr:  # runtimes greet there, and a pipe that nobody reads would fill up
        child = subprocess.Popen(
            [sys.executable, "-m", "fl_tiny.device.isolated"], stdin=pipe, stdout=pipe, stderr=stderr
        )
        try:
            isolated = Isolated(child, stderr)
            isolated.open(data, runtime)
            yield isolated
        finally:
            child.kill()
            child.wait()
            for end in (child.stdin, child.stdout):
                with suppress(BrokenPipeError):
                    if end is not None:
                        end.close()


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """The child's end: open the model that comes first, then run each batch, until ``source`` ends."""
    try:
        header, data = receive(source)
        backbone = open_backbone(data, runtime=header["runtime"])
        send(sink, {"name": backbone.name}, b"")
        while True:
            header, body = receive(source)
            y = backbone.run(np.frombuffer(body, header["dtype"]).reshape(header["shape"]))
            send(sink, {"dtype": y.dtype.str, "shape": y.shape}, y.tobytes())
    except FlTinyError as fault:
        send(sink, {"fault": type(fault).__name__, "what": fault.what, "hint": fault.hint}, b"")
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here, and a board's disk is small
    serve(sys.stdin.buffer, sys.stdout.buffer)
