"""aiohttp without what the router and the dashboard never use, 4 MB in each of them.

It reads the certificates of all authorities while it is imported, for a client that asks over TLS: neither process
speaks TLS with aiohttp. It takes a list that can be frozen from a C++ library, which nothing else here needs. These two
processes import this first, before they have threads; who imports aiohttp later gets the same, and its client refuses
https.
"""

import asyncio.sslproto  # noqa: F401 - aiohttp imports it, and it must not miss TLS
import sys
import urllib.request  # noqa: F401 - as before

UNUSED = ("ssl", "frozenlist._frozenlist")

_hidden = {name: sys.modules.pop(name) for name in UNUSED if name in sys.modules}
sys.modules.update(dict.fromkeys(UNUSED))  # type: ignore[arg-type]  # None makes `import` raise ImportError
try:
    import aiohttp.web
finally:
    for _name in UNUSED:
        del sys.modules[_name]
    sys.modules.update(_hidden)

__all__ = ["aiohttp"]
