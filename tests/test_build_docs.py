"""The API reference: every module has a page, and references lead somewhere."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pdoc
import pytest
from build_docs import broken_references

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


def test_references_that_lead_nowhere_are_found(tmp_path: Path):
    links = [":func:`there`", ":class:`Here`", ":attr:`Here.x`"]
    broken = [":class:`Her`", ":meth:`Here.gone`", ":func:`nowhere`", ":mod:`json.not`"]
    module = tmp_path / "one_module.py"
    lines = [f'"""{", ".join(links + broken)}."""', "def there(): ...", "class Here:", "    x = 1"]
    module.write_text("\n".join(lines))
    pdoc.render.configure(docformat="google")
    found = broken_references(module.read_text(), pdoc.pdoc(module))
    assert found == ["Her", "Here.gone", "json.not", "nowhere"]
