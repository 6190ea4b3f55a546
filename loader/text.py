"""Text that apps wrote, where people read it."""

import re

# Letters, marks and a symbol that look like nothing, most of them by Unicode's Default_Ignorable_Code_Point; Python
# takes them for printable.
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def visible(text: str) -> str:
    """On one line, without what does not show: a control character would forge a second line, speak to the terminal or
    turn the line around. It is shown as it would be written in Python (`\\n`, `\\x1b`, `\\u202e`)."""
    return "".join(each if shows(each) else each.encode("unicode_escape").decode() for each in text)


def shows(letter: str) -> bool:
    return letter.isprintable() and not INVISIBLE.match(letter)
