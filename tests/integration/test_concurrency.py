"""Many runs that start at once with the same empty cache."""

import json
import time
from pathlib import Path

import pytest
from small import SMALL
from trainings import start

NUM_RUNS = 10
TINY = (
    "data=text",
    "model=lstm",
    *(override for override in SMALL if not override.startswith("data")),
    "trainer.max_steps=2",
    "hydra.run.dir=.",
)
SENTENCES = "the cat sat on the mat <unk>\n\nthe mat was on the cat\n" * 50


@pytest.mark.slow
def test_ten_runs_share_a_corpus_that_one_of_them_builds(tmp_path: Path):
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        (corpus / f"{split}.txt").write_text(SENTENCES, encoding="utf-8")
    places = (f"data.path={corpus}", f"data.cache_dir={cache}")
    runs = []
    for number in range(NUM_RUNS):
        run = tmp_path / f"run{number}"
        runs.append((run, start(run, *TINY, *places)))

    builds: set[str] = set()  # names of the folders in which an entry was being built
    entries: set[tuple[str, int, int]] = set()  # all that ever bore an entry's final name
    try:
        deadline = time.monotonic() + 300
        while any(process.poll() is None for _, process in runs):
            assert time.monotonic() < deadline
            builds |= {path.name for path in cache.glob(".*") if path.is_dir()}
            for path in cache.glob("[!.]*/corpus.json"):
                status = path.stat()
                entries.add((path.parent.name, status.st_ino, status.st_mtime_ns))
            time.sleep(0.005)
    finally:
        for _, process in runs:
            process.kill()
    for _, process in runs:
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr

    assert len(builds) <= 1  # perhaps too quick to be seen
    ((key, _, _),) = entries
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {key}

    results = [json.loads((run / "results.json").read_text("utf-8")) for run, _ in runs]
    for same in ("data", "val", "test"):
        assert all(result[same] == results[0][same] for result in results), same
    print(f"\n{len(builds)} build seen; val/ppl {results[0]['val']['ppl']} in each run")
