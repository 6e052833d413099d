# SPDX-License-Identifier: Apache-2.0
"""Measure this checkout and print one JSON: memory, disk, bytes, seconds, and what federating is worth.

Real gateway and devices on loopback through a counting UDP relay (DTLS and CoAP included); ratios hold, absolute
times are this machine's. ``--only NAME`` measures one part, ``--quick`` shortens those that wait.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from e2e.fleet import Daemon, Fleet, cli, stop  # noqa: E402

from fl_tiny.device.backbone import open_backbone  # noqa: E402
from fl_tiny.device.runtimes import RUNTIMES, installed  # noqa: E402
from fl_tiny.lab import encodings, fashion, load  # noqa: E402
from fl_tiny.lab.relay import Relay  # noqa: E402
from fl_tiny.learn.head import head_spec, read_parameters  # noqa: E402
from fl_tiny.learn.tflite import read_model  # noqa: E402
from fl_tiny.learn.train import Settings, fit  # noqa: E402
from fl_tiny.protocol import aggregate  # noqa: E402
from fl_tiny.protocol.rounds import POLLS  # noqa: E402

HEADS = ROOT / "tests/models/bench"
CLASSES = {"64x10": 10, "1280x10": 10, "224-16-4": 4}
LAYERS = {"64x10": 1, "1280x10": 1, "224-16-4": 2}
KERNEL_MODELS = (
    "silabs/visual_wake_words",
    "silabs/keyword_spotting",
    "silabs/image_classification",
    "silabs/tflite_micro_magic_wand",
    "fashion",
)
BEAT_BYTES = 95  # of a heartbeat and its answer, as measured by the part idle
MIB = 1024.0  # KiB in a MiB


# ---- fleets -------------------------------------------------------------------------------------------------


@contextmanager
def fleet_of(head: str, directory: Path, devices: int, samples: int) -> Iterator[tuple[Fleet, Relay, list[Path]]]:
    """A gateway behind a relay, and enrolled devices with samples; everything is ended with the block."""
    fleet = Fleet(directory, HEADS / f"head_{head}.tflite", LAYERS[head])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    relay = asyncio.run_coroutine_threadsafe(_relay(), loop).result()
    try:
        first = fleet.gateway()
        relay.gateway_port = fleet.port
        directories = [_device(fleet, relay, head, f"d{i}", samples, i) for i in range(devices)]
        stop(first)
        yield fleet, relay, directories
    finally:
        fleet.end()
        loop.call_soon_threadsafe(relay.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _relay() -> Relay:
    return Relay()


def _device(fleet: Fleet, relay: Relay, head: str, name: str, samples: int, seed: int) -> Path:
    directory = fleet.root / name
    code = cli("gateway", "pair", fleet.gw)["code"]
    cli("device", "enroll", directory, "--code", code, "--name", name, "--gateway", f"127.0.0.1:{relay.port}")
    if samples:
        cli("samples", "add", directory, "--data", data(fleet.root, head, samples, seed))
    return directory


def data(folder: Path, head: str, samples: int, seed: int) -> Path:
    """A file of noise whose pattern depends on the class, for the model of a head."""
    rng = np.random.default_rng(seed)
    pattern = np.random.default_rng(99).normal(size=(CLASSES[head], 8, 8, 1))
    y = rng.integers(0, CLASSES[head], samples)
    x = (pattern[y] + rng.normal(size=(samples, 8, 8, 1))).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=y)
    return folder / "data.npz"


def rss_mib(pid: int, field: str = "VmRSS") -> float:
    """A field of /proc/PID/status in MiB; 0 when the process has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in status.split("\n") if line.startswith(field)]
    return float(found[0]) / MIB if found else 0.0


def children(pid: int) -> list[int]:
    """The ids of a process's children."""
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


# ---- the parts ----------------------------------------------------------------------------------------------


