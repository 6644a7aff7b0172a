# SPDX-License-Identifier: MIT
"""What a guest is started from: QEMU, a Debian kernel and an initramfs, downloaded but not installed.

Everything lies in a cache directory, MACHNET_QEMU_CACHE, else machnet/qemu in the user's cache, under
names with the versions. A part is there whole or not at all: it is made aside, under a lock, and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import shutil
import stat
import subprocess
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("qemu-system-x86", "busybox-static")
#: Debian's generic kernel: the cloud one has neither e1000 nor 9p.
KERNEL = "linux-image-amd64"
# fmt: off
MODULES = (
    "virtio_pci", "virtio_net", "virtio_console", "e1000", "e1000e", "vmxnet3", "tun", "veth",
    "vfio-pci", "vfio_iommu_type1", "uio_pci_generic", "9pnet_virtio", "9p", "overlay",
)
# fmt: on
#: Files of a kernel's modules that depmod needs.
_MODULE_LISTS = ("modules.builtin", "modules.order")
INIT = Path(__file__).resolve().with_name("init")
_XZ = b"\xfd7zXZ\x00"
_UNFINISHED = "part-"


class ImageError(Exception):
    """There is no image to be had here; the text says why and what helps."""


@dataclass(frozen=True)
class Image:
    """What a guest is started from.

    Attributes:
        qemu: The unpacked packages of QEMU.
        kernel: An ELF, which QEMU starts at once: nothing has to be decompressed under emulation.
        initramfs: busybox, kernel modules and `init`.
    """

    qemu: Path
    kernel: Path
    initramfs: Path

    def command(self) -> list[str]:
        """QEMU's program, and where it finds its data."""
        folders = [self.qemu / "usr", Path("/usr")]
        data = [f / "share" / name for f in folders for name in ("qemu", "seabios")]
        program = self.qemu / "usr/bin/qemu-system-x86_64"
        return [str(program), *(word for folder in data for word in ("-L", str(folder)))]

    def environment(self) -> dict[str, str]:
        """What QEMU needs to find its libraries and modules."""
        libraries = [self.qemu / f"{top}lib/x86_64-linux-gnu" for top in ("usr/", "")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "QEMU_MODULE_DIR": str(libraries[0] / "qemu"),
        }


def cache_dir() -> Path:
    """The directory of the cache; it need not exist."""
    if given := os.environ.get("MACHNET_QEMU_CACHE"):
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "machnet" / "qemu"


# --- packages -----------------------------------------------------------------------------------


def _output(*command: str | Path, cwd: Path | None = None) -> str:
    """Output of a command; ImageError with what it said when it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ImageError(f"{command[0]} is needed and not here: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise ImageError(f"{' '.join(map(str, command))}: status {done.returncode}\n{said}")
    return done.stdout


@dataclass(frozen=True)
class Package:
    """A package's file as apt names it."""

    file: str

    @property
    def wanted(self) -> str:
        """What `apt-get download` takes."""
        name, version, _ = self.file.split("_")
        return f"{name}={urllib.parse.unquote(version)}"


def _listed(output: str) -> list[Package]:
    """The packages of `--print-uris`: a URI in quotes, a file name, a size and a hash on each line."""
    lines = [line.split() for line in output.splitlines() if line.startswith("'")]
    return [Package(words[1]) for words in lines]


def _kernel_name() -> str:
    """Which package the newest generic kernel is in."""
    for line in _output("apt-cache", "depends", KERNEL).splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise ImageError(f"apt knows no kernel behind {KERNEL}: this is made for Debian")


def _wanted() -> tuple[list[Package], Package]:
    """The packages for QEMU that are not installed, and the kernel's."""
    # Files that apt has already would not be listed: so it is not to find any.
    options = ("-o", "Debug::NoLocking=1", "-o", "Dir::Cache::archives=/nonexistent/")
    apt = ("apt-get", "-qq", "--print-uris", *options)
    kernel = _kernel_name()
    qemu = _output(*apt, "--reinstall", "--no-install-recommends", "install", *PACKAGES)
    return _listed(qemu), _listed(_output(*apt, "download", kernel))[0]


