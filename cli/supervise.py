"""The process that `amp up` becomes: the supervisor, on the standard event loop and without TLS, which cost 6 MB.

It starts processes and asks them over plain HTTP how they are; nothing is fast or secret here.
"""

from runtime.absent import absent

with absent("ssl"):
    import asyncio

from cli.up import main

__all__ = ["asyncio", "main"]

if __name__ == "__main__":
    main()
