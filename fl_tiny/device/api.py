# SPDX-License-Identifier: Apache-2.0
"""``Device``: how a program on the board teaches and asks an enrolled device."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_tiny import config, statedir
from fl_tiny.board import Source
from fl_tiny.device.backbone import Backbone, open_backbone, runtime_name
from fl_tiny.device.dataset import input_codes
from fl_tiny.device.evaluation import classes_of_outputs, real_values
from fl_tiny.device.intake import Added, Sample
from fl_tiny.device.layout import CURRENT
from fl_tiny.device.recent import Predicted, Recent
from fl_tiny.device.runtimes import same_features
from fl_tiny.device.slots import base_path, current, manifest_of
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import DataError
from fl_tiny.learn import likeness
from fl_tiny.learn.head import HeadSpec
from fl_tiny.learn.loss import Targets, Task
from fl_tiny.learn.tflite import Model, cut, read_model
from fl_tiny.protocol.manifest import spec_of

log = logging.getLogger(__name__)


class Device:
    """An enrolled device's directory, usable beside its daemon.

    Raw inputs pass through: what is stored is the backbone's int8 feature codes and the label.
    """

    def __init__(self, directory: Path, store: DeviceStore, runtime: str | None) -> None:
        """Use ``Device.open``."""
        self._directory = directory
        self._store = store
        self._settings = config.load(directory / statedir.SETTINGS, config.DeviceSettings)
        self._runtime = runtime or self._settings.runtime
        source = self._settings.source or Source()
        self._recent = Recent(source.kept, source.kept_minutes * 60)
        self._follow()

    def _follow(self) -> None:
        """Use the fleet's model, as it is now: it may have been replaced by a newer one since."""
        message: bytes = self._store.get("manifest")
        if message == getattr(self, "_manifest", None):
            return
        self._manifest = message
        self._meant = self._store.features
        self._model: Model = read_model(base_path(self._directory, self._store).read_bytes())
        manifest = manifest_of(message)
        self.labels = manifest.labels
        self.preprocess = manifest.preprocess
        self.spec: HeadSpec = spec_of(self._model, manifest)
        self._features: Backbone | None = None
        self._current: tuple[bytes, Backbone] | None = None

    @classmethod
    def open(cls, directory: str | Path, *, runtime: str | None = None, reading: bool = False) -> Device:
        """The device in ``directory``. runtime: tflite, litert or numpy; None: the setting, else what is installed.

        reading: nothing will be learnt; it works on a full or read-only disk too.
        Raises: ConfigError when it is not enrolled.
        """
        path = Path(directory)
        return cls(path, DeviceStore.open(path / statedir.DATABASE, reading=reading), runtime)

    @property
    def model_path(self) -> Path:
        """The .tflite to load: the best head so far. It is replaced atomically; open it again to get a newer one."""
        return self._directory / statedir.MODEL / CURRENT

    @property
    def model(self) -> Model:
        """The fleet's model as it came, as tensors and operators."""
        return self._model

    def features(self, x: ArrayLike) -> NDArray[np.int8]:
        """The backbone's feature codes, (n, features) int8.

        x: (n, *input shape without its batch axis); floats are real units, the input's own integer type its codes.
        Raises: DataError for another shape or type, or numbers that are not finite; EnvironmentFault without a runtime.
        """
        if self._features is None:
            features = cut(self._model, self.spec.feature_tensor)
            self._features = open_backbone(features, runtime=self._runtime)
        codes: NDArray[np.int8] = self._features.run(input_codes(np.asarray(x), self._model.input))
        return codes.reshape(len(codes), -1)

    def learn(self, x: ArrayLike, y: ArrayLike) -> int:
        """Store samples as features and labels, and return how many are new. x: as ``features``.

        Of a sample that is known already nothing is added; its newest label counts.

        y: (n,) integers in [0, classes); for a fleet that learns labels or values (n, outputs) numbers.

        Raises: DataError as ``features``, or for labels that are not in [0, classes).
        """
        self._follow()
        return self.learn_features(self.features(x), y, runtime=self.runtime)

    def learn_features(self, f: ArrayLike, y: ArrayLike, *, runtime: str = "") -> int:
        """Store feature codes that another backbone or accelerator computed, and return how many are new.

        f: (n, features) int8 codes of the model's feature tensor, or floats in its real units.   y: (n,) integers.
        runtime: what computed them; the log warns when it is another than that of the features already there.
        Raises: DataError.
        """
        return self.take_features(f, y, runtime=runtime).added

    def take_features(
        self,
        f: ArrayLike,
        y: ArrayLike,
        *,
        runtime: str = "",
        once: str = "",
        stretches: Sequence[int] | None = None,
        stretch: str = "",
    ) -> Added:
        """As ``learn_features``; returns how many were added and known.

        once: a name of these samples; given twice in a row, they are stored once, also over a restart.
        stretches: a number a sample, equal for those that came in one piece, as windows of one recording do.
        stretch: name of a span of time; what comes in later calls under the same name belongs to it too.
        """
        codes, labels = self._feature_codes(np.asarray(f)), self._checked_labels(np.asarray(y))
        if len(codes) != len(labels):
            raise DataError(f"{len(codes)} samples but {len(labels)} labels")
        stored = self._store.grouped_features(self._meant, self.spec.feature_size)
        groups = likeness.join(codes, self.spec.features.zero_point, stored, stretches)
        rows = (self._sample(*each) for each in zip(codes, labels, groups, strict=True))
        self._note(runtime)
        most = self._settings.max_sample_bytes // self.spec.feature_size
        limit = max(1, min(self._settings.max_samples, most))
        return self._store.add_samples(rows, limit, self._meant, once, stretch)

    def is_news(self, codes: NDArray[np.int8], label: int) -> bool:
        """False when one sample's features, (1, features), are alike to the sample of the class that came last."""
        last = self._store.newest_features(label, self._meant)
        if last is None or len(last) != codes.shape[1]:
            return True
        return not likeness.alike(codes, np.frombuffer(last, np.int8)[None], self.spec.features.zero_point)[0, 0]

    def predict(self, x: ArrayLike) -> NDArray[Any]:
        """What the board's current model says of each sample. x: as ``features``.

        (n,) int64 classes; of a fleet that learns labels (n, outputs) bool, of one that learns values float32.
        """
        self._follow()
        data = self._chosen()
        if self._current is None or self._current[0] != data:
            self._current = (data, open_backbone(data, runtime=self._runtime))
        outputs = self._current[1].run(input_codes(np.asarray(x), self._model.input))
        if self.spec.task is Task.CLASSES:
            return classes_of_outputs(self._model, outputs)
        values = real_values(self._model.output, outputs)
        return values > 0.5 if self.spec.task is Task.LABELS else values

    def _chosen(self) -> bytes:
        """What ``model_path`` holds; when it is in memory and the daemon has not made it since the start: made here."""
        try:
            return self.model_path.read_bytes()
        except OSError as cause:
            made = current(self._directory, self._store)
            if made is None:
                raise DataError(f"{self.model_path}: {cause.strerror}", "fl-tiny device run DIR makes it") from cause
            return made

    def ask(self, x: ArrayLike) -> tuple[NDArray[Any], list[str]]:
        """As ``predict``, and an id a sample, by which ``correct`` takes its right label for a while ([source])."""
        said = self.predict(x)
        ids = [self._recent.put(each, time.monotonic()).hex() for each in self.predicted(x)]
        return said, ids

    def predicted(self, x: ArrayLike) -> list[Predicted]:
        """What a correction of each sample needs."""
        rows = self.features(x)
        return [Predicted(row.tobytes(), self._meant, self.runtime) for row in rows]

    def correct(self, name: str, label: Any) -> None:
        """Learn a sample that was predicted wrongly. name: its id from ``ask``.   label: as one of ``learn``'s y.

        Raises: DataError for an id that is unknown, used or too old, and as ``learn``.
        """
        try:
            key = bytes.fromhex(name)
        except ValueError:
            key = b""
        found = self._recent.get(key, time.monotonic())
        if found is None:
            raise DataError(f"no prediction {name!r} is kept", hint="it is corrected already, or too old")
        self.learn_predicted(found, label)
        self._recent.drop(key)

    def learn_predicted(self, found: Predicted, label: Any) -> Added:
        """Store what was predicted, with its right label. Raises: DataError when the model has changed since."""
        self._follow()
        if found.meant != self._meant:
            raise DataError("the model has changed since this prediction", hint="predict again")
        codes = np.frombuffer(found.features, np.int8)[None]
        return self.take_features(codes, np.asarray([label]), runtime=found.runtime)

    @property
    def runtime(self) -> str:
        """What computes this device's features, as ``tflite-runtime 2.14.0``. Raises: EnvironmentFault for nothing."""
        return runtime_name(self._runtime)

    def close(self) -> None:
        """Give the store back."""
        self._store.close()

    def _note(self, runtime: str) -> None:
        """Remember what computed the features, and warn when it changes: the same input gives other features then."""
        known = self._store.get("runtime")
        if not runtime or (known is not None and same_features(known, runtime)):
            return
        if known is None or self._store.sample_count()[0] == 0:
            self._store.put(runtime=runtime)
            return
        log.warning("runtime changed was=%r now=%r: features of the two differ by up to two steps", known, runtime)

    def _feature_codes(self, f: NDArray[Any]) -> NDArray[np.int8]:
        size = self.spec.feature_size
        if f.ndim < 2 or int(np.prod(f.shape[1:])) != size:
            raise DataError(f"features have shape {list(f.shape)}; the model takes [n, {size}]")
        f = f.reshape(len(f), size)
        if f.dtype.kind == "f":
            if not np.isfinite(f).all():
                raise DataError("features hold a number that is not finite")
            return self.spec.features.to_codes(f, np.int8).astype(np.int8)
        if f.dtype != np.int8:
            raise DataError(f"features are {f.dtype}; give int8 codes or real numbers")
        return f

    def _checked_labels(self, y: NDArray[Any]) -> Targets:
        if self.spec.task is not Task.CLASSES:
            return self._checked_vectors(y)
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise DataError(f"labels are {y.dtype} of shape {list(y.shape)}; give one integer a sample")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.spec.classes:
            raise DataError(
                f"labels run from {y.min()} to {y.max()}; the model has classes 0 to {self.spec.classes - 1}"
            )
        return y.astype(np.int64)

    def _checked_vectors(self, y: NDArray[Any]) -> Targets:
        outputs = self.spec.outputs
        if y.dtype.kind not in "iuf" or y.ndim not in (1, 2) or y.size != len(y) * outputs:
            raise DataError(f"y is {y.dtype} of shape {list(y.shape)}; give {outputs} numbers a sample")
        targets = y.reshape(-1, outputs).astype(np.float32)
        if not np.isfinite(targets).all():
            raise DataError("y holds a number that is not finite")
        if self.spec.task is Task.LABELS and not ((targets >= 0) & (targets <= 1)).all():
            raise DataError("y holds labels that are not between 0 and 1")
        return targets

    def _sample(self, codes: NDArray[np.int8], target: Any, group: np.int64) -> Sample:
        if self.spec.task is Task.CLASSES:
            return Sample(codes.tobytes(), int(target), None, int(group))
        first = int(target.argmax()) if self.spec.task is Task.LABELS else 0
        return Sample(codes.tobytes(), first, target.astype("<f4").tobytes(), int(group))
