# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny model``: look at a .tflite file, measure it, and fit its last layers to samples."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_tiny.cli import rehead
from fl_tiny.cli.common import command, group, pace, positive, progress, runtime_option, show
from fl_tiny.cli.sources import add_sources, opened, own_names, own_table, warn

if TYPE_CHECKING:
    from fl_tiny.learn.head import Candidate
    from fl_tiny.learn.tflite import Model, Tensor
    from fl_tiny.learn.train import Settings

SEED = 1  # fixed: the same file and samples give the same result


def add(groups: Any) -> None:
    """Declare the commands of this group."""
    commands = group(groups, "model", "look at a .tflite file, measure it, fit its head to samples")
    parser = command(commands, "inspect", inspect, "fl-tiny model inspect model.tflite --json")
    parser.add_argument("file", metavar="FILE", type=Path, help="a .tflite file")
    parser = command(commands, "evaluate", evaluate, "fl-tiny model evaluate model.tflite --data test.npz")
    parser.add_argument("file", metavar="FILE", type=Path, help="a .tflite file that tells classes apart")
    add_sources(parser, own_table=True)
    runtime_option(parser)
    example = "fl-tiny model personalise model.tflite --data mine.npz --out better.tflite"
    parser = command(commands, "personalise", personalise, example)
    parser.add_argument("file", metavar="FILE", type=Path, help="an int8 .tflite file; it is not changed")
    add_sources(parser, own_table=True)
    parser.add_argument("--out", metavar="OUT.tflite", type=Path, required=True, help="where the result is written")
    parser.add_argument(
        "--layers",
        metavar="K",
        type=positive,
        help="train the last K layers (default: two dense ones where there are, else one)",
    )
    parser.add_argument("--bias-only", action="store_true", help="train the layers' biases alone, keep their weights")
    parser.add_argument(
        "--epochs", metavar="E", type=positive, help="times each sample is used (default: as measured good)"
    )
    parser.add_argument(
        "--rate", metavar="R", type=_rate, help="first learning rate, or auto: tried out on the samples (default: 0.02)"
    )
    parser.add_argument("--optimiser", choices=("adam", "sgd"), help="sgd has momentum (default: adam)")
    parser.add_argument("--smoothing", metavar="S", type=_share, help="share of a target spread over all classes")
    parser.add_argument(
        "--balanced", action="store_true", help="every class weighs the same, however many samples it has"
    )
    parser.add_argument(
        "--patience", metavar="P", type=positive, help="stop after P epochs without a better loss on samples kept aside"
    )
    parser.add_argument(
        "--seed", metavar="S", type=_seed, default=SEED, help=f"of all random choices (default: {SEED})"
    )
    runtime_option(parser)
    rehead.add(commands)


def inspect(args: argparse.Namespace) -> None:
    """Print a model's input, outputs, operators and labels, the heads that can be trained and what each costs."""
    from fl_tiny.device.backbone import runtime_name, runtimes_for
    from fl_tiny.labels import labels_of
    from fl_tiny.learn.head import candidates
    from fl_tiny.learn.trail import tail_of

    model = _read(args.file)
    heads = candidates(model)
    graph, able, tail = model.main, runtimes_for(model), tail_of(model)
    costs = [_cost(model, head) for head in heads if head.trainable]
    labels = labels_of(model.data, graph.tensors[graph.outputs[0]].shape[-1]) if graph.outputs else None
    result = {
        "input": _tensor(model.input),
        **_ranges(model),
        "outputs": [_tensor(graph.tensors[index]) for index in graph.outputs],
        "operators": [operator.name for operator in graph.operators],
        "tail": tail,
        "heads": [_head(head) for head in heads],
        "costs": costs,
        "labels": None if labels is None else list(labels),
        "runtime": runtime_name(),
        "runtimes": able,
    }
    lines = [
        _line("input", model.input) + _holds(model),
        *(_line("output", graph.tensors[index]) for index in graph.outputs),
    ]
    lines.append(f"operators {' '.join(operator.name for operator in graph.operators)}")
    lines.append(f"tail      {' '.join(tail) or 'none that can be trained'}")
    lines += [*map(_head_line, heads), *map(_cost_line, costs)]
    lines.append(f"labels    {', '.join(labels) if labels else 'none in the file'}")
    lines.append(f"runtime   {result['runtime']}")
    lines += [f"{name:<9} {'can run it' if can is True else can}" for name, can in able.items()]
    show(args, result, "\n".join(lines))


