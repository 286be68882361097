import base64
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lmbench.errors import UserError
from lmbench.report.comparison import Report, compare
from lmbench.report.literature import choose_published
from lmbench.report.page import difference_matrix, render_page, write_report
from lmbench.report.plots import Plot, draw_plots

Write = Callable[..., Path]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements, text and attributes; refuses elements that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.text += " "

    def handle_data(self, data) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(report: Report) -> Page:
    plot = Plot("curves", "<i>what it shows</i>", "<i>how to read it</i>", b"", b"<svg/>")
    return Page(render_page(report, {chapter.suffix: [plot] for chapter in report.chapters}))


@pytest.fixture
def folder(tmp_path: Path, write_run: Write) -> Path:
    for seed in (1, 2):
        write_run(tmp_path / f"a{seed}", model="<b>a</b>", seed=seed, valid=100 + seed)
        write_run(tmp_path / f"b{seed}", model="b & 'c' \"d\"", seed=seed, valid=120 + seed)
    (tmp_path / "a2/results.json").write_text("<script>alert(1)</script>")
    return tmp_path


def test_names_are_text_and_not_markup(folder: Path):
    page = page_of(compare([(None, folder)]))
    assert "<b>a</b>" in page.text
    assert "b & 'c' \"d\"" in page.text
    assert not page.all("b")
    assert len(page.all("script")) == 1  # its own
    assert not page.all("i")


def test_nothing_of_an_earlier_comparison_stays(
    three_models: Path, tmp_path_factory: pytest.TempPathFactory, write_run: Write, write_pairs
):
    """What the second comparison has nothing for: tests, minimal pairs, plots of two corpora."""
    more, output = tmp_path_factory.mktemp("more"), tmp_path_factory.mktemp("site")
    for seed in (1, 2):
        run_dir = write_run(more / f"c{seed}", seed=seed, results={"data.sha256": "f" * 64})
        write_pairs(run_dir, np.arange(600) % (1 + seed), corpus_sha256="f" * 64)
    first = write_report(compare([(None, three_models), (None, more)]), output)
    assert {"significance.csv", "minimal_pairs.csv"} <= {path.name for path in first}
    names = ("mine.png", "curves.md", "test_perplexity_paper.svg", "minimal_pairs_mine.png")
    kept = {output / name for name in names}
    for path in kept:  # not the comparison's
        path.touch()
    second = write_report(compare([(None, more / "c1")]), output)
    assert set(output.iterdir()) == {*second, *kept}
    assert "significance.csv" not in {path.name for path in second}


@pytest.mark.parametrize("name", ["index.html", "runs.csv"])
def test_only_files_of_an_earlier_comparison_are_replaced(folder: Path, tmp_path: Path, name: str):
    report, output = compare([(None, folder)]), tmp_path / "site"
    assert output / "index.html" in write_report(report, output)
    write_report(report, output)
    for path in output.iterdir():
        path.unlink()
    (output / name).write_text("<p>mine</p>")
    with pytest.raises(UserError, match=f"{name} is not lmbench's"):
        write_report(report, output)
    assert [path.read_text() for path in output.iterdir()] == ["<p>mine</p>"]


def test_the_page_needs_nothing_else(folder: Path):
    report = compare([(None, folder)])
    plots = {"": [Plot("curves", "", "", b"", b"<svg/>")]}
    page = Page(render_page(report, plots))
    sources = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data") and value
    ]
    assert len(sources) == 2  # a plot, and the link to what was left out
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not page.all("link")
    styles = re.findall(r"<style>.*?</style>", render_page(report, plots), re.DOTALL)
    assert len(styles) == len(page.all("style")) == 1
    assert not re.search(r"@import|url\(|//", styles[0])


def test_pictures_are_the_plots_and_say_what_they_show(folder: Path):
    report = compare([(None, folder)])
    page = Page(render_page(report, {"": draw_plots(report.chapters[0].section, [])}))
    assert len(page.all("img")) == 3
    for image in page.all("img"):
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
        assert "b & 'c'" in (image["alt"] or "")


