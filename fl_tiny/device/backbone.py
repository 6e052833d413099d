# SPDX-License-Identifier: Apache-2.0
"""Input codes to output codes of a model; the one place that knows an inference runtime."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.runtimes import RUNTIMES, candidates, chosen, fault, full_name, installed
from fl_tiny.errors import EnvironmentFault, ModelError
from fl_tiny.learn.kernels.plan import Plan, prepare
from fl_tiny.learn.kernels.rounding import Rule
from fl_tiny.learn.tflite import Model, read_model

log = logging.getLogger(__name__)

Codes = NDArray[Any]

BATCH = 8  # samples an invocation; measured to work on all but streaming models, and a small board's arena holds it
STATEFUL = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"})  # reset_all_variables leaves what they keep
NEWEST_DENSE = 11  # a FULLY_CONNECTED of a later version does not load in tflite-runtime 2.14 (facts.md, trap 13)


class Backbone(Protocol):
    """What turns samples into a model's output."""

    @property
    def name(self) -> str:
        """Runtime and version, as ``tflite-runtime 2.14.0``: features of two runtimes differ by up to two steps."""

    def run(self, x: Codes) -> Codes:
        """x: (n, *input shape without batch) of the input's type.   Returns (n, outputs) of the output's type."""


def runtime_name(runtime: str | None = None) -> str:
    """Distribution and version that run a model by default, or as ``runtime``. Raises: EnvironmentFault."""
    return full_name(chosen(runtime))


def runtimes_for(model: Model) -> dict[str, bool | str]:
    """For each runtime whether it can run ``model``, or why not."""
    found: dict[str, bool | str] = {}
    for name, runtime in RUNTIMES.items():
        if not runtime.rule:
            found[name] = (fault(name) or True) if installed(name) else "not installed"
    dense = [each.version for each in model.main.operators if each.name == "FULLY_CONNECTED"]
    if found["tflite"] is True and max(dense, default=0) > NEWEST_DENSE:
        found["tflite"] = f"refuses FULLY_CONNECTED version {max(dense)}"
    if state := _state(model):
        found.update({name: f"refused: {state}" for name, usable in found.items() if usable is True})
    try:
        prepare(model, Rule.TFLITE)
        found["numpy"] = True
    except ModelError as refused:
        found["numpy"] = refused.what
    return found


def open_backbone(data: bytes, *, runtime: str | None = None) -> Backbone:
    """A backbone of the model in ``data``, in this process: a damaged file may still end it (see isolated.py).

    runtime: a name of ``RUNTIMES``; None takes the first that works, numpy's kernels last.
    Raises: ModelError for a file that is damaged, keeps state, or that the runtime refuses; EnvironmentFault without a
    runtime.
    """
    model = read_model(data)
    if state := _state(model):
        raise ModelError(state, hint="streaming models are not run yet (docs/models.md)")
    names = candidates() if runtime is None else (chosen(runtime),)
    for asked in names[:-1]:
        try:
            return _opened(asked, data, model)
        except EnvironmentFault as broken:
            log.warning("runtime passed over name=%r why=%r", full_name(asked), broken.what)
    return _opened(names[-1], data, model)


def _state(model: Model) -> str:
    """What of a model keeps state from one run to the next; empty for none. Samples would depend on their order."""
    names = sorted({each.name for graph in model.graphs for each in graph.operators} & STATEFUL)
    return f"the model keeps state between runs ({', '.join(names)}), which nothing resets" if names else ""


def _opened(asked: str, data: bytes, model: Model) -> Backbone:
    """The model as one runtime runs it. Raises: as ``open_backbone``."""
    name = full_name(asked)
    if RUNTIMES[asked].rule:
        return _Computed(name, prepare(model, Rule(RUNTIMES[asked].rule)))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # numpy 2 writes a page there about what numpy 1 built
            module = importlib.import_module(RUNTIMES[asked].module)
    except (ImportError, OSError, AttributeError) as broken:
        why = str(broken).strip().partition("\n")[0][:200]
        raise EnvironmentFault(f"{name} does not load: {why}", hint="is it installed whole?") from broken
    streaming = len(model.graphs) > 1 or any(tensor.variable for tensor in model.main.tensors)
    sizes = [model.input.shape[0] if model.input.shape else 1]
    if sizes[0] == 1 and not streaming:
        sizes.insert(0, BATCH)  # some graphs have the batch written into a RESHAPE: those run one by one
    last: Exception | None = None
    for size in sizes:
        try:
            return _open(module, data, model, name, size)
        except (ValueError, RuntimeError) as refused:
            last = refused
        except SystemError as clash:  # tflite-runtime was built for numpy 1 and fails with 2 only now
            raise EnvironmentFault(
                f"{name} does not work with numpy {np.__version__}", "pip install 'numpy<2', or use --runtime numpy"
            ) from clash
    raise ModelError(f"{name} refuses the model: {str(last).strip()[:200]}") from last


@dataclass(frozen=True, slots=True)
class _Computed:
    """A model that numpy runs."""

    name: str
    plan: Plan

    def run(self, x: Codes) -> Codes:
        return self.plan.run(x)


@dataclass(frozen=True, slots=True)
class _Interpreted:
    """An interpreter with its tensors allocated for ``size`` samples."""

    name: str
    interpreter: Any
    model: Model
    size: int

    def run(self, x: Codes) -> Codes:
        source, result = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]
        outputs = []
        for rows, batch in _batches(x, self.size):
            try:
                self.interpreter.reset_all_variables()
                self.interpreter.set_tensor(source["index"], batch.reshape(source["shape"]))
                self.interpreter.invoke()
            except (ValueError, RuntimeError) as refused:
                raise ModelError(f"{self.name} cannot run the model: {str(refused).strip()[:200]}") from refused
            outputs.append(self.interpreter.get_tensor(result["index"]).reshape(self.size, -1)[:rows])
        return np.concatenate(outputs) if outputs else np.empty((0, 0), result["dtype"])


def _open(module: Any, data: bytes, model: Model, name: str, size: int) -> _Interpreted:
    interpreter = module.Interpreter(model_content=data, num_threads=1)
    source = interpreter.get_input_details()[0]
    if list(source["shape"])[:1] != [size]:
        interpreter.resize_tensor_input(source["index"], [size, *source["shape"][1:]])
    interpreter.allocate_tensors()
    opened = _Interpreted(name, interpreter, model, size)
    shape = list(interpreter.get_output_details()[0]["shape"])
    if size > 1 and shape[:1] != [size]:
        raise ValueError(f"the output has shape {shape} for {size} samples")
    if len(shape) == 0 or int(np.prod(shape)) % size:
        raise ValueError(f"the output has shape {shape}")
    opened.run(np.zeros((size, *source["shape"][1:]), source["dtype"]))  # some graphs refuse a batch only here
    return opened


def _batches(x: Codes, size: int) -> Iterator[tuple[int, Codes]]:
    """``size`` rows at a time, the last filled up with zeros, and how many of them count."""
    for start in range(0, len(x), size):
        batch = x[start : start + size]
        rows = len(batch)
        if rows < size:
            batch = np.concatenate([batch, np.zeros((size - rows, *x.shape[1:]), x.dtype)])
        yield rows, batch
