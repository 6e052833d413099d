# SPDX-License-Identifier: Apache-2.0
"""Imports point down, the core is pure, a foreign thing has one home, and every module says its one sentence."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fl_tiny"
MODULES = sorted(ROOT.rglob("*.py"))
LEVEL = {  # docs/architecture.md, "Who may import whom": a module imports from its own folder or from lower levels
    "cli": 5,
    "lab": 4,
    "device": 3,
    "gateway": 3,
    "image": 3,
    "config": 2,
    "board": 1,
    "statedir": 2,
    "files": 2,
    "labels": 2,
    "notify": 2,
    "doctor": 2,
    "database": 2,
    "disks": 1,
    "net": 2,
    "protocol": 1,
    "learn": 1,
    "errors": 0,
}
PURE = {  # what learn/ and protocol/ may import besides ours: no I/O, clock, thread, environment or log
    "__future__", "abc", "array", "base64", "collections", "contextlib", "dataclasses", "enum", "functools",
    "hashlib", "itertools", "math", "operator", "re", "struct", "sys", "typing", "zlib", "numpy",
}  # fmt: skip
HOME = {  # one foreign thing, one module
    "aiocoap": {"net/transport.py"},
    "ctypes": {"net/openssl.py", "net/dtls.py", "device/worker.py", "device/mounts.py"},  # OpenSSL; prctl; mount
    "cbor2": {"protocol/cbor.py"},
    "nacl": {"protocol/signed.py", "gateway/sealed.py"},
    "sqlite3": {"device/store.py", "device/left.py", "gateway/store.py", "gateway/tables.py", "database.py"},
    "tflite_runtime": {"device/backbone.py"},
    "ai_edge_litert": {"device/backbone.py", "lab/rehead.py"},
    "starlette": {"gateway/web.py"},
    "uvicorn": {"gateway/web.py"},
    "segno": {"cli/gateway.py"},
    "PIL": {"device/images.py"},
    "zeroconf": {"net/multicast.py", "device/discover.py", "gateway/announce.py"},  # opened, asked, answered
    "wave": set(),  # tests alone: it reads other files on each Python
    "soundfile": {"device/sound.py"},
    "csv": {"device/series.py"},
    "mmap": {"device/sources/v4l2.py"},
    "scipy": set(),  # tests alone: device/audio.py needs no more than numpy
}
STARTS_PROCESSES = {  # and lab/
    "device/child.py",
    "device/isolated.py",
    "device/find.py",
    "device/host.py",
    "device/sources/inference.py",
    "image/tools.py",
}
IDLE = (
    "fl_tiny.device.agent",
    "fl_tiny.device.sources.service",
    "fl_tiny.net.coap",
    "fl_tiny.protocol.wire",
    "fl_tiny.protocol.session",
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path, root: Path = ROOT) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if node.module == "fl_tiny" or node.module.startswith("fl_tiny."):
                found += [module_named(node.module, alias.name, root) for alias in node.names]
            else:
                found.append(node.module)
    return found


def module_named(package: str, name: str, root: Path) -> str:
    """What ``from package import name`` reads: the module of that name below the package, if there is one."""
    place = root.joinpath(*package.split(".")[1:])
    is_module = (place / f"{name}.py").exists() or (place / name / "__init__.py").exists()
    return f"{package}.{name}" if is_module or package == "fl_tiny" else package


def layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


modules = pytest.mark.parametrize("path", MODULES, ids=map(name_of, MODULES))


@modules
def test_imports_only_point_down(path: Path) -> None:
    mine = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if mine in ("__init__", "__main__"):
        return
    for module in imports(path):
        theirs = layer(module)
        if not module.startswith("fl_tiny") or theirs in (mine, "__version__", ""):
            continue
        allowed = LEVEL[theirs] < LEVEL[mine] or (mine, theirs) in {
            ("protocol", "learn"),
            ("statedir", "files"),
            ("labels", "files"),
            ("doctor", "config"),
            ("doctor", "statedir"),
            ("doctor", "database"),
            ("doctor", "net"),
        }
        assert allowed, f"{name_of(path)} imports {module}"


@modules
def test_the_core_does_no_io(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] not in ("learn", "protocol"):
        return
    for module in imports(path):
        top = module.split(".")[0]
        assert top in PURE or top == "fl_tiny" or name_of(path) in HOME.get(top, set()), f"{name_of(path)}: {module}"
    calls = {
        n.func.id
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not calls & {"open", "print", "input", "exec", "eval"}


@modules
def test_a_foreign_thing_has_one_home(path: Path) -> None:
    for module in imports(path):
        home = HOME.get(module.split(".")[0])
        assert home is None or name_of(path) in home, f"{name_of(path)} imports {module}"


@modules
def test_processes_are_started_in_few_places(path: Path) -> None:
    text = path.read_text()
    if "subprocess" in text:
        assert name_of(path) in STARTS_PROCESSES or path.relative_to(ROOT).parts[0] == "lab"


@modules
def test_a_module_says_its_one_sentence_and_stays_small(path: Path) -> None:
    tree = ast.parse(path.read_text())
    first = (ast.get_docstring(tree) or "").split("\n")[0]
    assert path.name == "__main__.py" or first.endswith((".", ":")), f"{name_of(path)}: {first!r}"
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert len(path.read_text().split("\n")) <= 450, "a module is one idea; 400 lines are the aim"


def circle(root: Path) -> str:
    """A circle of imports below a tree's root, as text; empty when there is none."""
    graph = {
        "fl_tiny." + ".".join(path.relative_to(root).with_suffix("").parts): imports(path, root)
        for path in sorted(root.rglob("*.py"))
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> str:
        if module in above:
            return " -> ".join((*above, module))
        found = (
            ""
            if module in done
            else next(filter(None, (visit(m, (*above, module)) for m in graph.get(module, []))), "")
        )
        done.add(module)
        return found

    return next(filter(None, (visit(module, ()) for module in graph)), "")


def test_no_cycle() -> None:
    assert circle(ROOT) == ""


@pytest.mark.parametrize("words", ["from fl_tiny.device import child", "import fl_tiny.device.child"])
def test_control_a_circle_that_was_planted_is_seen(tmp_path: Path, words: str) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device/child.py").write_text("from fl_tiny.device import budget\n")
    (tmp_path / "device/budget.py").write_text(f"{words}\n")
    assert circle(tmp_path).count("budget") == 1 + circle(tmp_path).startswith("fl_tiny.device.budget")


@pytest.mark.parametrize("module", IDLE)
def test_an_idle_daemon_loads_neither_numpy_nor_a_runtime(module: str) -> None:
    code = f"import sys, {module}; print([m for m in sys.modules if m.split('.')[0] in ('numpy', 'tflite_runtime')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.strip() == "[]"


def test_no_wall_clock_decides_anything() -> None:
    for path in MODULES:
        for word in ("time.time()", "datetime", "localtime", "gmtime"):
            assert word not in path.read_text(), f"{name_of(path)} reads the wall clock: {word}"
