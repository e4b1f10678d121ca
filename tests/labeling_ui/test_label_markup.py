"""Text that is not trusted: nothing in it acts, nothing in it is hidden, and none of it is lost."""

from __future__ import annotations

import os
import re
import time
from html.parser import HTMLParser

import pytest
from support import seconds_here

from labeling_ui.pages import safe_markup
from labeling_ui.pages.mathematics import render_formula
from labeling_ui.pages.safe_markup import MAX_LEVELS, PLAIN_PIECE_CHARACTERS, render, show_hidden

EVIL = (
    "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'> <svg onload=window.pwned=1> "
    "[press](javascript:window.pwned=1) ![picture](http://pictures.invalid/x.png) <http://links.invalid> "
    "${window.pwned=1} {{value}} \u202egnp.exe"
)


def test_markup_is_inert() -> None:
    html = render(EVIL)
    for active in ("<script", "<img", "<svg", "<a ", "onerror='", "href", "src="):
        assert active not in html.replace("&lt;img src=x onerror=", ""), active
    assert "&lt;script&gt;" in html
    assert "⟨U+202E⟩gnp.exe" in html
    assert "<strong>bold</strong>" in render("**bold**")
    assert render("[good](https://a.invalid/b)").count("https://a.invalid/b") == 2, "a link's target is shown"
    assert "<pre class='plain'>&lt;b&gt;" in render("<b>" + "x" * 60_000)


