"""What both kinds of files keep: whole or not at all, created once; and which places are refused."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from atoll.errors import InfrastructureError, SpecError
from atoll.runtime.store import Files, LocalFiles, ObjectFiles, check_exclusive, open_files


@pytest.fixture(params=["folder", "objects"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Files]]:
    """Opens the same place again and again."""
    if request.param == "folder":
        yield lambda: LocalFiles(tmp_path / "a" / "b")
        return
    root = uuid.uuid4().hex
    yield lambda: ObjectFiles(f"memory://{root}/b/")
    memory = fsspec.filesystem("memory").store
    for name in [name for name in memory if name.startswith(f"/{root}")]:
        del memory[name]


def test_what_is_written_is_read_listed_counted_and_deleted(make):
    files = make()
    assert (files.names(), files.read_many(["a"])) == ([], {})
    files.write("b", b"12345")
    files.write("a", b"")
    files.create("c", bytes(range(256)))
    again = make()
    assert again.names() == ["a", "b", "c"]
    assert (again.read("b"), again.read("a"), again.read("c")) == (b"12345", b"", bytes(range(256)))
    assert again.read_many(["c", "none", "a"]) == {"c": bytes(range(256)), "a": b""}
    assert again.read_many([]) == {}
    files.write("b", b"new")
    files.delete("a")
    files.delete("a")
    assert (again.read("b"), again.names()) == (b"new", ["b", "c"])


def test_a_missing_file_is_named(make):
    files = make()
    with pytest.raises(InfrastructureError, match="none: reading failed") as caught:
        files.read("none")
    assert files.place in str(caught.value)


def test_create_never_overwrites(make):
    files = make()
    files.create("a", b"first")
    with pytest.raises(FileExistsError):
        make().create("a", b"second")
    with pytest.raises(FileExistsError):
        files.create("a", b"first")
    assert (files.read("a"), files.names()) == (b"first", ["a"])
    files.write("b", b"1")
    with pytest.raises(FileExistsError):
        files.create("b", b"2")


def test_both_kinds_refuse_to_create_a_name_twice(make):
    files = make()
    check_exclusive(files)
    assert files.names() == []


def test_of_many_that_create_one_name_one_succeeds(tmp_path):
    files, won, barrier = LocalFiles(tmp_path / "new"), [], threading.Barrier(8)

    def run(number: int) -> None:
        for attempt in range(20):
            barrier.wait(30)
            try:
                files.create(f"file-{attempt:02d}", bytes([number]) * 50_000)
                won.append((attempt, number))
            except FileExistsError:
                pass
            assert len(set(files.read(f"file-{attempt:02d}"))) == 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(attempt for attempt, _ in won) == list(range(20))
    for attempt, number in won:
        assert files.read(f"file-{attempt:02d}") == bytes([number]) * 50_000
    assert len(os.listdir(tmp_path / "new")) == 20


def fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("method", "call"), [("write", "fsync"), ("create", "fsync"), ("create", "link")])
def test_a_failing_write_leaves_nothing(tmp_path, monkeypatch, method, call):
    files = LocalFiles(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InfrastructureError, match=r"/a: writing failed: .*No space left.*atoll resume"):
            getattr(files, method)("a", b"data")
    assert os.listdir(tmp_path) == []
    getattr(files, method)("a", b"data")
    assert os.listdir(tmp_path) == ["a"]


def test_a_failing_write_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    files = LocalFiles(tmp_path)
    files.write("a", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InfrastructureError):
        files.write("a", b"new")
    assert (files.read("a"), os.listdir(tmp_path)) == (b"old", ["a"])


def test_a_folder_that_is_a_file_is_an_error_and_no_existing_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError, match="writing failed"):
        LocalFiles(tmp_path / "file").create("a", b"")


def test_a_link_that_was_made_and_reported_as_existing_counts(tmp_path, monkeypatch):
    link = os.link

    def asked_twice(*arguments: Path) -> None:
        link(*arguments)
        link(*arguments)

    monkeypatch.setattr(os, "link", asked_twice)
    LocalFiles(tmp_path).create("a", b"data")
    assert (LocalFiles(tmp_path).read("a"), os.listdir(tmp_path)) == (b"data", ["a"])
    with pytest.raises(FileExistsError):
        LocalFiles(tmp_path).create("a", b"other")


def test_a_store_that_does_not_answer_is_named(monkeypatch):
    files = ObjectFiles("memory://bucket/run")

    def fail_otherwise(*_: object, **__: object) -> None:
        raise RuntimeError("503 slow down")

    for name in ("pipe_file", "cat_file", "ls", "rm_file"):
        monkeypatch.setattr(files._fs, name, fail_otherwise, raising=True)
    place = "memory://bucket/run"
    for call, doing in (
        (lambda: files.write("a", b""), "/a: writing"),
        (lambda: files.create("a", b""), "/a: creating"),
        (lambda: files.read("a"), "/a: reading"),
        (lambda: files.read_many(["a", "b"]), "/a: reading"),
        (files.names, ": listing"),
    ):
        with pytest.raises(InfrastructureError, match=f"{place}{doing} failed: 503 slow down.*atoll resume"):
            call()
    files.delete("a")


# ---- which places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://host/path",
        "https://host/path",
        "ftp://host/path",
        "hdfs://host/path",
        "github://org:repo@main/path",
        "zip://inside::s3://bucket/a.zip",
        "simplecache::s3://bucket/path",
        "oss://bucket/path",
        "s4://bucket/path",
        "://path",
    ],
)
def test_places_that_cannot_keep_two_processes_apart_are_refused(url):
    with pytest.raises(SpecError) as caught:
        open_files(url)
    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == ("runtime.store", repr(url))
    assert "s3://" in problem.rule
    assert "exclusively" in problem.why
    assert "folder that all machines share" in problem.hint


@pytest.mark.parametrize("url", ["s3://", "gs:///", "memory://"])
def test_an_address_without_a_bucket_is_refused(url):
    with pytest.raises(SpecError, match=r"runtime\.store: .*need a bucket"):
        open_files(url)


def test_a_file_url_is_refused_with_the_plain_path():
    with pytest.raises(SpecError, match=r"runtime\.store: .*write /data/runs"):
        open_files("file:///data/runs")


@pytest.mark.parametrize(("url", "package"), [("s3://b/x", "s3fs"), ("gs://b/x", "gcsfs"), ("az://b/x", "adlfs")])
def test_a_missing_driver_is_named(monkeypatch, url, package):
    def missing(*_: object, **__: object) -> None:
        raise ImportError(f"Install {package}")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(SpecError, match=rf"runtime\.store: got '{url}'.*pip install {package}"):
        open_files(url)


def test_an_address_that_the_driver_refuses_is_named(monkeypatch):
    def refuses(*_: object, **__: object) -> None:
        raise ValueError("no account")

    monkeypatch.setattr(fsspec, "url_to_fs", refuses)
    with pytest.raises(SpecError, match=r"runtime\.store: got 'abfs://c/x'.*no account"):
        open_files("abfs://c/x")


def test_the_place_decides_the_kind(tmp_path):
    assert isinstance(open_files(str(tmp_path)), LocalFiles)
    files = open_files("memory://bucket/run/")
    assert isinstance(files, ObjectFiles)
    assert (files.place, open_files(str(tmp_path)).place) == ("memory://bucket/run", str(tmp_path))


class Overwriting(LocalFiles):
    """A store that speaks the protocol and ignores the condition."""

    def create(self, name: str, data: bytes) -> None:
        self.write(name, data)


def test_a_store_that_ignores_the_condition_is_found(tmp_path):
    with pytest.raises(SpecError, match=r"runtime\.store: .*let one be created twice"):
        check_exclusive(Overwriting(tmp_path))
    assert os.listdir(tmp_path) == []
