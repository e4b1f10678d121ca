"""Hostile texts, some 600, through every renderer, every field and every page: none acts, none reaches another host."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser

import httpx
import pytest
import yaml
from hostile import CORPUS
from label_support import CHROMIUM, FLAGS, make_pair, needs_chromium, serving
from test_label_saying import ASKED, ServedPage

from labeling_ui.exchange.export import as_cell
from labeling_ui.pages.safe_markup import render
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.messages import Message
from tiebreak.page.graph import GraphNode, draw_graph
from tiebreak.page.markup import el

INERT = {
    "p", "br", "strong", "em", "s", "code", "pre", "blockquote", "ol", "ul", "li", "table", "thead", "tbody", "tr", "th",
    "td", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "span", "div", "bdi",
    "math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mstyle", "msup", "msub", "msubsup", "mfrac", "msqrt", "mroot",
    "mover", "munder", "munderover", "mtable", "mtr", "mtd", "menclose", "mpadded", "merror", "mphantom",
}  # fmt: skip
"""The elements that the renderer of answers may write: none of them loads or does anything."""
PASSIVE = {
    "class", "dir", "start", "style", "title", "tabindex", "translate",
    "display", "stretchy", "fence", "form", "separator", "lspace", "rspace", "mathvariant", "columnalign", "rowspacing",
    "columnspacing", "columnlines", "rowlines", "width", "height", "depth", "voffset", "accent", "movablelimits", "minsize",
    "maxsize", "linethickness", "symmetric", "largeop", "displaystyle", "scriptlevel", "notation", "accentunder",
}  # fmt: skip
"""and their attributes"""


class Elements(HTMLParser):
    """The elements and attributes that an HTML parser finds in a fragment."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.feed(fragment)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")


def test_the_corpus_is_large_and_of_many_kinds() -> None:
    assert len(set(CORPUS)) > 550


def test_nothing_that_is_rendered_acts() -> None:
    """By an allow-list of elements and attributes, which names no event handler, no address and no form."""
    for text in CORPUS:
        found = Elements(render(text))
        assert found.names <= INERT, (text, found.names - INERT)
        assert set(found.attributes) <= PASSIVE, (text, set(found.attributes) - PASSIVE)
        assert not any("url(" in value or "position" in value for value in found.attributes.get("style", ())), text


def test_nothing_in_a_report_acts() -> None:
    """The builder of reports and its graphs: a text is one text node, whatever is in it."""
    for text in CORPUS:
        cell = Elements(str(el("td", text, title=text)))
        assert (cell.names, set(cell.attributes)) == ({"td"}, {"title"}), text
    nodes = [GraphNode(f"n{n}", text, text, "") for n, text in enumerate(CORPUS[:60])]
    drawn = Elements(str(draw_graph(nodes, [], CORPUS[0])))
    assert not drawn.names & {"script", "img", "iframe", "a", "style"}
    assert not {name for name in drawn.attributes if name.startswith("on")}


# --- through the server ---


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPage]:
    """Pairs whose prompts and answers are hostile, in a campaign that asks for everything."""
    folder = tmp_path_factory.mktemp("hostile")
    config = folder / "label.yaml"
    config.write_text(yaml.safe_dump({"output": str(folder / "label"), **ASKED}, sort_keys=False))
    texts = [text for text in CORPUS if text.strip()]
    pairs = [
        make_pair(n, texts[3 * n], texts[3 * n + 1]).model_copy(
            update={"messages": (Message(role="user", content=texts[3 * n + 2]),)}
        )
        for n in range(0, len(texts) // 3, 8)
    ]
    with serving(folder, pairs, "--config", str(config), "--repeat-share", "0") as (address, _):
        yield ServedPage(address, folder)
    store = Store.open(f"sqlite:///{folder}/label.sqlite")
    assert verify(store).faults == []
    store.close()


def test_every_field_keeps_a_text_as_it_is_or_refuses_it(served: ServedPage) -> None:
    """And a reply is JSON that no browser takes for a page."""
    kept = 0
    with httpx.Client(base_url=f"{served.address}/api", timeout=600) as client:
        path = f"/drafts/{client.get('/next').json()['pair_id']}"
        for n, text in enumerate(CORPUS):
            span = {"completion": "A", "start": 0, "end": 1, "label": "note", "comment": text}
            fields = (
                {"rationale": text}, {"spans": [span]}, {"links": [f"https://example.org/{text}"]}, {"criteria": {text: 1}},
                {"criteria": {"field": text}}, {"answer_flags": {"A": [text]}}, {"flags": [text]},
            )[n % 7]  # fmt: skip
            reply = client.put(path, json=fields)
            assert reply.status_code in (200, 409, 422), (fields, reply.text)
            assert reply.headers["content-type"] == "application/json", fields
            assert reply.headers["x-content-type-options"] == "nosniff", fields
            if reply.status_code == 200:
                kept += 1
                draft = client.get("/next").json()["draft"]
                for one in draft.get("spans", ()):  # what the server adds
                    del one["text"], one["value"], one["shown"]
                assert {key: draft[key] for key in fields} == fields
        assert client.put(path, json={}).status_code == 200
    assert kept > 150


def test_no_cell_of_an_export_begins_a_formula() -> None:
    """OWASP's list of characters with which a spreadsheet's formula begins."""
    for text in CORPUS:
        cell = as_cell(text)
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")), text
        assert cell.endswith(text), "the text is whole"


# --- in a browser ---


INJECTED = """() => {
  const script = document.createElement('script');
  script.textContent = 'window.pwned = true';
  document.body.append(script);
}"""


@needs_chromium
def test_no_browser_runs_any_of_it(served: ServedPage) -> None:
    """Chromium's parser, without the server's content security policy to help; then the pages themselves, whose policy
    stops nothing of Gradio's or ours, and every script that comes later."""
    from playwright.sync_api import sync_playwright

    elsewhere: list[str] = []
    stopped: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        page = browser.new_page()
        page.on("request", lambda one: elsewhere.append(one.url) if not one.url.startswith(served.address) else None)
        page.on("dialog", lambda one: elsewhere.append(one.message))
        page.set_content("<!doctype html><main></main>")
        put = "all => all.forEach(one => { document.querySelector('main').innerHTML += `<div>${one}</div>` })"
        for at in range(0, len(CORPUS), 50):
            page.evaluate(put, [render(text) for text in CORPUS[at : at + 50]])
            assert page.evaluate("window.pwned") is None, CORPUS[at]
            assert page.locator("main > div").count() == len(CORPUS[at : at + 50]), "none closes what it is in"
            page.evaluate("document.querySelector('main').replaceChildren()")
        page.on("console", lambda one: stopped.append(one.text) if "Content Security Policy" in one.text else None)
        for n in range(6):
            page.goto(f"{served.address}/{('rate', 'lead')[n == 5]}/")
            page.wait_for_selector(".desk[aria-busy=false]")
            assert page.evaluate("window.pwned") is None, n
            assert stopped == []
            skip = {"client_id": f"skip-{n}", "pair_id": served.next()["pair_id"], "skip": True}
            assert served.call("POST", "/judgments", skip).status_code == 200
        page.evaluate(INJECTED)
        assert page.evaluate("window.pwned") is None
        assert "Executing inline script violates" in stopped[0]
        browser.close()
    assert elsewhere == []