def memory(directory: Path) -> dict[str, Any]:
    """RSS of a device's process, idle, then of its training child at its highest, then idle again; and its CPU."""
    with fleet_of("1280x10", directory, 1, 2000) as (fleet, _, (device,)):
        fleet.gateway("--interval", 3600)
        run = fleet.run(device)
        run.event("connected")
        time.sleep(1.0)
        pid, peak = run.process.pid, 0.0
        idle, before = rss_mib(pid), cpu_s(pid)
        done = threading.Event()
        threading.Thread(target=lambda: (run.event("model"), done.set()), daemon=True).start()
        while not done.wait(0.01):
            peak = max([peak, *(rss_mib(child, "VmHWM") for child in children(pid))])
        time.sleep(3.0)
        return {
            "rss_mib": {"idle": round(idle, 1), "training": round(peak, 1), "after": round(rss_mib(pid), 1)},
            "cpu_seconds_per_round": round(cpu_s(pid) - before, 2),
        }


def round_bytes(directory: Path) -> dict[str, Any]:
    """UDP payload a round and client, without the handshake, over three rounds; and the handshake's own."""
    found: dict[str, Any] = {}
    first = 0
    for head in LAYERS:
        with fleet_of(head, directory / head, 1, 200) as (fleet, relay, (device,)):
            start = relay.bytes
            gateway = fleet.gateway("--interval", 0, "--rounds", 4)
            run = fleet.run(device, "--rounds", 4)
            run.event("connected")
            first = relay.bytes - start
            gateway.event("round", number=1, state="published")
            up, down = relay.up_bytes, relay.down_bytes
            gateway.event("round", number=4, state="published")
            found[head] = {"up": (relay.up_bytes - up) // 3, "down": (relay.down_bytes - down) // 3}
            gateway.wait(), run.wait()
    return {"bytes_per_round": found, "handshake_bytes": first}


def idle_bytes(directory: Path, seconds: float) -> dict[str, Any]:
    """UDP payload a minute of a connected device while no round is open."""
    with fleet_of("1280x10", directory, 1, 0) as (fleet, relay, (device,)):
        fleet.gateway("--interval", 3600)
        run = fleet.run(device)
        run.event("round", state="declined")
        time.sleep(5.0)
        start = relay.bytes
        time.sleep(seconds)
        return {"idle_bytes_per_minute": round((relay.bytes - start) * 60 / seconds)}


def round_seconds(directory: Path) -> dict[str, Any]:
    """Opening to publication less the longest training child's wall time, and the whole, mean over rounds 2 to 5."""
    beyond, whole = {}, {}
    for clients in (1, 2, 5, 10):
        with fleet_of("1280x10", directory / str(clients), clients, 200) as (fleet, _, devices):
            gateway = fleet.gateway("--interval", 0, "--rounds", 5, "--clients", clients)
            runs = [fleet.run(device, "--rounds", 5) for device in devices]
            gateway.wait()
            for run in runs:
                run.wait()
            rows = cli("gateway", "rounds", fleet.gw)[1:]
            longest = {row["number"]: max(_training(runs, row["number"])) for row in rows}
            whole[str(clients)] = round(float(np.mean([row["seconds"] for row in rows])), 2)
            beyond[str(clients)] = round(float(np.mean([row["seconds"] - longest[row["number"]] for row in rows])), 2)
    return {"seconds_per_round": beyond, "seconds_per_round_with_training": whole}


def _training(runs: list[Daemon], number: int) -> list[float]:
    return [
        float(event["training_s"] or 0)
        for run in runs
        for event in run.seen
        if event["event"] == "update" and event["number"] == number
    ] or [0.0]


def training(_: Path) -> dict[str, Any]:
    """Samples a second that one core trains, the best of three."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    found = {}
    for head, layers in LAYERS.items():
        spec = head_spec(read_model((HEADS / f"head_{head}.tflite").read_bytes()), layers)
        rng = np.random.default_rng(1)
        features = rng.integers(-128, 128, (2000, spec.feature_size), dtype=np.int8)
        labels, settings = rng.integers(0, CLASSES[head], 2000), Settings(epochs=5)
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            fit(spec, read_parameters(spec), features, labels, settings=settings, rng=rng)
            rates.append(5 * 2000 / (time.perf_counter() - start))
        found[head] = round(max(rates))
    return {"training_samples_per_s": found}


def aggregation(_: Path) -> dict[str, Any]:
    """Seconds to add 1,000 updates, and the memory above the start, each in a process of its own."""
    cases = {"1000x51KB": 12_810, "1000x5MB": 1_250_000}
    return {"aggregate": {name: json.loads(_python("--aggregate", str(size))) for name, size in cases.items()}}


def aggregate_here(parameters: int) -> dict[str, float]:
    """Add 1,000 updates of so many int8 codes, as they would arrive, one at a time."""
    codes = np.random.default_rng(1).integers(-127, 128, parameters, dtype=np.int8).tobytes()
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summed = aggregate.RunningSum([(1, parameters)])
    for number in range(1000):
        summed.add(codes, aggregate.Share(1 + number % 100))
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2),
        "peak_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MIB, 1),
    }


def installation(directory: Path) -> dict[str, Any]:
    """Bytes / 1e6 that ``pip install .[tflite]`` brings, without .pyc, pip, setuptools; the LiteRT runtime beside."""
    home = directory / "venv"
    venv.create(home, with_pip=True)
    pip = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{ROOT}[tflite]"], check=True)
    packages = next((home / "lib").glob("python*/site-packages"))
    sizes: dict[str, int] = {}
    for path in packages.rglob("*"):
        top = path.relative_to(packages).parts[0]
        if path.is_file() and path.suffix != ".pyc" and not top.startswith(("pip", "setuptools", "pkg_resources")):
            name = top.split("-")[0].split(".")[0].lower()
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    litert = directory / "litert"
    subprocess.run([*pip, "--target", str(litert), "ai-edge-litert"], check=True)
    litert_size = sum(p.stat().st_size for p in litert.rglob("*") if p.is_file() and p.suffix != ".pyc")
    shown = {name: round(size / 1e6, 1) for name, size in sorted(sizes.items(), key=lambda i: -i[1]) if size > 5e5}
    total = round(sum(sizes.values()) / 1e6, 1)
    return {
        "installed_mb": {
            "total": total,
            **shown,
            "ai-edge-litert with numpy and what else it needs": round(litert_size / 1e6, 1),
        }
    }


def imports(_: Path) -> dict[str, Any]:
    """Milliseconds to import the idle daemon, above a bare interpreter; median of nine."""

    def wall(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return 1000 * (time.perf_counter() - start)

    pairs = [(wall("pass"), wall("import fl_tiny.device.agent")) for _ in range(9)]
    return {"import_ms": round(float(np.median([daemon - bare for bare, daemon in pairs])))}


def kernels(_: Path) -> dict[str, Any]:
    """numpy's kernels against the interpreters, in a process with one BLAS thread."""
    return {"kernels": json.loads(_python("--kernels", one_thread=True))}


def one_sample(name: str, data: bytes) -> Callable[[Any], Any]:
    """What runs one sample by a runtime; an interpreter as it is, since a backbone of ours has eight in a batch."""
    if RUNTIMES[name].rule:
        return open_backbone(data, runtime=name).run
    interpreter = importlib.import_module(RUNTIMES[name].module).Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(x: Any) -> Any:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(result)

    return run


def kernels_here() -> dict[str, dict[str, float]]:
    """Median microseconds of one sample, turn by turn in one process, and numpy's ratio to each interpreter."""
    found: dict[str, dict[str, float]] = {}
    for name in KERNEL_MODELS:
        data = (ROOT / f"tests/models/{name}.tflite").read_bytes()
        source = read_model(data).input
        x = np.random.default_rng(1).integers(-100, 100, (1, *source.shape[1:])).astype(source.dtype)
        opened = {each: one_sample(each, data) for each in RUNTIMES if installed(each)}
        times: dict[str, list[float]] = {each: [] for each in opened}
        for _ in range(300):
            for each, run in opened.items():
                start = time.perf_counter()
                run(x)
                times[each].append(1e6 * (time.perf_counter() - start))
        medians = {each: float(np.median(values)) for each, values in times.items()}
        found[name.rpartition("/")[2]] = {
            **{f"{each} us": round(value, 1) for each, value in medians.items()},
            **{f"numpy/{each}": round(medians["numpy"] / medians[each], 2) for each in medians if "numpy" not in each},
        }
    return found


def fashion_clients(_: Path) -> dict[str, Any]:
    """15 Dirichlet clients on upside-down Fashion images, int8 accuracies on test images."""
    model = (ROOT / "tests/models/fashion.tflite").read_bytes()
    found = {}
    for alpha in (0.3, 1.0):
        done = fashion.run(model, alpha)
        found[str(alpha)] = {
            "alone": round(done.alone, 3),
            "fedavg": round(done.fedavg, 3),
            "central": round(done.central, 3),
        }
    return {"fashion": found}


def encoding_costs(_: Path) -> dict[str, Any]:
    """Accuracy and bytes by encoding, deltas on, against float32: the demo's arms, and the Fashion clients."""
    model = (ROOT / "tests/models/fashion.tflite").read_bytes()
    found = {"watch": encodings.compare(encodings.watches(), (1, 2, 3))}
    for alpha in (0.1, 0.3, 1.0):
        found[f"fashion {alpha}"] = encodings.compare(fashion.as_task(model, alpha))
    return {"encodings": found}


def day_bytes(directory: Path) -> dict[str, Any]:
    """UDP payload of a fleet's first day: 24 rounds of a 1280x10 head by int4 and deltas, the idle polls between them,
    and a handshake before each, though a session that is polled lives on."""
    rounds = 24
    with fleet_of("1280x10", directory, 1, 200) as (fleet, relay, (device,)):
        start = relay.bytes
        gateway = fleet.gateway("--interval", 0, "--rounds", rounds, "--encoding", "int4")
        run = fleet.run(device, "--rounds", rounds)
        run.event("connected")
        handshake = relay.bytes - start
        per_round = []
        for number in range(1, rounds + 1):
            before = relay.up_bytes, relay.down_bytes
            gateway.event("round", number=number, state="published")
            per_round.append((relay.up_bytes - before[0], relay.down_bytes - before[1]))
        gateway.wait(), run.wait()
        whole = relay.bytes - start
    late = per_round[rounds // 2 :]
    day = whole + (rounds - 1) * handshake + rounds * POLLS * BEAT_BYTES
    up, down = (round(sum(each[i] for each in late) / len(late)) for i in (0, 1))
    worst = max(sum(each) for each in per_round[1:])
    return {"day": {"bytes": day, "handshake": handshake, "round": {"up": up, "down": down}, "worst_round": worst}}


def loads(_: Path) -> dict[str, Any]:
    """A thousand devices of each size against one gateway (``fl-tiny simulate``)."""
    sizes = (((64, 10), "int8"), ((1280, 10), "int4"))
    found = [asyncio.run(load.run(load.Options(1000, head, encoding), lambda _: None)) for head, encoding in sizes]
    return {"load": [each.as_json() for each in found]}


def exact_starts(_: Path) -> dict[str, Any]:
    """The same clients with a head solved from their sums in one round, and after 20 rounds of training from it."""
    model = (ROOT / "tests/models/fashion.tflite").read_bytes()
    found = {}
    for alpha in (0.1, 0.3, 1.0):
        done = fashion.run_exact(model, alpha)
        found[str(alpha)] = {"exact": round(done.exact, 3), "fedavg": round(done.fedavg, 3)}
    return {"exact_start": found}


def _python(*args: str, one_thread: bool = False) -> str:
    env = os.environ | ({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} if one_thread else {})
    done = subprocess.run([sys.executable, __file__, *args], capture_output=True, text=True, check=True, env=env)
    return done.stdout


def main() -> None:
    """Run the parts asked for, one after the other, and print what they found as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="watch an idle device for one minute instead of three")
    parser.add_argument("--aggregate", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kernels", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.aggregate:
        print(json.dumps(aggregate_here(args.aggregate)))
        return
    if args.kernels:
        print(json.dumps(kernels_here()))
        return
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "memory": memory,
        "bytes": round_bytes,
        "idle": lambda directory: idle_bytes(directory, 60.0 if args.quick else 180.0),
        "seconds": round_seconds,
        "training": training,
        "aggregate": aggregation,
        "install": installation,
        "import": imports,
        "fashion": fashion_clients,
        "exact": exact_starts,
        "encodings": encoding_costs,
        "day": day_bytes,
        "load": loads,
        "kernels": kernels,
    }
    unknown = set(args.only or ()) - set(parts)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    found: dict[str, Any] = {}
    for name in args.only or parts:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="fl-tiny-bench-") as directory:
            found |= parts[name](Path(directory))
    if {"bytes_per_round", "idle_bytes_per_minute"} <= set(found):
        one = sum(found["bytes_per_round"]["1280x10"].values())
        day = 24 * one + 1440 * found["idle_bytes_per_minute"] + found["handshake_bytes"]
        found["bytes_per_day_hourly"] = day  # 24 rounds, a day of heartbeats, one handshake
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