def tags(fragment: str) -> set[str]:
    """The elements that an HTML parser finds, attributes and all."""
    found: set[str] = set()

    class Finder(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.update([tag, *(f"{tag}@{name}" for name, _ in attrs)])

    Finder().feed(fragment)
    return found


def test_formulas_are_drawn_by_the_browser() -> None:
    for source in (r"$\frac{a}{b}$", r"\(\frac{a}{b}\)", r"\[\frac{a}{b}\]", "$$\n\\frac{a}{b}\n$$"):
        assert "<mfrac><mi>a</mi><mi>b</mi></mfrac>" in render(f"so {source}."), source
    assert 'display="block"' in render(r"\[x\]")
    for money in ("$5 and $10", "it costs $ 5, or 5 $", r"\$5\$", "`$x$`"):
        assert "<math" not in render(money), money
    assert render("$5 and $10, but $y$").count("<math") == 1


@pytest.mark.parametrize(
    ("source", "drawn"),
    [
        ("O(\\log n)", "O(log n)"), ("2 \\log_2 n", "2 log2 n"), ("\\sin^2 x", "sin2 x"), ("\\log(n)", "log(n)"),
        ("\\alpha\\beta x", "αβx"), ("\\ln \\frac{1}{x}", "ln 1x"), ("x_{max} y", "xmaxy"),
    ],
)  # fmt: skip
def test_names_of_functions_stand_apart_as_in_tex(source: str, drawn: str) -> None:
    text = render_formula(source, display=False).replace('<mspace width="0.1667em">', " ").replace("\u2061", "")
    assert re.sub(r"<[^>]*>", "", text) == drawn


def cells(fragment: str) -> list[list[str]]:
    """The words in each cell of a fragment's tables, by row."""
    rows = re.findall(r"<mtr[^>]*>(.*?)</mtr>", fragment)
    return [[words_of(cell) for cell in re.findall(r"<mtd[^>]*>(.*?)</mtd>", row)] for row in rows]


TWO_BY_TWO = [["a", "=b"], ["c", "=d"]]


@pytest.mark.parametrize(
    ("source", "table"),
    [
        (r"$$\begin{aligned} a &= b \\ c &= d \end{aligned}$$", TWO_BY_TWO),
        (r"$$x = \left\{ \begin{aligned}[t] a &= b \\[2ex] c &= d \end{aligned} \right.$$", TWO_BY_TWO),
        ("\\begin{align}\na &= b \\\\\nc &= d \\label{e}\\nonumber\n\\end{align}", TWO_BY_TWO),
        ("so \\begin{align*}\na &= b \\\\*\nc &= d\n\\end{align*} and on", TWO_BY_TWO),
        (r"\[ a &= b \\ c &= d \\ \]", TWO_BY_TWO),
        (r"$\begin{alignedat}{2} a &= b \\ c &= d \end{alignedat}$", TWO_BY_TWO),
        (r"$$\begin{eqnarray} a &=& b \\ c &=& d \end{eqnarray}$$", [["a", "=", "b"], ["c", "=", "d"]]),
        (r"$$\begin{gather} a = b \\ c = d \end{gather}$$", [["a=b"], ["c=d"]]),
        (r"$$a = b \\ c = d$$", [["a=b"], ["c=d"]]),
        (r"$$\begin{equation*} \begin{gathered} a = b \cr c = d \end{gathered} \end{equation*}$$", [["a=b"], ["c=d"]]),
        (r"$$\begin{dcases} 1 & \text{if $x>0$} \\ 0 & \text{50\%} \end{dcases}$$", [["1", "if\u00a0x>0"], ["0", "50%"]]),
        (r"$$\begin{array}{|c|c|} \hline a & b \\ \hline c & d \\ \hline \end{array}$$", [["a", "b"], ["c", "d"]]),
        (r"$$\sum_{\substack{i \\ j}} x$$", [["i"], ["j"]]),
        (r"$$a = b \tag{1}$$", [["", "a=b", "(1)"]]),
    ],
    ids=range(14),
)  # fmt: skip
def test_formulas_keep_their_lines_and_columns(source: str, table: list[list[str]]) -> None:
    html = render(source)
    assert html.count("<math") == 1
    assert cells(html) == table
    assert "&amp;" not in html
    assert "\\" not in words_of(html)


AMSMATH = [
    (r"\begin{pmatrix*}[r]-1&2\\3&-4\end{pmatrix*}", [["\u22121", "2"], ["3", "\u22124"]]),
    (r"\begin{align}a&=b\\\intertext{and}c&=d\end{align}", [["a", "=b"], ["and"], ["c", "=d"]]),
    (r"\begin{matrix}a&b\\\hdotsfor{2}\end{matrix}", [["a", "b"], ["…", "…"]]),
    (r"\begin{array}{@{}l|p{2cm}@{}}a&b\\\hline c&d\end{array}", [["a", "b"], ["c", "d"]]),
    (r"\begin{subequations}\begin{align}a&=b\label{x}\\c&=d\end{align}\end{subequations}", TWO_BY_TWO),
    (r"\begin{flalign*}a&=b\\c&=d\end{flalign*}", TWO_BY_TWO),
    (r"\begin{multline}a\\b\\c\end{multline}", [["a"], ["b"], ["c"]]),
    (r"\begin{CD}A@>f>>B\\@VVgV@VVhV\\C@>k>>D\end{CD}", None),
    (r"\DeclareMathOperator{\tr}{tr}\tr A", None), (r"\newcommand{\R}{\mathbb{R}}x\in\R", None),
    (r"\genfrac{[}{]}{0pt}{}{n}{k}", None), (r"\prescript{14}{6}{C}", None), (r"\ce{2H2 + O2 ->[heat] 2H2O}", None),
    (r"\biggl\{\Biggl|x\Biggr|\biggr\}", None), (r"\root 3\of{x}", None), (r"\rule{1em}{2pt}", None),
    (r"\textcolor{red}{x}", None), (r"\colorbox{yellow}{$z$}", None),
]  # fmt: skip


@pytest.mark.parametrize(("source", "table"), AMSMATH, ids=range(len(AMSMATH)))
def test_environments_of_amsmath_are_drawn_whole(source: str, table: list[list[str]] | None) -> None:
    html = render_formula(source, display=True)
    assert "<math" in html
    assert "\\" not in words_of(html)
    assert " style=" not in html
    if table is not None:
        assert [[cell for cell in row if cell] for row in cells(html)] == table


def test_a_colour_that_would_hide_words_is_left_out() -> None:
    assert 'mathcolor="#ff0000"' in render_formula(r"\color{red}x", display=False)
    for hidden in ("white", "black", "#fefefe", "#0000ff"):
        assert "mathcolor" not in render_formula(rf"\color{{{hidden}}}x", display=False), hidden


def test_a_fork_draws_with_an_engine_of_its_own() -> None:
    drawn = render_formula("x", display=False)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, render_formula("x", display=False).encode())
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1_000).decode() == drawn
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "source",
    [
        r"\foo{a} \\ b", r"{a \\ b}", r"\left( a & b \right)", r"\begin{foo} a & b \end{foo}", r"\unicode{x263a}",
        r"\begin{tabular}{l} a \\ b \end{tabular}", r"\begin{aligned} a & b", r"\text{a $b}", r"\pmatrix{a & b \cr c & d}",
        r"\begin{aligned} a \\ b \end{gathered}", r"\begin{align} a \intertext{so} b \end{align}", "x + " * 600 + r"y \\ z",
    ],
)  # fmt: skip
def test_formulas_that_cannot_be_shown_whole_are_shown_as_written(source: str) -> None:
    written = source.strip()
    for text in (f"$${source}$$", f"so $$\n{source}\n$$ and on"):
        html = render(text)
        assert "<math" not in html
        assert written in words_of(html)


