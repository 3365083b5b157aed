"""House rules that no linter holds."""

import ast
import importlib
import io
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from cyclopts import App
from rich.console import Console

from p2pgrid.cli.app import app
from p2pgrid.wire import adverts, fields, messages, transfer_messages

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "p2pgrid"
PROTOCOL_PAGES = ROOT / "docs" / "protocols"
MODULE_LINES_MAX = 320
FUNCTION_LINES_MAX = 75
BROAD_EXCEPTS_MAX = 8
FILE_BYTES_MAX = 500_000
MESSAGES = (messages, adverts, transfer_messages)
PROTOCOLS: dict[str, Any] = {
    messages.STAGE_PROTOCOL: messages.LinkMessage,
    adverts.ADVERT_PROTOCOL: adverts.AdvertMessage,
    transfer_messages.BLOB_PROTOCOL: transfer_messages.BlobMessage,
    transfer_messages.DIRECT_PROTOCOL: transfer_messages.DirectMessage,
    transfer_messages.KV_PROTOCOL: transfer_messages.KvMessage,
}


@cache
def tracked_files() -> tuple[Path, ...]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return tuple(path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file())


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def modules() -> Iterator[Path]:
    yield from sorted(PACKAGE.rglob("*.py"))


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


# ── size and shape of the code ───────────────────────────────────────────────────────────────────────────


def test_modules_and_functions_stay_small() -> None:
    too_long = []
    for path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES_MAX:
            too_long.append(f"{place(path, 1)} has {lines} lines")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES_MAX:
                    too_long.append(f"{place(path, node.lineno)} {node.name} has {lines} lines")
    assert not too_long


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = [ast.unparse(one) if one is not None else "BaseException" for one in caught]
    return any(name in ("Exception", "BaseException") for name in names)


def test_broad_excepts_are_few_and_say_who_owns_the_failure() -> None:
    broad = [
        (place(path, node.lineno), path.read_text(encoding="utf-8").splitlines()[node.lineno - 1])
        for path in modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and _is_broad(node)
    ]
    silent = [where for where, line in broad if not re.search(r"#.*\bown(s|er)\b", line)]
    assert not silent, "say who owns the failure: except Exception:  # owns: …"
    assert len(broad) <= BROAD_EXCEPTS_MAX, [where for where, _ in broad]


