# SPDX-License-Identifier: Apache-2.0
"""At the end of a run: what each part has to show, by the numbers of the issue that asked for it."""

from __future__ import annotations

import re
from typing import Any

SHOWS = {  # what is shown, and the part that shows it
    1: ("uploads under loss", "loss"),
    2: ("kills of the gateway", "kill"),
    3: ("power cuts", "power"),
    4: ("back after a restart or a rebinding NAT", "back"),
    5: ("floods of strangers", "flood"),
    6: ("a thousand devices", "load"),
    7: ("bytes and accuracy", "bytes"),
    8: ("libcoap", "interop"),
    9: ("fuzz, and the table of CBOR", "fuzz"),
    10: ("a new model through a live fleet", "identity"),
    11: ("the operator's page", "interop"),
}
LINE = re.compile(r"^Shows (\d+): (.*)$", re.MULTILINE)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the lines ``Shows N: …`` of all tests that passed or failed."""
    found: list[tuple[int, str, str]] = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            text = getattr(report, "capstdout", "") + "\n" + getattr(report, "capstderr", "")
            mark = "" if outcome == "passed" else "FAILED "
            found += [(int(number), mark, line) for number, line in LINE.findall(text)]
    terminalreporter.section("what issue 5 shows")
    for number, (what, part) in SHOWS.items():
        lines = [mark + line for shown, mark, line in found if shown == number]
        for line in lines or [f"nothing: its part `{part}` did not run, or was skipped"]:
            terminalreporter.write_line(f"{number:2} {what}: {line}")
