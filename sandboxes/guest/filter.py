"""Inside a sandbox: a system call filter that closes what the engine leaves open.

Sockets of the family AF_VSOCK lead from a virtual machine to its host, past every network namespace, and the default
seccomp profile of Docker Engine before 23 lets them be made; so do calls that io_uring makes, which no profile sees.
In a user namespace of its own a process is root, and comes to parts of the kernel that no sandbox needs; podman's
profile lets them be made. `install` refuses all of these, for the calling process and all that come of it, for ever. It
needs no privileges, but PR_SET_NO_NEW_PRIVS (seccomp(2)). One file that needs nothing but Python's standard library
(3.9 or later).
"""

from __future__ import annotations

import ctypes
import errno
import struct

AF_VSOCK = 40

_X86_64, _I386, _AARCH64, _ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
_SOCKET = {_X86_64: 41, _I386: 359, _AARCH64: 198, _ARM: 281}
_CLONE = {_X86_64: 56, _I386: 120, _AARCH64: 220, _ARM: 120}
_UNSHARE = {_X86_64: 272, _I386: 310, _AARCH64: 97, _ARM: 337}
_SOCKETCALL = 102  # of i386: its arguments lie in memory, where a filter does not reach
_IO_URING_SETUP, _CLONE3 = 425, 435  # on all of them; the flags of the latter lie in memory too
_NEW_USER = 0x10000000
_X32 = 0x40000000

_LOAD, _EQUAL, _ANY, _AND, _RETURN = 0x20, 0x15, 0x45, 0x54, 0x06  # BPF, linux/filter.h
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def program() -> bytes:
    """The filter, as the kernel runs it."""
    found: list[tuple[int, int, int, int]] = []

    def add(code: int, value: int, true: int = 0, false: int = 0) -> None:
        found.append((code, true, false, value))

    for arch, socket in _SOCKET.items():
        add(_LOAD, _ARCH)
        add(_EQUAL, arch, 0, 16)
        add(_LOAD, _NUMBER)
        add(_AND, 0xFFFFFFFF ^ _X32)
        add(_EQUAL, _IO_URING_SETUP, 12, 0)
        add(_EQUAL, _CLONE3, 11, 0)  # who wants a thread asks for it by `clone` then
        add(_EQUAL, _SOCKETCALL if arch == _I386 else _IO_URING_SETUP, 10, 0)
        add(_EQUAL, _CLONE[arch], 2, 0)
        add(_EQUAL, _UNSHARE[arch], 1, 0)
        add(_EQUAL, socket, 2, 6)
        add(_LOAD, _ARGUMENT)
        add(_ANY, _NEW_USER, 2, 4)
        add(_LOAD, _ARGUMENT)
        add(_EQUAL, AF_VSOCK, 1, 2)
        add(_RETURN, _ERROR | errno.EPERM)
        add(_RETURN, _ERROR | errno.EAFNOSUPPORT)
        add(_RETURN, _ALLOW)
        add(_RETURN, _ERROR | errno.ENOSYS)
    add(_RETURN, _ALLOW)
    return b"".join(struct.pack("=HBBI", *each) for each in found)


def install() -> None:
    """Put the filter in force. Raises `OSError`."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    code = program()
    wanted = _Program(len(code) // 8, code)
    zero = ctypes.c_ulong(0)
    for call in (
        (_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero),
        (_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(wanted), zero, zero),
    ):
        if prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "the system call filter was not taken")
