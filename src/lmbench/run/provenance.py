"""Where a result comes from: the commit of the code, the processor, and the time."""

import json
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

PACKAGE_DIR = Path(__file__).parents[1]


def provenance() -> dict[str, Any]:
    """The commit of the installed lmbench, whether its tree was clean, and the time in UTC.

    ``commit`` and ``clean`` are None where they cannot be known: in a wheel without git's data.
    """
    commit, clean = _commit_of_checkout()
    if commit is None:
        commit, clean = _commit_of_install(), None
    return {
        "commit": commit,
        "clean": clean,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _commit_of_checkout() -> tuple[str | None, bool | None]:
    try:
        root = Path(_git("rev-parse", "--show-toplevel"))
        # An environment may lie in a repository of the user's that has nothing to do with lmbench.
        if root not in (PACKAGE_DIR.parents[1], PACKAGE_DIR.parents[0]):
            return None, None
        return _git("rev-parse", "HEAD"), not _git("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None, None


def _git(*arguments: str) -> str:
    run = subprocess.run(
        ["git", *arguments], cwd=PACKAGE_DIR, capture_output=True, text=True, check=True, timeout=10
    )
    return run.stdout.strip()


def _commit_of_install() -> str | None:
    """What pip notes for ``pip install git+URL`` (PEP 610)."""
    try:
        noted = distribution("lmbench").read_text("direct_url.json")
        return json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, ValueError):
        return None
