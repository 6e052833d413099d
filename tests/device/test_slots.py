# SPDX-License-Identifier: Apache-2.0
"""A board's two slots: whatever a new model is, and wherever a switch is cut, a working model is there."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_tiny import statedir
from fl_tiny.device import derived, slots
from fl_tiny.device.intake import Sample
from fl_tiny.device.job import Job, Tried
from fl_tiny.device.layout import BASE, CANARY, CURRENT, SLOTS
from fl_tiny.device.slots import Boot
from fl_tiny.device.store import DeviceStore, HeldHead, Kept
from fl_tiny.device.trial import try_model
from fl_tiny.device.worker import read_samples
from fl_tiny.errors import RemoteError
from fl_tiny.files import write_atomic
from fl_tiny.gateway.gather import first_made, make_version
from fl_tiny.gateway.manifests import Settled, Wanted, settle, sign
from fl_tiny.learn.head import head_spec, read_parameters, trained_part
from fl_tiny.learn.requant import patch, requantise
from fl_tiny.learn.tflite import read_model
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.manifest import ManifestFile, spec_of
from fl_tiny.protocol.wire import Code

BENCH = Path(__file__).parents[1] / "models/bench"
OLD_MODEL, NEW_MODEL = BENCH / "head_224-16-4.tflite", BENCH / "head_64x10.tflite"
KEY, GATEWAY = b"\x01" * 32, b"\x02" * 32


class Board:
    """An enrolled device's directory without a gateway."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.folder = directory / statedir.MODEL
        statedir.create(directory)
        made = settle(OLD_MODEL, None, Wanted(2))
        for name in (BASE, CURRENT):
            (self.folder / name).write_bytes(made.data)
        store = DeviceStore.create(directory / statedir.DATABASE)
        store.put(manifest=manifest(made), model_pk=signed.public_key(KEY), did=b"d" * 16, enrolled=1)
        head = own_head(made)
        store.put_head(head)
        store.put_kept(Kept(0, "model", fitted=False, digest=made.manifest.digest, start=head))
        store.close()

    def store(self) -> DeviceStore:
        return DeviceStore.open(self.directory / statedir.DATABASE)

    def receive(self, model: Path, counter: int = 2, **options: Any) -> tuple[bytes, HeldHead]:
        """A newer model in the spare slot, as it is before its trial."""
        made = settle(model, None, Wanted(options.pop("layers", None)), counter=counter)
        canary = options.get("canary")
        if canary:
            (self.folder / CANARY).write_bytes(canary[0])
        with closing(self.store()) as store:
            write_atomic(self.folder / SLOTS[slots.spare(store)], made.data)
        return manifest(made, **options), own_head(made)

    def tried(self, message: bytes, head: HeldHead) -> Tried:
        with closing(self.store()) as store:
            samples = read_samples(store, slots.base_path(self.directory, store).read_bytes())
            wanted = Job(0, 1, head.signed, head.body, None, slots.spare(store), message)
            return try_model(self.directory, store, wanted, samples)

    def current(self) -> int:
        """Which model programs load, by its counter; it is whole, or this fails."""
        digest = slots.digest_of(self.folder / CURRENT)
        return {sha(OLD_MODEL): 1, sha(NEW_MODEL): 2}[digest]


def sha(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def manifest(made: Settled, key: bytes = KEY, **options: Any) -> bytes:
    return wire.decode(ManifestFile, sign(key, made, **options), limit=ManifestFile.LIMIT).signed


def own_head(made: Settled) -> HeldHead:
    parameters = trained_part(made.spec, read_parameters(made.spec))
    digest = hashlib.sha256(wire.encode(made.manifest)).digest()
    version = make_version(0, first_made(parameters), digest, GATEWAY)
    return HeldHead(0, version.signed, version.body)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "dev")


# ---- which slot a start uses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tries", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_a_slot_that_is_whole_is_always_used(tries: int | None, whole: bool, other: bool) -> None:
    chosen = slots.verdict(tries, whole=whole, other_whole=other)
    assert (chosen is Boot.FETCH) == (not whole and not other)
    if whole and (tries is None or tries > 0):
        assert chosen is (Boot.KEEP if tries is None else Boot.TRY)
    elif whole and not other:
        assert chosen is Boot.KEEP, "every counter at zero, and it still starts"
    elif other:
        assert chosen is Boot.FALL_BACK


