"""The HTML of a Stack Exchange post -> Markdown.

Time and output stay in proportion to the HTML, whoever wrote it: a post that would take more is hostile, and
of it only the text is used.
"""

import re
from collections import Counter
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from typing import Any

from overnight.errors import UserError

LONGEST_POST = 300_000  # characters of HTML; sites allow 30,000 of Markdown
MOST_TAGS = 20_000  # opening tags, each an object and a call; 30,000 characters of Markdown have under 15,000
DEEPEST = 100  # open tags
MOST_NESTED = 20  # open tags around a character on average: markdownify copies text once for each
FREE_NESTED = 20_000  # characters times open tags allowed to any post, however short
MOST_INDENTED = 10  # characters of indentation for each of HTML
FREE_INDENTED = 5000  # characters of indentation allowed to any post, however short
MOST_SEARCHED = 3_000_000  # characters: from each "<" that is not a tag, html.parser searches to the end
MOST_COMPARED = 20_000_000  # names: BeautifulSoup looks up each closing tag in a list of the void ones before
LONGEST_SPACE = 1000  # characters: markdownify searches each run from every character of it
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*+)[^<>]*+>")
SPACES = re.compile(r"\s++")
START = re.compile(r"[0-9]{1,4}")  # of a list: each line of an item is indented by the width of its number
VOID = frozenset(
    "area base basefont bgsound br col command embed frame hr image img input isindex keygen link menuitem "
    "meta nextid param source spacer track wbr".split()
)  # tags that BeautifulSoup closes at once
INDENT = {"blockquote": 2, "dd": 4, "li": 7}  # characters before each line inside, at most ("19999. ")
HEADER = 9  # characters that a cell adds to the line between a table's head and body, and to an empty head


class Shape(HTMLParser):
    """What a post would cost. It is read by the parser that BeautifulSoup uses, with the same settings, and
    tags are opened and closed as BeautifulSoup does."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=False)
        self.opened = self.closed = self.voids = self.deepest = 0
        self.nested = 0
        """Characters, each times the tags open around it."""
        self.indented = 0
        """Characters that Markdown puts before lines, and into the heads of tables."""
        self._open: list[tuple[str, int]] = []  # name, indentation inside
        self._count: Counter[str] = Counter()  # of each name in _open
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._add_tag(tag)
        if tag in VOID:
            self.voids += 1
            return
        inner, indent = INDENT.get(tag, 0), self._indent()
        if tag == "li" and not (self._open and self._open[-1][0] == "ol"):
            inner = 2  # "- "
        self._open.append((tag, indent + inner))
        self._count[tag] += 1
        self.deepest = max(self.deepest, len(self._open))

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self._add_tag(tag)

    def handle_endtag(self, tag: str) -> None:
        self.closed += 1
        while self._count[tag]:
            name, _ = self._open.pop()
            self._count[name] -= 1
            if name == tag:
                break

    def handle_data(self, data: str) -> None:
        self._add(len(data), data.count("\n"))

    def handle_charref(self, name: str) -> None:
        self._add(1, 1)

    handle_entityref = handle_charref

    def _add_tag(self, tag: str) -> None:
        self.opened += 1
        self._add(len(self.get_starttag_text() or ""), 4)  # empty lines before and after
        if tag in ("td", "th"):
            self.indented += HEADER * self._count["tr"]

    def _add(self, characters: int, lines: int) -> None:
        self.nested += characters * len(self._open)
        self.indented += lines * self._indent()

    def _indent(self) -> int:
        return self._open[-1][1] if self._open else 0


def is_hostile(html: str) -> bool:
    """Whether converting a post could take minutes or give many times its text: no site lets one be so long,
    or its tags be so many, nested so deep or closed so seldom."""
    if len(html) > LONGEST_POST:
        return True
    no_tags = html.count("<") - sum(1 for _ in TAG.finditer(html))
    if no_tags * len(html) > MOST_SEARCHED:
        return True
    if any(len(space) >= LONGEST_SPACE for space in SPACES.findall(html)):
        return True
    try:
        shape = Shape(html)
    except AssertionError:  # "<![" that nothing closes: `converter` keeps the HTML
        return False
    return (
        shape.opened > MOST_TAGS
        or shape.deepest > DEEPEST
        or shape.nested > MOST_NESTED * len(html) + FREE_NESTED
        or shape.indented > MOST_INDENTED * len(html) + FREE_INDENTED
        or shape.voids * shape.closed > MOST_COMPARED
    )


def without_tags(html: str) -> str:
    """The text of a post, in linear time whatever it is."""
    return unescape(re.sub(r"<[^<>]*>", "", html)).strip()


def prepare(soup: Any) -> None:
    """Number the items of lists, since markdownify counts those before each; remove `colspan`, which the
    tables of Stack Exchange do not have and markdownify repeats up to 1,000 times."""
    for items in soup.find_all("ol"):
        start = items.get("start", "")
        first = int(start) if START.fullmatch(start) else 1
        for number, item in enumerate(items.find_all("li", recursive=False), first):
            item["value"] = str(number)
    for cell in soup.find_all(["td", "th"]):
        del cell["colspan"]


def converter() -> Callable[[str], str]:
    """HTML -> Markdown, a function."""
    try:
        from bs4 import BeautifulSoup
        from bs4.exceptions import ParserRejectedMarkup
        from markdownify import ATX, MarkdownConverter
    except ImportError:
        raise UserError("reading stackexchange: needs an extra: pip install 'overnight[data]'.") from None

    class Converter(MarkdownConverter):
        def convert_pre(self, el: Any, text: str, parent_tags: Any) -> str:
            """Code as it is, between fences longer than any inside."""
            code = el.get_text().strip("\n")
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
            return f"\n\n{fence}\n{code}\n{fence}\n\n"

        def convert_img(self, el: Any, text: str, parent_tags: Any) -> str:
            return el.get("alt") or ""

        def convert_li(self, el: Any, text: str, parent_tags: Any) -> str:
            """An item with the number that `prepare` gave it."""
            text = text.strip()
            if not text:
                return "\n"
            bullet = f"{el['value']}. " if el.parent.name == "ol" else "- "
            return bullet + re.sub(r"\n(?=.)", "\n" + " " * len(bullet), text) + "\n"

        def convert_tr(self, el: Any, text: str, parent_tags: Any) -> str:
            """A row. Only for a table's first row of each part the library looks through the table."""
            part = el.parent
            if el.find_previous_sibling() is not None or (
                part.name == "tbody" and part.find_previous_sibling(["thead", "tbody"]) is not None
            ):
                return f"|{text}\n"
            return super().convert_tr(el, text, parent_tags)  # type: ignore[misc]

    convert = Converter(
        heading_style=ATX, bullets="-", escape_asterisks=False, escape_underscores=False, escape_misc=False
    )

    def markdown(html: str) -> str:
        if is_hostile(html):
            return without_tags(html)
        try:
            soup = BeautifulSoup(html.replace("\r\n", "\n"), "html.parser")
        except ParserRejectedMarkup:  # "<![" that nothing closes: no site writes it
            return html.strip()
        prepare(soup)
        return convert.convert_soup(soup).strip()

    return markdown
