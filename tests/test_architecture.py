"""The rules of the house, read from the source text: floors, purity, what is banned and what may be made only in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import util
from pathlib import Path

import pytest

from meshguard.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "meshguard"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    ("model",),
    ("policy", "fields", "ledger", "detect", "identity", "integrity", "validation", "wire"),
    ("net", "keys", "sources", "storage", "telemetry", "guard"),
    ("pipeline",),
    ("control", "adapters"),
    ("demo",),
    ("cli",),
)
"""From the ground up. A module imports from its own package, from floors below, and from nothing beside it but what BESIDE lists."""

BESIDE: frozenset[tuple[str, str]] = frozenset()
"""Imports between packages of one floor that are right, each with its reason. None is needed so far."""

PURE = ("model", "policy", "fields", "ledger", "detect", "identity", "integrity", "validation", "wire")
IMPURE_MODULES = frozenset({
    "asyncio", "concurrent", "grpc", "http.client", "logging", "multiprocessing", "os", "random", "secrets", "select", "selectors",
    "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "urllib.request", "uvloop", "watchfiles",
})  # fmt: skip
IMPURE_NAMES = frozenset({("pathlib", "Path"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("os", "urandom")})

TASK_MAKERS: dict[str, str] = {
    "meshguard.net.cluster.tasks": "an owner with callbacks instead of a body to wait in: keeps every task, logs its end, closes them",
}
"""Modules that make a task outside a TaskGroup, and why that is right there."""

LONGEST = 450
VAGUE = frozenset({"utils", "util", "helpers", "helper", "common", "misc", "manager"})


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """`net` of `meshguard.net.listener`; empty for the modules that lie in no package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def floor_of(package: str) -> int:
    return next(index for index, floor in enumerate(FLOORS) if package in floor)