def test_what_is_no_formula_keeps_its_backslashes_in_environments_alone() -> None:
    table = "\\begin{tabular}{ll}\na & b \\\\\n- c & _d_ \\\\\n\\end{tabular}"
    assert table in words_of(render(table))
    assert table in words_of(render(f"a table: {table} and on"))
    assert "<li" in render("costs $$ a lot\n- one\n- two")
    assert "<math" not in render("`$$ in code`\n- one\n\n```\n$$\na\n$$\n```")
    many = render("$a$ " * 400)
    assert (many.count("<math"), many.count("class='formula'")) == (300, 100)


@pytest.mark.parametrize(("opening", "closing"), [("$$", "$$"), (r"\[", r"\]")])
@pytest.mark.parametrize("indent", ["", "> ", "   "])
def test_formulas_on_lines_of_their_own_are_no_lists(opening: str, closing: str, indent: str) -> None:
    source = ["so", opening, "a", "= b", "- c", "+ d", closing, "and on"]
    if indent.strip() == "":
        source = ["1. first", *(f"{indent}{line}" for line in source)] if indent else source
    else:
        source = [indent + line for line in source]
    html = render("\n".join(source))
    assert html.count('<math display="block">') == 1
    assert not tags(html) & {"ul", "h1", "h2"}
    assert words_of(html).split("so")[1].replace("\n", "") == "a=b\N{MINUS SIGN}c+dand on"
    unclosed = render(f"{opening}\na\n- c\n\nand on")
    assert "<math" not in unclosed
    assert "and on" in unclosed


BOMBS = [
    r"$\text{<img src=x onerror=window.pwned=1>}$", r"$\href{javascript:window.pwned=1}{x}$", r"$\class{evil}{x}$",
    r"$\style{background:url(http://pictures.invalid)}{x}$", r'$\color{red" onload="window.pwned=1}{x}$',
    r"$<script>window.pwned=1</script>$", r"$\unicode{<b>}$", r"\[\begin{matrix}" + "a&" * 900 + r"\end{matrix}\]",
    "$" + "{" * 900 + "x" + "}" * 900 + "$", r"$\def\a{\a\a}\a$", "$" + r"\sqrt{" * 300 + "x" + "}" * 300 + "$",
    "$x^" * 400 + "$", "$a$ " * 5_000, "\\(" * 5_000, "$" * 20_000,
    "$$" + "\\left(" * 250 + "$$", r"$\newcommand{\x}{y}\x$",
]  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_formulas_that_would_harm_are_inert_and_quick(bomb: str) -> None:
    begun = time.process_time()
    found = tags(render(bomb))
    assert time.process_time() - begun < seconds_here(2)
    assert not found & {"img", "script", "a", "style", "b"}
    assert not {name for name in found if name.endswith(("@href", "@style", "@onload", "@onerror", "@src"))}
    assert "evil" not in found
    assert not re.search(r'class="[^"]*evil', render(bomb))


def words_of(fragment: str) -> str:
    """The text that an HTML parser finds."""
    found: list[str] = []

    class Finder(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    Finder().feed(fragment)
    return "".join(found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pay\u200bpal", "pay⟨U+200B⟩pal"),
        ("\u2067abc\u2069", "⟨U+2067⟩abc⟨U+2069⟩"),
        ("pass\u200dword, pass\u200cword", "pass⟨U+200D⟩word, pass⟨U+200C⟩word"),
        ("so\u00adft", "so⟨U+00AD⟩ft"),
        ("tags \U000e0041\U000e0042", "tags ⟨U+E0041⟩⟨U+E0042⟩"),
        ("a\ufe00\ufe01", "a⟨U+FE00⟩⟨U+FE01⟩"),
        ("nul\0", "nul⟨U+0000⟩"),
        ("half \ud800", "half ⟨U+D800⟩"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
    ],
)
def test_characters_that_hide_are_written_out(text: str, shown: str) -> None:
    assert show_hidden(text) == shown
    assert "".join(shown.split()) in "".join(words_of(render(text)).split())


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f469\u200d\U0001f467",  # a family, joined
        "\u0646\u200c\u0645",  # Persian, with the non-joiner that its spelling asks for
        "1\ufe0f\u20e3 \u2764\ufe0f",  # a keycap and a heart
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England, made of tags
        "e\u0301 \u05e9\u05b8\u05dc\u05d5\u05b9\u05dd",
    ],
)
def test_scripts_and_emoji_are_left_as_they_are(text: str) -> None:
    assert show_hidden(text) == text


