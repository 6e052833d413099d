# SPDX-License-Identifier: Apache-2.0
"""Fuzz each target in a child process for SECONDS: ``python -m fuzz [SECONDS] [TARGET…]``; run by scripts/fuzz."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.engine import keep, rescued
from fuzz.seeds import CORPUS
from fuzz.targets import TARGETS

SECONDS = 60
PATIENCE_S = 60  # beyond them, until a child that says nothing is ended
ENGINE = Path(__file__).with_name("engine.py")


def run(name: str, seconds: int, seed: int) -> bool:
    """Whether a target stood its time; what was found is printed, and kept in the corpus."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-X", "faulthandler", ENGINE, name, str(seconds), str(seed), folder]
        try:
            done = subprocess.run(
                command,
                env=here,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds + PATIENCE_S,
                check=False,
            )
            code, log = done.returncode, done.stderr
        except subprocess.TimeoutExpired as hung:
            code, log = 1, f"still running after {seconds + PATIENCE_S} s\n{hung.stderr or ''}"
        counted = re.search(r"number_of_executed_units:\s*(\d+)", log)
        guilty = rescued(Path(folder)) if code else None
    if code == 0 and counted:
        print(f"{name}: passed, {counted[1]} inputs in {seconds} s", flush=True)
        return True
    print(f"{name}: FAILED, exit {code}\n{log[-4000:]}", flush=True)
    if guilty is not None:
        print(f"{name}: the input is now {keep(CORPUS, name, guilty)}", flush=True)
    return False


def main() -> int:
    """0 when all passed."""
    words = sys.argv[1:]
    seconds = int(words.pop(0)) if words and words[0].isdecimal() else SECONDS
    seed = int(os.environ.get("FUZZ_SEED", "1"))
    if unknown := set(words) - set(TARGETS):
        sys.exit(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    engine = "atheris" if importlib.util.find_spec("atheris") else "our own mutator: atheris is not installed"
    print(f"fuzz: {seconds} s a target, seed {seed}, by {engine}", flush=True)
    results = [run(name, seconds, seed) for name in words or TARGETS]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
