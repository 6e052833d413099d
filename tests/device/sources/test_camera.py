# SPDX-License-Identifier: Apache-2.0
"""A camera's frames: the kernel's structures as the C compiler has them, recorded frames behind a driver that answers
the ioctls. No kernel with V4L2 and no camera has run this: docs/sources.md says so.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_tiny.board import Source
from fl_tiny.device.sources import button, v4l2
from fl_tiny.device.sources.button import Button
from fl_tiny.device.sources.frames import picture
from fl_tiny.device.sources.messages import Label, Last
from fl_tiny.device.sources.service import Service
from fl_tiny.errors import DataError, EnvironmentFault

from .conftest import Board

Image = pytest.importorskip("PIL.Image", reason="SKIPPED: pictures need Pillow, the extra [data]")
PAGE = 1 << 20  # of a buffer in the driver's file


class Driver:
    """What a capture driver answers, over a file that stands for its memory. frames: what the sensor sees, in turn."""

    def __init__(self, path: Path, kind: str, frames: list[bytes], size: tuple[int, int] = (64, 48)) -> None:
        path.write_bytes(bytes(2 * PAGE))
        self.path, self.kind, self.frames, self.size = path, kind, frames, size
        self.queued: list[int] = []
        self.filled: list[tuple[int, int, int]] = []
        self.taken = 0
        self.able = v4l2.CAPTURE | v4l2.STREAMING

    def shutter(self, flags: int = 0) -> None:
        """A frame comes into a buffer that is queued."""
        if self.queued:
            index, data = self.queued.pop(0), self.frames[self.taken % len(self.frames)]
            self.taken += 1
            with self.path.open("r+b") as memory:
                memory.seek(index * PAGE)
                memory.write(data)
            self.filled.append((index, len(data), flags))

    def ioctl(self, handle: int, number: int, argument: bytearray) -> int:
        if number == v4l2.QUERYCAP:
            argument[:] = v4l2.CAPABILITY.pack(b"fake", b"", b"", 0, v4l2.DEVICE_CAPS, self.able, 0, 0, 0)
        elif number == v4l2.S_FMT:
            argument[:] = v4l2.FORMAT.pack(
                1, *self.size, int.from_bytes(self.kind.encode(), "little"), 1, 2 * self.size[0], PAGE, *[0] * 6
            )
        elif number == v4l2.REQBUFS:
            assert v4l2.REQUEST.unpack(argument)[:3] == (2, 1, 1)
        elif number == v4l2.QUERYBUF:
            index = v4l2.BUFFER.unpack(argument)[0]
            argument[:] = v4l2.BUFFER.pack(index, 1, *[0] * 7, bytes(8), 0, 1, index * PAGE, PAGE, 0, 0)
        elif number == v4l2.QBUF:
            self.queued.append(v4l2.BUFFER.unpack(argument)[0])
            if self.taken < 1000 and len(self.queued) == 2:
                self.shutter()
        elif number == v4l2.DQBUF:
            if not self.filled:
                self.shutter()
                raise BlockingIOError(errno.EAGAIN, "again")
            index, used, flags = self.filled.pop(0)
            argument[:] = v4l2.BUFFER.pack(index, 1, used, flags, *[0] * 5, bytes(8), 0, 1, 0, PAGE, 0, 0)
        else:
            assert number == v4l2.STREAMON and argument == struct.pack("i", 1)
        return 0


def yuyv(rgb: tuple[int, int, int], width: int, height: int) -> bytes:
    """A plain frame, by BT.601 the other way round."""
    r, g, b = (v / 255 for v in rgb)
    y = round(16 + 65.481 * r + 128.553 * g + 24.966 * b)
    u = round(128 - 37.797 * r - 74.203 * g + 112.0 * b)
    v = round(128 + 112.0 * r - 93.786 * g - 18.214 * b)
    return bytes([y, u, y, v]) * (width // 2 * height)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (120, 80, 200)])
def test_a_frame_of_a_colour_becomes_a_picture_of_it(colour: tuple[int, int, int]) -> None:
    made = np.asarray(Image.open(io.BytesIO(picture("YUYV", yuyv(colour, 6, 4), 6, 4, 12))))
    assert made.shape == (4, 6, 3) and np.abs(made.astype(int) - colour).max() <= 2


def test_lines_stay_where_they_are_and_padding_falls_away() -> None:
    top, below = yuyv((255, 0, 0), 6, 1) + bytes(8), yuyv((0, 0, 255), 6, 1) + bytes(8)
    made = np.asarray(Image.open(io.BytesIO(picture("YUYV", top + below, 6, 2, 20))))
    assert made[0, 0, 0] > 250 and made[1, 5, 2] > 250
    for data, width, stride in ((top, 6, 20), (top, 7, 20), (top, 6, 4)):
        with pytest.raises(DataError, match="a frame of"):
            picture("YUYV", data, width, 2, stride)


def test_a_jpeg_without_its_huffman_tables_is_read() -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), (200, 30, 40), np.uint8)).save(out, "JPEG")
    data, kept, at = out.getvalue(), b"\xff\xd8", 2
    while data[at + 1] != 0xDA:  # up to the scan: every segment but the tables, as UVC cameras leave them out
        size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if data[at + 1] == 0xC4 else data[at : at + size]
        at += size
    assert b"\xff\xc4" not in kept + data[at:]
    made = np.asarray(Image.open(io.BytesIO(picture("MJPG", kept + data[at:], 16, 16, 0))).convert("RGB"))
    assert np.abs(made.astype(int) - (200, 30, 40)).max() < 8


def test_frames_come_through_the_two_buffers_fresh_and_damaged_ones_not_at_all(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "video", "YUYV", [bytes([n]) * 6144 for n in range(1, 200)])
    camera = v4l2.Camera(driver.path, 64, 48, driver.ioctl)
    first = camera.frame()
    assert (first.format, first.width, first.height, first.stride, len(first.data)) == ("YUYV", 64, 48, 128, 6144)
    driver.shutter()
    driver.shutter()  # both buffers are full of what was long ago
    old = driver.taken
    assert camera.frame().data[0] > old
    driver.filled.append((driver.queued.pop(0), 6144, 0x40))
    assert camera.frame().data[0] > 0
    camera.close()


@pytest.mark.parametrize(("kind", "able", "word"), [("H264", None, "'H264'"), ("YUYV", 0, "captures no pictures")])
def test_what_is_no_camera_of_use_is_named(tmp_path: Path, kind: str, able: int | None, word: str) -> None:
    driver = Driver(tmp_path / "video", kind, [b""])
    driver.able = driver.able if able is None else able
    with pytest.raises(EnvironmentFault, match=word):
        v4l2.Camera(driver.path, 64, 48, driver.ioctl)
    with pytest.raises(EnvironmentFault, match="is a camera there"):
        v4l2.Camera(tmp_path / "none", 64, 48)
    with pytest.raises(EnvironmentFault, match="another program"):
        v4l2.Camera(driver.path, 64, 48)  # a plain file: the real ioctl refuses


def test_frames_are_predicted_or_learnt_by_who_says_their_label(board: Board, tmp_path: Path) -> None:
    scene, frames = np.random.default_rng(1).integers(20, 236, (48, 64)), []
    for number in range(7):  # a sensor's noise: no two frames are equal
        out = io.BytesIO()
        noisy = scene + np.random.default_rng(number).normal(0, 3, scene.shape)
        Image.fromarray(noisy.astype(np.uint8)).save(out, "JPEG", quality=95)
        frames.append(out.getvalue())
    driver = Driver(tmp_path / "video", "MJPG", frames)
    seen: list[tuple[str, Any]] = []
    label = tmp_path / "label"
    os.mkfifo(label)  # which nobody writes to: it must not hold the service up
    settings = Source("camera", socket=str(board.socket), camera=str(driver.path), every=0.05, label_file=str(label))
    service = Service(board.dir, settings, lambda event, facts: seen.append((event, facts)), driver.ioctl)

    async def live() -> None:
        work = asyncio.create_task(service.run())
        await reached(lambda: any(event == "predicted" for event, _ in seen))
        last = await service.answer(Last())
        assert last.id is not None and board.stats()["samples"] == 0, "nobody said what it sees"
        label.unlink()
        label.write_text("kind2\n")
        added = {"from": "camera", "added": 1, "known": 0, "relabelled": 0}
        await reached(lambda: ("sample", added) in seen)
        await asyncio.sleep(0.5)
        assert driver.taken > 5 and board.stats()["samples"] == 1, "frames that show the same are stored once"
        await service.answer(Label("kind4"))
        await reached(lambda: "4" in board.stats()["classes"])
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(live())
    assert set(board.stats()["classes"]) == {"2", "4"}
    groups = {sample.group for sample, _ in board.samples()}
    assert len(groups) == 1, "and what is alike is one group, whatever its label"


async def reached(done: Any) -> None:
    for _ in range(600):
        if await asyncio.to_thread(done):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not reached")


def test_a_button_is_asked_by_the_kernels_structures(tmp_path: Path) -> None:
    (tmp_path / "gpiochip0").touch()
    state = [0]

    def ioctl(handle: int, number: int, argument: bytearray) -> int:
        if number == button.GET_LINE:
            found = button.LINE_REQUEST.unpack(argument)
            assert found[0] == 17 and found[64].rstrip(b"\0") == b"fl-tiny" and found[72] == 1
            argument[:] = button.LINE_REQUEST.pack(*found[:-1], os.open(tmp_path / "gpiochip0", os.O_RDONLY))
        else:
            assert number == button.GET_VALUES and button.VALUES.unpack(argument) == (0, 1)
            argument[:] = button.VALUES.pack(state[0], 1)
        return 0

    pressed = Button("gpiochip0:17", ioctl, tmp_path)
    assert not pressed.pressed()
    state[0] = 1
    assert pressed.pressed()
    pressed.close()
    with pytest.raises(EnvironmentFault, match="gpiochip9"):
        Button("gpiochip9:1", ioctl, tmp_path)


def test_the_numbers_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or not Path("/usr/include/linux/videodev2.h").exists():
        pytest.skip("needs gcc and linux/videodev2.h")
    wanted = {
        "VIDIOC_QUERYCAP": v4l2.QUERYCAP, "VIDIOC_S_FMT": v4l2.S_FMT, "VIDIOC_REQBUFS": v4l2.REQBUFS,
        "VIDIOC_QUERYBUF": v4l2.QUERYBUF, "VIDIOC_QBUF": v4l2.QBUF, "VIDIOC_DQBUF": v4l2.DQBUF,
        "VIDIOC_STREAMON": v4l2.STREAMON, "VIDIOC_STREAMOFF": v4l2.STREAMOFF, "V4L2_BUF_FLAG_ERROR": 0x40,
        "V4L2_CAP_STREAMING": v4l2.STREAMING, "V4L2_CAP_DEVICE_CAPS": v4l2.DEVICE_CAPS,
        "V4L2_PIX_FMT_YUYV": int.from_bytes(b"YUYV", "little"), "V4L2_FIELD_NONE": 1,
        "offsetof(struct v4l2_buffer, bytesused)": 8, "offsetof(struct v4l2_buffer, m)": offset("@5I0l2l2I8s2I0L"),
        "offsetof(struct v4l2_buffer, length)": offset("@5I0l2l2I8s2IL"), "offsetof(struct v4l2_format, fmt)": 8,
        "GPIO_V2_GET_LINE_IOCTL": button.GET_LINE, "GPIO_V2_LINE_GET_VALUES_IOCTL": button.GET_VALUES,
        "offsetof(struct gpio_v2_line_request, config)": 288, "offsetof(struct gpio_v2_line_request, fd)": 588,
        "offsetof(struct gpio_v2_line_request, num_lines)": 560,
        "GPIO_V2_LINE_FLAG_INPUT": button.INPUT, "GPIO_V2_LINE_FLAG_ACTIVE_LOW": button.ACTIVE_LOW,
        "GPIO_V2_LINE_FLAG_BIAS_PULL_UP": button.PULL_UP,
    }  # fmt: skip
    lines = "".join(f'printf("%lld\\n", (long long)({name}));' for name in wanted)
    (tmp_path / "a.c").write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <sys/time.h>\n#include <linux/videodev2.h>\n"
        f"#include <linux/gpio.h>\nint main(void) {{ {lines} }}\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "a", tmp_path / "a.c"], check=True, timeout=60)
    said = subprocess.run([tmp_path / "a"], check=True, capture_output=True, text=True, timeout=10).stdout.split()
    assert {name: int(each) & 0xFFFFFFFF for name, each in zip(wanted, said, strict=True)} == wanted


def offset(form: str) -> int:
    return struct.calcsize(form)
