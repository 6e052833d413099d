# SPDX-License-Identifier: Apache-2.0
"""The child that looks at samples: files, arrays and frames become features that are stored, or a prediction."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fl_tiny import statedir
from fl_tiny.device import images, sound
from fl_tiny.device.api import Device
from fl_tiny.device.dataset import input_codes
from fl_tiny.device.evaluation import expected_of
from fl_tiny.device.folder import class_numbers
from fl_tiny.device.intake import Added
from fl_tiny.device.pipes import Header, receive, send
from fl_tiny.device.recent import Predicted
from fl_tiny.device.sources import spool
from fl_tiny.device.sources.files import Source, Wanted, open_samples
from fl_tiny.device.sources.frames import picture
from fl_tiny.device.worker import be_expendable
from fl_tiny.errors import DataError, FlTinyError, ModelError
from fl_tiny.learn.loss import Task

KINDS = {
    **dict.fromkeys(images.SUFFIXES, "images"),
    **dict.fromkeys(sound.SUFFIXES, "wav"),
    ".npz": "data",
    ".csv": "csv",
}
OWN_LABELS = ("data", "csv")  # kinds whose files say the labels themselves
NO_CLASSES = "this fleet learns no classes"
SWELL_BYTES = 160 << 20  # of memory beyond what it begins with: a picture of 24 million pixels takes 100 to 140
MAX_SAMPLES = 4096  # of one file: 20 MB of features at 1,280 twice over
REFUSED = (DataError, ModelError)  # faults of what was given; others pass, such as a full disk


class Learner:
    """A device, and what is asked of it."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def answer(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        """What becomes of one question: ``added``, or a prediction with its features. Raises: FlTinyError."""
        if header["op"] == "hello":
            return {}, b""
        if header["op"] == "correct":
            found = Predicted(body, bytes.fromhex(header["meant"]), header["runtime"])
            return _words(self._device.learn_predicted(found, self._class(header["label"]))), b""
        if header["op"] == "array":
            return self._single(self._array(header, body), header["label"])
        if header["op"] == "frame":
            shape = (header["width"], header["height"], header["stride"])
            with _as_file(picture(header["format"], body, *shape)) as path:
                return self._file(path, ".bmp", header)
        if header.get("once"):
            where = (Path(header["spool"]), header["folder"], header["name"], header["once"])
            with spool.opened(*where) as handle:
                return self._file(Path(f"/proc/self/fd/{handle}"), header["suffix"], header)
        with _as_file(body) as path:
            return self._file(path, header["suffix"], header)

    def _single(self, x: NDArray[Any], label: str | int | None) -> tuple[Header, bytes]:
        if label is not None:
            device = self._device
            return _words(device.take_features(device.features(x), [self._class(label)], runtime=device.runtime)), b""
        if self._device.spec.task is not Task.CLASSES:
            raise DataError(NO_CLASSES, hint="Device.predict tells what it says")
        said = int(self._device.predict(x)[0])
        found = self._device.predicted(x)[0]
        names = self._device.labels
        header = {"class": said, "meant": found.meant.hex(), "runtime": found.runtime}
        return {**header, "name": names[said] if names else None}, found.features

    def _file(self, path: Path, suffix: str, header: Header) -> tuple[Header, bytes]:
        kind, label = KINDS.get(suffix), header["label"]
        device = self._device
        if suffix == ".npy":
            return self._single(_npy(path), label)
        if kind is None:
            raise DataError(f"a file that ends in {suffix[:16]!r} is of no kind that fl-tiny reads")
        own = kind in OWN_LABELS and label is None
        wanted = Wanted(device.model, expected_of(device.model) if own else None, device.labels, device.preprocess)
        data, _ = open_samples(Source(kind, path), wanted)
        if data.samples > MAX_SAMPLES:
            raise DataError(f"it holds {data.samples} samples, more than {MAX_SAMPLES}", hint="give it in parts")
        if label is None and not own:
            if data.samples != 1:
                raise DataError(f"it holds {data.samples} samples without a label", hint="one at a time is predicted")
            return self._single(next(data.batches()), None)
        features = np.concatenate([device.features(batch) for batch in data.batches()])
        labels = data.labels if own else np.full(len(features), self._class(label))
        if labels is None:
            raise DataError("it has no labels")
        if header["op"] == "frame" and not device.is_news(features, int(labels[0])):
            return _words(Added(0, 1)), b""
        span = {"stretches": data.stretches, "stretch": header.get("stretch", "")}
        added = device.take_features(features, labels, runtime=device.runtime, once=header.get("once", ""), **span)
        doubt = data.seen.doubt() if data.seen.clipped else ""  # its other reasons take many samples to tell
        return {**_words(added), "doubt": doubt}, b""

    def _array(self, header: Header, body: bytes) -> NDArray[Any]:
        source = self._device.model.input
        dtype = np.dtype(header["dtype"]).newbyteorder("<")
        shape = (1, *source.shape[1:])
        if len(body) != int(np.prod(shape)) * dtype.itemsize:
            raise DataError(f"a sample of {header['dtype']} has {len(body)} bytes; the model takes {list(shape[1:])}")
        return input_codes(np.frombuffer(body, dtype).reshape(shape), source)

    def _class(self, label: str | int) -> int:
        """The class that a label names. Raises: DataError."""
        if self._device.spec.task is not Task.CLASSES:
            raise DataError(NO_CLASSES, hint="Device.learn takes its targets")
        if isinstance(label, int):
            if not 0 <= label < self._device.spec.classes:
                raise DataError(f"class {label}; the model has classes 0 to {self._device.spec.classes - 1}")
            return label
        names, classes = self._device.labels, self._device.spec.classes
        return class_numbers([label], names, classes, Path("label")).numbers[label]


def _words(added: Added) -> Header:
    return added._asdict()


def _npy(path: Path) -> NDArray[Any]:
    """One sample in numpy's own form. Raises: DataError."""
    try:
        return np.array(npy.open_memmap(path, mode="r"))[None]  # type: ignore[no-untyped-call]  # as in dataset.py
    except (OSError, ValueError, EOFError, SyntaxError, TypeError) as fault:
        raise DataError(f"it is no .npy file that can be read: {str(fault)[:200]}") from fault


@contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """Bytes as a file in memory, for readers of files."""
    handle = os.memfd_create("fl-tiny", os.MFD_CLOEXEC)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        yield Path(f"/proc/self/fd/{handle}")


def serve(directory: Path, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer questions until ``source`` ends."""
    learner: Learner | None = None
    while True:
        try:
            header, body = receive(source)
        except EOFError:
            return
        try:
            if learner is None:
                learner = Learner(Device.open(directory))
                _bound_memory((directory / statedir.MODEL).glob("*.tflite"))
            answer, data = learner.answer(header, body)
        except FlTinyError as fault:
            said = re.sub("/proc/self/fd/[0-9]+", header.get("name", "the file").replace("\\", r"\\"), str(fault))
            answer, data = {"fault": said, "again": not isinstance(fault, REFUSED)}, b""
        except MemoryError:
            answer, data = {"fault": "it needs more memory than there is", "again": False}, b""
        send(sink, answer, data)


def _bound_memory(models: Iterable[Path]) -> None:
    """Let what swells fail to get memory, so that it is refused before the kernel ends a process for it."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack; proc(5)
    most = max((path.stat().st_size for path in models), default=0)  # a model's own memory is of this order
    limit = pages * resource.getpagesize() + SWELL_BYTES + 4 * most
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    be_expendable()
    serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