def _download(packages: list[Package], folder: Path) -> None:
    """Unpack packages into a folder."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_UNFINISHED) as debs:
        apt = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download")
        _output(*apt, *(package.wanted for package in packages), cwd=Path(debs))
        for deb in sorted(Path(debs).iterdir()):
            _output("dpkg-deb", "-x", deb, folder)


# --- the cache ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Be the only one who changes the cache, and clear away what others left unfinished."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in cache.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(path)
        yield


def _part(cache: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A directory of the cache, made by `make` unless it is there."""
    path = cache / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache, prefix=_UNFINISHED) as folder:
            made = Path(folder) / name
            made.mkdir()
            make(made)
            made.rename(path)
    return path


def _key(*parts: str | bytes) -> str:
    joined = hashlib.sha256()
    for part in parts:
        joined.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return joined.hexdigest()[:16]


# --- the kernel ---------------------------------------------------------------------------------


def extract_kernel(image: bytes) -> bytes:
    """The ELF in a bzImage that was compressed by xz.

    Raises:
        ImageError: There is none.
    """
    start = image.find(_XZ)
    while start >= 0:
        with contextlib.suppress(lzma.LZMAError):
            kernel = lzma.LZMADecompressor().decompress(image[start:])
            if kernel.startswith(b"\x7fELF"):
                return kernel
        start = image.find(_XZ, start + 1)
    raise ImageError("the kernel is not one compressed by xz, as Debian's are")


def with_dependencies(dependencies: str, wanted: Iterable[str]) -> list[str]:
    """Files of the modules wanted, and of those that they need, from the text of modules.dep.

    Raises:
        ImageError: The kernel has no such module; the text names it.
    """
    needs = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    paths = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    found: list[str] = []
    for name in wanted:
        if name.replace("-", "_") not in paths:
            raise ImageError(f"the kernel has no module {name}")
        path = paths[name.replace("-", "_")]
        found += [path, *needs[path]]
    return sorted(set(found))


def _make_kernel(package: Package, busybox: Path, folder: Path) -> None:
    """Leave of a kernel's package the ELF and the modules that guests may want."""
    with tempfile.TemporaryDirectory(dir=folder.parent.parent, prefix=_UNFINISHED) as unpacked:
        root = Path(unpacked)
        _download([package], root)
        (compressed,) = (root / "boot").glob("vmlinuz-*")
        release = compressed.name.partition("-")[2]
        (folder / "vmlinux").write_bytes(extract_kernel(compressed.read_bytes()))
        _output(busybox, "depmod", "-b", root, release)
        modules, kept = root / "lib/modules" / release, folder / "lib/modules" / release
        for name in with_dependencies((modules / "modules.dep").read_text(), MODULES):
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(modules / name, kept / name)
        for name in _MODULE_LISTS:
            shutil.copy(modules / name, kept / name)
        _output(busybox, "depmod", "-b", folder, release)


# --- the initramfs ------------------------------------------------------------------------------


def cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """An archive as the kernel unpacks it ("newc"), of (name, mode, content or link's target)."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = [number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(data) % 4)
    return bytes(out)


def _entries(busybox: Path, kernel: Path) -> list[tuple[str, int, bytes]]:
    folders = ["bin", "sbin", "usr", "usr/bin", "usr/sbin", "proc", "sys", "dev", "lib"]
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    entries += [
        ("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        ("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
        ("init", stat.S_IFREG | 0o755, INIT.read_bytes()),
    ]
    for path in sorted((kernel / "lib").rglob("*")):
        name = str(path.relative_to(kernel))
        if path.is_dir():
            entries.append((name, stat.S_IFDIR | 0o755, b""))
        else:
            entries.append((name, stat.S_IFREG | 0o644, path.read_bytes()))
    return entries


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def prepare() -> Image:
    """The image, from the cache or newly made.

    Raises:
        ImageError: It can't be made here; the text says why.
    """
    cache = cache_dir()
    with _locked(cache):
        try:
            packages, kernel_package = _wanted()
        except ImageError:
            if os.geteuid() != 0:
                raise
            _output("apt-get", "-qq", "update")
            packages, kernel_package = _wanted()
        names = sorted(package.file for package in packages)
        qemu = _part(cache, f"qemu-{_key(*names)}", lambda folder: _download(packages, folder))
        busybox = qemu / "bin/busybox"
        kernel = _part(
            cache,
            f"kernel-{_key(kernel_package.file, *MODULES)}",
            lambda folder: _make_kernel(kernel_package, busybox, folder),
        )
        archive = cpio(_entries(busybox, kernel))
        initramfs = _part(
            cache,
            f"initramfs-{_key(archive)}",
            lambda folder: _write(folder / "initramfs.cpio", archive),
        )
    return Image(qemu, kernel / "vmlinux", initramfs / "initramfs.cpio")
