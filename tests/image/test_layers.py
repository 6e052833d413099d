# SPDX-License-Identifier: Apache-2.0
"""image/layers: what is claimed of each layer, and the layer for rpi-image-gen; the others have tests of their own.

rpi-image-gen cannot be had here: the rules of its metadata are written down below as its documentation has them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.image.linters import LAYERS, ROOT, VERSION, helper, needed, run, tomllib

CLAIMS = ("unbuilt", "builds", "boots", "trains")
LAYER = LAYERS / "rpi-image-gen/layer/fl-tiny.yaml"
CONFIG = LAYERS / "rpi-image-gen/config/fl-tiny-pi.yaml"
# Source: rpi-image-gen, docs/layer ("X-Env Metadata") and the fields that its parser, site/metadata_parser.py, supports
FIELDS = {"Name", "Desc", "Version", "Requires", "Conflicts", "Category", "Type", "Generator", "Provides"}
ATTRIBUTES = {"Desc", "Required", "Valid", "Set", "Anchor", "Conflicts", "Triggers"}
VALID = r"string(-or-(empty|unset))?|bool|int(:\d+-\d+)?|size|capacity|file|dir|regex:.+|keywords:.+|.+,.*"


def claims() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = tomllib.loads((LAYERS / "claims.toml").read_text())
    return found


def test_each_layer_has_a_claim_and_a_page_that_says_it() -> None:
    assert set(claims()) == {path.name for path in LAYERS.iterdir() if path.is_dir()}
    for name, claim in claims().items():
        assert claim["claim"] in CLAIMS and claim["checked"]
        assert f"**{claim['claim'].capitalize()}**" in (LAYERS / name / "README.md").read_text()


@pytest.mark.parametrize("name", claims())
def test_nothing_is_claimed_that_no_log_shows(name: str) -> None:
    claim = claims()[name]
    assert (claim["claim"] == "unbuilt") != bool(claim["log"])
    assert not claim["log"] or (ROOT / claim["log"]).is_file()


def metadata(text: str) -> dict[str, str]:
    """The fields of a layer, as DEB822. Raises: ValueError for what rpi-image-gen's lint would refuse."""
    block = re.search(r"^# METABEGIN\n(.*?)^# METAEND$", text, re.MULTILINE | re.DOTALL)
    if not block:
        raise ValueError("no metadata")
    fields: dict[str, str] = {}
    for line in block[1].split("\n"):
        bare = line.removeprefix("#").removeprefix(" ")
        if bare.startswith(" "):
            fields[list(fields)[-1]] += f"\n{bare.strip()}"
        elif bare:
            name, value = re.match(r"X-Env-([\w-]+): ?(.*)", bare).groups()
            if name in fields:
                raise ValueError(f"{name} twice")
            fields[name] = value
    judge(fields)
    return fields


def judge(fields: dict[str, str]) -> None:
    """Raises: ValueError for an unknown field, an attribute without its variable, a rule that is none."""
    for name, value in fields.items():
        kind, *rest = name.split("-", 2)
        if kind == "Layer" and rest[0] not in FIELDS:
            raise ValueError(f"unknown field {name}")
        if kind == "Var":
            variable, *attribute = rest
            if f"Var-{variable}" not in fields or "VarPrefix" not in fields:
                raise ValueError(f"{name} has no variable or no prefix")
            if attribute and attribute[0] not in ATTRIBUTES:
                raise ValueError(f"unknown attribute {name}")
            if attribute == ["Valid"] and not re.fullmatch(VALID, value):
                raise ValueError(f"{name}: {value} is no rule")
        if kind not in ("Layer", "Var", "VarPrefix", "VarRequires", "VarOptional"):
            raise ValueError(f"unknown field {name}")


def loaded(path: Path) -> dict[str, Any]:
    done = helper("yaml_json.py", path)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_layers_metadata_keep_rpi_image_gens_rules() -> None:
    said = metadata(LAYER.read_text())
    assert (said["Layer-Name"], said["Layer-Version"]) == ("fl-tiny", VERSION)
    for name in ("debs", "provisioning", "gateway"):
        assert {f"Var-{name}-{attribute}" for attribute in ("Desc", "Valid", "Set")} <= set(said)
        assert re.search(rf"\bIGconf_{said['VarPrefix']}_{name}\b", LAYER.read_text())
    for name, inside in (("debs", "dist/deb"), ("provisioning", "image/templates/fl-tiny.toml")):
        path = Path(said[f"Var-{name}"].replace("${DIRECTORY}", str(LAYER.parent)))
        assert path.resolve() == ROOT / inside
    assert (ROOT / "image/templates/fl-tiny.toml").is_file()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X-Env-Layer-Desc", "X-Env-Layer-Summary"),
        ("X-Env-Var-debs: ", "X-Env-Var-dabs: "),
        ("-gateway-Valid: bool", "-gateway-Valid: boolean"),
        ("# X-Env-VarPrefix: fltiny\n", ""),
        ("# METAEND", ""),
    ],
)
def test_broken_metadata_are_refused(old: str, new: str) -> None:
    assert old in LAYER.read_text()
    with pytest.raises(ValueError, match=r"unknown|no variable|no rule|no metadata"):
        metadata(LAYER.read_text().replace(old, new))


def test_the_layer_installs_what_the_package_needs() -> None:
    packages = loaded(LAYER)["mmdebstrap"]["packages"]
    debian = {"aiocoap": None, "pynacl": "python3-nacl"}  # aiocoap lies in the .deb
    for name in needed():
        package = debian.get(name, f"python3-{name}")
        assert package is None or package in packages


@pytest.mark.parametrize("gateway", ["n", "y"])
def test_the_layers_hook_puts_packages_and_provisioning_file_in_place(tmp_path: Path, gateway: str) -> None:
    (hook,) = loaded(LAYER)["mmdebstrap"]["customize-hooks"]
    debs, root, tools = tmp_path / "debs", tmp_path / "root", tmp_path / "tools"
    for folder in (debs, root / "tmp", tools):
        folder.mkdir(parents=True)
    for name in ("fl-tiny_0.1.0_all.deb", "fl-tiny-gateway_0.1.0_all.deb", "fl-tiny-tflite_0.1.0_arm64.deb"):
        (debs / name).touch()
    (tools / "chroot").write_text('#!/bin/sh\nls "$1/tmp/fl-tiny" > "$1/installed"\n')
    (tools / "chroot").chmod(0o755)
    given = {
        "IGconf_fltiny_debs": str(debs),
        "IGconf_fltiny_provisioning": str(ROOT / "image/templates/fl-tiny.toml"),
        "IGconf_fltiny_gateway": gateway,
        "PATH": f"{tools}:/usr/bin:/bin",
    }
    done = run("/bin/sh", "-c", hook, "sh", root, **given)
    assert done.returncode == 0, done.stderr
    wanted = {"fl-tiny_0.1.0_all.deb", *(["fl-tiny-gateway_0.1.0_all.deb"] if gateway == "y" else [])}
    assert set((root / "installed").read_text().split()) == wanted
    file = root / "boot/firmware/fl-tiny.toml"
    assert file.read_bytes() == (ROOT / "image/templates/fl-tiny.toml").read_bytes()
    assert not list((root / "tmp").iterdir())
    given["IGconf_fltiny_debs"] = str(tools)
    assert run("/bin/sh", "-c", hook, "sh", root, **given).returncode != 0, "a folder without packages is an error"


def test_the_configuration_names_the_layer() -> None:
    assert loaded(CONFIG)["layer"]["app"] == metadata(LAYER.read_text())["Layer-Name"]
