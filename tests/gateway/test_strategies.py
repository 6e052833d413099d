# SPDX-License-Identifier: Apache-2.0
"""A strategy of another package: installed, found by its entry point, used; a broken one costs no update."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_tiny.errors import ConfigError
from fl_tiny.gateway import setup
from fl_tiny.gateway.gather import Changes, Made
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.strategies import strategy_named
from fl_tiny.gateway.tables import Entry
from fl_tiny.lab import watch
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.strategy import Options, encode_state
from fl_tiny.protocol.update import HeadBody, decode_head, flatten

PACKAGE = Path(__file__).parent / "halving"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example package, as pip installs it, found by this process."""
    folder = tmp_path_factory.mktemp("halving")
    shutil.copytree(PACKAGE, folder / "source")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        folder / "site",
        folder / "source",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip cannot build the example package here: {done.stderr[-200:]}")
    sys.path.insert(0, str(folder / "site"))
    yield
    sys.path.remove(str(folder / "site"))


def published(tmp_path: Path, name: str) -> tuple[np.ndarray, Made]:
    """The head's move by a round with one update of all ones, and what was made."""
    model = tmp_path / "watch.tflite"
    model.write_bytes(watch.load().model)
    setup.initialise(tmp_path / name, model, None, Wanted(2))
    store = Store.open(tmp_path / name / "state.db")
    manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
    changes, base = Changes(manifest, strategy_named(name, Options()), store.strategy_state()), store.head()
    entry = Entry(bytes(16), b"", 10, None, None, None, None, bytes([1]) * manifest.parameters)
    made = changes.made(base, lambda: [entry])
    scales = wire.decode(wire.Head, signed.payload_of(base.signed)).scales
    before = flatten(decode_head(HeadBody(base.body, scales), manifest.shapes))
    after = flatten(decode_head(made.head.head, manifest.shapes)) + np.frombuffer(made.head.residual, "<f4")
    return after - before, made


@pytest.mark.usefixtures("installed")
def test_a_package_brings_a_strategy_by_its_entry_point(tmp_path: Path) -> None:
    averaged, _ = published(tmp_path, "fedavg")
    halved, made = published(tmp_path, "halving")
    assert halved == pytest.approx(averaged / 2, rel=1e-4, abs=1e-9)
    assert list(encode_state(made.head.state)) == ["last"]


@pytest.mark.usefixtures("installed")
def test_where_a_strategy_fails_the_round_is_averaged_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    averaged, _ = published(tmp_path, "fedavg")
    with caplog.at_level(logging.ERROR):
        moved, made = published(tmp_path, "broken")
    assert np.array_equal(moved, averaged)
    assert not made.head.state
    assert "ZeroDivisionError: no strategy" in caplog.text


def test_an_unknown_strategy_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="nonsense") as refused:
        strategy_named("nonsense", Options())
    assert "fedyogi" in (refused.value.hint or "")


def test_what_a_strategy_remembers_is_in_the_transaction_of_the_head(tmp_path: Path) -> None:
    _, made = published(tmp_path, "fedadam")
    store = Store.open(tmp_path / "fedadam" / "state.db")
    state = encode_state(made.head.state)
    assert set(state) == {"unit", "mean", "square"}
    with pytest.raises(Exception, match="UNIQUE"):
        store.publish(b"r" * 8, store.head(), 1.0, strategy=state)  # version 0 is there already
    assert store.strategy_state() == {}
