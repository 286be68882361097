from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def test_pytest_looks_into_every_folder_and_file_of_tests(pytestconfig: pytest.Config):
    """Folders such as ``build`` and ``dist`` are passed over by default."""
    passed_over = pytestconfig.getini("norecursedirs")
    named = pytestconfig.getini("python_files")
    files = [
        path.relative_to(TESTS)
        for path in TESTS.rglob("*.py")
        if "\ndef test_" in path.read_text("utf-8") or "\nclass Test" in path.read_text("utf-8")
    ]
    assert len(files) > 100
    for path in files:
        assert not any(fnmatch(part, p) for part in path.parts[:-1] for p in passed_over), path
        assert any(fnmatch(path.name, pattern) for pattern in named), path
