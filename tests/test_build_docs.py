"""The API reference: every module has a page, and references lead somewhere."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import lmbench

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path):
    command = [sys.executable, ROOT / "scripts/build_docs.py", "--output", tmp_path]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    package = Path(lmbench.__file__).parent
    for module in package.rglob("*.py"):
        name = module.relative_to(package.parent).with_suffix("")
        name = name.parent if name.name == "__init__" else name
        if name.name != "lm_eval" or find_spec("lm_eval"):  # which only `make extras` installs
            assert (tmp_path / name).with_suffix(".html").exists(), module
