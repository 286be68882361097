"""The examples in docstrings; doctest itself skips those of functions with shape checks."""

import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

import lmbench

PACKAGE = Path(lmbench.__file__).parent
EXAMPLES = sorted(
    (".".join(path.relative_to(PACKAGE).with_suffix("").parts), node.name)
    for path in PACKAGE.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text("utf-8")))
    if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    and ">>> " in (ast.get_docstring(node) or "")
)


@pytest.mark.parametrize(("module", "name"), EXAMPLES)
def test_the_examples_give_what_they_say(module: str, name: str):
    names = vars(import_module(f"lmbench.{module}"))
    test = doctest.DocTestParser().get_doctest(names[name].__doc__, dict(names), name, None, 0)
    assert doctest.DocTestRunner().run(test).failed == 0
