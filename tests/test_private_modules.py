"""A module that only its own room imports begins with ``_``, and no other room imports it."""

import ast
from collections import defaultdict
from pathlib import Path

import lmbench

PACKAGE = Path(lmbench.__file__).parent
ROOT = PACKAGE.parents[1]
FOR_USERS = {
    # What new parts inherit from or are made of.
    "lmbench.evaluation.evaluator",
    "lmbench.evaluation.reading",
    "lmbench.evaluation.tuning",
    "lmbench.model.core.recurrence",
    "lmbench.model.core.residual",
    "lmbench.model.core.stack",
    # What notebooks use.
    "lmbench.hf.lm_eval",
}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_private_modules_are_marked_and_only_they():
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    importers = defaultdict(set)
    for importer, path in files.items():
        for name in imported_names(path) & files.keys():
            importers[name].add(importer)
    pages = [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "scripts").glob("*.py")]
    named = "".join(path.read_text("utf-8") for path in [*pages, ROOT / "pyproject.toml"])
    assert len(files) > 100
    for module in files:
        room, _, name = module.rpartition(".")
        if room == "lmbench" or name == "__init__":
            continue
        used_outside = {user for user in importers[module] if not user.startswith(f"{room}.")}
        if name.startswith("_"):
            assert not used_outside, module
        else:
            is_exported = f"{room}.__init__" in importers[module]
            is_named = any(f"{module}{end}" in named for end in (".", ":", " "))
            assert used_outside or is_exported or is_named or module in FOR_USERS, module
