"""Files below the root: what works, and everything that tries to leave."""

import fcntl
import os
from pathlib import Path

import pytest

from agents.task_executor.errors import InvalidInput, NotFound, NotPermitted, ResultTooLarge
from agents.task_executor.files import PARTIAL_FOLDER, STALE_PARTIAL_SECONDS, FileRoot


@pytest.fixture
def root(tmp_path: Path) -> FileRoot:
    files = FileRoot(tmp_path / "files", max_file_bytes=4096)
    files.prepare(0.0)
    return files


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / "secret.txt").write_text("secret")
    return secret


def test_written_file_is_read_back_and_parents_are_created(root: FileRoot) -> None:
    root.write("a/b/c.txt", b"hello")
    assert root.read("a/b/c.txt") == b"hello"
    assert root.read(f"{root.root}/a/b/c.txt") == b"hello"
    assert root.read("./a//b/./c.txt") == b"hello"
    assert os.stat(root.root / "a/b/c.txt").st_mode & 0o777 == 0o600


def test_write_replaces_the_whole_file_and_leaves_nothing_behind(root: FileRoot) -> None:
    root.write("x", b"long content")
    root.write("x", b"new")
    assert root.read("x") == b"new"
    assert os.listdir(root.root / PARTIAL_FOLDER) == []


def test_append_creates_and_adds(root: FileRoot) -> None:
    root.append("log/x", b"a")
    root.append("log/x", b"b")
    assert root.read("log/x") == b"ab"


def test_copy_keeps_the_source(root: FileRoot) -> None:
    root.write("a", b"1")
    assert root.copy("a", "b/c") == 1
    assert (root.read("a"), root.read("b/c")) == (b"1", b"1")


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.tmp", {"d/b.tmp", "d/e/c.tmp", "keep.txt"}),
        ("d/*.tmp", {"a.tmp", "d/e/c.tmp", "keep.txt"}),
        ("**/*.tmp", {"keep.txt"}),
        ("d/**", {"a.tmp", "keep.txt"}),
        ("**", set()),
        ("[ak]*", {"d/b.tmp", "d/e/c.tmp"}),
        ("?.tmp", {"d/b.tmp", "d/e/c.tmp", "keep.txt"}),
        ("nothing", {"a.tmp", "d/b.tmp", "d/e/c.tmp", "keep.txt"}),
        ("no/such/*", {"a.tmp", "d/b.tmp", "d/e/c.tmp", "keep.txt"}),
        ("d", {"a.tmp", "d/b.tmp", "d/e/c.tmp", "keep.txt"}),
    ],
)
def test_delete_takes_exactly_what_the_pattern_matches(root: FileRoot, pattern: str, left: set[str]) -> None:
    everything = {"a.tmp", "d/b.tmp", "d/e/c.tmp", "keep.txt"}
    for path in everything:
        root.write(path, b"x")
    assert root.delete(pattern) == len(everything) - len(left)
    assert {str(p.relative_to(root.root)) for p in root.root.rglob("*") if p.is_file()} == left


@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret.txt",
        "a/../../outside/secret.txt",
        "..",
        "/etc/passwd",
        "/etc/does-not-exist",
        "//etc/passwd",
        f"{PARTIAL_FOLDER}/x",
        f"./{PARTIAL_FOLDER}",
    ],
)
def test_path_outside_the_root_is_refused_for_every_operation(
    root: FileRoot, outside: Path, path: str
) -> None:
    for operation in (
        lambda: root.read(path),
        lambda: root.write(path, b"x"),
        lambda: root.append(path, b"x"),
        lambda: root.delete(path),
        lambda: root.copy(path, "x"),
    ):
        with pytest.raises(NotPermitted, match="below the files root"):
            operation()
    assert (outside / "secret.txt").read_text() == "secret"


def test_absolute_path_with_the_roots_name_as_prefix_is_outside(root: FileRoot) -> None:
    with pytest.raises(NotPermitted):
        root.read(f"{root.root}-sibling/x")


