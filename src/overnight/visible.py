"""Text from files, folders and models, made harmless for a terminal, a page and a shell."""

import html
import json
import re
import shlex
from typing import Any

LONGEST = 2000  # characters of a text in Markdown
# C0 controls (but newline and tab) as their pictures, delete, C1 controls; marks that change the direction of
# text, by which a line can be read otherwise than it is (CVE-2021-42574).
_PICTURES: dict[int, int] = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_PICTURES |= dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_PICTURES |= dict.fromkeys((0x2028, 0x2029), 0xFFFD)  # line and paragraph separators
# What has no width, so that two names look the same; not U+200C and U+200D, which words and emoji need.
_PICTURES |= dict.fromkeys((0x00AD, 0x180E, 0x200B, *range(0x2060, 0x2065), 0xFEFF), 0xFFFD)
_PICTURES |= dict.fromkeys(range(0xE0000, 0xE0080), 0xFFFD)


def visible(text: str) -> str:
    """`text` with control characters (but newline and tab) replaced by pictures, so that none reaches the
    terminal as a command: escape becomes U+241B. Direction marks become U+FFFD."""
    return text.translate(_PICTURES)


def one_line(text: str) -> str:
    """`text` on one line, visible, with single spaces: for a message, a comment or a table."""
    return " ".join(visible(text).split())


def shell_word(word: str) -> str:
    """`word` as a shell reads it back, on one line: in quotes where it needs them, and as $'...' (bash, zsh)
    where it contains what does not print. No other shell finds the end of either quote early: there is no
    quote inside $'...', which dash reads as '...', and no backslash before one elsewhere, where fish reads
    an escape. A byte of a name that is not Unicode stays that byte. `one_line` returns the result unchanged,
    so it may be part of any message."""
    if word.isprintable() and "  " not in word and not re.search(r"\\('|$)", word):
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)).replace("  ", r" \x20") + "'"


def as_argument(path: object) -> str:
    """A path that no program takes for an option: ./-x for a file called -x."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def shell_path(path: object) -> str:
    """A path as a word of a command line."""
    return shell_word(as_argument(path))


def shell_line(*words: object) -> str:
    """A command line of these words."""
    return " ".join(shell_word(str(word)) for word in words)


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return f"\\x{ord(letter):02x}"
    if letter.isprintable():
        return letter
    if re.match("[\udc80-\udcff]", letter):  # how Python writes a byte that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def html_text(value: object) -> str:
    """Anything as text in HTML, and only as text; a lone surrogate (of a name that is no Unicode) as "?"."""
    return html.escape(visible(str(value)).encode("utf-8", "replace").decode())


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line, cut where it is longer than anybody reads."""
    flat = one_line(text[:LONGEST]) + (" ..." if len(text) > LONGEST else "")
    return "".join(f"\\{letter}" if letter in "\\|<>*[]#_`~&" else letter for letter in flat)


def as_json(value: Any) -> str:
    """A value of a JSON file in JSON's notation (null, true), cut after 100 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 100 else f"{text[:100]} ..."
