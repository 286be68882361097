import io
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lmbench.report.groups import Section, group_runs
from lmbench.report.literature import PUBLISHED
from lmbench.report.minimal_pairs import pair_results
from lmbench.report.plots import (
    GREY,
    MOST_DRAWN,
    _draw_curves,
    _draw_dots,
    _references,
    curves_of,
    draw_plots,
)
from lmbench.report.runs import read_runs

Write = Callable[..., Path]
CURVE = [1e12, 300.0, 200.0, 150.0]


def read(folder: Path) -> Section:
    return group_runs(read_runs([(None, folder)])[0])[0][0]


@pytest.fixture
def section(tmp_path: Path, write_run: Write) -> Section:
    """Two models with two seeds each; the first epoch of every run is far off."""
    for model, factor in (("a", 1.0), ("b", 1.2)):
        for seed in (1, 2):
            curve = [factor * (1 + 0.01 * seed) * ppl for ppl in CURVE]
            results = {"data.perplexity_floor": {"valid": 100.5, "test": 90.5}}
            if model == "b":
                results["nt_asgd.triggered_epoch"] = 1
            write_run(
                tmp_path / f"{model}{seed}",
                model=model,
                seed=seed,
                valid=curve[-1],
                test=100 * factor + seed,
                curve=curve,
                results=results,
            )
    return read(tmp_path)


def curves(section: Section, *published: str, quantity: str = "epochs") -> Figure:
    of_groups = {group: curves_of(group, quantity) for group in section.groups}
    chosen = [PUBLISHED[name] for name in published]
    return _draw_curves(of_groups, quantity, _references(section, chosen, "valid"))


def dots(section: Section, *published: str) -> Figure:
    values = {g: value for g in section.groups if (value := g.perplexity("test"))}
    chosen = [PUBLISHED[name] for name in published]
    return _draw_dots(values, _references(section, chosen, "test"))


