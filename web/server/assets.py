"""The dashboard's files, read once into memory: what is not in the table does not exist.

There is no path arithmetic on what a client asks, so nothing outside `web/static` can be reached; links are not
followed when the table is made. Files are served below a digest of them all, so that browsers may keep them for ever.
"""

import asyncio
import gzip
import hashlib
import html
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

from web import vendor

logger = logging.getLogger(__name__)

STATIC_DIR = Path(__file__).resolve().parent.parent / "static"
MAX_FILE_BYTES = 4 * 1024 * 1024
MIN_GZIP_BYTES = 1024
DIGEST_CHARACTERS = 16
FOR_EVER = "public, max-age=31536000, immutable"
CONTENT_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".txt": "text/plain",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, ready to be sent."""

    body: bytes
    compressed: bytes | None
    content_type: str


class Assets:
    """The table of files and the page made of them."""

    def __init__(self, folder: Path = STATIC_DIR) -> None:
        self._folder = folder
        self._files: Mapping[str, Asset] = {}
        self._digest = ""
        self._page = b""
        self._installing: asyncio.Task[None] | None = None
        self._reason = ""

    def load(self) -> None:
        """Read every file of the folder."""
        files = {}
        digest = hashlib.sha256()
        for path in sorted(self._folder.rglob("*")):
            if path.is_symlink() or not path.is_file() or path.suffix not in CONTENT_TYPES:
                continue
            name = path.relative_to(self._folder).as_posix()
            body = path.read_bytes()
            if any(part.startswith(".") for part in Path(name).parts) or len(body) > MAX_FILE_BYTES:
                continue
            digest.update(name.encode() + b"\0" + body)
            compressed = gzip.compress(body, mtime=0) if len(body) >= MIN_GZIP_BYTES else None
            files[name] = Asset(body, compressed, CONTENT_TYPES[path.suffix])
        self._files = files
        self._digest = digest.hexdigest()[:DIGEST_CHARACTERS]
        self._page = self._make_page()

    @property
    def is_ready(self) -> bool:
        """Whether the third-party libraries are there too."""
        return "vendor/ui.js" in self._files and "vendor/dagre.js" in self._files

    def install_libraries(self) -> None:
        """Install the libraries beside the serving when they are missing or old. The API does not wait for that."""
        if vendor.is_current() or self._installing is not None:
            return
        self._installing = asyncio.get_running_loop().create_task(
            self._install(), name="web:install-libraries"
        )

    async def _install(self) -> None:
        try:
            await asyncio.to_thread(vendor.ensure)
        except vendor.VendorError as error:
            self._reason = str(error)
            logger.warning("libraries_not_installed", extra={"reason": str(error), "command": vendor.COMMAND})
        self.load()

    async def stop(self) -> None:
        """Wait for an installation that is under way. Works twice."""
        if self._installing is not None:
            await asyncio.gather(self._installing, return_exceptions=True)

    def page(self) -> web.Response:
        """Return the page; before the libraries are there, one that says how they get there."""
        if not self.is_ready and vendor.is_current():
            self.load()
        if self.is_ready:
            return web.Response(body=self._page, content_type="text/html", charset="utf-8")
        return web.Response(text=self._setup_page(), status=503, content_type="text/html")

    def file(self, request: web.BaseRequest, digest: str, name: str) -> web.Response | None:
        """Return a file, or None when there is none of that name."""
        asset = self._files.get(name)
        if asset is None or name.endswith(".html"):
            return None
        headers = {
            hdrs.CACHE_CONTROL: FOR_EVER if digest == self._digest else "no-cache",
            hdrs.VARY: "Accept-Encoding",
        }
        body = asset.body
        if asset.compressed is not None and "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            body = asset.compressed
            headers[hdrs.CONTENT_ENCODING] = "gzip"
        return web.Response(body=body, content_type=asset.content_type, charset="utf-8", headers=headers)

    def _make_page(self) -> bytes:
        """Return index.html with the addresses of this digest, and every module announced for early loading."""
        template = self._files["index.html"].body.decode("utf-8")
        modules = [name for name in self._files if name.startswith("js/") and "worker" not in name]
        root = f"assets/{self._digest}"
        links = "\n".join(
            f'    <link rel="modulepreload" href="{root}/{name}">' for name in [*modules, "vendor/ui.js"]
        )
        return template.replace("{{assets}}", root).replace("{{modules}}", links.strip()).encode()

    def _setup_page(self) -> str:
        waiting = self._installing is not None and not self._installing.done()
        refresh = '<meta http-equiv="refresh" content="3">' if waiting else ""
        text = (
            "The dashboard's libraries are being installed. This page will open by itself."
            if waiting
            else "The API is running, but the dashboard's libraries are not installed."
        )
        cure = (
            "" if waiting else f"<p>Run this once, with a network, and reload:</p><pre>{vendor.COMMAND}</pre>"
        )
        reason = f"<pre>{html.escape(self._reason)}</pre>" if self._reason and not waiting else ""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}<title>AMP Workflows</title>'
            f"</head><body><main><h1>AMP Workflows</h1><p>{text}</p>{cure}{reason}</main></body></html>"
        )
