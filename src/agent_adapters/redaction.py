"""Texts that people and machines may see, without what a URL may carry of a secret."""

import re
from typing import Final

__all__ = ["redact"]

_URL_USER: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S*@")


def redact(text: str) -> str:
    """The text, with asterisks for the user and password of each URL in it."""
    return _URL_USER.sub(r"\1***@", text)
