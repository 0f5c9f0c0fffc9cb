"""structlog without rich and greenlet, which it takes for tracebacks and green threads that no line of ours has.

Every process imports structlog here first; who imports it later gets the same.
"""

from runtime.absent import absent

with absent("rich", "greenlet"):
    import structlog

__all__ = ["structlog"]
