"""Ensembles, against ten lines of NumPy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.optimize import minimize_scalar

from lmbench.errors import UserError
from lmbench.report._ensemble import build_ensemble, mixture_weights
from lmbench.report.comparison import compare
from lmbench.report.records import read_records
from lmbench.report.runs import SPLITS

Write = Callable[..., Path]
NUM_TARGETS = 900


def draw(seed: int) -> np.ndarray:
    """Log-probabilities in float32, as in records."""
    return -np.random.default_rng(seed).gamma(2, 2, NUM_TARGETS).astype(np.float32)


@pytest.fixture
def members(tmp_path: Path, write_run: Write, write_evaluation: Write) -> list[Path]:
    """Two runs with records of both splits, and a folder of another model's probabilities."""
    run_dirs = []
    for seed in (1, 2):
        run_dir = write_run(tmp_path / f"runs/{seed}", seed=seed, valid=100 + seed)
        for index, split in enumerate(SPLITS):
            nats, articles = draw(10 * seed + index), np.arange(NUM_TARGETS) // 30
            write_evaluation(run_dir, split=split, log_probabilities=nats, articles=articles)
        run_dirs.append(run_dir)
    other = tmp_path / "other"
    other.mkdir()
    for index, split in enumerate(SPLITS):
        lines = (f"{p!r}\n" for p in np.exp(draw(30 + index).astype(float)).tolist())
        (other / f"{split}.txt").write_text("".join(lines))
    return [*run_dirs, other]


def by_hand(seeds: tuple[int, ...]) -> tuple[np.ndarray, dict[str, float]]:
    """Weights and perplexities in ten lines, with as many rounds as it takes."""
    valid, test = (np.exp([draw(seed + k).astype(float) for seed in seeds]) for k in (0, 1))
    w = np.ones(len(seeds)) / len(seeds)
    for _ in range(3000):
        w = w * (valid / (w @ valid)).mean(axis=1)
    mixed = {"valid": w @ valid, "test": w @ test}
    return w, {split: float(np.exp(-np.log(p).mean())) for split, p in mixed.items()}


def test_weights_maximize_the_likelihood():
    p = np.exp([draw(1).astype(float), draw(2).astype(float)])
    best = minimize_scalar(lambda w: -np.log(w * p[0] + (1 - w) * p[1]).sum(), bounds=(0, 1))
    assert mixture_weights(p)[0] == pytest.approx(best.x, abs=1e-5)
    assert mixture_weights(p).sum() == pytest.approx(1.0)
    assert mixture_weights(np.stack([p[0], p[0] / 2])) == pytest.approx([1.0, 0.0], abs=1e-3)


def test_perplexities_and_weights_match_those_by_hand(members: list[Path], tmp_path: Path):
    run, table = build_ensemble(members, "mine", None)
    weights, perplexities = by_hand((10, 20, 30))
    titles, rows, _ = table.shown()
    assert titles == ["member", "weight", "valid", "test"]
    assert [row[0] for row in rows] == ["lstm, seed 1", "lstm, seed 2", str(tmp_path / "other")]
    assert [row["weight"].value for row in table.rows] == pytest.approx(weights, abs=1e-4)
    assert [row[1] for row in rows] == [f"{weight:.3f}" for weight in weights]
    for split in SPLITS:
        assert run.scores[split].ppl == pytest.approx(perplexities[split], rel=1e-6)
        assert run.scores[split].num_tokens == NUM_TARGETS
    assert run.number("num_parameters") is None  # the other model's are unknown
    both, _ = build_ensemble(members[:2], "both", None)
    assert both.number("num_parameters") == 2 * 1_234_567


