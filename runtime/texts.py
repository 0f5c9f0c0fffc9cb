"""Text from elsewhere, made harmless: what others wrote stays on one line and cannot steer a terminal."""

import re

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]"
)


def escape_control(text: str) -> str:
    """Return the text with control, direction and invisible characters written as escapes: it stays one line."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
