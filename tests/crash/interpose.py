"""Put Python functions in place of the C library's, for all code of this process: LMDB's as well as the interpreter's.

A shared object calls the C library through its global offset table, which the loader has filled in. Each object's
dynamic section names the places (ELF, "Dynamic Linking"; System V psABI of x86-64 and AArch64, "Relocation"), so a
callback's address can be written there. That needs no compiler, no preloading and no privileges, and what is called is
the real thing. Objects that are loaded later are not reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import platform
from collections.abc import Callable, Iterator, Mapping

# Of each machine: the relocation types GLOB_DAT and JUMP_SLOT.
_SLOT_TYPES = {"x86_64": (6, 7), "aarch64": (1025, 1026)}
_PT_DYNAMIC, _PT_GNU_RELRO = 2, 0x6474E552
_STRTAB, _SYMTAB, _RELA, _RELASZ, _PLTRELSZ, _JMPREL = 5, 6, 7, 8, 2, 23
_SYMBOL_BYTES, _RELA_BYTES = 24, 24
# The C library itself, whose calls are not the program's, and what carries the callbacks.
_LEFT_ALONE = ("libc.so", "libc-", "ld-linux", "libffi", "_ctypes", "linux-vdso", "libpthread")

Pointer = int
_libc = ctypes.CDLL(None, use_errno=True)

INT, LONG, TEXT = ctypes.c_int, ctypes.c_long, ctypes.c_char_p
SIZE, ADDRESS = ctypes.c_size_t, ctypes.c_void_p

SIGNATURES: dict[str, tuple[type, ...]] = {
    "open": (INT, TEXT, INT, INT),
    "open64": (INT, TEXT, INT, INT),
    "openat": (INT, INT, TEXT, INT, INT),
    "openat64": (INT, INT, TEXT, INT, INT),
    "close": (INT, INT),
    "write": (LONG, INT, ADDRESS, SIZE),
    "pwrite": (LONG, INT, ADDRESS, SIZE, LONG),
    "pwrite64": (LONG, INT, ADDRESS, SIZE, LONG),
    "writev": (LONG, INT, ADDRESS, INT),
    "pwritev": (LONG, INT, ADDRESS, INT, LONG),
    "pwritev64": (LONG, INT, ADDRESS, INT, LONG),
    "fsync": (INT, INT),
    "fdatasync": (INT, INT),
    "ftruncate": (INT, INT, LONG),
    "ftruncate64": (INT, INT, LONG),
    "rename": (INT, TEXT, TEXT),
    "renameat": (INT, INT, TEXT, INT, TEXT),
    "link": (INT, TEXT, TEXT),
    "linkat": (INT, INT, TEXT, INT, TEXT, INT),
    "unlink": (INT, TEXT),
    "unlinkat": (INT, INT, TEXT, INT),
    "mkdir": (INT, TEXT, INT),
    "mkdirat": (INT, INT, TEXT, INT),
    "rmdir": (INT, TEXT),
    "symlink": (INT, TEXT, TEXT),
    "symlinkat": (INT, TEXT, INT, TEXT),
    "mkfifo": (INT, TEXT, INT),
    "mknodat": (INT, INT, TEXT, INT, LONG),
    "chmod": (INT, TEXT, INT),
    "fchmod": (INT, INT, INT),
    "fchmodat": (INT, INT, TEXT, INT, INT),
    "chown": (INT, TEXT, INT, INT),
    "fchown": (INT, INT, INT, INT),
    "fchownat": (INT, INT, TEXT, INT, INT, INT),
    "futimens": (INT, INT, ADDRESS),
    "utimensat": (INT, INT, TEXT, ADDRESS, INT),
}
"""The result and the arguments of each function that can be replaced."""

Real = Callable[..., int]
Replacement = Callable[..., int]
"""What is called instead: with the real function, which sets `ctypes.get_errno()`, and then the caller's arguments."""


