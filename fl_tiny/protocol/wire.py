# SPDX-License-Identifier: Apache-2.0
"""Every message as a frozen dataclass, to and from deterministic CBOR; the rules are docs/protocol.cddl.

A field says its integer key and what may stand under it; ``encode`` and ``decode`` do the rest, so a message has
one description. A *negative* unknown key is ignored, a positive one is an error (docs/protocol.md, "Versions").
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol import cbor
from fl_tiny.protocol.codepoints import BY_LINK as BY_LINK
from fl_tiny.protocol.codepoints import COARSE as COARSE
from fl_tiny.protocol.codepoints import DEFLATED as DEFLATED
from fl_tiny.protocol.codepoints import Code as Code
from fl_tiny.protocol.codepoints import Encoding as Encoding
from fl_tiny.protocol.codepoints import Lack as Lack
from fl_tiny.protocol.codepoints import Said as Said
from fl_tiny.protocol.codepoints import Status as Status
from fl_tiny.protocol.fields import Key, blob, from_map, many, number, part, sentence, shown_text, text, to_map, uint
from fl_tiny.protocol.identity import device_name
from fl_tiny.protocol.preprocess import Preprocess, described
from fl_tiny.protocol.release import NAME_BYTES, RELEASE_BYTES, WHY_BYTES, Bundle, BundleRefusal

VERSION = 1
U16 = 0xFFFF
U32 = 0xFFFFFFFF
DAY_MS = 86_400_000
MAX_CODES = 262_144  # parameters of a head, bytes of sums: the wire's limit, checked at `gateway init`
MAX_TENSORS = 16
LEAST_RATE = 1e-7
MOST_KEYS = 255  # that a gateway has in its life; what a device may have to follow at once
MAX_LABELS = 256
MAX_CANARY = 1 << 20  # bytes
LABELS_LIMIT = 2048  # bytes of all labels together, so that a signed manifest fits a control message
CHUNK = 1024  # bytes of codes in one PUT, on a way that lets them through
UNIT = 128  # bytes that one bit of a ``Held`` bitmap stands for; a chunk is whole ones

M = TypeVar("M")


DID = blob(16)
RID = blob(8)
SID = blob(8)
H256 = blob(32)
PK = blob(32)
MS = uint(0, DAY_MS)
EPOCH = uint(1, U32)  # absent: 0, a gateway that was never restored
FLAT = number(-1e30, 1e30)
STEPS = many(number(1e-30, 1e30), 1, MAX_TENSORS)
SCALES = many(number(1e-30, 1e30), 0, MAX_TENSORS)
RANGES = many(FLAT, 2, 2 * MAX_TENSORS)


# ---- enrolment and presence ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enrol:
    """A device's public key and the name its owner gave it; signed by that key, bound to the DTLS session."""

    KIND: ClassVar[int] = 1
    pk: Annotated[bytes, Key(1, PK)]
    name: Annotated[str | None, Key(3, device_name)] = None


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a device needs from now on: its id, its PSK, and the keys it believes in.

    serial: the number of the gateway's key; absent: 0, its first.
    """

    KIND: ClassVar[int] = 2
    did: Annotated[bytes, Key(1, DID)]
    psk: Annotated[bytes, Key(2, blob(32))]
    gateway_pk: Annotated[bytes, Key(3, PK)]
    model_pk: Annotated[bytes, Key(4, PK)]
    serial: Annotated[int | None, Key(5, uint(1, MOST_KEYS))] = None


@dataclass(frozen=True, slots=True)
class Register:
    """A device that has come: who it is, which protocol versions it speaks, which encodings it can send.

    boots: how often its daemon has started.   boot: which start this is, at random.   Both tell copies of it apart.
    encodings: absent: int8 alone.   board, release: of its system, where the gateway may offer it another one.
    """

    KIND: ClassVar[int] = 3
    did: Annotated[bytes, Key(1, DID)]
    versions: Annotated[tuple[int, ...], Key(2, many(uint(1, U16), 1, 4))]
    boots: Annotated[int | None, Key(4, uint(0, U32))] = None
    boot: Annotated[bytes | None, Key(5, blob(8))] = None
    encodings: Annotated[tuple[int, ...] | None, Key(6, many(uint(0, 255), 1, 8))] = None
    board: Annotated[str | None, Key(7, shown_text(1, NAME_BYTES))] = None
    release: Annotated[str | None, Key(8, shown_text(1, RELEASE_BYTES))] = None


@dataclass(frozen=True, slots=True)
class Registered:
    """The protocol version chosen, when to send the next heartbeat, and the epoch of the gateway's heads."""

    KIND: ClassVar[int] = 4
    version: Annotated[int, Key(1, uint(1, U16))]
    poll_ms: Annotated[int, Key(2, MS)]
    epoch: Annotated[int | None, Key(4, EPOCH)] = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a device did not take a model: its counter, a problem code, a sentence."""

    counter: Annotated[int, Key(1, uint(1, U32))]
    code: Annotated[int, Key(2, uint(0, 99))]
    why: Annotated[str, Key(3, sentence(0, WHY_BYTES))]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life: the head version held (0: the model's own) and the samples stored.

    lacks: bits of what training has to wait for; 1 memory, 2 temperature, 4 battery, 8 load; absent: nothing.
    model: the counter of the manifest held.   refusal: the newer model that this device did not take, said once.
    bundle: the same of a release of its system.
    """

    KIND: ClassVar[int] = 5
    head: Annotated[int, Key(1, uint(0, U32))]
    samples: Annotated[int, Key(2, uint(0, U32))]
    lacks: Annotated[int | None, Key(3, uint(1, 15))] = None
    model: Annotated[int | None, Key(6, uint(1, U32))] = None
    refusal: Annotated[Refusal | None, Key(7, part(Refusal))] = None
    bundle: Annotated[BundleRefusal | None, Key(8, part(BundleRefusal))] = None


