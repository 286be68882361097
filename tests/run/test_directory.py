from pathlib import Path

from lmbench.run.directory import clear_run


def test_a_run_that_starts_over_is_recorded_anew(tmp_path: Path):
    for name in ("wandb/run-1", "lstm_seed_1", "checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv", "mlflow_run_id", "mine.txt"):
        (tmp_path / name).touch()
    clear_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "mine.txt"}
