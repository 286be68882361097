"""The package of examples/own_parts, installed: its parts are found, trained and loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lmbench
from lmbench.errors import UserError
from lmbench.files import read_json
from lmbench.instantiate.evaluator import trained_run
from lmbench.run.targets import allowing

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "examples/own_parts"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder in which the package is installed, as pip leaves it."""
    project = (PACKAGE / "pyproject.toml").read_text("utf-8")
    section = re.compile(r'^\[project\.entry-points\."(.+)"\]\n((?:\w.*\n)+)', re.MULTILINE)
    [(group, entries)] = section.findall(project)
    site = tmp_path / "site"
    info = site / "own_parts-0.1.dist-info"
    info.mkdir(parents=True)
    (site / "own_parts").symlink_to(PACKAGE / "own_parts")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}".replace('"', ""))
    return site


@pytest.mark.slow
def test_the_parts_are_trained_resumed_evaluated_compared_exported_and_loaded(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(command: str, *arguments: str, installed: bool = True) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(ROOT / "src"), *([str(site)] if installed else [])])
        return subprocess.run(
            [sys.executable, "-m", f"lmbench.cli.{command}", *arguments],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")},
            text=True,
        )

    lines = [f"The dog number {number % 17} sees a cat ." for number in range(600)]
    (tmp_path / "novel.txt").write_text("\n".join(lines))
    train = ("experiment=own_parts", "data.path=novel.txt", "model.core.hidden_size=12")
    train += ("model.embedding_size=8", "scheduler=constant", "logger=csv")
    for seed, stop in ((1, "trainer.max_epochs=1"), (2, "trainer.max_epochs=2")):
        ended = run("train", *train, f"seed={seed}", stop, f"hydra.run.dir=run_{seed}")
        assert ended.returncode == 0, ended.stderr
    assert run("train", "resume=run_1", "trainer.max_epochs=2").returncode == 0
    assert read_json(tmp_path / "run_1/results.json")["train"]["epochs"] == 2

    ended = run("evaluate", "run_1", "evaluation=top_k", "evaluation.k=3")
    assert ended.returncode == 0, ended.stderr
    top_k = read_json(tmp_path / "run_1/top_k-test.json")["top_k"]
    assert run("evaluate", "run_1", "evaluation=cache", "evaluation.columns=2").returncode == 0
    assert "own_parts" in run("compare", "run_1", "run_2").stdout
    assert run("export", "run_1", "--output", "export").returncode == 0

    ended = run("train", *train, "model/core=ind_rn")
    assert "There is no model/core=ind_rn. Did you mean ind_rnn" in ended.stderr
    ended = run("generate", "export", installed=False)
    assert ended.returncode == 1
    assert "names own_parts.ind_rnn.IndRNN" in ended.stderr

    classes = ["ind_rnn.IndRNN", "cosine_softmax.CosineSoftmax", "lower_case.LowerCase"]
    allowed = [f"own_parts.{name}" for name in classes]
    with pytest.raises(UserError, match=r"own_parts\.lower_case"):
        lmbench.load(tmp_path / "export", allow=allowed[:2])
    model, vocabulary = lmbench.load(tmp_path / "export", allow=allowed)
    assert "the" in vocabulary.ids
    assert "The" not in vocabulary.ids
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with allowing(allowed):
        corpus = trained_run(Path("run_1"), {"path": None, "cache_dir": None}, model.device).corpus
    ids = torch.tensor(corpus.test).long()
    twin = lmbench.load("run_1", allow=allowed).model
    with torch.no_grad():
        log_probs = twin.head.log_probs(twin(ids[:-1, None]).output)[:, 0]
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(len(log_probs)))
    better = log_probs > log_probs.gather(1, ids[1:, None])
    assert top_k == pytest.approx((better.sum(1) < 3).double().mean().item())
    targets = torch.tensor([3, -100, 0, 1, -100])
    output = torch.randn(5, 8)
    losses = model.head.loss(output, targets, reduction="none")
    expected = -model.head.log_probs(output).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    assert torch.allclose(losses, expected * (targets >= 0))
    assert torch.allclose(model.head.loss(output, targets), losses.sum() / 3)