def runtime_nodes(module: ast.Module) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`: names for the type checker are no dependency."""
    stack: list[ast.AST] = [module]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack.extend(node.orelse)
            continue
        yield node
        stack.extend(ast.iter_child_nodes(node))


def imports(module: ast.Module, *, runtime: bool = True) -> Iterator[tuple[str, str, int]]:
    """(module, name or "", line) of every import."""
    for node in runtime_nodes(module) if runtime else ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            for alias in node.names:
                yield node.module or "", alias.name, node.lineno


@cache
def edges() -> tuple[tuple[str, str, str], ...]:
    """(package, imported package, where) between packages of meshguard."""
    return tuple(_edges())


def _edges() -> Iterator[tuple[str, str, str]]:
    for path in MODULES:
        own = package_of(name_of(path))
        for module, name, line in imports(tree(path)):
            if module.split(".")[0] == "meshguard":
                other = package_of(module) or package_of(f"{module}.{name}")
                if own and other and own != other:
                    yield own, other, f"{path.relative_to(ROOT)}:{line}"


def breaches_of_floors(found: Iterable[tuple[str, str, str]]) -> list[str]:
    return [
        f"{where}: {own} imports {other}"
        for own, other, where in found
        if floor_of(other) > floor_of(own) or (floor_of(other) == floor_of(own) and (own, other) not in BESIDE)
    ]


def test_imports_point_down() -> None:
    assert breaches_of_floors(edges()) == []


def test_the_check_of_floors_sees_a_breach() -> None:
    assert breaches_of_floors(iter([("wire", "net", "x:1")])) == ["x:1: wire imports net"]
    assert breaches_of_floors(iter([("wire", "identity", "x:1")])) == ["x:1: wire imports identity"]
    assert breaches_of_floors(iter([("net", "wire", "x:1"), ("cli", "model", "x:2")])) == []


def test_every_package_has_a_floor_and_a_docstring_only() -> None:
    packages = [path for path in PACKAGE.rglob("*") if path.is_dir() and (path / "__init__.py").exists()]
    for package in packages:
        floor_of(package.relative_to(PACKAGE).parts[0])
        body = tree(package / "__init__.py").body
        assert len(body) == 1, f"{package}: __init__ holds more than a docstring"
        assert ast.get_docstring(tree(package / "__init__.py")), package


def impurities(module: ast.Module) -> list[str]:
    found = []
    for name, attribute, line in imports(module):
        top = name.split(".")[0]
        if top in IMPURE_MODULES or name in IMPURE_MODULES or (name, attribute) in IMPURE_NAMES:
            found.append(f"{line}: {name} {attribute}".rstrip())
    for node in runtime_nodes(module):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            if text in ("open", "input", "print", "datetime.now", "datetime.utcnow", "date.today", "datetime.today"):
                found.append(f"{node.lineno}: {text}()")
    return found


@pytest.mark.parametrize("package", [package for package in PURE if (PACKAGE / package).exists()])
def test_below_the_line_nothing_does_io_reads_a_clock_or_rolls_dice(package: str) -> None:
    found = {str(path.relative_to(ROOT)): bad for path in (PACKAGE / package).rglob("*.py") if (bad := impurities(tree(path)))}
    assert found == {}


def test_the_check_of_purity_sees_a_breach() -> None:
    for text in (
        "import time",
        "from os import path",
        "import asyncio.events",
        "from pathlib import Path",
        "x = datetime.now()",
        "open('f')",
    ):
        assert impurities(ast.parse(text)), text
    assert impurities(ast.parse("import re\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ssl\n")) == []


def banned(module: ast.Module, name: str) -> list[str]:
    """Statements that must not be: assert (gone under -O), bare except, tasks outside a TaskGroup, a Permit made elsewhere."""
    found = []
    groups = task_groups(module)
    for node in ast.walk(module):
        if isinstance(node, ast.Assert):
            found.append(f"{node.lineno}: assert")
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{node.lineno}: bare except")
        elif isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            last = text.rpartition(".")[2]
            if last == "ensure_future" or (last == "create_task" and text.rpartition(".")[0].rpartition(".")[2].lstrip("_") not in groups):
                if name not in TASK_MAKERS:
                    found.append(f"{node.lineno}: {text}")
            elif last == "Permit" and package_of(name) != "policy":
                found.append(f"{node.lineno}: a Permit is made outside meshguard.policy")
    return found


def task_groups(module: ast.Module) -> set[str]:
    """Names that are bound to a TaskGroup: by `async with`, or as an argument with that annotation (kept as `self._name`)."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.withitem) and ast.unparse(node.context_expr).endswith("TaskGroup()") and node.optional_vars is not None:
            names.add(ast.unparse(node.optional_vars))
        elif isinstance(node, ast.arg) and node.annotation is not None and ast.unparse(node.annotation).endswith("TaskGroup"):
            names.add(node.arg)
    return names


def test_what_is_banned_is_nowhere() -> None:
    found = {str(path.relative_to(ROOT)): bad for path in MODULES if (bad := banned(tree(path), name_of(path)))}
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "assert x",
        "try:\n    pass\nexcept:\n    pass",
        "asyncio.create_task(f())",
        "create_task(f())",
        "loop.create_task(f())",
        "self._group.create_task(f())",
        "asyncio.ensure_future(f())",
        "Permit('r', 'd')",
        "verdicts.Permit('r', 'd')",
    ],
)
def test_the_check_of_bans_sees_a_breach(text: str) -> None:
    assert banned(ast.parse(text), "meshguard.pipeline.x")


def test_the_check_of_bans_lets_the_right_things_be() -> None:
    assert banned(ast.parse("async with TaskGroup() as group:\n    group.create_task(f())"), "meshguard.net.x") == []
    assert banned(ast.parse("Permit('r', 'd')"), "meshguard.policy.decision") == []


def test_each_exception_from_a_rule_is_still_needed() -> None:
    """An allowance that nothing uses any more hides the next breach."""
    used = {(own, other) for own, other, _ in edges()}
    tasks = {name_of(path) for path in MODULES if re.search("create_task|ensure_future", path.read_text("utf-8"))}
    assert set(TASK_MAKERS) <= tasks
    assert used >= BESIDE


def test_packages_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for own, other, _ in edges():
        graph.setdefault(own, set()).add(other)
    seen: set[str] = set()

    def visit(package: str, above: tuple[str, ...]) -> None:
        assert package not in above, " -> ".join([*above, package])
        if package not in seen:
            for other in sorted(graph.get(package, ())):
                visit(other, (*above, package))
            seen.add(package)

    for package in sorted(graph):
        visit(package, ())


def test_no_module_has_a_vague_name() -> None:
    assert [name_of(path) for path in MODULES if VAGUE & set(name_of(path).split("."))] == []


def test_modules_hold_one_idea() -> None:
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [name_of(path) for path in MODULES if not ast.get_docstring(tree(path))] == []


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_every_command_of_the_registry_exists(name: str) -> None:
    assert util.find_spec(f"meshguard.cli.{name}") is not None
    text = (PACKAGE / "cli" / f"{name}.py").read_text("utf-8")
    assert re.search(r"^def register\(subparsers: ", text, re.MULTILINE)


def test_the_registry_has_every_command() -> None:
    modules = {path.stem for path in (PACKAGE / "cli").glob("*.py")} - {"__init__", "main"}
    commands = {name for name, _ in COMMANDS}
    registering = {name for name in modules if "def register(" in (PACKAGE / "cli" / f"{name}.py").read_text("utf-8")}
    assert registering == commands
