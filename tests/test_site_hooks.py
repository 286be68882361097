"""The site of ``make docs``: it builds, and a reference that leads nowhere makes it fail."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from site_hooks import to_markdown

ROOT = Path(__file__).resolve().parents[1]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", site]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_site_has_every_page_and_module(tmp_path: Path):
    built = build(ROOT / "mkdocs.yml", tmp_path)
    assert built.returncode == 0, built.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / "docs" / page.stem / "index.html").exists()
    package = ROOT / "src/lmbench"
    for module in package.rglob("*.py"):
        if re.match("_[a-z]", module.name):  # private
            continue
        name = module.relative_to(package.parent).with_suffix("")
        name = name.parent if name.name == "__init__" else name
        assert (tmp_path / "api" / name / "index.html").exists(), module
    core = (tmp_path / "api/lmbench/model/core/stack/index.html").read_text("utf-8")
    assert ":class:" not in core
    assert 'href="#lmbench.model.core.stack.Layer"' in core


@pytest.mark.slow
@pytest.mark.parametrize(("target", "code"), [("Here.x", 0), ("Here.gone", 1), ("nowhere", 1)])
def test_a_reference_that_leads_nowhere_fails(tmp_path: Path, target: str, code: int):
    module = f'""":func:`{target}`"""\n\nclass Here:\n    """Here."""\n\n    x = 1\n    """X."""\n'
    (tmp_path / "one_module.py").write_text(module)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("::: one_module\n")
    options = {"extensions": [str(ROOT / "scripts/site_hooks.py")], "scoped_crossrefs": True}
    handlers = {"python": {"paths": [str(tmp_path)], "options": options}}
    config = {"site_name": "x", "plugins": [{"mkdocstrings": {"handlers": handlers}}]}
    (tmp_path / "mkdocs.yml").write_text(yaml.dump(config))
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode == code, built.stderr
    assert (target in built.stderr) == bool(code)


def test_links_and_examples_in_docstrings():
    text = "A :class:`a.B`.\n\n>>> f(1)\n[2]\n\nMore."
    assert to_markdown(text) == "A [`a.B`][a.B].\n\n```pycon\n>>> f(1)\n[2]\n```\n\nMore."
