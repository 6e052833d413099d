# SPDX-License-Identifier: Apache-2.0
"""Programs teach, ask and correct through the socket; hostile ones are refused and bounded."""

from __future__ import annotations

import io
import random
import stat
from pathlib import Path

import cbor2
import numpy as np
import pytest
from e2e.fleet import cli
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.device.api import Device
from fl_tiny.device.recent import Predicted, Recent
from fl_tiny.device.sources import messages
from fl_tiny.device.sources.messages import DONE, REFUSED, Correct, File, Label, Last, Sample
from fl_tiny.errors import DataError, MalformedMessage

from .conftest import Board, pixels


def sample(seed: int, label: int | str | None = None) -> Sample:
    return Sample("float32", (pixels(seed) / np.float32(255)).astype("<f4").tobytes(), label)


def test_a_program_teaches_asks_and_corrects(board: Board) -> None:
    board.serve(kind="socket")
    assert stat.S_IMODE(board.socket.stat().st_mode) == 0o660
    client = board.connect()
    assert client.ask(sample(1, 4)) == messages.Answer(DONE, added=1, known=0)
    assert client.ask(sample(2, "kind6")) == messages.Answer(DONE, added=1, known=0)
    said = client.ask(sample(3))
    assert said.state == DONE and said.id is not None and said.name == f"kind{said.number}"
    np.savez(board.root / "d.npz", x=pixels(3)[None, ..., None] / np.float32(255))
    assert cli("predict", board.dir, "--data", board.root / "d.npz")["labels"] == [said.number]
    assert client.ask(Correct(said.id, "kind9")).added == 1
    assert board.stats()["classes"] == {"4": 1, "6": 1, "9": 1}
    assert "corrected already" in str(client.ask(Correct(said.id, "kind9")).why), "a second word counts nothing twice"
    again = client.ask(sample(3, 9))
    assert (again.added, again.known) == (0, 1), "what is learnt is the sample that was predicted"
    assert board.stats()["samples"] == 3
    again = client.ask(sample(4))
    wrong = client.ask(Correct(again.id or b"", "coat"))
    assert wrong.state == REFUSED and client.ask(Correct(again.id or b"", 0)).added == 1, "a fault uses no id up"


def test_a_file_through_the_socket_is_made_a_sample_by_the_fleets_preprocessing(board: Board) -> None:
    image = pytest.importorskip("PIL.Image", reason="SKIPPED: pictures need Pillow, the extra [data]")
    board.serve(kind="socket")
    client, out = board.connect(), io.BytesIO()
    image.fromarray(pixels(1)).save(out, "PNG")
    assert client.ask(File("png", out.getvalue(), "kind1")).added == 1
    assert client.ask(sample(1, 1)).known == 1, "the same features"
    assert client.ask(File("png", out.getvalue())).id is not None
    assert client.ask(File("png", b"x", 1)).state == REFUSED
    assert client.ask(Last()).state == REFUSED and client.ask(Label("kind1")).state == DONE


def test_hostile_messages_are_refused_and_the_service_goes_on(board: Board) -> None:
    board.serve(kind="socket")
    rng = random.Random(3)
    client = board.connect()
    for data in (
        b"", b"\xa1", cbor2.dumps({0: 99}), cbor2.dumps({0: 1}), cbor2.dumps({0: 3, 1: b"x", 3: 1}),
        cbor2.dumps({0: 1, 1: "float32", 2: b"x"}), cbor2.dumps({0: 1, 1: "object", 2: b"x"}),
        cbor2.dumps({0: 1, 1: "float32", 2: np.full(784, np.nan, "<f4").tobytes()}),
        cbor2.dumps({0: 1, 1: "float32", 2: bytes(3136), 3: 10}), cbor2.dumps({0: 3, 1: bytes(8), 3: 1}),
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", *(rng.randbytes(20) for _ in range(50)),
    ):  # fmt: skip
        answer = client.send(len(data).to_bytes(4, "big") + data)
        assert answer.state == REFUSED and answer.why
    assert "at most" in str(client.send((messages.LIMIT + 1).to_bytes(4, "big")).why)
    with pytest.raises(EOFError):
        client.exactly(1)
    many = [board.connect() for _ in range(12)]
    assert [answers(each) for each in many].count(True) == 8
    for each in many:
        each.socket.close()
    assert board.connect().ask(sample(1, 1)).added == 1
    assert board.stats()["samples"] == 1


def answers(client: object) -> bool:
    try:
        return client.ask(Label()).state == DONE  # type: ignore[attr-defined]
    except (EOFError, OSError):
        return False


@given(st.binary(max_size=64))
def test_any_bytes_are_a_request_or_malformed(data: bytes) -> None:
    try:
        request = messages.request_of(data)
    except MalformedMessage:
        return
    assert messages.request_of(messages.framed(request)[4:]) == request


def test_predictions_are_kept_within_number_and_time() -> None:
    kept = Recent(3, 10.0)
    made = [Predicted(bytes([n]), b"", "r") for n in range(5)]
    ids = [kept.put(each, float(n)) for n, each in enumerate(made)]
    assert [kept.get(name, 4.0) for name in ids] == [None, None, *made[2:]]
    assert [kept.get(name, 12.5) for name in ids] == [None, None, None, *made[3:]]
    kept.drop(ids[3])
    assert kept.get(ids[3], 4.0) is None and len(kept) == 1 and kept.get(ids[4], 20.0) is None and len(kept) == 0


def test_the_python_api_asks_and_corrects(board: Board) -> None:
    device = Device.open(board.dir)
    x = np.stack([pixels(1), pixels(2)])[..., None] / np.float32(255)
    said, ids = device.ask(x)
    assert said.tolist() == device.predict(x).tolist()
    device.correct(ids[1], 8)
    assert device.learn(x[1:], [8]) == 0 and len(board.samples()) == 1, "the same sample"
    for name in (ids[1], "zz", "00" * 8):
        with pytest.raises(DataError, match="no prediction"):
            device.correct(name, 8)
    with pytest.raises(DataError, match="classes 0 to 9"):
        device.correct(ids[0], 10)
    device.correct(ids[0], 0)
    device.close()


def test_a_prediction_of_another_model_is_not_learnt(board: Board) -> None:
    device = Device.open(board.dir)
    with pytest.raises(DataError, match="the model has changed"):
        device.learn_predicted(Predicted(bytes(device.spec.feature_size), b"another", ""), 1)
    device.close()


def test_the_service_without_work_gives_memory_back_and_is_small(board: Board) -> None:
    service = board.serve(kind="socket")
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    rss = int(status.split("VmRSS:")[1].split()[0]) / 1024
    assert rss < 40, f"{rss:.1f} MiB"
    mapped = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "numpy" not in mapped and "tflite" not in mapped
