"""Text that apps wrote, where people read it."""


def visible(text: str) -> str:
    """On one line, without what does not show: a control character would forge a second line, speak to the terminal or
    turn the line around. It is shown as it would be written in Python (`\\n`, `\\x1b`, `\\u202e`)."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