def test_links_are_never_followed(root: FileRoot, outside: Path) -> None:
    (root.root / "link.txt").symlink_to(outside / "secret.txt")
    (root.root / "dangling").symlink_to(outside / "nothing")
    (root.root / "folder").symlink_to(outside)
    (root.root / "inside").symlink_to("real")
    root.write("real", b"x")
    for path in ("link.txt", "dangling", "folder/secret.txt", "folder/nothing", "inside"):
        for operation in (
            lambda path=path: root.read(path),
            lambda path=path: root.write(path, b"x"),
            lambda path=path: root.append(path, b"x"),
        ):
            with pytest.raises(NotPermitted, match="below the files root"):
                operation()
    assert root.delete("**") == 1
    assert (outside / "secret.txt").read_text() == "secret"
    assert sorted(os.listdir(outside)) == ["secret.txt"]


def test_delete_through_a_linked_folder_touches_nothing(root: FileRoot, outside: Path) -> None:
    (root.root / "folder").symlink_to(outside)
    assert root.delete("folder/*") == 0
    assert root.delete("folder/secret.txt") == 0
    assert (outside / "secret.txt").exists()


def test_special_files_are_refused_without_blocking(root: FileRoot) -> None:
    os.mkfifo(root.root / "pipe")
    for operation in (
        lambda: root.read("pipe"),
        lambda: root.write("pipe", b"x"),
        lambda: root.append("pipe", b"x"),
    ):
        with pytest.raises(NotPermitted):
            operation()
    assert root.delete("pipe") == 0


@pytest.mark.parametrize(
    "path", ["", "a\0b", "x" * 5000, "/".join("d" * 70), "y" * 300, "folder", "folder/", "."]
)
def test_unusable_path_is_invalid_input(root: FileRoot, path: str) -> None:
    root.write("folder/x", b"x")
    with pytest.raises(InvalidInput):
        root.write(path, b"x")


def test_missing_file_says_so(root: FileRoot) -> None:
    with pytest.raises(NotFound, match="'nothing' does not exist"):
        root.read("nothing")
    with pytest.raises(NotFound):
        root.read("no/folder")


def test_path_through_a_file_is_refused(root: FileRoot) -> None:
    root.write("file", b"x")
    with pytest.raises(NotPermitted):
        root.write("file/below", b"x")


def test_sizes_are_bounded(root: FileRoot) -> None:
    with pytest.raises(ResultTooLarge, match="max_file_bytes"):
        root.write("big", b"x" * 4097)
    root.append("log", b"x" * 4000)
    with pytest.raises(ResultTooLarge):
        root.append("log", b"x" * 97)
    (root.root / "huge").write_bytes(b"x" * 5000)
    with pytest.raises(ResultTooLarge):
        root.read("huge")


def test_leftovers_of_a_crash_are_removed_but_not_a_living_writers_file(root: FileRoot) -> None:
    partial = root.root / PARTIAL_FOLDER
    for name, age in (("left.tmp", 1), ("written.tmp", 1), ("new.tmp", -1)):
        (partial / name).write_bytes(b"x")
        at = 1_000_000 - STALE_PARTIAL_SECONDS - age
        os.utime(partial / name, (at, at))
    (partial / "link.tmp").symlink_to("written.tmp")
    os.utime(partial / "link.tmp", (0, 0), follow_symlinks=False)
    with (partial / "written.tmp").open() as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        root.prepare(1_000_000.0)
        assert sorted(os.listdir(partial)) == ["new.tmp", "written.tmp"]
    root.prepare(1_000_000.0)
    assert os.listdir(partial) == ["new.tmp"]


def test_the_partial_folder_as_a_link_is_refused(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / PARTIAL_FOLDER).symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        FileRoot(tmp_path / "files", max_file_bytes=100).prepare(1e12)
    assert (outside / "secret.txt").exists()


def test_folder_can_be_opened_only_below_the_root(root: FileRoot, outside: Path) -> None:
    root.write("d/x", b"")
    with root.opened_folder("d") as folder:
        assert os.listdir(folder) == ["x"]
    with root.opened_folder("") as folder:
        assert "d" in os.listdir(folder)
    (root.root / "link").symlink_to(outside)
    for path in ("..", "link", "/"):
        with pytest.raises(NotPermitted), root.opened_folder(path):
            pass