def test_all_plots_are_complete_pictures(section: Section):
    plots = draw_plots(section, [])
    names = ["test_perplexity", "curves_epochs", "curves_minutes"]
    assert [plot.name for plot in plots] == names
    for plot in plots:
        height, width, _ = imread(io.BytesIO(plot.png)).shape
        assert min(height, width) > 200
        assert ET.fromstring(plot.svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "a: 101.50 ± " in plot.alt or plot.alt.endswith(": a, b")
        assert plot.caption


def test_the_same_runs_give_the_same_files(section: Section, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmbench.report.plots.AXES", {"epochs": "epochs"})
    first, second = draw_plots(section, []), draw_plots(section, [])
    assert [plot.svg for plot in first] == [plot.svg for plot in second]


def test_a_name_that_begins_with_an_underscore_is_in_the_legend(section: Section):
    hidden = replace(section.groups[0], name="_a")
    figure = curves(replace(section, groups=(hidden, *section.groups[1:])))
    assert " _a" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_line_is_the_mean_over_seeds_and_a_band_their_range(section: Section):
    for axes in curves(section).axes[:2]:
        first, _ = [line for line in axes.lines if len(line.get_xdata()) == 4]
        np.testing.assert_allclose(first.get_xdata(), [1, 2, 3, 4])
        np.testing.assert_allclose(first.get_ydata(), 1.015 * np.array(CURVE))
        band = axes.collections[0].get_paths()[0].vertices
        assert {round(y, 6) for _, y in band if y < 1e6} == {
            round(factor * ppl, 6) for factor in (1.01, 1.02) for ppl in CURVE[1:]
        }


def test_the_switch_is_where_it_happened(section: Section):
    axes = curves(section, quantity="minutes").axes[0]
    circles = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in circles] == [1.0, 1.0]  # the second validation
    assert circles[0].get_ydata()[0] == pytest.approx(300 * 1.2 * 1.01)


def test_a_first_epoch_that_is_far_off_does_not_flatten_the_rest(section: Section):
    """The lower panel shows only the end."""
    whole, end = curves(section).axes[:2]
    assert whole.get_yscale() == "log"
    assert 90 < whole.get_ylim()[0] < 100.5  # the floor is in it
    assert whole.get_ylim()[1] < 1000
    assert end.get_ylim()[0] < 151.5
    assert 182 < end.get_ylim()[1] < 300
    assert end.get_xlim()[0] == 3


def test_a_short_training_has_no_panel_for_its_end(tmp_path: Path, write_run: Write):
    for length, panels, words in ((4, 2, ", the whole and its end:"), (3, 1, "(minutes):")):
        write_run(tmp_path / f"{length}/run", model="a", valid=150.0, curve=CURVE[:length])
        section = read(tmp_path / str(length))
        assert len(curves(section).axes) == panels
        assert words in draw_plots(section, [])[-1].caption


def test_the_floor_is_a_grey_line(section: Section):
    axes = curves(section).axes[0]
    (floor,) = [line for line in axes.lines if list(line.get_ydata()) == [100.5, 100.5]]
    assert (floor.get_color(), floor.get_label()) == (GREY, " floor 100.5")
    marks = [text.get_text().strip() for text in dots(section).axes[0].texts]
    assert "floor" in marks


def test_the_mean_ends_with_the_first_seed_that_ends(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", seed=1, curve=[9.0, 8.0, 7.0, 6.0], valid=6.0)
    write_run(tmp_path / "1", seed=2, curve=[7.0, 6.0], valid=6.0)
    (mean,) = curves(read(tmp_path)).axes[0].lines
    assert list(mean.get_ydata()) == [8.0, 7.0]


def test_dots_with_their_intervals_on_an_axis_that_shows_the_difference(section: Section):
    """Means of 101.5 and 121.5; Student's t with one degree of freedom is 12.706."""
    axes = dots(section).axes[0]
    centres = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert centres == pytest.approx([101.5, 121.5])
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((101.5 - 12.706 * 0.5, 101.5 + 12.706 * 0.5), abs=1e-3)
    seeds = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "."]
    assert seeds == pytest.approx([101, 102, 121, 122])
    assert axes.get_xlim()[0] > 80
    assert axes.texts[0].get_text() == "a  101.50 ± 6.35"


def test_a_group_that_diverged_does_not_flatten_the_others(tmp_path: Path, write_run: Write):
    for number, test in enumerate((100.0, 101.0, 1e9)):
        write_run(tmp_path / str(number), model=f"m{number}", valid=test, test=test)
    axes = dots(read(tmp_path)).axes[0]
    assert axes.get_xlim()[1] < 110
    assert axes.texts[2].get_text().endswith("→")


def test_published_results_are_letters_that_the_legend_explains(section: Section):
    axes = dots(section, "lstm_200", "rlstm").axes[0]
    legend = " ".join(axes.get_xlabel().split())
    assert "a Mogrifier RLSTM 55, b LSTM 200, tied, 40 epochs 100.33" in legend
    marks = [text.get_text().strip() for text in axes.texts]
    assert marks[2:] == ["floor", "a", "b"]
    whole, end = curves(section, "lstm_200", "rlstm").axes
    heights = {text.get_text(): text.get_position()[1] for text in whole.texts}
    assert heights == {"a": 56.7, "b": 105.97}
    assert end.get_ylim()[0] > 56.7  # a is below what it shows
    assert [text.get_text() for text in end.texts] == ["b"]


def test_hostile_names_are_drawn_as_they_are(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", model="$x^$ <b> \\frac{1}{0} %", valid=100)
    write_run(tmp_path / "1", model="猫", valid=101)
    assert all("$x^$ <b> \\frac" in plot.alt for plot in draw_plots(read(tmp_path), []))


def test_only_the_first_of_many_groups_are_drawn(
    tmp_path: Path, write_run: Write, write_pairs: Write, monkeypatch: pytest.MonkeyPatch
):
    """Of minimal pairs, the first that have read them."""
    monkeypatch.setattr("lmbench.report.plots.AXES", {"epochs": "epochs"})
    for number in range(MOST_DRAWN + 1):
        run_dir = write_run(tmp_path / str(number), model=f"m{number:02}", valid=100 + number)
    write_pairs(run_dir, np.ones(20))
    section = read(tmp_path)
    *plots, of_pairs = draw_plots(section, [], pair_results(section))
    for plot in plots:
        assert "m13" in plot.alt
        assert "m14" not in plot.alt
        assert plot.caption.endswith(f"Only the first {MOST_DRAWN} groups are drawn.")
    assert of_pairs.alt.endswith(": m14: 100.0")
    assert of_pairs.caption.endswith("interval.")


def test_what_no_run_has_is_not_drawn(tmp_path: Path, write_run: Write):
    run_dir = write_run(tmp_path / "0", with_seconds=False, test=None)
    assert [plot.name for plot in draw_plots(read(tmp_path), [])] == ["curves_epochs"]
    (run_dir / "metrics.csv").unlink()
    assert draw_plots(read(tmp_path), []) == []
