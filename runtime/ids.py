"""Identifiers made from an injected clock and injected chance. Never import `uuid` or `random` state here."""

from random import Random

from runtime.clock import Clock

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
_TEXT_LENGTH = 26


def new_id(prefix: str, clock: Clock, random: Random) -> str:
    """Return `prefix_` and a ULID: 48 bits of milliseconds, 80 bits of chance, sortable by time.

    Args:
        prefix: What kind of thing it names: `ins`, `evt`, `alr`, ...

    Source: the ULID specification, https://github.com/ulid/spec.
    """
    value = (int(clock.now().timestamp() * 1000) << _RANDOM_BITS) | random.getrandbits(_RANDOM_BITS)
    digits = (_CROCKFORD[(value >> (5 * place)) & 31] for place in range(_TEXT_LENGTH - 1, -1, -1))
    return f"{prefix}_{''.join(digits)}"