def evaluate(args: argparse.Namespace) -> None:
    """Print the share of samples whose label the model finds; of a model that gives values, R squared."""
    from fl_tiny.device.evaluation import accuracy, expected_of
    from fl_tiny.device.isolated import isolated_backbone
    from fl_tiny.device.sources.files import Wanted
    from fl_tiny.learn import judge
    from fl_tiny.learn.loss import Task

    model = _read(args.file)
    data = opened(args, Wanted(model, expected_of(model), own_names(args, model), own_table(args)))
    with isolated_backbone(model.data, runtime=args.runtime) as backbone:
        share, task = accuracy(model, backbone, data)
        warn(data)
        result = {
            "accuracy": share,
            "samples": data.samples,
            "on": "the samples given",
            "skipped": len(data.faults),
            "runtime": backbone.name,
        }
    what = "accuracy"
    if task is Task.VALUES:
        what = "r2"
        result |= {"accuracy": None, "r2": share}
    few = "" if data.samples >= judge.ENOUGH_SAMPLES else ": too few to tell"
    show(args, result, f"{what} {share:.4f} on {data.samples} samples{few} ({result['runtime']})")


def personalise(args: argparse.Namespace) -> None:
    """Train the last layers on samples and write the model, changed only if that makes it better."""
    import numpy as np

    from fl_tiny.device.evaluation import expected_of, features_of, task_of
    from fl_tiny.device.isolated import isolated_backbone
    from fl_tiny.device.sources.files import Wanted
    from fl_tiny.files import check_writable, write_atomic
    from fl_tiny.learn import judge, likeness
    from fl_tiny.learn.head import default_layers, head_spec
    from fl_tiny.learn.loss import Task
    from fl_tiny.learn.requant import patch

    began = time.monotonic()
    model = _read(args.file)
    layers = args.layers or default_layers(model)
    check_writable(args.out)
    data = opened(args, Wanted(model, expected_of(model), own_names(args, model), own_table(args)))
    spec = head_spec(model, layers, task=task_of(model, data.labels), biases_only=args.bias_only)
    run_by = partial(isolated_backbone, runtime=args.runtime)
    features, labels = features_of(model, spec, data, run_by)
    warn(data)
    progress(f"{len(labels)} samples of {spec.feature_size} features; training {spec.parameters} parameters")
    settings = _settings(args)
    groups = likeness.join(features, spec.features.zero_point, stretches=data.stretches)
    rng = np.random.default_rng(args.seed)
    outcome = judge.personalise(spec, features, labels, groups, settings, rng, progress=pace("epochs"))
    made = model.data
    if outcome.head is not None:
        made = patch(model.data, spec, outcome.head)
        with run_by(made):  # it opens and runs, or this raises and nothing is written
            pass
    write_atomic(args.out, made)
    before, after = outcome.before, outcome.after
    on = f"{after.samples} samples in {outcome.groups} groups"
    progress(f"held-out loss {before.loss:.4f} before, {after.loss:.4f} after, on {on}")
    result: dict[str, Any] = {
        "before": before.accuracy,
        "after": after.accuracy,
        "accepted": outcome.accepted,
        "skipped": len(data.faults),
        "layers": len(spec.layers),
        "parameters": spec.parameters,
        "seconds": round(time.monotonic() - began, 3),
        "samples": after.samples,
        "groups": outcome.groups,
        "on": "samples held out from training, alike ones together",
        "tells": judge.tells(after.samples, outcome.groups),
    }
    metric = "accuracy"
    if spec.task is Task.VALUES:
        metric = "r2"
        result["metric"] = metric
    verdict = "accepted" if outcome.accepted else "not better, the model is unchanged"
    figures = f"held-out {metric} {before.accuracy:.4f} before, {after.accuracy:.4f} after, on {on}"
    few = "" if result["tells"] else " (too few to tell)"
    show(args, result, f"{figures}{few}: {verdict}")


