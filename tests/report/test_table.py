import io

import pytest
from rich.console import Console

from lmbench.report.table import Table, latex, markdown, terminal

HOSTILE = r"a&b%c$d#e_f{g}h~i^j\k<l>m|n"


def table(cell: str) -> Table:
    return Table("Title", ["", "group", "ppl"], [["1", cell, "9.50 ± 0.1"]], 2, 1, ["A note."])


def test_markdown():
    assert markdown(table("lstm lr=30")) == (
        "## Title\n\n"
        "|  | group | ppl |\n"
        "| --- | --- | ---: |\n"
        "| 1 | lstm lr=30 | 9.50 ± 0.1 |\n"
        "\nA note.\n"
    )


@pytest.mark.parametrize("character", "\\`*_[]<>|~#&$")
def test_markdown_escapes_what_has_a_meaning(character: str):
    assert f"| a\\{character}b |" in markdown(table(f"a{character}b"))


def test_latex():
    assert latex(table("lstm")).splitlines() == [
        r"% \usepackage{array, booktabs}",
        r"\begin{table}",
        r"\centering\small",
        r"\caption{Title. A note.}",
        r"\begin{tabular}{l>{\raggedright\arraybackslash}p{0.3\linewidth}r}",
        r"\toprule",
        r" & group & ppl \\",
        r"\midrule",
        r"1 & lstm & 9.50 $\pm$ 0.1 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_latex_breaks_what_a_page_has_no_room_for():
    columns = ["model", "published in", "valid / test perplexity", "with dynamic evaluation", "M"]
    of_one = Table("Title", columns, [["LSTM", "arXiv " + "x" * 30, "1 / 2", "—", "3"]], 2)
    lines = latex(of_one).splitlines()
    paragraph = r">{\raggedright\arraybackslash}p{0.2\linewidth}"
    assert lines[4] == rf"\begin{{tabular}}{{{paragraph}{paragraph}rrr}}"
    assert lines[6] == (
        r"model & published in & \shortstack[r]{valid / test \\ perplexity} & "
        r"\shortstack[r]{with dynamic \\ evaluation} & M \\"
    )


def test_latex_escapes_what_has_a_meaning():
    (row,) = [line for line in latex(table(HOSTILE)).splitlines() if line.startswith("1 &")]
    assert row == (
        r"1 & a\&b\%c\$d\#e\_f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
        r"\textless{}l\textgreater{}m\textbar{}n & 9.50 $\pm$ 0.1 \\"
    )


def test_latex_lets_long_keys_break():
    row = latex(table("model.core.hidden_size=200")).splitlines()[8]
    assert r"model.\allowbreak{}core.\allowbreak{}hidden\_size=\allowbreak{}200" in row


def test_the_terminal_shows_names_as_they_are():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal(table("[red]x[/red] [/]")))
    assert "│ 1 │ [red]x[/red] [/] │ 9.50 ± 0.1 │" in console.export_text()