@pytest.mark.parametrize("depth", [5, 20, MAX_LEVELS // 2, MAX_LEVELS, 3 * MAX_LEVELS, 10_000])
@pytest.mark.parametrize("marker", ["> ", "- ", "1. ", "* > "])
def test_nothing_is_lost_however_deep_it_lies(marker: str, depth: int) -> None:
    assert "deep words" in words_of(render(marker * depth + "deep words"))
    indented = "".join(f"{'  ' * n}- x\n" for n in range(min(depth, 150))) + "  " * min(depth, 150) + "deep words"
    assert "deep words" in words_of(render(indented))


def test_a_megabyte_is_shown_whole_and_in_pieces() -> None:
    text = "<b>line</b> and more of it\n" * 40_000 + "x" * 50_000
    begun = time.process_time()
    html = render(text)
    assert time.process_time() - begun < seconds_here(1)
    assert words_of(html) == text
    assert html.count("<pre class='plain'>") >= len(text) / PLAIN_PIECE_CHARACTERS
    assert tags(html) == {"pre", "pre@class"}


LARGE = [
    ">" * 50 + " a\n" + "> a\n" * 14_000, (">" * 50 + "\n") * 1_100, "1. " * 40 + "a\n" + "   b\n" * 14_000,
    "|" + "a|" * 1_000 + "\n|" + "-|" * 1_000 + "\n" + "|b|\n" * 12_000, "- a\n" * 15_000, "_a" * 30_000,
    "<http://a.b> " * 4_000,
    "[a]: http://x.invalid/" + "y" * 20_000 + "\n\n" + "[a] " * 2_900, ("$" + r"\frac{a}{b}" * 180 + "$ ") * 25,
    "$$a\n" * 15_000, r"\begin{a}" * 6_000, "a\n$$ b {\n" * 6_000,
]  # fmt: skip
"""Texts of up to 60,000 characters whose Markdown takes seconds, or becomes megabytes."""


@pytest.mark.parametrize("text", LARGE, ids=range(len(LARGE)))
def test_rendering_is_bounded_in_time_and_size(text: str) -> None:
    begun = time.thread_time()
    html = render(text)
    assert time.thread_time() - begun < seconds_here(2.5)
    assert len(html) < 2_000_000


def test_a_text_that_is_too_much_is_shown_as_written() -> None:
    for text in (LARGE[4], LARGE[7]):
        assert words_of(render(text)) == text


def test_code_is_marked_and_every_character_of_it_shown() -> None:
    code = '# sum\ndef add(a, b):\n    return a + 1  # "no"\n\nprint("<b>", 0x1f)\n'
    html = render(f"```python\n{code}```")
    assert words_of(html) == code + "\n"
    marked = dict(re.findall(r"<span class='(\w+)'>(.*?)</span>", html))
    assert (marked["hf"], marked["hn"], marked["hk"]) == ("print", "0x1f", "return")
    assert tags(html) == {"pre", "code", "span", "span@class"}
    for language in ("", "nonsense", "python3 {.evil onclick=x}", "HTML", "json", "diff", "latex"):
        for text in (code, "\n\n x\n\n", '"""unclosed\n', "\t\x7f\n", "<script>alert(1)</script>\n", "\r\nb\n"):
            html = render(f"```{language}\n{text}```")
            assert words_of(html).rstrip("\n") == show_hidden(text).rstrip("\n")
            assert tags(html) <= {"pre", "code", "span", "span@class"}
    assert "<span" not in render("```python\n" + "x = 1\n" * 3_000 + "```")


def test_the_cache_of_rendered_texts_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_markup, "_CACHE", safe_markup._Cache())
    monkeypatch.setattr(safe_markup, "CACHE_CHARACTERS", 250)
    rendered: list[str] = []
    monkeypatch.setattr(safe_markup, "_render", lambda text: rendered.append(text[0]) or text)  # as long as the text
    for letter in "aabacab":  # two of 50 + 50 characters fit
        render(letter * 50)
    assert rendered == ["a", "b", "c", "b"]


SLOW = [
    "[" * 30_000, "*_" * 15_000, "![" * 1_500 + "a" * 50_000, "[a](" * 1_500, "&" * 50_000, "<a:" * 15_000, "a**b" * 12_000,
    "`a``b" * 9_000, "![" * 20_000,
]  # fmt: skip


@pytest.mark.parametrize("text", SLOW, ids=range(len(SLOW)))
def test_markdown_that_would_be_slow_is_quick(text: str) -> None:
    begun = time.process_time()
    render(text)
    assert time.process_time() - begun < seconds_here(4)


@pytest.mark.parametrize(
    ("text", "directions"),
    [
        ("- \u05d0\n- b\n", ["rtl", "rtl", "ltr"]),  # the list's, and each item's
        ("> 1. - a\n", ["ltr"] * 5),
        ("- 12\n  - \u0627\n", ["rtl"] * 4),
        ("- 12\n\nb\n\n1. c\n", ["ltr", "ltr"]),  # the first one has no letter
    ],
)
def test_lists_and_quotations_run_in_the_direction_of_their_first_letter(text: str, directions: list[str]) -> None:
    assert re.findall(r'dir="(\w+)"', render(text)) == directions
