"""Shapes in signatures are checked under test; in production they are only documentation."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# An int can stand where a float is annotated (PEP 484), as it can everywhere in Python.
install_import_hook(
    ["lmbench.data", "lmbench.loss", "lmbench.model", "lmbench.optim"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


@pytest.fixture(scope="session")
def wikitext2_dir() -> Path:
    """The genuine WikiText-2, where it lies beside the project."""
    path = Path(__file__).resolve().parents[2] / "shared/data/wikitext-2"
    if not path.is_dir():
        pytest.skip("no WikiText-2 beside the project")
    return path