@dataclass(frozen=True, slots=True)
class Next:
    """What a device should do next: poll again then, fetch the head of that epoch and version, answer that round, try
    that model, fetch that release of its system."""

    KIND: ClassVar[int] = 6
    poll_ms: Annotated[int, Key(1, MS)]
    head: Annotated[int, Key(2, uint(0, U32))]
    rid: Annotated[bytes | None, Key(3, RID)] = None
    epoch: Annotated[int | None, Key(4, EPOCH)] = None
    model: Annotated[int | None, Key(5, uint(1, U32))] = None
    bundle: Annotated[Bundle | None, Key(6, part(Bundle))] = None


@dataclass(frozen=True, slots=True)
class Own:
    """What the gateway holds about who asks: its state, and the rounds that counted (a peer: published ones).

    why: the reason of a state that keeps the device out.
    """

    KIND: ClassVar[int] = 17
    state: Annotated[str, Key(2, shown_text(1, 16))]
    rounds: Annotated[int, Key(3, uint(0, U32))]
    did: Annotated[bytes | None, Key(1, DID)] = None
    why: Annotated[str | None, Key(4, sentence(0, WHY_BYTES))] = None


# ---- models and heads ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Canary:
    """Samples that a device puts to a new model: SHA-256 and bytes of a .npz, the least share to get right."""

    digest: Annotated[bytes, Key(1, H256)]
    size: Annotated[int, Key(2, uint(1, MAX_CANARY))]
    least: Annotated[float, Key(3, number(0.0, 1.0))]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model and what of it is trained; signed by the model-signing key.

    layers: how many of the last layers.   shapes: of their trained tensors, weights then bias, first layer first.
    task: 0 classes, also where absent; 1 labels, each a yes or no; 2 values.   biases_only: 1 where weights stay.
    preprocess: how pictures, recordings or tables become the model's input, the same on every device.
    counter: grows with each model that the key signs; a device takes no lower one than it has confirmed.
    successor: the key that signs later manifests in place of this one's.
    """

    KIND: ClassVar[int] = 7
    name: Annotated[str, Key(1, text(1, 32))]
    version: Annotated[int, Key(2, uint(1, U32))]
    counter: Annotated[int, Key(3, uint(1, U32))]
    digest: Annotated[bytes, Key(4, H256)]
    size: Annotated[int, Key(5, uint(1, U32))]
    layers: Annotated[int, Key(6, uint(1, MAX_TENSORS))]
    shapes: Annotated[tuple[tuple[int, ...], ...], Key(7, many(many(uint(1, U16), 1, 2), 1, MAX_TENSORS))]
    labels: Annotated[tuple[str, ...] | None, Key(8, many(text(1, 48), 1, MAX_LABELS))] = None
    preprocess: Annotated[Preprocess | None, Key(9, described)] = None
    task: Annotated[int | None, Key(10, uint(0, 2))] = None
    biases_only: Annotated[int | None, Key(11, uint(1, 1))] = None
    canary: Annotated[Canary | None, Key(12, part(Canary))] = None
    successor: Annotated[bytes | None, Key(13, PK)] = None

    @property
    def parameters(self) -> int:
        """How many numbers the head has: the codes of one update."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def body_size(self) -> int:
        """Bytes of a head's canonical body: int8 weights (rank 2), float16 biases (rank 1)."""
        return sum(math.prod(shape) * (1 if len(shape) == 2 else 2) for shape in self.shapes)


