"""websockets without the version of installed packages and the proxies of the system: 2 MB in each process.

It imports importlib.metadata for its own development versions only, and urllib.request for proxies, which the mesh
never goes through (`proxy=None`). Who imports websockets later gets the same.
"""

import sys
from types import ModuleType

UNUSED = ("importlib.metadata", "urllib.request")

_hollow = {name: ModuleType(name) for name in UNUSED if name not in sys.modules}
sys.modules.update(_hollow)
try:
    import websockets.proxy
    import websockets.version
except (ImportError, AttributeError):  # a release that needs more than names: imported as ever
    for _name in _hollow:
        sys.modules.pop(_name, None)
    import websockets.proxy
    import websockets.version
finally:
    for _name in _hollow:
        if sys.modules.get(_name) is _hollow[_name]:
            del sys.modules[_name]

__all__ = ["websockets"]
