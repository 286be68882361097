import json
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from lmbench.run import provenance

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *AUTHOR, *arguments]
    return subprocess.check_output(command, cwd=folder, text=True).strip()


def test_a_checkout_tells_its_commit_and_whether_it_was_changed(tmp_path: Path, monkeypatch):
    package = tmp_path / "src/lmbench"
    package.mkdir(parents=True)
    code = package / "code.py"
    code.write_text("a = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(provenance, "PACKAGE_DIR", package)
    before = datetime.now(timezone.utc).replace(microsecond=0)
    told = provenance.provenance()
    assert (told["commit"], told["clean"]) == (git(tmp_path, "rev-parse", "HEAD"), True)
    assert before <= datetime.fromisoformat(told["date"]) <= datetime.now(timezone.utc)
    (tmp_path / "output").write_text("not tracked\n")  # such as runs
    assert provenance.provenance()["clean"] is True
    code.write_text("a = 2\n")
    assert provenance.provenance()["clean"] is False


def test_an_environment_inside_another_repository_has_the_commit_of_its_install(
    tmp_path: Path, monkeypatch
):
    package = tmp_path / "env/lib/python3/site-packages/lmbench"
    package.mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "the user's")
    monkeypatch.setattr(provenance, "PACKAGE_DIR", package)

    class Distribution:
        noted: str | None = json.dumps({"url": "x", "vcs_info": {"commit_id": "abc"}})

        def read_text(self, name: str) -> str | None:
            return self.noted if name == "direct_url.json" else None

    monkeypatch.setattr(provenance, "distribution", lambda name: Distribution())
    told = provenance.provenance()
    assert (told["commit"], told["clean"]) == ("abc", None)
    Distribution.noted = None  # a wheel from an index
    assert provenance.provenance()["commit"] is None
