# SPDX-License-Identifier: Apache-2.0
"""Try inputs on one target in this process: ``engine.py TARGET SECONDS SEED FOLDER``; ``watched`` judges each input.

With atheris (libFuzzer's coverage) where it is installed, otherwise with a mutator of our own, which keeps an input
when the target left it at a new line. A finding is written to FOLDER and ends the process with exit code 1.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz.targets import Target

CPU_S = 1.0  # for one input
INPUT_KIB = 64 * 1024  # by which one input may raise the peak of this process
TOTAL_KIB = 160 * 1024  # by which all of them may
LONGEST = 65_536
CURRENT = "current"  # in FOLDER: the input being tried, for when the process dies


class Finding(BaseException):
    """What an input must not do; no handler of a target catches it."""


def _peak_kib() -> int:
    """The most memory since ``_forget_peak``; getrusage's figure is no use, a child begins with that of its parent."""
    with Path("/proc/self/status").open("rb") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(b"VmHWM:"))


def _forget_peak() -> None:
    with suppress(OSError), Path("/proc/self/clear_refs").open("wb") as clear:  # a kernel may be built without it
        clear.write(b"5")


@contextmanager
def _limited() -> Iterator[None]:
    def out_of_time(_number: int, _frame: FrameType | None) -> None:
        raise Finding(f"more than {CPU_S} s of CPU")

    signal.signal(signal.SIGVTALRM, out_of_time)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def watched(target: Target, data: bytes) -> str:
    """Where the target left this input: empty when it took it. Raises: Finding."""
    _forget_peak()
    before = _peak_kib()
    where = ""
    try:
        with _limited():
            target.run(data)
    except Finding:
        raise
    except target.expected as fault:
        where = _place(fault)
    except BaseException as fault:
        raise Finding("".join(traceback.format_exception(fault))) from None
    if _peak_kib() - before > INPUT_KIB:
        raise Finding(f"{(_peak_kib() - before) // 1024} MiB for one input of {len(data)} B")
    return where


def _place(fault: BaseException) -> str:
    last = fault.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else ""


def mutated(rng: random.Random, pool: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """One of ``pool``, changed at a few places."""
    data = bytearray(rng.choice(pool))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(10):
            case 0 if data:
                data[at - 1] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at - 1] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
            case 3:
                del data[at : at + rng.choice((1, 2, 4, 16, 256))]
            case 4 if words:
                word = rng.choice(words)
                data[at : at + (len(word) if rng.random() < 0.5 else 0)] = word
            case 5:
                size, order = rng.choice((2, 4, 8)), rng.choice(("big", "little"))
                value = rng.choice((0, 1, 127, 255, 4096, (1 << 8 * size) - 1, 1 << (8 * size - 1)))
                data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]
            case 6:
                end = min(len(data), at + rng.choice((1, 4, 16, 64)))
                data[at:at] = data[at:end] * rng.choice((1, 2, 30))
            case 7:
                other = rng.choice(pool)
                cut = rng.randrange(len(other) + 1)
                data[at:] = other[cut:]
            case 8:
                del data[at:]
            case _ if data:
                data[at - 1] = (data[at - 1] + rng.choice((-1, 1))) % 256
    return bytes(data[:LONGEST])


def tried(
    target: Target, pool: list[bytes], seed: int, going: Callable[[int], bool], note: Callable[[bytes], None]
) -> int:
    """How many inputs were tried, the seeds first, while ``going``. Raises: Finding, after ``note`` of its input."""
    rng = random.Random(seed)
    places: set[str] = set()
    count, start = 0, _peak_kib()
    pool = list(pool)
    seeds = len(pool)
    while count < seeds or going(count):
        data = pool[count] if count < seeds else mutated(rng, pool, target.words)
        note(data)
        place = watched(target, data)
        count += 1
        if place not in places:
            places.add(place)
            pool.append(data)
        if count == seeds:
            start = _peak_kib()
    if _peak_kib() - start > TOTAL_KIB:
        raise Finding(f"{(_peak_kib() - start) // 1024} MiB for {count} inputs")
    return count


def _with_atheris(name: str, seconds: int, seed: int, folder: Path) -> None:
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["fl_tiny", "aiocoap"], enable_loader_override=False):
        from fuzz.seeds import seeds
        from fuzz.targets import TARGETS
    target = TARGETS[name]

    def one(data: bytes) -> None:
        try:
            watched(target, data)
        except Finding as found:
            print(found, file=sys.stderr)
            raise

    with tempfile.TemporaryDirectory() as start:
        for i, data in enumerate(seeds(name)):
            Path(start, f"{i:04}").write_bytes(data)
        words = folder / "words"
        short = (word for word in target.words if len(word) < 60)
        lines = ["".join(f"\\x{byte:02x}" for byte in word) for word in short]
        words.write_text("".join(f'"{line}"\n' for line in lines))
        options = [
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-dict={words}",
            f"-artifact_prefix={folder}/",
            start,
        ]
        limits = ["-timeout=20", "-rss_limit_mb=2048", f"-max_len={LONGEST}", "-print_final_stats=1", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *limits, *options], one)
        atheris.Fuzz()


def _by_ourselves(name: str, seconds: int, seed: int, folder: Path) -> int:
    from fuzz.seeds import seeds
    from fuzz.targets import TARGETS

    path = folder / CURRENT
    path.write_bytes(bytes(LONGEST + 8))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as current:

        def note(data: bytes) -> None:
            current[:8] = len(data).to_bytes(8, "big")
            current[8 : 8 + len(data)] = data

        until = time.monotonic() + seconds
        try:
            count = tried(TARGETS[name], seeds(name), seed, lambda _: time.monotonic() < until, note)
        except Finding as found:
            print(found, file=sys.stderr)
            return 1
    path.unlink()
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)
    return 0


def rescued(folder: Path) -> bytes | None:
    """The input that a process of ours died of, if it did."""
    path = folder / CURRENT
    if path.exists():
        raw = path.read_bytes()
        return raw[8 : 8 + int.from_bytes(raw[:8], "big")]
    for artefact in (*folder.glob("crash-*"), *folder.glob("timeout-*"), *folder.glob("oom-*")):
        return artefact.read_bytes()
    return None


def keep(corpus: Path, name: str, data: bytes) -> Path:
    """Put a finding where every later run starts from it."""
    path = corpus / name / f"found-{hashlib.sha256(data).hexdigest()[:8]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    arguments = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if importlib.util.find_spec("atheris") is None:
        sys.exit(_by_ourselves(*arguments))
    _with_atheris(*arguments)
