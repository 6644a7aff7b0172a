# SPDX-License-Identifier: MIT
"""What guests of QEMU are started from (tests/qemu/image.py), as far as it needs no guest."""

from __future__ import annotations

import importlib.util
import lzma
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def image(repo: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("image", repo / "tests" / "qemu" / "image.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["image"] = module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["image"]
    return module


def test_the_kernel_is_found_behind_what_only_looks_like_it(image: ModuleType) -> None:
    elf = b"\x7fELF and the rest"
    packed = b"boot \xfd7zXZ\x00 code" + lzma.compress(b"no kernel") + lzma.compress(elf) + b"end"
    assert image.extract_kernel(packed) == elf


def test_a_kernel_that_is_packed_otherwise_is_refused(image: ModuleType) -> None:
    with pytest.raises(image.ImageError, match="not one compressed by xz"):
        image.extract_kernel(b"MZ" + bytes(1000))


def test_modules_come_with_what_they_need(image: ModuleType) -> None:
    listed = (
        "kernel/a/vfio-pci.ko: kernel/b/vfio.ko kernel/b/irq.ko\nkernel/b/vfio.ko:\nkernel/c.ko:\n"
    )
    found = image.with_dependencies(listed, ["vfio_pci", "c"])
    assert found == ["kernel/a/vfio-pci.ko", "kernel/b/irq.ko", "kernel/b/vfio.ko", "kernel/c.ko"]
    with pytest.raises(image.ImageError, match="no module e1000"):
        image.with_dependencies(listed, ["e1000"])


def test_an_archive_is_as_the_kernel_reads_it(image: ModuleType) -> None:
    entries = [
        ("dev", stat.S_IFDIR | 0o755, b""),
        ("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
        ("sh", stat.S_IFLNK | 0o777, b"busybox"),
    ]
    archive, found = image.cpio(entries), []
    while not found or found[-1][0] != "TRAILER!!!":
        assert archive[:6] == b"070701"
        fields = [int(archive[at : at + 8], 16) for at in range(6, 110, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[110 : 110 + name_size - 1].decode()
        start = (110 + name_size + 3) & ~3
        found.append((name, mode, archive[start : start + size]))
        archive = archive[(start + size + 3) & ~3 :]
    assert found[:-1] == entries
    assert archive == b""


def test_a_part_of_the_cache_is_there_whole_or_not_at_all(
    image: ModuleType, tmp_path: Path
) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"")
        raise image.ImageError("no network")

    def make(folder: Path) -> None:
        (folder / "whole").write_bytes(b"")

    with pytest.raises(image.ImageError, match="no network"):
        image._part(tmp_path, "qemu", fail)
    assert list(tmp_path.iterdir()) == []
    assert list(image._part(tmp_path, "qemu", make).iterdir()) == [tmp_path / "qemu" / "whole"]
    assert image._part(tmp_path, "qemu", fail) == tmp_path / "qemu"


def test_what_was_left_unfinished_is_cleared_away(image: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "part-killed").mkdir()
    (tmp_path / "part-killed" / "half").write_bytes(b"")
    with image._locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_the_cache_is_where_it_is_said_to_be(
    image: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MACHNET_QEMU_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert image.cache_dir() == tmp_path / "machnet" / "qemu"
    monkeypatch.setenv("MACHNET_QEMU_CACHE", str(tmp_path / "own"))
    assert image.cache_dir() == tmp_path / "own"
