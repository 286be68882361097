"""Many runs that start at once on one cache that is empty."""

import json
import os
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

COMMAND = Path(sysconfig.get_path("scripts"), "lmbench-train")
NUM_RUNS = 10
TINY = (
    "data=text",
    "model=lstm",
    "model.embedding_size=8",
    "model.core.hidden_size=8",
    "batching.batch_size=4",
    "batching.bptt=5",
    "evaluation.columns=1",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "seed=7",
    "hydra.run.dir=.",
)
SENTENCES = "the cat sat on the mat <unk>\n\nthe mat was on the cat\n" * 50


@pytest.mark.slow
def test_ten_runs_share_a_corpus_that_one_of_them_builds(tmp_path: Path):
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        (corpus / f"{split}.txt").write_text(SENTENCES, encoding="utf-8")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HYDRA_")}
    runs = []
    for number in range(NUM_RUNS):
        run = tmp_path / f"run{number}"
        run.mkdir()
        with (run / "output").open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [COMMAND, *TINY, f"data.path={corpus}", f"data.cache_dir={cache}"],
                cwd=run,
                env=inherited | {"OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        runs.append((run, process))

    builds: set[str] = set()  # names of the folders in which an entry was being built
    entries: set[tuple[str, int, int]] = set()  # all that ever bore an entry's final name
    try:
        deadline = time.monotonic() + 300
        while any(process.poll() is None for _, process in runs):
            assert time.monotonic() < deadline
            builds |= {path.name for path in cache.glob("*.*") if path.is_dir()}
            for path in cache.glob("*/corpus.json"):
                status = path.stat()
                entries.add((path.parent.name, status.st_ino, status.st_mtime_ns))
            time.sleep(0.005)
    finally:
        for _, process in runs:
            process.kill()
    for run, process in runs:
        assert process.returncode == 0, (run / "output").read_text(encoding="utf-8")

    assert len(builds) <= 1  # too quick to be seen, perhaps
    ((key, _, _),) = entries
    folders = {path.name for path in cache.iterdir() if path.is_dir()}
    assert folders - {"files"} == {key}

    results = [json.loads((run / "results.json").read_text("utf-8")) for run, _ in runs]
    for same in ("data", "val", "test"):
        assert all(result[same] == results[0][same] for result in results), same
    print(f"\n{len(builds)} build seen; val/ppl {results[0]['val']['ppl']} in each run")
