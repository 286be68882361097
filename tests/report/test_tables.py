"""Tables in all their formats."""

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lmbench.report._significance import compare_over_seeds
from lmbench.report.formats import (
    Cell,
    Table,
    csv_text,
    estimate_text,
    json_rows,
    latex,
    markdown,
    perplexity_text,
    print_table,
)
from lmbench.report.groups import Section
from lmbench.report.statistics import Estimate
from lmbench.report.tables import config_difference_table, group_table, pair_table, run_table

Write = Callable[..., Path]
HOSTILE = "a_b & 5% #1 {x} ~ ^ \\ <b> | `c` [d](e) *f*"
ROWS = [
    {
        "name": Cell(HOSTILE, "na_me"),
        "ppl": Cell(Estimate(1234.5, 0.25, 3), "ppl", estimate_text),
        "empty": Cell(None, "empty"),
        "wide": Cell(7, "wide", is_wide=True),
        "hidden": Cell(0.1),
    },
    {
        "name": Cell("\x1b[2J", "na_me"),
        "ppl": Cell(Estimate(2.0, None, 1), "ppl", estimate_text),
        "empty": Cell(None, "empty"),
        "wide": Cell(None, "wide", is_wide=True),
        "hidden": Cell(None),
    },
]
ESTIMATE = ("ppl_mean", "ppl_half_width", "ppl_num_values")
TABLE = Table("Ti_tle", ROWS, ["A note."])


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_what_is_shown_and_what_is_not():
    titles, rows, numbers = TABLE.shown()
    assert titles == ["na_me", "ppl", "wide"]
    assert rows == [[HOSTILE, "1,234.50 ± 0.25", "7"], ["\\x1b[2J", "2.00", ""]]
    assert numbers == [False, True, True]
    assert TABLE.shown(narrow=True)[0] == ["na_me", "ppl"]
    assert Table("none", []).shown() == ([], [], [])


def test_all_digits_in_csv():
    first, second = rows_of(csv_text([TABLE]))
    assert list(first) == ["name", *ESTIMATE, "empty", "wide", "hidden"]
    assert [first[key] for key in ESTIMATE] == ["1234.5", "0.25", "3"]
    assert (first["wide"], first["hidden"]) == ("7", "0.1")
    assert (second["ppl_half_width"], second["hidden"]) == ("", "")


def test_markdown_keeps_its_columns_and_escapes_markup():
    lines = markdown(TABLE).splitlines()
    assert lines[0] == r"## Ti\_tle"
    assert lines[3] == "| --- | ---: | ---: |"
    assert lines[4].replace("\\|", "").count("|") == 4
    assert r"\<b\>" in lines[4]
    assert r"\[d\](e) \*f\*" in lines[4]
    assert lines[-1] == "A note."


def test_latex_escapes_its_special_characters():
    text = latex(TABLE)
    assert "\\toprule" in text
    assert "\\begin{tabular}{lr}" in text
    assert r"a\_b \& 5\% \#1 \{x\} \textasciitilde{} \textasciicircum{}" in text
    assert r"\textbackslash{} \textless{}b\textgreater{} \textbar{}" in text
    assert r"1,234.50 $\pm$ 0.25" in text
    assert r"na\_me & ppl \\" in text
    assert r"\caption{Ti\_tle}" in text
    assert r"$-$2.5" in latex(Table("", [{"": Cell("\N{MINUS SIGN}2.5", "difference")}]))


def test_the_terminal_shows_brackets_as_they_are_and_obeys_none():
    console = Console(width=80, file=io.StringIO(), record=True)
    print_table(replace(TABLE, title="\x1b[2J", notes=["\x1b[31m"]), console)
    text = console.export_text()
    assert "[d](e)" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 80])
def test_the_terminal_loses_no_figure(width: int):
    """Columns that do not fit come below, after the names again."""
    rows = [
        {"name": Cell(name, "name")}
        | {f"c{k}": Cell(f"{name}{k} ± 1.23", f"c{k}") for k in range(9)}
        for name in ("first", "second")
    ]
    console = Console(width=width, file=io.StringIO(), record=True)
    print_table(Table("", rows), console)
    text = console.export_text()
    for row in rows:
        for cell in row.values():
            assert f" {cell.value} " in text
    assert text.count(" first ") > 1


def test_each_part_of_a_wide_table_says_what_its_rows_are():
    rows = [
        {"first": Cell("a", "first"), "second": Cell(second, "second")}
        | {f"c{k}": Cell(k / 7, f"column {k}") for k in range(9)}
        for second in ("b", "c")
    ]
    console = Console(width=60, file=io.StringIO(), record=True)
    print_table(Table("", rows), console)
    headers = [line for line in console.export_text().splitlines() if "first" in line]
    assert len(headers) > 1
    assert all("second" in line for line in headers)


def test_perplexities_for_people():
    assert [perplexity_text(x) for x in (9.876, 1234.5, 1e7)] == ["9.88", "1,234.50", "1.0e+07"]


