import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from lmbench.report import curve_plots
from lmbench.report.bar_plots import draw_bars
from lmbench.report.curve_plots import draw_curves
from lmbench.report.groups import Section, group_runs
from lmbench.report.plots import MOST_GROUPS, draw_plots
from lmbench.report.published import PUBLISHED
from lmbench.report.runs import read_runs
from lmbench.report.style import color_of, dash_of

Write = Callable[..., Path]
CURVE = [1e12, 300.0, 200.0, 150.0]


def read(folder: Path) -> Section:
    return group_runs(read_runs([folder])[0])[0][0]


@pytest.fixture
def section(tmp_path: Path, write_run: Write) -> Section:
    """Two models with two seeds each; the first epoch of all is far off."""
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


def test_all_plots_are_whole_pictures(section: Section):
    plots = draw_plots(section, [])
    names = ["curves_epochs", "curves_tokens", "curves_minutes", "test_perplexity"]
    assert [plot.name for plot in plots] == names
    for plot in plots:
        height, width, _ = imread(io.BytesIO(plot.png)).shape
        assert min(height, width) > 200
        assert ET.fromstring(plot.svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "1 a" in plot.alt
        assert "2 b" in plot.alt
        assert plot.caption


def test_the_same_runs_give_the_same_files(section: Section, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmbench.report.plots.AXES", {"epochs": "epochs"})
    first, second = draw_plots(section, []), draw_plots(section, [])
    assert [plot.svg for plot in first] == [plot.svg for plot in second]


def test_a_line_is_the_mean_over_seeds(section: Section):
    axes = draw_curves(section, section.groups, "epochs", []).axes[0]
    thick = [line for line in axes.lines if line.get_linewidth() > 1 and len(line.get_xdata()) == 4]
    assert len(thick) == 2
    np.testing.assert_allclose(thick[0].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(thick[0].get_ydata(), 1.015 * np.array(CURVE))
    thin = [line for line in axes.lines if line.get_linewidth() == 0.6]
    assert len(thin) == 4


def test_tokens_are_in_millions(section: Section):
    """7,000 an epoch, in the fixture."""
    axes = draw_curves(section, section.groups, "tokens", []).axes[0]
    (mean, _) = [
        line for line in axes.lines if line.get_linewidth() > 1 and len(line.get_xdata()) == 4
    ]
    np.testing.assert_allclose(mean.get_xdata(), [0.007, 0.014, 0.021, 0.028])
    assert axes.get_xlabel() == "trained tokens (millions)"


def test_the_switch_is_where_it_happened(section: Section):
    axes = draw_curves(section, section.groups, "minutes", []).axes[0]
    circles = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in circles] == [1.0, 1.0]  # the second validation
    assert circles[0].get_ydata()[0] == pytest.approx(300 * 1.2 * 1.01)


def test_a_first_epoch_that_is_far_off_does_not_flatten_the_rest(section: Section):
    axes = draw_curves(section, section.groups, "epochs", []).axes[0]
    bottom, top = axes.get_ylim()
    assert 90 < bottom < 100.5  # the floor is in it
    assert 300 * 1.2 < top < 500
    assert axes.get_yscale() == "log"
    assert 3 <= len([tick for tick in axes.get_yticks() if bottom <= tick <= top]) <= 8


def test_the_floor_is_a_grey_line(section: Section):
    axes = draw_curves(section, section.groups, "epochs", []).axes[0]
    floors = [line for line in axes.lines if list(line.get_ydata()) == [100.5, 100.5]]
    assert len(floors) == 1
    red, green, blue = to_rgb(floors[0].get_color())
    assert red == green == blue


def test_seeds_that_ended_earlier_end_the_mean(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", seed=1, curve=[9.0, 8.0, 7.0, 6.0], valid=6.0)
    write_run(tmp_path / "1", seed=2, curve=[7.0, 6.0], valid=6.0)
    section = read(tmp_path)
    axes = draw_curves(section, section.groups, "epochs", []).axes[0]
    (mean,) = [line for line in axes.lines if line.get_linewidth() > 1]
    assert list(mean.get_ydata()) == [8.0, 7.0]


@pytest.mark.parametrize(("low", "high"), [(1, 1.1), (50, 60), (57, 500), (110, 125), (2, 1e5)])
def test_ticks_are_round_and_in_sight(low: float, high: float):
    ticks = curve_plots._ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert low <= min(ticks)
    assert max(ticks) <= high
    assert all(float(f"{tick:.4g}") == pytest.approx(tick) for tick in ticks)


def test_bars_and_their_intervals(section: Section):
    axes = draw_bars(section, section.groups, []).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [101.5, 121.5]
    texts = [text.get_text() for text in axes.texts]
    assert "1 a" in texts
    assert "121.50 ± 6.35" in texts  # 12.706 × 0.7071 / sqrt(2), by Student's table
    assert "floor 90.50 " in texts
    drawn = sorted(
        tuple(segment[:, 0]) for lines in axes.collections for segment in lines.get_segments()
    )
    assert drawn[0] == pytest.approx((101.5 - 6.353, 101.5 + 6.353), abs=0.001)
    assert drawn[1] == pytest.approx((121.5 - 6.353, 121.5 + 6.353), abs=0.001)


def test_a_group_that_diverged_does_not_flatten_the_bars(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", model="a", test=100.0)
    for seed in (1, 2):
        write_run(tmp_path / f"b{seed}", model="b", seed=seed, test=9e99 / seed, valid=9e99 / seed)
    section = read(tmp_path)
    assert len(draw_plots(section, [])) == 4
    axes = draw_bars(section, section.groups, []).axes[0]
    assert axes.get_xlim()[1] < 2000


def test_published_results_are_grey_and_say_so(section: Section):
    published = [PUBLISHED["mos"], PUBLISHED["doc"]]
    bars = draw_bars(section, section.groups, published).axes[0]
    texts = [text.get_text() for text in bars.texts]
    assert "published: AWD-LSTM-MoS" in texts
    assert "58.03" in texts
    figure = draw_curves(section, section.groups, "epochs", published)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-2:] == [
        "a  AWD-LSTM-DOC, published 60.29",
        "b  AWD-LSTM-MoS, published 63.88",
    ]
    assert figure.axes[0].get_ylim()[0] < 60.29


def test_published_results_above_the_curves_are_on_the_axis(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", curve=[90.0, 80.0, 70.0, 60.0], valid=60.0)
    section = read(tmp_path)
    axes = draw_curves(section, section.groups, "epochs", [PUBLISHED["lstm_200"]]).axes[0]
    ppl = float(PUBLISHED["lstm_200"].scores["standard"][0])
    assert axes.get_ylim()[1] > ppl
    (letter,) = [text for text in axes.texts if text.get_text() == "a"]
    assert 0 < letter.get_position()[1] < 1


def test_hostile_names_are_drawn_as_they_are(
    tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lmbench.report.plots.AXES", {"epochs": "epochs"})
    names = ["$\\frac{$", "_under", "a&b<c>", "日本語", "x" * 300]
    for number, name in enumerate(names):
        write_run(tmp_path / str(number), model=name, valid=100 + number)
    section = read(tmp_path)
    plots = draw_plots(section, [])
    assert len(plots) == 2
    figure = draw_curves(section, section.groups, "epochs", [])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:3] == ["1 $\\frac{$", "2 _under", "3 a&b<c>"]
    assert legend[4].endswith("…")


def test_of_many_groups_the_first_are_drawn(
    tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lmbench.report.plots.AXES", {"epochs": "epochs"})
    for number in range(MOST_GROUPS + 2):
        write_run(tmp_path / str(number), valid=100 + number, config={"a.b": number})
    section = read(tmp_path)
    looks = {(color_of(group), dash_of(group)) for group in section.groups}
    assert len(looks) == MOST_GROUPS + 2
    plots = draw_plots(section, [])
    assert all("Only the first 12 groups are drawn." in plot.caption for plot in plots)
    assert not re.search(r"\b13 lstm", plots[0].alt)


def test_runs_without_the_time_are_counted_in_the_caption(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", seed=1)
    write_run(tmp_path / "1", seed=2, with_seconds=False)
    by_name = {plot.name: plot for plot in draw_plots(read(tmp_path), [])}
    assert "not recorded this, or cannot be read: 1." in by_name["curves_minutes"].caption
    assert "cannot be read" not in by_name["curves_epochs"].caption


def test_what_no_run_has_is_not_drawn(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", with_seconds=False, test=None, results={"train.tokens": None})
    assert [plot.name for plot in draw_plots(read(tmp_path), [])] == ["curves_epochs"]
