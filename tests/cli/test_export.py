"""The command, as it is typed."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lmbench
from lmbench.cli import export

FILES = ["README.md", "config.json", "model.safetensors", "vocabulary.json"]


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lmbench-export", *map(str, arguments)])
        try:
            export.main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_run_is_exported_into_itself(make_run: Callable[..., Path], run_main: Callable):
    run_dir = make_run()
    code, out, err = run_main(run_dir)
    folder = run_dir / "export"
    assert (code, err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    *lines, last = out.splitlines()
    sizes = {line.split()[2]: int(line.split()[0].replace(",", "")) for line in lines}
    assert sizes == {name: (folder / name).stat().st_size for name in FILES}
    model, _ = lmbench.load(folder)
    assert last == f"{model.num_parameters:,} parameters, exported to {folder}"

    code, out, err = run_main(run_dir)
    assert (code, out) == (1, "")
    assert "--overwrite" in err
    assert run_main(run_dir, "--overwrite")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_what_cannot_be_exported_leaves_no_files(
    make_run: Callable[..., Path], tmp_path: Path, run_main: Callable
):
    run_dir, output = make_run(), tmp_path / "export"
    (run_dir / "results.json").rename(run_dir / "results")
    for place, part in (
        (run_dir, "has no results.json"),
        (run_dir / "checkpoints", "it has no config.yaml"),
        (tmp_path, "is not a run, but a folder of 1: name one of "),
    ):
        code, out, err = run_main(place, "--output", output)
        assert (code, out) == (1, "")
        assert part in err
        assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