@dataclass(frozen=True, slots=True)
class Delta:
    """What leads to a head from another (protocol/delta.py): its encoding and bytes, the other's SHA-256."""

    encoding: Annotated[int, Key(1, uint(Encoding.INT4, COARSE))]
    size: Annotated[int, Key(2, uint(1, 2 * MAX_CODES))]
    base: Annotated[bytes, Key(3, H256)]


@dataclass(frozen=True, slots=True)
class Head:
    """A version of the head for one manifest; signed by the gateway.

    digest: SHA-256 of the canonical body (protocol/update.py).   scales: one a weight tensor.
    ranges: lo, hi of each layer's outputs on the fleet's data, for boards without samples; absent: keep the model's.
    since: the last version solved from sums; what a device has left to say of a head before it is void.
    epoch: raised when a gateway goes on from a backup: a head is newer by (epoch, version).
    delta: a shorter way for a device that holds the head before.
    """

    KIND: ClassVar[int] = 8
    manifest: Annotated[bytes, Key(1, H256)]
    version: Annotated[int, Key(2, uint(0, U32))]
    digest: Annotated[bytes, Key(3, H256)]
    size: Annotated[int, Key(4, uint(1, U32))]
    scales: Annotated[tuple[float, ...], Key(5, SCALES)]
    ranges: Annotated[tuple[float, ...] | None, Key(6, RANGES)] = None
    since: Annotated[int | None, Key(7, uint(1, U32))] = None
    epoch: Annotated[int | None, Key(8, EPOCH)] = None
    delta: Annotated[Delta | None, Key(12, part(Delta))] = None

    @property
    def rank(self) -> tuple[int, int]:
        """A head of higher rank is newer."""
        return self.epoch or 0, self.version


# ---- a round ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Train:
    """How a device trains in a round: passes over its samples, samples a step, learning rate (absent: it finds one).

    proximal: FedProx's mu.   smoothing: share of a target spread over all classes.   balanced: 1: classes weigh alike.
    patience: epochs without a better loss, then it stops.   adam: 1: by Adam; absent: by descent with momentum.
    """

    epochs: Annotated[int, Key(1, uint(1, 100))]
    batch: Annotated[int, Key(2, uint(1, 4096))]
    rate: Annotated[float | None, Key(3, number(LEAST_RATE, 10.0))] = None
    proximal: Annotated[float | None, Key(4, number(0.0, 1e3))] = None
    smoothing: Annotated[float | None, Key(5, number(0.0, 0.9))] = None
    balanced: Annotated[int | None, Key(6, uint(1, 1))] = None
    patience: Annotated[int | None, Key(7, uint(1, 100))] = None
    adam: Annotated[int | None, Key(8, uint(1, 1))] = None


@dataclass(frozen=True, slots=True)
class GramConfig:
    """What devices are to sum (learn/gram.py): the input of which dense layer, codes a sample, outputs; and the fewest
    samples that may be summed, since few are seen in their sums. seed, shift: of a projection of wide inputs."""

    layer: Annotated[int, Key(1, uint(0, MAX_TENSORS))]
    width: Annotated[int, Key(2, uint(1, 512))]
    outputs: Annotated[int, Key(3, uint(1, U16))]
    min_samples: Annotated[int, Key(4, uint(1, U16))]
    seed: Annotated[bytes | None, Key(5, blob(32))] = None
    shift: Annotated[int | None, Key(6, uint(1, 15))] = None