def test_nothing_is_left_unfinished() -> None:
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "raise NotImplemented" + "Error")))
    found = [
        place(path, number)
        for path in tracked_files()
        if path.suffix in (".py", ".md", ".toml", ".html", ".service") or path.name in ("Makefile", "run")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert not found


def test_nothing_big_is_committed() -> None:
    """What programs write for themselves, above all."""
    assert not [place(path, 1) for path in tracked_files() if path.stat().st_size > FILE_BYTES_MAX]


def test_every_package_has_something_in_it() -> None:
    empty = [
        str(init.parent.relative_to(ROOT))
        for init in PACKAGE.rglob("__init__.py")
        if not any(path != init for path in init.parent.glob("*.py"))
    ]
    assert not empty


def test_no_file_names_a_directory_of_one_machine() -> None:
    private = re.compile(r"(?<![\w.}~)-])/(?:root|home|work)\b(?!\()")
    found = [
        f"{place(path, number)} {line.strip()[:80]}"
        for path in tracked_files()
        if path.name != "LICENSE" and path != Path(__file__) and b"\0" not in (data := path.read_bytes())
        for number, line in enumerate(data.decode("utf-8").splitlines(), 1)
        if private.search(line)
    ]
    assert not found


def test_a_test_that_does_not_run_says_why() -> None:
    silent = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = tree_of(path)
        marks = {"pytest.mark.skip", "pytest.mark.xfail"}
        calls = marks | {"pytest.mark.skipif", "pytest.skip", "pytest.xfail"}
        called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or ast.unparse(node) not in calls:
                continue
            call = called.get(id(node))
            positional = bool(call and call.args) and ast.unparse(node) in ("pytest.skip", "pytest.xfail")
            if call is None or not (positional or any(word.arg == "reason" for word in call.keywords)):
                silent.append(place(path, node.lineno))
    assert not silent


# ── dependencies ─────────────────────────────────────────────────────────────────────────────────────────


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _imported() -> set[str]:
    """Top-level names that the package imports, the standard library and itself left out."""
    names: set[str] = set()
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"p2pgrid"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {_normal(re.split(r"[^\w.-]", line)[0]) for line in project["dependencies"]}
    homes = packages_distributions()
    used = {name: {_normal(home) for home in homes.get(name, [])} for name in _imported()}
    assert not {name for name, homes_of in used.items() if not homes_of & declared}, "imported, not declared"
    assert not declared - set().union(*used.values()), "declared, never imported"


# ── protocol pages ───────────────────────────────────────────────────────────────────────────────────────


def _page(protocol: str) -> Path:
    name, version = protocol.removeprefix("/p2pgrid/").split("/")
    return PROTOCOL_PAGES / f"{name}-{version}.md"


def test_every_protocol_has_a_page_and_every_page_a_protocol() -> None:
    declared = {value for module in MESSAGES for name, value in vars(module).items() if name.endswith("_PROTOCOL")}
    assert declared == set(PROTOCOLS)
    pages = {path for path in PROTOCOL_PAGES.glob("*.md") if path.name != "README.md"}
    assert pages == {_page(protocol) for protocol in declared}
    for protocol in declared:
        assert f"`{protocol}`" in _page(protocol).read_text(encoding="utf-8")


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The structs of our messages in a type, and those in their fields."""
    homes = {module.__name__ for module in MESSAGES}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ in homes:
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from _structs(field.type)
    for part in get_args(kind):
        yield from _structs(part)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_the_page_of_a_protocol_has_every_message_and_field(protocol: str) -> None:
    page = _page(protocol).read_text(encoding="utf-8")
    kinds = set(_structs(PROTOCOLS[protocol]))
    if protocol != messages.STAGE_PROTOCOL:
        kinds -= set(_structs(messages.LinkMessage))  # others refer to its page
    if protocol == adverts.ADVERT_PROTOCOL:
        kinds.add(adverts.Advert)
    missing = []
    for kind in kinds:
        heading = re.search(rf"^### {kind.__name__}$.*?(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
        if heading is None:
            missing.append(kind.__name__)
            continue
        fields = kind.__struct_fields__
        missing += [f"{kind.__name__}.{field}" for field in fields if f"`{field}`" not in heading.group()]
    assert not missing, f"not on {_page(protocol).name}"


def test_the_pages_name_the_numbers_of_the_code() -> None:
    codec = importlib.import_module("p2pgrid.wire.codec")
    text = "".join(path.read_text(encoding="utf-8") for path in PROTOCOL_PAGES.glob("*.md")).replace(",", "")
    limits = {
        name: value
        for module in (*MESSAGES, fields, codec)
        for name, value in vars(module).items()
        if name.endswith("_MAX") and isinstance(value, int)
    }
    assert limits
    assert not {name for name, value in limits.items() if not re.search(rf"\b{value}\b", text)}


# ── the command line and what is written about it ────────────────────────────────────────────────────────


def _commands(group: App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in group:
        if name.startswith("-"):
            continue
        yield (*path, name)
        yield from _commands(group[name], (*path, name))


def _help(path: tuple[str, ...]) -> str:
    text = io.StringIO()
    app.help_print(list(path), console=Console(file=text, width=200))
    return text.getvalue()


def test_the_help_of_every_command_has_an_example() -> None:
    commands = list(_commands(app))
    assert commands
    groups = {path[:-1] for path in commands}
    without = [
        " ".join(path)
        for path in commands
        if path not in groups
        and not any(
            f"p2pgrid {' '.join(path)}" in line for line in _help(path).splitlines() if not line.startswith("Usage:")
        )
    ]
    assert not without


def _command_lines(text: str) -> Iterator[str]:
    """What a Markdown page shows as a command line of p2pgrid, in blocks and between backticks."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"\s*(?:\$ )?(?:\S*/)?p2pgrid (.*)", line):
                yield found.group(1)
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        if found := re.match(r"p2pgrid (.*)", span):
            yield found.group(1)


def _written_commands() -> Iterator[tuple[str, str]]:
    for path in tracked_files():
        text = path.read_text(encoding="utf-8") if path.suffix in (".md", ".service") else ""
        if path.suffix == ".md":
            yield from ((str(path.relative_to(ROOT)), line) for line in _command_lines(text))
        for line in re.findall(r"^ExecStart=\S*/p2pgrid (.*)", text, re.MULTILINE):
            yield str(path.relative_to(ROOT)), line


def test_every_command_in_the_docs_exists_with_its_options() -> None:
    known = set(_commands(app))
    groups = {path[:-1] for path in known}
    wrong = []
    for where, line in _written_commands():
        words = line.split("#")[0].split()
        path: tuple[str, ...] = ()
        while len(path) < len(words) and (*path, words[len(path)]) in known:
            path = (*path, words[len(path)])
        options = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help", "--version"}
        rest = words[len(path) :]
        incomplete = path in groups and rest and not rest[0].startswith("--")
        help_text = _help(path)
        if incomplete or any(not re.search(rf"(?<!\S){option}(?!\S)", help_text) for option in options):
            wrong.append(f"{where}: p2pgrid {line}")
    assert not wrong