def test_three_starts_without_an_inference_bring_the_old_model_back(board: Board) -> None:
    with closing(board.store()) as store:
        kept, head = store.kept(), store.head()
        message, new = board.receive(NEW_MODEL)
        slots.switch(board.directory, store, message, new, same_features=False)
    found = []
    for _ in range(5):
        with closing(board.store()) as store:
            found.append(slots.boot(board.directory, store))
            assert board.current() == (1 if Boot.FALL_BACK in found else 2)
    assert found == [Boot.TRY, Boot.TRY, Boot.TRY, Boot.FALL_BACK, Boot.KEEP]
    with closing(board.store()) as store:
        assert (store.kept(), store.head()) == (kept, head), "all that went with it is back"
        told = slots.refusal(store)
        assert told is not None and told.counter == 2 and "3 starts" in told.why
        assert slots.floor(store) == 1


def test_a_confirmed_model_stays_and_its_counter_is_the_floor(board: Board) -> None:
    with closing(board.store()) as store:
        slots.switch(board.directory, store, *board.receive(NEW_MODEL), same_features=False)
        slots.confirm(store)
    for _ in range(5):
        with closing(board.store()) as store:
            assert slots.boot(board.directory, store) is Boot.KEEP
            assert board.current() == 2 and slots.floor(store) == 2


# ---- cuts -----------------------------------------------------------------------------------------------------


class Cut(BaseException):
    """The power fails."""