def _read(path: Path) -> Model:
    from fl_tiny.files import read_bounded
    from fl_tiny.learn.tflite import MAX_FILE_BYTES, read_model

    return read_model(read_bounded(path, MAX_FILE_BYTES))


def _tensor(tensor: Tensor) -> dict[str, Any]:
    scale = tensor.quantisation
    single = scale is not None and len(scale.scale) == 1
    return {
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "scale": scale.scale[0] if scale and single else None,
        "zero_point": scale.zero_point[0] if scale and single else None,
    }


def _ranges(model: Model) -> dict[str, Any]:
    """The range of real numbers that the input can hold, and the customary range that this means."""
    from fl_tiny.learn.inputs import input_range, usual

    held = input_range(model)
    meant = usual(held)
    return {
        "input_range": None if held is None else list(held),
        "usual_range": None if meant is None else list(meant),
    }


def _holds(model: Model) -> str:
    from fl_tiny.learn.inputs import as_text, input_range

    held = input_range(model)
    return "" if held is None else f" holds {as_text(held)}"


def _head(head: Candidate) -> dict[str, Any]:
    return {
        "layers": head.layers,
        "parameters": head.parameters,
        "kinds": list(head.kinds),
        "feature_shape": None if head.feature_shape is None else list(head.feature_shape),
        "trainable": head.trainable,
        "reason": head.reason,
    }


def _cost(model: Model, head: Candidate) -> dict[str, Any]:
    """What training a head costs a board; only of one that can be trained."""
    from fl_tiny.learn.head import head_spec
    from fl_tiny.protocol.costs import round_bytes, training_bytes

    spec = head_spec(model, head.layers)
    up, down = round_bytes(spec)
    return {"layers": head.layers, "up": up, "down": down, "training_bytes": training_bytes(spec)}


def _line(what: str, tensor: Tensor) -> str:
    facts = _tensor(tensor)
    scale = "" if facts["scale"] is None else f" scale {facts['scale']:.6g} zero point {facts['zero_point']}"
    return f"{what:<9} {facts['dtype']} {facts['shape']}{scale}"


def _head_line(head: Candidate) -> str:
    if head.reason is not None:
        return f"head      {head.layers}: cannot be trained: {head.reason}"
    shape = list(head.feature_shape or ())
    return f"head      {head.layers}: {', '.join(head.kinds)}, {head.parameters} parameters on {shape}"


def _cost_line(cost: dict[str, Any]) -> str:
    memory = cost["training_bytes"] / 2**20
    return (
        f"cost      {cost['layers']}: {cost['up']} B up and {cost['down']} B down a round, {memory:.1f} MiB to train"
        " 2,000 samples, beside 40 of Python and numpy"
    )


def _settings(args: argparse.Namespace) -> Settings:
    """How to train: our measured defaults, and what the command line says otherwise."""
    from fl_tiny.learn.optimiser import Optimiser
    from fl_tiny.learn.train import Settings

    said = {
        "epochs": args.epochs,
        "rate": args.rate,
        "optimiser": Optimiser(args.optimiser) if args.optimiser else None,
        "smoothing": args.smoothing,
        "patience": args.patience,
    }
    settings = replace(Settings(balanced=args.balanced), **{key: v for key, v in said.items() if v is not None})
    return replace(settings, rate=None) if args.rate == 0 else settings


def _rate(text: str) -> float:
    """A rate; 0 stands for one that is tried out."""
    if text == "auto":
        return 0.0
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate above 0 and up to 10, and not auto")
    return rate


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 0.9:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to 0.9")
    return share


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 2^64 - 1")
    return int(text)