def test_groups_with_their_means_and_notes(section: Section):
    """Three seeds of one model, two of them evaluated with a cache, and one seed of another."""
    table = group_table(section)
    titles, rows, _ = table.shown()
    by_title = dict(zip(titles, zip(*rows, strict=True), strict=True))
    assert by_title["name"] == ("lstm", "awd_lstm")
    assert by_title["seeds"] == ("3", "1")
    # Student's t with 2 degrees of freedom is 4.3027; the deviation of 120, 121, 125 is 2.6458.
    assert by_title["valid"] == ("122.00 ± 6.57", "200.00")
    assert by_title["test"] == ("112.00 ± 6.57", "")
    assert by_title["cache, test"] == ("90.50 ± 6.35", "")
    assert "cache, valid" not in titles
    assert by_title["epochs"] == ("4", "3")
    assert by_title["GiB"] == ("1.50", "1.00")
    assert by_title["minutes"] == ("4.7", "1.5")
    assert by_title["tokens/s"] == ("2,667", "1,000")
    assert table.notes == [
        "Mean over seeds ± 95% interval (Student's t).",
        "Perplexity floor, valid / test: 101.50 / 99.25.",
        "cache, test: 2 of 3 seeds of lstm.",
    ]
    del section.groups[0].runs[0].scores["test"]
    assert "test: 2 of 3 seeds of lstm." in group_table(section).notes
    first, second = rows_of(csv_text([table]))
    assert float(first["valid_ppl_mean"]) == 122.0
    assert float(first["valid_ppl_half_width"]) == pytest.approx(6.5724, abs=1e-4)
    assert (second["test_ppl_mean"], second["best_test_ppl"]) == ("", "")
    assert second["test_ppl_num_values"] == "0"
    assert "test_ppl" not in second  # a missing mean has the same columns
    assert first["floor_test_ppl"] == "99.25"


def test_what_cannot_be_compared_is_noted(
    tmp_path: Path, write_run: Write, write_evaluation: Write, section_of: Callable
):
    for number, columns in enumerate((64, 64, 1)):
        config, results = {"name": f"n{number}"}, {"evaluation.columns": columns}
        run_dir = write_run(
            tmp_path / str(number), valid=100 + number, config=config, results=results
        )
        tuned = {"num_tokens": None} if number == 0 else None
        write_evaluation(run_dir, "cache", "valid", ppl=90.0, columns=number, tuned=tuned)
    usual, *notes = group_table(section_of(tmp_path)).notes
    assert usual.startswith("Not read like the others (protocol standard, columns 64, burn-in 512)")
    assert usual.endswith("n2 (protocol standard, columns 1, burn-in 512).")
    assert notes[0].startswith(
        "cache, valid: not all were read alike (protocol standard, columns 0"
    )
    assert notes[1] == "cache was tuned on valid: only its test figures are fair."


def test_each_run_has_a_row(section: Section):
    rows = rows_of(csv_text([run_table(section)]))
    assert [row["seed"] for row in rows] == ["0", "1", "2", "1"]
    assert [row["label"] for row in rows] == ["lstm"] * 3 + ["awd_lstm"]
    assert float(rows[0]["valid_nll"]) == math.log(120)
    assert rows[3]["test_ppl"] == ""
    assert [row["cache_test_ppl"] for row in rows] == ["90.0", "91.0", "", ""]
    assert rows[0]["cache_test_protocol"] == "protocol standard, columns 64, burn-in 512"
    titles, shown, _ = run_table(section).shown()
    assert titles[:5] == ["name", "seed", "run", "valid", "test"]
    assert titles[5:] == ["best epoch, from 0", "minutes", "device"]
    assert shown[0][-2:] == ["1.0", "cpu (2 cores)"]


def test_pairs_with_all_digits(three_models: Path, section_of: Callable):
    comparisons = compare_over_seeds(section_of(three_models), "test")
    rows = rows_of(csv_text([pair_table("", comparisons, "test")]))
    assert [row["first_label"] + row["second_label"] for row in rows] == ["ab", "ac", "bc"]
    for row, one in zip(rows, comparisons, strict=True):
        assert float(row["difference_nats_per_token"]) == one.test.difference
        assert float(row["perplexity_ratio"]) == pytest.approx(math.exp(one.test.difference))
        assert (float(row["p"]), float(row["p_holm"])) == (one.test.p, one.adjusted_p)
        assert row["verdict"] == ("" if one.adjusted_p < 0.05 else "not ") + "significant"
        assert (row["test"], row["num_drawn"]) == ("Welch", "")


def test_differences_have_a_column_for_each_group(
    tmp_path: Path, write_run: Write, section_of: Callable
):
    for number, lr in enumerate((30, 20)):
        write_run(tmp_path / str(number), valid=100 + number, config={"optimizer.lr": lr})
    titles, rows, _ = config_difference_table(section_of(tmp_path)).shown()
    assert titles == ["key", "lstm, lr=30", "lstm, lr=20"]
    assert rows == [["optimizer.lr", "30", "20"]]


def test_a_group_called_key_hides_no_key(
    tmp_path: Path, write_run: Write, section_of: Callable[[Path], Section]
):
    for model, lr in (("key", 30), ("other", 20)):
        write_run(tmp_path / model, model=model, config={"optimizer.lr": lr})
    _, rows, _ = config_difference_table(section_of(tmp_path)).shown()
    assert ["optimizer.lr", "30", "20"] in rows


def test_rows_for_json_have_plain_values():
    estimate = Estimate(101.5, None, 1)
    rows = json_rows([Table("", [{"a": Cell(estimate), "b": Cell(float("inf")), "c": Cell(3)}])])
    assert json.loads(json.dumps(rows, allow_nan=False)) == [
        {"a": {"mean": 101.5, "half_width": None, "num_values": 1}, "b": None, "c": 3}
    ]
