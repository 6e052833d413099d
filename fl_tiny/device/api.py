# SPDX-License-Identifier: Apache-2.0
"""``Device``: how a program on the board teaches and asks an enrolled device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_tiny import config, statedir
from fl_tiny.device.backbone import Backbone, open_backbone
from fl_tiny.device.dataset import input_codes
from fl_tiny.device.evaluation import classes_of_outputs
from fl_tiny.device.layout import BASE, CURRENT
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import DataError
from fl_tiny.learn.head import HeadSpec, head_spec
from fl_tiny.learn.tflite import Model, cut, read_model
from fl_tiny.protocol import signed, wire


class Device:
    """An enrolled device's directory, usable beside its daemon.

    Raw inputs pass through: what is stored is the backbone's int8 feature codes and the label.
    """

    def __init__(self, directory: Path, store: DeviceStore) -> None:
        """Use ``Device.open``."""
        self._directory = directory
        self._store = store
        self._settings = config.load(directory / statedir.SETTINGS, config.DeviceSettings)
        self._model: Model = read_model((directory / statedir.MODEL / BASE).read_bytes())
        manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
        self.labels = manifest.labels
        self.preprocess = manifest.preprocess
        self.spec: HeadSpec = head_spec(self._model, manifest.layers)
        self._features: Backbone | None = None
        self._current: tuple[bytes, Backbone] | None = None

    @classmethod
    def open(cls, directory: str | Path) -> Device:
        """The device in ``directory``. Raises: ConfigError when it is not enrolled."""
        path = Path(directory)
        return cls(path, DeviceStore.open(path / statedir.DATABASE))

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
            self._features = open_backbone(cut(self._model, self.spec.feature_tensor))
        codes: NDArray[np.int8] = self._features.run(input_codes(np.asarray(x), self._model.input))
        return codes.reshape(len(codes), -1)

    def learn(self, x: ArrayLike, y: ArrayLike) -> int:
        """Store samples as features and labels, and return how many. x: as ``features``.   y: (n,) integers.

        Raises: DataError as ``features``, or for labels that are not in [0, classes).
        """
        return self.learn_features(self.features(x), y)

    def learn_features(self, f: ArrayLike, y: ArrayLike) -> int:
        """Store feature codes that another backbone or accelerator computed, and return how many.

        f: (n, features) int8 codes of the model's feature tensor, or floats in its real units.   y: (n,) integers.
        Raises: DataError.
        """
        codes, labels = self._feature_codes(np.asarray(f)), self._checked_labels(np.asarray(y))
        if len(codes) != len(labels):
            raise DataError(f"{len(codes)} samples but {len(labels)} labels")
        rows = ((row.tobytes(), int(label)) for row, label in zip(codes, labels, strict=True))
        return self._store.add_samples(rows, self._settings.max_samples)

    def predict(self, x: ArrayLike) -> NDArray[np.int64]:
        """The class of each sample by the board's current model, (n,) int64. x: as ``features``."""
        data = self.model_path.read_bytes()
        if self._current is None or self._current[0] != data:
            self._current = (data, open_backbone(data))
        outputs = self._current[1].run(input_codes(np.asarray(x), self._model.input))
        return classes_of_outputs(self._model, outputs)

    def close(self) -> None:
        """Give the store back."""
        self._store.close()

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

    def _checked_labels(self, y: NDArray[Any]) -> NDArray[np.int64]:
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise DataError(f"labels are {y.dtype} of shape {list(y.shape)}; give one integer a sample")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.spec.classes:
            raise DataError(
                f"labels run from {y.min()} to {y.max()}; the model has classes 0 to {self.spec.classes - 1}"
            )
        return y.astype(np.int64)
