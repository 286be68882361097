"""The examples in docstrings; doctest itself skips those of functions with shape checks."""

import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

import lmbench

EXAMPLES = {
    "data.words": ["separate", "words_of"],
    "evaluate": ["with_run"],
    "live_line": ["duration"],
    "evaluation.sampling": ["filter_log_probs"],
    "evaluation.text": ["encode_text", "pieces"],
    "loss.activation_penalty": ["activation_regularization", "temporal_activation_regularization"],
    "loss.linear_cross_entropy": ["linear_cross_entropy"],
    "model.core.recurrence": ["f_pooling"],
    "run.choice": ["job_folder"],
}


def test_no_example_is_forgotten():
    package = Path(lmbench.__file__).parent
    found = {
        (".".join(path.relative_to(package).with_suffix("").parts), node.name)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and ">>> " in (ast.get_docstring(node) or "")
    }
    assert found == {(module, name) for module, names in EXAMPLES.items() for name in names}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in EXAMPLES.items() for name in names]
)
def test_the_examples_give_what_they_say(module: str, name: str):
    names = vars(import_module(f"lmbench.{module}"))
    test = doctest.DocTestParser().get_doctest(names[name].__doc__, dict(names), name, None, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
