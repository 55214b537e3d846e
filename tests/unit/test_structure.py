"""The size and shape of the house: no room too large, none without a sign on the door.

An allowance is a debt: it may shrink or go, and the test fails until it does when the code has.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("relay", "workers", "api")
MODULE_MAX_LINES = 300
FUNCTION_MAX_LINES = 50
PURE_MODULES = ("position", "events", "lifecycle", "pressure", "ladder")

# What is over a limit, and its size: "relay/x.py" or "relay/x.py::function". Only ever tighten.
ALLOWANCES: dict[str, int] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> list[str]:
    """Every module, as its path from the root."""
    return sorted(
        path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    )


def sizes_over_limits(name: str, source: str) -> dict[str, int]:
    """What is too long in one module, by the name an allowance would give it."""
    over = {name: len(source.splitlines())}
    if over[name] <= MODULE_MAX_LINES:
        over.clear()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, Function) and function.end_lineno is not None:
            lines = function.end_lineno - function.lineno + 1
            if lines > FUNCTION_MAX_LINES:
                over[f"{name}::{function.name}"] = lines
    return over


def without_docstring(name: str, source: str) -> Iterator[str]:
    """The public module, classes and functions that do not say what they are for."""
    tree = ast.parse(source)
    if not tree.body:
        return
    if not ast.get_docstring(tree):
        yield name
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield f"{name}::{node.name}"


def test_there_is_something_to_measure() -> None:
    """A moved folder must not make this file pass for ever."""
    assert {path.split("/")[0] for path in modules()} == set(PACKAGES)


@pytest.mark.parametrize("name", modules())
def test_no_module_and_no_function_is_over_its_limit(name: str) -> None:
    """300 lines a module, 50 a function, and an allowance is exactly as large as what it allows."""
    allowed = {key: size for key, size in ALLOWANCES.items() if key.split("::")[0] == name}
    assert sizes_over_limits(name, (ROOT / name).read_text()) == allowed


def test_an_allowance_ends_with_its_module() -> None:
    """No allowance waits for a module to come back."""
    assert {key.split("::")[0] for key in ALLOWANCES} <= set(modules())


@pytest.mark.parametrize("name", modules())
def test_everything_public_says_what_it_is_for(name: str) -> None:
    """Each module, and each public class and function in it, has a docstring."""
    assert list(without_docstring(name, (ROOT / name).read_text())) == []


def test_every_pure_module_is_under_the_contract_that_keeps_it_pure() -> None:
    """An import contract cannot name a module before it is written; afterwards it must."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (pure,) = (contract for contract in contracts if contract["name"].startswith("The core is pure"))
    written = {f"relay.{name}" for name in PURE_MODULES if (ROOT / "relay" / f"{name}.py").exists()}
    assert written <= set(pure["source_modules"])


def test_the_measure_sees_what_is_too_long() -> None:
    """The limits bite: a long module, and a long method inside a class."""
    method = "class A:\n    async def b(self):\n" + "        pass\n" * 50
    assert sizes_over_limits("a.py", method) == {"a.py::b": 51}
    assert sizes_over_limits("a.py", "\n" * 301) == {"a.py": 301}
    assert sizes_over_limits("a.py", "def b():\n" + "    pass\n" * 49) == {}


def test_the_measure_sees_what_has_no_docstring() -> None:
    """An empty module needs none, and neither does a private name."""
    assert list(without_docstring("a.py", "")) == []
    assert list(without_docstring("a.py", "class A: ...\ndef _b(): ...")) == ["a.py", "a.py::A"]
    assert list(without_docstring("a.py", '"""A."""\nasync def b():\n    """B."""')) == []
