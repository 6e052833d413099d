# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: real processes on loopback, figures, a report, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

KEYS = {
    "devices", "rounds", "before", "alone", "global", "personal", "gain", "worst", "cold_start", "cold_start_before",
    "seconds", "bytes_per_round", "raw_bytes_kept",
}  # fmt: skip
WINDOW_BYTES = 100 * 6
SMALL = ("--devices", "3", "--rounds", "2", "--labels-per-class", "5")
END_S = 90.0  # a busy machine


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "fl_tiny", "demo", "--out", str(out), *more]


def children(out: Path) -> list[int]:
    """Processes whose command line names this demo's folder, the demo itself left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(bytes(out) + b"/") for word in words):
            found.append(int(entry.name))
    return found


class References(HTMLParser):
    """Collects what a page would fetch, and checks that what it opens it closes."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {key}={value}" for key, value in attrs if key in ("src", "href", "data", "srcset")]
        if tag in ("script", "link", "iframe", "object", "embed", "img"):
            self.fetched.append(tag)
        if tag not in ("meta", "br", "i"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "i":
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A closed element; it opens nothing."""

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.slow
def test_a_small_demo_trains_reports_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(command(out, *SMALL, "--json"), check=False, capture_output=True, text=True, timeout=END_S)
    assert done.returncode == 0, done.stderr
    assert children(out) == []
    found = json.loads(done.stdout)
    assert set(found) == KEYS
    assert (found["devices"], found["rounds"]) == (3, 2)
    assert found["raw_bytes_kept"] == 3 * 7 * 5 * WINDOW_BYTES
    assert 6_000 < found["bytes_per_round"] < 60_000  # 6,400 codes up at the least
    assert found["personal"] > found["before"] + 0.03
    assert "round 2 of 2: 3 updates" in done.stderr
    report = json.loads((out / "report.json").read_text())
    assert {key: report[key] for key in KEYS} == found
    assert sum(map(sum, report["confusion"]["after"])) == sum(map(sum, report["confusion"]["before"]))
    for model in (
        "models/fleet.tflite",
        "devices/w6-left/model/current.tflite",
        "devices/w3-left/model/current.tflite",
    ):
        assert (out / model).stat().st_size > 10_000
    page = (out / "report.html").read_text()
    seen = References()
    seen.feed(page)
    assert seen.fetched == [] and seen.open == []
    assert "url(" not in page and "http" not in page and "@import" not in page


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_may_be_run_again(tmp_path: Path, number: int) -> None:
    out = tmp_path / "demo"
    rounds = ("--devices", "2", "--rounds", "50", "--labels-per-class", "5")
    demo = subprocess.Popen(command(out, *rounds), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stderr is not None
        while not (line := demo.stderr.readline()).startswith("round 1"):
            assert line, "the demo ended too early"
        assert children(out), "there is nothing to leave behind yet"
        demo.send_signal(number)
        stdout, _ = demo.communicate(timeout=20)
    finally:
        demo.kill()
    assert demo.returncode == 130 and stdout == ""
    end = time.monotonic() + 2
    while children(out) and time.monotonic() < end:
        time.sleep(0.05)
    assert children(out) == []
    from fl_tiny.lab.demo import prepare

    prepare(out)  # an earlier demo's folder is replaced
    assert not (out / "gateway").exists() and not any((out / "devices").iterdir())


def test_a_folder_that_is_not_a_demos_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    done = subprocess.run(command(tmp_path, *SMALL), check=False, capture_output=True, text=True, timeout=END_S)
    assert done.returncode == 78 and done.stdout == ""
    assert "not an earlier demo's" in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