class _Phdr(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("offset", ctypes.c_uint64), ("vaddr", ctypes.c_uint64),
        ("paddr", ctypes.c_uint64), ("filesz", ctypes.c_uint64), ("memsz", ctypes.c_uint64), ("align", ctypes.c_uint64),
    )  # fmt: skip


class _Info(ctypes.Structure):
    _fields_ = (
        ("addr", ctypes.c_uint64), ("name", ctypes.c_char_p),
        ("phdr", ctypes.POINTER(_Phdr)), ("phnum", ctypes.c_uint16),
    )  # fmt: skip


def _words(address: Pointer, count: int) -> list[int]:
    return list((ctypes.c_uint64 * count).from_address(address))


def _dynamic(address: Pointer) -> dict[int, int]:
    found: dict[int, int] = {}
    while True:
        tag, value = _words(address, 2)
        if tag == 0:
            return found
        found[tag] = value
        address += 16


def _slots(base: Pointer, dynamic: Mapping[int, int]) -> Iterator[tuple[str, Pointer]]:
    """The functions that an object calls, and where it keeps their addresses."""
    names, symbols = dynamic[_STRTAB], dynamic[_SYMTAB]
    for table, size in ((_JMPREL, _PLTRELSZ), (_RELA, _RELASZ)):
        for at in range(0, dynamic.get(size, 0), _RELA_BYTES):
            offset, info, _ = _words(dynamic[table] + at, 3)
            if info & 0xFFFFFFFF in _SLOT_TYPES[platform.machine()]:
                name = ctypes.c_uint32.from_address(symbols + (info >> 32) * _SYMBOL_BYTES).value
                yield ctypes.string_at(names + name).decode(), base + offset


def _objects() -> list[tuple[str, Pointer, list[tuple[int, Pointer, int]]]]:
    """The loaded objects: name, base, and the segments, each with type, address and length."""
    found = []

    def visit(info: ctypes._Pointer[_Info], _size: int, _data: int) -> int:
        each = info.contents
        segments = [(each.phdr[i].type, each.addr + each.phdr[i].vaddr, each.phdr[i].memsz) for i in range(each.phnum)]
        found.append((os.fsdecode(each.name or b""), each.addr, segments))
        return 0

    visitor = ctypes.CFUNCTYPE(INT, ctypes.POINTER(_Info), SIZE, ADDRESS)
    _libc.dl_iterate_phdr(visitor(visit), None)
    return found


def _make_writable(address: Pointer, length: int) -> None:
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    if _libc.mprotect(ADDRESS(start), SIZE(address + length - start), mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "the offset table cannot be written")


@functools.cache
def _places() -> dict[str, list[ctypes.c_uint64]]:
    """Where the addresses of the functions are kept that can be replaced; these places can be written."""
    found: dict[str, list[ctypes.c_uint64]] = {}
    for path, base, segments in _objects():
        if os.path.basename(path).startswith(_LEFT_ALONE):
            continue
        for kind, address, length in segments:
            if kind == _PT_GNU_RELRO:
                _make_writable(address, length)
        for kind, address, _ in segments:
            if kind == _PT_DYNAMIC:
                for name, slot in _slots(base, _dynamic(address)):
                    if name in SIGNATURES:
                        found.setdefault(name, []).append(ctypes.c_uint64.from_address(slot))
    return found


@contextlib.contextmanager
def interposed(replacements: Mapping[str, Replacement]) -> Iterator[int]:
    """Call `replacements` instead of the functions they are named after, meanwhile. The number of places changed."""
    before: list[tuple[ctypes.c_uint64, int]] = []
    callbacks = []
    try:
        for name, replacement in replacements.items():
            kind = ctypes.CFUNCTYPE(*SIGNATURES[name], use_errno=True)
            real = ctypes.cast(getattr(_libc, name), ADDRESS).value
            assert real is not None
            callback = kind(functools.partial(replacement, kind(real)))
            callbacks.append(callback)
            for place in _places().get(name, ()):
                before.append((place, place.value))
                place.value = ctypes.cast(callback, ADDRESS).value or 0
        yield len(before)
    finally:
        for place, value in before:
            place.value = value
