"""House rules that a reader would otherwise have to trust: sizes, ASCII, declared returns, nothing run on import."""

import ast
from pathlib import Path

import pytest

from tests.test_imports import ROOT, SOURCES

MAX_FILE, MAX_FUNCTION = 300, 60
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> list[Function]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_the_house_rules(path: Path) -> None:
    source = path.read_text(encoding="ascii")
    assert len(source.splitlines()) <= MAX_FILE
    for function in functions(source):
        assert function.end_lineno is not None
        assert function.end_lineno - function.lineno < MAX_FUNCTION, function.name
        assert function.returns is not None, f"{function.name} does not say what it returns"
    assert ast.get_docstring(ast.parse(source)) or path.name == "__init__.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_on_import(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        assert not called, f"line {node.lineno} calls something when {path.name} is imported"
        assert not isinstance(node, ast.For | ast.While | ast.With), f"line {node.lineno}"