def test_tables_work_with_screen_readers(three_models: Path):
    page = page_of(compare([(None, three_models)]))
    assert page.all("table")
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    regions = [one for one in page.all("div") if one.get("role") == "region"]
    assert len(regions) == len(page.all("table"))
    assert all(one["aria-label"] and one["tabindex"] == "0" for one in regions)
    assert page.all("html")[0]["lang"] == "en"
    viewport = [one for one in page.all("meta") if one.get("name") == "viewport"]
    assert viewport[0]["content"] == "width=device-width, initial-scale=1"


def test_what_was_left_out_is_named_with_the_reason(folder: Path):
    page = page_of(compare([(None, folder)]))
    assert "1 left out" in page.text
    assert f"{folder}/a2" in page.text
    assert "results.json is damaged: Expecting value" in page.text


def test_the_first_sentence_and_the_command_for_what_is_missing(three_models: Path):
    page = page_of(compare([(None, three_models)]))
    assert page.all("p")[0]["class"] == "verdict"
    assert page.text.index("a is better than b: 16.7% lower test perplexity") < 400
    for path in three_models.glob("*/evaluation-*"):
        path.unlink()
    assert "lmbench-evaluate -m run=" in page_of(compare([(None, three_models)])).text


def test_the_matrix_has_each_difference_and_whether_it_is_significant(three_models: Path):
    """b has 1.2 times the test perplexity of a; c has 1.3 times, but not in its records."""
    (chapter,) = compare([(None, three_models)]).chapters
    rows = dict(difference_matrix(chapter))
    texts = {name: [cell["text"] for cell in cells] for name, cells in rows.items()}
    minus = "\N{MINUS SIGN}"
    assert texts["a"] == ["", f"{minus}16.7%", f"{minus}23.1%"]
    assert texts["b"] == ["+20.0%", "", f"{minus}7.7%"]
    kinds = {name: [cell["kind"] for cell in cells] for name, cells in rows.items()}
    assert kinds["a"] == ["untested", "better", "open"]  # the text does not tell c from a
    assert kinds["b"][0] == "worse"
    assert kinds["b"][2] == kinds["c"][1] == "open"  # seeds and text contradict each other
    assert re.fullmatch(r"Welch: p 0\.\d{3}; bootstrap: p 0\.\d{3}", rows["a"][2]["title"])


def test_a_single_group_has_no_matrix(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0")
    report = compare([(None, tmp_path)])
    assert difference_matrix(report.chapters[0]) == []
    assert "Differences" not in page_of(report).text


def test_each_corpus_has_a_chapter_and_published_results_go_where_they_belong(
    tmp_path: Path, write_run: Write
):
    write_run(tmp_path / "0", results={"data": {"name": "wikitext2", "sha256": "aa"}})
    write_run(tmp_path / "1", results={"data": {"name": "text", "sha256": "bb"}})
    report = compare([(None, tmp_path)], published=choose_published(["mos"]))
    assert [len(chapter.published) for chapter in report.chapters] == [0, 1]
    assert [chapter.suffix for chapter in report.chapters] == ["_text_bb", "_wikitext2_aa"]
    page = page_of(report)
    assert page.text.count("Published results on WikiText-2, not measured here") == 1
    assert "Results on different corpora are not comparable" in page.text
    assert page.text.index("Corpus text") < page.text.index("Corpus wikitext2")


def luminance(color: str) -> float:
    """The relative luminance of WCAG 2.1."""
    values = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_has_enough_contrast_in_light_dark_and_print(folder: Path):
    report = compare([(None, folder)])
    html = render_page(report, {"": []})
    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for scheme in re.findall(r"--ground: .*?\}", html)
    ]
    assert len(schemes) == 3  # light, dark and printed
    for scheme in schemes:
        colors = schemes[0] | scheme
        for ground in ("ground", "band"):
            for text in ("text", "soft", "mark"):
                light, dark = sorted((luminance(colors[ground]), luminance(colors[text])))[::-1]
                assert (light + 0.05) / (dark + 0.05) >= 4.5
