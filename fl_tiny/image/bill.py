# SPDX-License-Identifier: Apache-2.0
"""What is in an image, package by package: as SPDX, as a list of licences, as a lock that later builds are held to."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_tiny.errors import ConfigError
from fl_tiny.files import write_atomic

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHOWN = 8  # packages that a fault names
LICENCE = re.compile(r"^License: *(\S.*?) *$", re.MULTILINE)  # Source: Debian, machine-readable copyright 1.0


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package as apt knew it; ours have no digest there."""

    name: str
    version: str
    arch: str
    source: str = ""
    sha256: str = ""
    homepage: str = ""


def known(*lists: Path) -> list[Package]:
    """The packages that files of ``apt-cache show`` tell of, each once, by name."""
    found = {}
    for path in lists:
        for stanza in path.read_text().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.split("\n") if re.match(r"[A-Z][\w-]*: ", line))
            if "Package" in fields:
                name, version = fields["Package"], fields["Version"]
                more = [fields.get(key, "") for key in ("Architecture", "Source", "SHA256", "Homepage")]
                found[name] = Package(name, version, *more)
    return [found[name] for name in sorted(found)]


def ours(table: Path, others: Iterable[Package]) -> list[Package]:
    """What is installed besides, from a slot's packages.tsv."""
    names = {each.name for each in others}
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    return [Package(row[0], row[1], row[2], row[3]) for row in rows if row[0] not in names]


def licences(folder: Path) -> dict[str, list[str]]:
    """Of each package the licences that its copyright file names; none where the file has no form."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*/copyright*")):
        names = LICENCE.findall(path.read_text(errors="replace"))
        found[path.parent.name] = sorted(set(names) | set(found.get(path.parent.name, [])))
    return found


def as_spdx(name: str, made: str, packages: Iterable[Package], licences_of: dict[str, list[str]]) -> str:
    """A document of SPDX 2.3, JSON.   made: when, as 2026-11-24T12:00:00Z. Source: spdx.github.io/spdx-spec/v2.3"""
    listed = list(packages)
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"urn:fl-tiny:{name}:{made}",
        "creationInfo": {"created": made, "creators": ["Tool: fl-tiny image build"]},
        "packages": [_spdx(package, licences_of.get(package.name, [])) for package in listed],
        "relationships": [
            {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": _id(package)}
            for package in listed
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def as_text(packages: Iterable[Package], licences_of: dict[str, list[str]]) -> str:
    """A line a package: name, version, licences. The whole texts lie in the image, /usr/share/doc/PACKAGE/copyright."""
    rows = [(p.name, p.version, ", ".join(licences_of.get(p.name, [])) or "see its copyright file") for p in packages]
    return "".join("  ".join(row) + "\n" for row in rows)


def write_lock(path: Path, packages: Iterable[Package]) -> None:
    """Keep what a build used: version and digest of each package."""
    lines = ["# What an image of this board is made of; written by `fl-tiny image build --update-lock`", "[packages]"]
    lines += [f'"{p.name}" = "{p.version} {p.sha256}"' for p in packages]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def differences(path: Path, packages: Iterable[Package]) -> str:
    """The packages that are not those of a lock, in words; empty: all are. Raises: ConfigError for a bad lock."""
    try:
        locked = tomllib.loads(path.read_text())["packages"]
    except (OSError, KeyError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise ConfigError(f"{path} is no lock: {cause}", hint="--update-lock writes it anew") from cause
    odd = list(_odd(locked, {p.name: f"{p.version} {p.sha256}" for p in packages}))
    more = f"; and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
    return "; ".join(odd[:SHOWN]) + more


def _odd(locked: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    for name in sorted({*locked, *found}):
        wanted, there = locked.get(name), found.get(name)
        if wanted != there:
            versions = [text.split(" ")[0] if text else "none" for text in (wanted, there)]
            digest = " with another digest" if versions[0] == versions[1] else ""
            yield f"{name} {versions[0]}, now {versions[1]}{digest}"


def _id(package: Package) -> str:
    return "SPDXRef-" + re.sub(r"[^a-zA-Z0-9.-]", "-", f"{package.name}-{package.arch}")


def _spdx(package: Package, named: list[str]) -> dict[str, object]:
    place = f"pkg:deb/debian/{package.name}@{package.version}?arch={package.arch}"
    found: dict[str, object] = {
        "SPDXID": _id(package),
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "licenseComments": "Debian's copyright file names: " + (", ".join(named) or "no form that can be read"),
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": place.replace("+", "%2B"),
            }
        ],
    }
    if package.sha256:
        found["checksums"] = [{"algorithm": "SHA256", "checksumValue": package.sha256}]
    if package.homepage:
        found["homepage"] = package.homepage
    return found
