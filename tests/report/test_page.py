import base64
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmbench.report.comparison import Report, compare
from lmbench.report.page import render_page
from lmbench.report.plots import Plot, draw_plots
from lmbench.report.published import choose_published

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
        if self.open[-1:] != ["style"]:
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
    page = page_of(compare([folder], split="test", published=[]))
    assert "<b>a</b>" in page.text
    assert "b & 'c' \"d\"" in page.text
    assert not page.all("b")
    assert not page.all("script")
    assert not page.all("i")


def test_the_page_needs_nothing_else(folder: Path):
    report = compare([folder], split="test", published=[])
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
    report = compare([folder], split="test", published=[])
    page = Page(render_page(report, {"": draw_plots(report.chapters[0].section, [])}))
    assert len(page.all("img")) == 4
    for image in page.all("img"):
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
        assert "2 b & 'c'" in (image["alt"] or "")


def test_tables_can_be_listened_to(folder: Path):
    page = page_of(compare([folder], split="test", published=[]))
    assert page.all("table")
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    regions = [one for one in page.all("div") if one.get("role") == "region"]
    assert len(regions) == len(page.all("table"))
    assert all(one["aria-label"] and one["tabindex"] == "0" for one in regions)
    assert page.all("html")[0]["lang"] == "en"
    viewport = [one for one in page.all("meta") if one.get("name") == "viewport"]
    assert viewport[0]["content"] == "width=device-width, initial-scale=1"


def test_what_was_left_out_is_named_with_the_reason(folder: Path):
    page = page_of(compare([folder], split="test", published=[]))
    assert "1 left out" in page.text
    assert f"{folder}/a2" in page.text
    assert "results.json is damaged: Expecting value" in page.text


def test_it_says_how_to_make_records(folder: Path):
    page = page_of(compare([folder], split="valid", published=[]))
    command = "lmbench-evaluate run=RUN_DIR split=valid evaluation.save_tokens=true"
    assert re.search(rf"Groups 1, 2 have no records .* {re.escape(command)}", page.text)


def test_the_tests_of_significance_stand_under_what_they_are_about(three_models: Path):
    text = " ".join(page_of(compare([three_models], split="test", published=[])).text.split())
    _, over_text = text.split("Over the test text, for these trained models groups")
    over_text, over_seeds = over_text.split("Over seeds, on test, by each run's own score groups")
    over_seeds, _ = over_seeds.split("Runs group")
    for part, mine, other in ((over_text, "standard", "seeds,"), (over_seeds, "seeds", "standard")):
        for pair in ("1 and 2", "1 and 3", "2 and 3"):
            assert f"{pair} {mine} 2 and 2" in part
        assert f" {other} " not in part
    assert "30 articles" in over_text
    assert "30 articles" not in over_seeds
    assert "Two tests speak about two things." in text


def test_the_differences_of_configs_have_a_column_for_each_group(tmp_path: Path, write_run: Write):
    for number, lr in enumerate((30, 20)):
        write_run(tmp_path / str(number), valid=100 + number, config={"optimizer.lr": lr})
    text = " ".join(page_of(compare([tmp_path], split="test", published=[])).text.split())
    assert "key group 1 group 2 optimizer.lr 30 20" in text


def test_records_of_a_cache_do_not_stand_for_the_models_own(three_models: Path):
    for path in three_models.glob("a*/evaluation-standard-*"):
        path.rename(path.with_name(path.name.replace("standard", "cache")))
    page = page_of(compare([three_models], split="test", published=[]))
    assert (
        "Groups 1 have no records of their own predictions, token by token, on test." in page.text
    )


def test_each_corpus_has_a_part_and_published_results_go_where_they_belong(
    tmp_path: Path, write_run: Write
):
    write_run(tmp_path / "0", results={"data": {"name": "wikitext2", "sha256": "aa"}})
    write_run(tmp_path / "1", results={"data": {"name": "text", "sha256": "bb"}})
    report = compare([tmp_path], split="test", published=choose_published(["mos"]))
    assert [len(chapter.published) for chapter in report.chapters] == [0, 1]
    assert [chapter.suffix for chapter in report.chapters] == ["_text_bb", "_wikitext2_aa"]
    page = page_of(report)
    assert page.text.count("Published results on WikiText-2, not measured here") == 1
    assert "Results on different corpora are not comparable" in page.text
    assert page.text.index("Corpus text") < page.text.index("Corpus wikitext2")


def test_a_folder_name_that_would_turn_the_writing(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "a\u202eb")
    page = page_of(compare([tmp_path], split="test", published=[]))
    assert "a\\u202eb" in page.text
    assert "\u202e" not in page.text


def luminance(color: str) -> float:
    """WCAG 2.1."""
    values = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_stands_out_from_its_ground_by_day_and_by_night(folder: Path):
    report = compare([folder], split="test", published=[])
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
