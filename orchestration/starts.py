"""Starts that may be repeated: which instance an idempotency key names, and when two requests are the same one.

Pure. The key's instance id is derived from the key, so no table of keys exists: what started the instance is in its
first event.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

MAX_KEY_CHARACTERS = 255
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID_CHARACTERS = 26
_BITS_A_CHARACTER = 5


def is_key(text: str) -> bool:
    """Return whether a text can be an idempotency key: 1 to 255 visible ASCII characters."""
    return 0 < len(text) <= MAX_KEY_CHARACTERS and all("!" <= character <= "~" for character in text)


def instance_id_of(key: str) -> str:
    """Return the id of the instance that a start with this idempotency key makes: `ins_` and 130 bits of a hash."""
    digest = hashlib.sha256(msgspec.json.encode(("start", key))).digest()
    value = int.from_bytes(digest) >> (len(digest) * 8 - _ID_CHARACTERS * _BITS_A_CHARACTER)
    places = range(_ID_CHARACTERS - 1, -1, -1)
    return "ins_" + "".join(_CROCKFORD[(value >> (_BITS_A_CHARACTER * place)) & 31] for place in places)


def request_hash(workflow_id: str, inputs: Mapping[str, Any]) -> str:
    """Return what two starts have in common that ask for the same: SHA-256 in hex, whatever the order of names."""
    return hashlib.sha256(msgspec.json.encode((workflow_id, inputs), order="sorted")).hexdigest()