@dataclass(frozen=True, slots=True)
class Offer:
    """An open round. steps: one a tensor; a parameter's change is q * step.   gram: sums are wanted, not a change.

    encoding: absent: int8; BY_LINK leaves it to the device. One that takes fewer bytes is taken, too.
    kept: the most parameters that a top-k update may name.
    """

    KIND: ClassVar[int] = 9
    rid: Annotated[bytes, Key(1, RID)]
    number: Annotated[int, Key(2, uint(1, U32))]
    base: Annotated[bytes, Key(3, H256)]
    left_ms: Annotated[int, Key(4, MS)]
    steps: Annotated[tuple[float, ...], Key(5, STEPS)]
    train: Annotated[Train, Key(6, part(Train))]
    max_samples: Annotated[int, Key(7, uint(1, U16))]
    gram: Annotated[GramConfig | None, Key(8, part(GramConfig))] = None
    encoding: Annotated[int | None, Key(9, uint(0, BY_LINK))] = None
    kept: Annotated[int | None, Key(10, uint(1, MAX_CODES))] = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A device joins a round or declines it. code: a problem code that says why; absent: none."""

    KIND: ClassVar[int] = 16
    rid: Annotated[bytes, Key(1, RID)]
    said: Annotated[int, Key(2, uint(0, 5))]
    code: Annotated[int | None, Key(3, uint(0, 99))] = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The base head on the device's held-out samples: how many, mean loss in nats, accuracy."""

    samples: Annotated[int, Key(1, uint(1, U32))]
    loss: Annotated[float, Key(2, number(0.0, 1e6))]
    accuracy: Annotated[float, Key(3, number(0.0, 1.0))]


@dataclass(frozen=True, slots=True)
class Update:
    """What one device's training changed, or its sums; signed by the device. The codes travel beside it, by digest.

    size: of the codes, or of the sums as bytes.   ranges: lo, hi of each layer's outputs on the device's samples.
    encoding: of the codes; absent: int8.
    """

    KIND: ClassVar[int] = 10
    rid: Annotated[bytes, Key(1, RID)]
    did: Annotated[bytes, Key(2, DID)]
    base: Annotated[bytes, Key(3, H256)]
    samples: Annotated[int, Key(4, uint(1, U16))]
    digest: Annotated[bytes, Key(5, H256)]
    size: Annotated[int, Key(6, uint(1, MAX_CODES))]
    metrics: Annotated[Metrics | None, Key(7, part(Metrics))] = None
    ranges: Annotated[tuple[float, ...] | None, Key(8, RANGES)] = None
    encoding: Annotated[int | None, Key(9, uint(0, 2))] = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The gateway's word that an update is in the ledger; it leaves only after COMMIT.

    update: SHA-256 of the signed update.
    """

    KIND: ClassVar[int] = 11
    rid: Annotated[bytes, Key(1, RID)]
    status: Annotated[int, Key(2, uint(0, 4))]
    update: Annotated[bytes, Key(3, H256)]
    poll_ms: Annotated[int, Key(4, MS)]


@dataclass(frozen=True, slots=True)
class Held:
    """Which units of UNIT bytes of an upload the gateway holds: bit i of byte i // 8, lowest first."""

    KIND: ClassVar[int] = 12
    sid: Annotated[bytes, Key(1, SID)]
    size: Annotated[int, Key(2, uint(1, MAX_CODES))]
    bitmap: Annotated[bytes, Key(3, blob(0, MAX_CODES // UNIT // 8))]


def name_of(digest: bytes) -> str:
    """The path segment that stands for a digest: base64url of its first 8 bytes. What comes is checked by the whole."""
    return base64.urlsafe_b64encode(digest[:8]).decode().rstrip("=")


# ---- encoding and decoding ----------------------------------------------------------------------------------


def encode(message: Any) -> bytes:
    """The bytes of a message of this file. A field that breaks its own rule is our own fault, an AssertionError."""
    body = to_map(message)
    try:
        from_map(type(message), body, type(message).__name__.lower())
    except MalformedMessage as fault:
        raise AssertionError(f"a message of our own breaks its rule: {fault.what}") from fault
    return cbor.encode({0: message.KIND, **body})


def decode(cls: type[M], data: bytes, *, limit: int = cbor.CONTROL_LIMIT) -> M:
    """``data``, of at most ``limit`` bytes, as a message of the kind ``cls``.

    Raises: MalformedMessage, naming the key that is absent, unknown, of another type or out of range.
    """
    name = cls.__name__.lower()
    body = cbor.decode(data, limit=limit)
    if not isinstance(body, dict) or body.get(0) != cls.KIND or isinstance(body[0], bool):  # type: ignore[attr-defined]
        raise MalformedMessage(f"not a message of kind {name}")
    del body[0]
    message: M = from_map(cls, body, name)
    return message