def test_a_member_counts_once_however_it_is_named(
    members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    names = [Path("runs"), Path("runs/1"), *members, Path("other")]
    _, table = build_ensemble(names, "mine", None)
    assert len(table.rows) == 3
    with pytest.raises(UserError, match="at least two members"):
        build_ensemble([members[0], Path("runs/1")], "mine", None)


def test_a_text_file_from_windows(members: list[Path]):
    _, table = build_ensemble(members, "mine", None)
    for path in members[2].iterdir():
        path.write_text("\ufeff" + path.read_text(), "utf-8", newline="\r\n")
    _, again = build_ensemble(members, "mine", None)
    assert again.rows == table.rows


def test_an_ensemble_is_in_the_tables_and_its_records_compared(members: list[Path], tmp_path: Path):
    output = tmp_path / "compared"
    ensembles = [[("both seeds", members[0]), (None, members[1])]]
    report = compare([(None, tmp_path / "runs")], ensembles=ensembles, output=output)
    (chapter,) = report.chapters
    assert [group.name for group in chapter.section.groups] == ["both seeds", "lstm"]
    group = chapter.section.groups[0]
    assert chapter.tables[1].title == "Members of both seeds"
    assert chapter.verdict[0].text.startswith("lstm has a perplexity of ")  # nothing to compare
    assert [one.test_name for one in chapter.comparisons] == ["bootstrap"]
    path = output / "both_seeds-test.parquet"
    assert read_records(path, group.runs[0].scores["test"]).unit == "article"
    nats = pq.read_table(path)["log_probability"].to_numpy()
    perplexity = by_hand((10, 20))[1]["test"]
    assert np.exp(-nats.mean(dtype="f8")) == pytest.approx(perplexity, rel=1e-6)
    lines = (output / "both_seeds-test.txt").read_text().splitlines()
    np.testing.assert_allclose([float(line) for line in lines], np.exp(nats), rtol=1e-6)


def test_an_ensemble_does_not_make_all_keys_differ(members: list[Path], write_run: Write):
    write_run(members[0].parent / "3", model="lstm", config={"optimizer.lr": 0.5})
    ensembles = [[(None, folder) for folder in members[:2]]]
    (chapter,) = compare([(None, members[0].parent)], ensembles=ensembles).chapters
    assert list(chapter.section.differences) == ["ensemble", "optimizer.lr"]


def test_words_that_all_members_are_certain_of_stay_certain(
    tmp_path: Path, write_run: Write, write_evaluation: Write, monkeypatch: pytest.MonkeyPatch
):
    """Weights whose sum is rounded up would give them a probability above 1."""
    rounded_up = np.array([0.5, 0.5 + 2**-52])
    assert rounded_up.sum() > 1.0
    monkeypatch.setattr(
        "lmbench.report._ensemble.mixture_weights", lambda probabilities: rounded_up
    )
    for seed in (1, 2):
        run_dir = write_run(tmp_path / f"runs/{seed}", seed=seed)
        for index, split in enumerate(SPLITS):
            nats, articles = draw(10 * seed + index), np.arange(NUM_TARGETS) // 30
            nats[:5] = 0.0
            write_evaluation(run_dir, split=split, log_probabilities=nats, articles=articles)
    run, _ = build_ensemble(sorted((tmp_path / "runs").iterdir()), "mine", tmp_path / "compared")
    record = run.evaluations["standard", "test"]
    assert record.records is not None
    assert read_records(record.records, record.score).unit == "article"
    assert pq.read_table(record.records)["log_probability"].to_pylist()[:5] == [0.0] * 5


def test_each_ensemble_has_its_own_name_and_files(members: list[Path], tmp_path: Path):
    """Numbered if no name is given; a name may be one that no file can have."""
    first, second = ([(None, folder) for folder in members[k:]] for k in (0, 1))
    runs = [(None, tmp_path / "runs")]
    output = tmp_path / "compared"
    (chapter,) = compare(runs, ensembles=[first, second], output=output).chapters
    assert {"ensemble 1", "ensemble 2"} < {group.name for group in chapter.section.groups}
    scores = {
        pq.read_table(output / f"{name}-test.parquet")["log_probability"].to_numpy().mean()
        for name in ("ensemble_1", "ensemble_2")
    }
    assert len(scores) == 2
    (chapter,) = compare(
        runs, group_by=["model.name"], ensembles=[first, [("../a/\udcff", members[0]), *second]]
    ).chapters
    names = {group.name: len(group.runs) for group in chapter.section.groups}
    assert names == {"ensemble 1": 1, "../a/\\udcff": 1, "name=lstm": 2}
    for labels in (("a b", "a_b"), ("a", None)):
        named = [[(label, members[0]), (None, members[1])] for label in labels]
        named[1][1] = ("a", members[1])
        with pytest.raises(UserError, match="Each ensemble needs one name"):
            compare(runs, ensembles=named)
    with pytest.raises(UserError, match="different from all others: lstm"):
        compare(runs, ensembles=[[("lstm", members[0]), (None, members[1])]])


def test_targets_whose_probability_underflows_in_every_member(
    tmp_path: Path, write_run: Write, write_evaluation: Write
):
    run_dirs = []
    for seed, nats in ((1, [-800.0, -1, -1, -1]), (2, [-801.0, -1, -1, -1])):
        run_dirs.append(write_run(tmp_path / str(seed), seed=seed))
        for split in SPLITS:
            write_evaluation(run_dirs[-1], split=split, log_probabilities=np.array(nats))
    run, _ = build_ensemble(run_dirs, "x", None)
    # The members agree on the rest, so the first gets all of the weight.
    assert run.scores["test"].nll == pytest.approx((800 + 3) / 4, rel=1e-6)


def test_the_text_file_of_an_ensemble_can_be_a_member(members: list[Path], tmp_path: Path):
    build_ensemble(members[:2], "x", tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    for split in SPLITS:
        (tmp_path / f"x-{split}.txt").rename(again / f"{split}.txt")
    first, _ = build_ensemble(members[:2], "x", None)
    second, _ = build_ensemble([*members[:2], again], "y", None)
    for split in SPLITS:  # the best mixture stays the same: the third is a mixture of the two
        ppl = first.scores[split].ppl
        assert second.scores[split].ppl == pytest.approx(ppl, rel=1e-4)


def test_members_that_do_not_belong_together_are_refused(
    members: list[Path], tmp_path: Path, write_run: Write, write_evaluation: Write
):
    def refused(*folders: Path) -> str:
        with pytest.raises(UserError) as error:
            build_ensemble(folders, "x", None)
        return str(error.value)

    assert "at least two members" in refused(members[0])
    assert "at least one of them a run" in refused(members[2], members[2])
    without = write_run(tmp_path / "without", seed=3)
    assert f"lmbench-evaluate run={without} split=valid evaluation.save_tokens=true" in refused(
        members[0], without
    )
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/config.yaml").touch()
    assert f"{tmp_path}/unfinished cannot be a member: Did not" in refused(tmp_path / "unfinished")
    for name, results, size in (("corpus", {"data.sha256": "bb"}, 900), ("tokens", {}, 899)):
        run_dir = write_run(tmp_path / name, seed=4, results=results)
        sha256 = {"sha256": "bb"} if results else {}
        nats = draw(5)[:size]
        write_evaluation(run_dir, split="valid", log_probabilities=nats, **sha256)
        assert f"{run_dir} has a different corpus" in refused(members[0], run_dir)
    otherwise = write_run(tmp_path / "otherwise", seed=5)
    write_evaluation(otherwise, split="valid", log_probabilities=draw(5), columns=1)
    assert "valid was read differently" in refused(members[0], otherwise)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "cannot be read"),
        (
            "0.5\n" * 899,
            "must have 900 lines, each with a probability above 0 and up to 1. It has 899",
        ),
        ("0.5\n" * 899 + "0.0\n", "It has 900"),
        ("0.5\n" * 899 + "nan\n", "It has 900"),
        ("0.5\n" * 899 + "1.1\n", "It has 900"),
        ("0.5\n" * 899 + "half\n", "is not a list of probabilities"),
    ],
)
def test_unusable_probabilities_are_refused(members: list[Path], text: str | None, part: str):
    path = members[2] / "test.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=part):
        build_ensemble(members, "x", None)