def cut_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """Fail at the ``step``-th change of a file or of the database; how many changes there were."""
    count = 0

    def counted(change: Callable[..., Any], *, behind: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            mine = count
            if mine == step and not behind:
                raise Cut
            result = change(*args, **kwargs)
            if mine == step and behind:
                raise Cut
            return result

        return call

    for behind in (False, True):
        monkeypatch.setattr(derived, "write_atomic", counted(derived.write_atomic, behind=behind))
        monkeypatch.setattr(Path, "replace", counted(Path.replace, behind=behind))
        monkeypatch.setattr(Path, "unlink", counted(Path.unlink, behind=behind))
        monkeypatch.setattr(DeviceStore, "write", counted(DeviceStore.write, behind=False))
    return lambda: count


def is_sound(board: Board) -> int:
    """After a cut and a start: the counter in use, of a manifest whose file is whole, and which programs load."""
    with closing(board.store()) as store:
        slots.boot(board.directory, store)
        used = slots.manifest_of(store.get("manifest"))
        assert slots.is_whole(slots.base_path(board.directory, store), store.get("manifest"))
        assert board.current() == used.counter
        assert store.kept().digest == slots.digest_of(board.folder / CURRENT)
        head = wire.decode(wire.Head, signed.payload_of(store.head().signed))
        assert head.manifest == hashlib.sha256(wire.encode(used)).digest(), "the head is of this model"
        return used.counter


def change(board: Board, what: str) -> None:
    """One of the three changes of slots, from where it may begin."""
    with closing(board.store()) as store:
        if what == "switch":
            slots.switch(board.directory, store, *board.receive(NEW_MODEL), same_features=False)
        elif what == "confirm":
            slots.confirm(store)
        else:
            slots.fall_back(board.directory, store, "a trial failed", Code.CANARY)


@pytest.mark.parametrize("what", ["switch", "confirm", "fall back"])
def test_a_cut_at_any_change_leaves_one_model_with_all_that_goes_with_it(tmp_path: Path, what: str) -> None:
    seen = set()
    for step in range(1, 40):
        board = Board(tmp_path / str(step))
        if what != "switch":
            change(board, "switch")
        with pytest.MonkeyPatch.context() as patched:
            steps = cut_at(patched, step)
            try:
                change(board, what)
            except Cut:
                pass
            else:
                assert steps() < step
                break
        seen.add(is_sound(board))
    else:
        pytest.fail("no end of changes")
    assert seen <= {1, 2}


@pytest.mark.parametrize("patched", [True, False], ids=["with its patch", "without"])
def test_a_fall_back_brings_the_head_of_this_board_back(tmp_path: Path, patched: bool) -> None:
    """Without the patch that was stored, the negative control, there is nothing to make it of."""
    board = Board(tmp_path / "dev")
    mine = patch(
        OLD_MODEL.read_bytes(), spec := head_spec(read_model(OLD_MODEL.read_bytes()), 2),
        requantise(spec, [p * 2 for p in read_parameters(spec)], None),
    )  # fmt: skip
    (board.folder / CURRENT).write_bytes(mine)  # a head of this board's own
    with closing(board.store()) as store:
        runs = derived.difference(OLD_MODEL.read_bytes(), mine) if patched else None
        store.put_kept(replace(store.kept(), digest=hashlib.sha256(mine).digest(), fitted=True, patch=runs))
    change(board, "switch")
    change(board, "fall back")
    with closing(board.store()) as store:
        assert slots.put_right(board.directory, store) is patched
    assert ((board.folder / CURRENT).read_bytes() == mine) is patched


# ---- damage ---------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_slot_is_seen_and_the_other_slot_used(board: Board) -> None:
    with closing(board.store()) as store:
        slots.switch(board.directory, store, *board.receive(NEW_MODEL), same_features=False)
        slots.confirm(store)
    path, rng = board.folder / SLOTS["b"], random.Random(1)
    good = path.read_bytes()
    for _ in range(30):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with closing(board.store()) as store:
            message = store.get("manifest")
            assert not slots.is_whole(path, message)
    with closing(board.store()) as store:
        assert slots.boot(board.directory, store) is Boot.FALL_BACK
        assert slots.refusal(store) is None, "that the file rotted is no fault of the model"
        assert slots.accepted(message, store).counter == 2, "so it may come again"
    assert is_sound(board) == 1
    (board.folder / BASE).write_bytes(b"gone too")
    with closing(board.store()) as store:
        assert slots.boot(board.directory, store) is Boot.FETCH


# ---- what is not taken ----------------------------------------------------------------------------------------


def forgeries() -> dict[str, bytes]:
    made = settle(NEW_MODEL, None, Wanted(None), counter=2)
    good = manifest(made)
    payload = wire.encode(made.manifest)

    def other(**fields: Any) -> bytes:
        return signed.sign(wire.encode(replace(made.manifest, **fields)), KEY)

    return {
        "the gateway's key": manifest(made, GATEWAY),
        "a stranger's key": manifest(made, b"\x03" * 32),
        "bound to something else": signed.sign(payload, KEY, binding=b"x" * 32),
        "no signature": good[:-64] + bytes(64),
        "cut off": good[:-1],
        "something behind it": good + b"\0",
        "one bit of the payload": good.replace(b"head_64x10", b"head_64x11"),
        "another algorithm": good.replace(bytes.fromhex("43a10132"), bytes.fromhex("43a10127")),
        "a head": signed.sign(wire.encode(wire.Head(b"h" * 32, 1, b"h" * 32, 1, (0.1,))), KEY),
        "an empty payload": signed.sign(b"\xa0", KEY),
        "a lower counter": other(counter=4),
        "the counter held": other(counter=5),
        "counter zero": signed.sign(payload.replace(b"\x03\x02\x04", b"\x03\x00\x04"), KEY),
    }


@pytest.mark.parametrize("name", forgeries())
def test_a_forged_manifest_is_refused(board: Board, name: str) -> None:
    with closing(board.store()) as store:
        store.put(floor=5)
        five = replace(slots.manifest_of(store.get("manifest")), counter=5)
        store.put(manifest=signed.sign(wire.encode(five), KEY))
        with pytest.raises(RemoteError) as refused:
            slots.accepted(forgeries()[name], store)
        assert refused.value.code in (Code.SIGNATURE, Code.DOWNGRADE, Code.SCHEMA)
        assert slots.accepted(manifest(settle(NEW_MODEL, None, Wanted(None), counter=6)), store).counter == 6


def test_a_successor_signs_from_the_next_model_on_and_the_old_key_no_more(board: Board) -> None:
    later = b"\x04" * 32
    message, head = board.receive(NEW_MODEL, successor=signed.public_key(later))
    third = settle(OLD_MODEL, None, Wanted(2), counter=3)
    with closing(board.store()) as store:
        with pytest.raises(RemoteError):
            slots.accepted(manifest(third, later), store)
        slots.switch(board.directory, store, message, head, same_features=False)
        assert slots.accepted(manifest(third, later), store).counter == 3
        with pytest.raises(RemoteError):
            slots.accepted(manifest(third), store)


# ---- trials ---------------------------------------------------------------------------------------------------


def changed(path: Path, model: Path, layers: int, how: Callable[[Any], Any]) -> Path:
    """A model with other numbers in its head."""
    spec = head_spec(read_model(model.read_bytes()), layers)
    path.write_bytes(patch(model.read_bytes(), spec, requantise(spec, how(read_parameters(spec)), None)))
    return path


def npz(path: Path, y: Callable[[Any], Any]) -> bytes:
    x = np.random.default_rng(3).normal(size=(40, 8, 8, 1)).astype(np.float32)
    np.savez(path, x=x, y=y(x))
    return path.read_bytes()


def test_a_model_that_works_passes_its_trial(board: Board) -> None:
    assert board.tried(*board.receive(NEW_MODEL)) == Tried(0)


def test_a_model_that_says_the_same_of_everything_is_refused(board: Board, tmp_path: Path) -> None:
    numb = changed(tmp_path / "numb.tflite", NEW_MODEL, 1, lambda ps: [np.zeros_like(p) for p in ps])
    answer = board.tried(*board.receive(numb))
    assert answer.code == Code.CANARY and "the same of every input" in (answer.why or "")


def test_without_its_trial_that_model_would_be_in_use(board: Board, tmp_path: Path) -> None:
    """The negative control: nothing else stands between a signed model and the programs of the board."""
    numb = changed(tmp_path / "numb.tflite", NEW_MODEL, 1, lambda ps: [np.zeros_like(p) for p in ps])
    message, head = board.receive(numb)
    with closing(board.store()) as store:
        slots.switch(board.directory, store, message, head, same_features=False)
    assert slots.digest_of(board.folder / CURRENT) == sha(numb)


def test_a_model_that_fails_its_canary_is_refused(board: Board, tmp_path: Path) -> None:
    data = npz(tmp_path / "c.npz", lambda x: np.arange(len(x)) % 10)
    answer = board.tried(*board.receive(NEW_MODEL, canary=(data, 0.9)))
    assert answer.code == Code.CANARY and "canary" in (answer.why or "")
    assert board.tried(*board.receive(NEW_MODEL, canary=(data, 0.0))).code == 0


def test_a_file_that_is_another_is_refused(board: Board) -> None:
    message, head = board.receive(NEW_MODEL)
    (board.folder / SLOTS["b"]).write_bytes(OLD_MODEL.read_bytes())
    assert board.tried(message, head).code == Code.CONFLICT


def test_samples_judge_a_new_head_on_the_same_backbone_and_go_on_with_it(board: Board, tmp_path: Path) -> None:
    spec = spec_of(read_model(OLD_MODEL.read_bytes()), settle(OLD_MODEL, None, Wanted(2)).manifest)
    rng = np.random.default_rng(5)
    features = rng.integers(-128, 128, (200, spec.feature_size)).astype(np.int8)
    labels = requantise(spec, read_parameters(spec), None).run(features).argmax(axis=1)  # the old model is right
    with closing(board.store()) as store:
        store.add_samples((Sample(f.tobytes(), int(y)) for f, y in zip(features, labels, strict=True)), 1000)
    worse = changed(tmp_path / "worse.tflite", OLD_MODEL, 2, lambda ps: [*ps[:2], ps[2][::-1], *ps[3:]])
    answer = board.tried(*board.receive(worse, layers=2))
    assert answer.code == Code.CANARY and "held-out samples" in (answer.why or "")
    as_good = changed(tmp_path / "good.tflite", OLD_MODEL, 2, lambda ps: [p * np.float32(1.01) for p in ps])
    message, head = board.receive(as_good, layers=2)
    answer = board.tried(message, head)
    assert answer == Tried(0, same=1)
    with closing(board.store()) as store:
        slots.switch(board.directory, store, message, head, same_features=True)
        assert store.sample_count()[0] == 200


def test_samples_of_another_backbone_wait_until_it_comes_back(board: Board) -> None:
    with closing(board.store()) as store:
        store.add_samples([Sample(bytes([n]) * 224, 1) for n in range(7)], 10)
        slots.switch(board.directory, store, *board.receive(NEW_MODEL), same_features=False)
        slots.confirm(store)
        assert store.sample_count()[0] == 0
        store.add_samples([Sample(bytes([n]) * 64, 9) for n in range(5)], 10)
        assert store.sample_count()[0] == 5 and store.row("SELECT count(*) FROM sample")[0] == 10, "old ones give way"
        slots.switch(board.directory, store, *board.receive(OLD_MODEL, 3, layers=2), same_features=False)
        assert store.counts() == {1: 5}
        assert store.forget(None) == 10
