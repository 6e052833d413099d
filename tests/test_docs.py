# SPDX-License-Identifier: Apache-2.0
"""The pages name every setting, module, command and message that the code has, and their links lead somewhere."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from fl_tiny import config
from fl_tiny.board import Board, Network, Source, Ssh
from fl_tiny.cli.main import build_parser
from fl_tiny.errors import FlTinyError
from fl_tiny.protocol import handover, rekey, submission, wire
from fl_tiny.protocol.preprocess import KINDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "tests").rglob("*.md")])
MODULES = sorted(p for p in (ROOT / "fl_tiny").rglob("*.py") if p.name != "__init__.py")
LONGEST_PAGE = 450  # as a module at most
TYPES = {
    "text": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "table": "",  # each is explained in a section of its own
    "texts": "tuple[str, ...]",
    "numbers": "tuple[float, ...]",
}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """What stands below a heading of level two, up to the next one."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def rows(table: str) -> Iterator[list[str]]:
    """The cells of each row of a page's tables, heads left out."""
    for line in table.split("\n"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            yield cells


def commands(parser: argparse.ArgumentParser, words: str = "fl-tiny") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for group in groups:
        for name, below in group.choices.items():
            yield from commands(below, f"{words} {name}")


def command_section(command: str) -> str:
    page = "".join(
        text(f"docs/{name}.md") for name in ("cli", "cli-gateway", "cli-model", "cli-fleet", "cli-image", "cli-update")
    )
    found = re.search(rf"^###? {command}\b[^\n]*\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no page of commands has a section {command}"
    return found[1]


COMMANDS = dict(commands(build_parser()))


@pytest.mark.parametrize(
    ("title", "cls"),
    [("Gateway", config.GatewaySettings), ("Device", config.DeviceSettings)],
    ids=["gateway", "device"],
)
def test_every_setting_stands_on_its_page_with_type_and_default(title: str, cls: Any) -> None:
    found = {cells[0].strip("`"): cells for cells in rows(section(text("docs/config.md"), title))}
    assert list(found) == [field.name for field in fields(cls)]
    for field in fields(cls):
        assert field.default is not MISSING
        _, kind, default, _, rule, meaning = found[field.name]
        shown = None if default == "none" else json.loads(default.strip("`"))
        assert shown == field.default and type(shown) is type(field.default), f"{field.name}: {default}"
        assert TYPES[kind] in str(field.type), f"{field.name}: {kind}"
        assert meaning
        if field.name in config.RULES:
            limits = re.findall(r"\d+", config.RULES[field.name][0])
            assert re.findall(r"\d+", rule) == limits, f"{field.name}: {rule}"


@pytest.mark.parametrize("cls", [Board, Network, Ssh, Source, config.Privacy], ids=lambda cls: cls.__name__)
def test_every_key_of_a_boards_tables_stands_on_the_page_with_type_and_default(cls: Any) -> None:
    name = cls.__name__.lower()
    page = re.search(rf"^### {cls.__name__}\n(.*?)(?=^#|\Z)", text("docs/config.md"), re.MULTILINE | re.DOTALL)
    assert page
    found = {cells[0].strip("`"): cells for cells in rows(page[1])}
    assert list(found) == [field.name for field in fields(cls)]
    for field in fields(cls):
        _, kind, default, rule, meaning = found[field.name]
        shown = None if default == "none" else json.loads(default.strip("`"))
        assert (tuple(shown) if isinstance(shown, list) else shown) == field.default, f"{name}.{field.name}: {default}"
        assert TYPES[kind] in str(field.type), f"{name}.{field.name}: {kind}"
        assert meaning
        if f"{name}.{field.name}" in config.RULES:
            limits = re.findall(r"\d+", config.RULES[f"{name}.{field.name}"][0])
            assert re.findall(r"\d+", rule) == limits, f"{name}.{field.name}: {rule}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_preprocessing_stands_on_the_page_with_type_and_default(kind: str) -> None:
    page = re.search(rf"^### Preprocess {kind}\n(.*?)(?=^#|\Z)", text("docs/config.md"), re.MULTILINE | re.DOTALL)
    assert page
    found = {cells[0].strip("`"): cells for cells in rows(page[1])}
    assert list(found) == [field.name for field in fields(KINDS[kind])]
    for field in fields(KINDS[kind]):
        _, type_name, default, *_ = found[field.name]
        assert (None if default == "none" else json.loads(default.strip("`"))) == field.default, field.name
        assert f"[{TYPES[type_name]}" in str(field.type), f"{field.name}: {type_name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT / "fl_tiny")))
def test_every_module_stands_in_the_architecture(path: Path) -> None:
    assert f"`{path.relative_to(ROOT / 'fl_tiny')}`" in text("docs/architecture.md")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_on_its_page_with_its_options(command: str) -> None:
    page = command_section(command)
    assert re.search(rf"^    {command} ?", page, re.MULTILINE), "a section has an example"
    for action in COMMANDS[command]._actions:
        for option in action.option_strings:
            if option.startswith("--") and option not in ("--help", "--json"):
                assert f"`{option}" in page, f"{command}: {option}"


def test_the_page_of_commands_promises_no_option_that_is_not_there() -> None:
    for command, parser in COMMANDS.items():
        own = {option for action in parser._actions for option in action.option_strings}
        for cells in rows(command_section(command)):
            assert set(re.findall(r"--[a-z-]+", cells[0])) <= own, f"{command}: {cells[0]}"


def test_every_exit_code_of_a_fault_is_explained() -> None:
    kinds = [FlTinyError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    for kind in kinds:
        assert f"\n| {kind.EXIT} |" in text("docs/cli.md"), kind.__name__


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_relative_link_is_dead(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        path = (page.parent / target.split("#")[0]).resolve()
        assert path.exists(), f"{page.name}: {target}"


def test_every_test_that_the_pages_name_is_there() -> None:
    for page in PAGES:
        for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
            assert f"def {name}(" in text(file), f"{page.name}: {file}::{name}"


def test_the_kinds_of_the_wire_rules_are_those_of_the_code() -> None:
    rules = {
        name: int(kind) for name, kind in re.findall(r"^(\w+) +=\s*\{ 0: (\d+),", text("docs/protocol.cddl"), re.M)
    }
    found = {**vars(wire), **vars(rekey), **vars(handover), **vars(submission)}
    kinds = {name.lower(): cls.KIND for name, cls in found.items() if hasattr(cls, "KIND")}
    assert rules == kinds
    assert len(set(kinds.values())) == len(kinds)


def test_every_problem_code_stands_in_the_protocol() -> None:
    page = text("docs/protocol.md")
    for code in wire.Code:
        assert f"\n| {int(code)} | {code.name.lower()} |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_stays_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").split("\n")) <= LONGEST_PAGE


def events_logged(*folders: str) -> set[str]:
    """What stands before the first key in each INFO, WARNING and ERROR line."""
    found = set()
    for path in MODULES:
        if path.relative_to(ROOT / "fl_tiny").parts[0] not in folders:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = node.func if isinstance(node, ast.Call) else None
            if (
                isinstance(node, ast.Call)
                and isinstance(call, ast.Attribute)
                and isinstance(call.value, ast.Name)
                and call.value.id == "log"
                and call.attr != "debug"
            ):
                assert isinstance(node.args[0], ast.Constant), path
                found.add(re.split(r" \w+=|[:;]", str(node.args[0].value))[0])
    return found


@pytest.mark.parametrize(("title", "folder"), [("At the gateway", "gateway"), ("At a device", "device")])
def test_the_operators_page_explains_every_line_of_the_log(title: str, folder: str) -> None:
    page = re.search(rf"^### {title}\n(.*?)(?=^#|\Z)", text("docs/operations.md"), re.MULTILINE | re.DOTALL)
    assert page
    listed = [cells[0].strip("`") for cells in rows(page[1])]
    assert set(listed) == events_logged(folder) and len(set(listed)) == len(listed)


def test_the_commands_on_the_operators_page_are_ones() -> None:
    found = re.findall(r"^ {4,}fl-tiny (.*)$", text("docs/operations.md"), re.MULTILINE)
    assert len(found) > 10
    for line in found:
        build_parser().parse_args(shlex.split(line))  # exits when it is none


def test_the_page_of_settings_names_every_environment_variable_that_is_read() -> None:
    read = set()
    for path in MODULES:
        source = path.read_text()
        read |= set(re.findall(r"(?:os\.)?environ(?:ment)?(?:\.get\(|\[)\"([A-Z_]+)\"", source))
    listed = set(re.findall(r"`([A-Z_]{4,})`", text("docs/config.md").split("## Gateway")[0]))
    assert read == listed - {"DIR"}


def test_every_line_of_what_is_protected_names_its_test() -> None:
    lines = re.findall(
        r"^\| (?!what holds|---)(.*) \| (.*) \|$", section(text("SECURITY.md"), "What is protected"), re.M
    )
    assert len(lines) >= 20 and all("::test_" in shown_by for _, shown_by in lines)
