"""The walls around a program, as Linux gives them: namespaces, a file view, a uid, Landlock, seccomp, limits.

Runs inside the sandbox host, a fresh interpreter: standard library only. `enter` is called once by the host, `confine`
by every child after the fork and before the program's first line.

| layer | gives | needs |
|---|---|---|
| namespaces, view | own processes, no network; files: interpreter and system read-only, a tmpfs | CAP_SYS_ADMIN or user namespaces |
| uid | cannot signal or read the host or anyone else | root |
| Landlock | files as in the view, where there is no view; signals only to its own | Linux 5.13; 6.12 for signals |
| seccomp | no sockets, large socket buffers, ptrace, mounts, namespaces, io_uring | Linux, x86-64 or arm64 |
| limits | CPU, memory, processes, file size, open files | nothing |

A layer the kernel refuses is left out and named in the host's greeting, so that the trainer can say so.
"""

import ctypes
import os
import platform
import resource
import socket
import struct
import sys
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_LIBC.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38

ROOT = Path("/sys")  # where the view is mounted: every Linux has it, no interpreter lives there, and only the host sees it
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
STREAMS = (("stdin", "0"), ("stdout", "1"), ("stderr", "2"), ("fd", ""))  # links in /dev
BOX_BYTES, BOX_FILES = 64 << 20, 4096
FIRST_UID, UIDS = 40_000, 20_000  # within the 65,536 that rootless containers map


class Refused(OSError):
    """The kernel refused a layer."""


def _call(name: str, *args) -> None:
    if getattr(_LIBC, name)(*args) != 0:
        number = ctypes.get_errno()
        raise Refused(number, f"{name}: {os.strerror(number)}")


def prctl(option: int, value: int = 0) -> None:
    """Call prctl(2); raise Refused."""
    _call("prctl", option, value, 0, 0, 0)


def readable_prefixes() -> list[str]:
    """Return the folders a program needs to import what this interpreter imports."""
    found = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable)))}
    found |= {sys.prefix, sys.base_prefix}
    return sorted(path for path in found if path != "/")


# --- namespaces and the file view ------------------------------------------------------------------------------------


def unshare() -> None:
    """Leave the namespaces of processes, mounts, network, IPC and host name; the next child is process 1 of its own."""
    flags = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    uid, gid = os.getuid(), os.getgid()
    if uid != 0:
        _call("unshare", NEWUSER | flags)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    else:
        _call("unshare", flags)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)


def enter_view() -> None:
    """Make a root that holds the interpreter and the system read-only, /dev, /proc and an empty /box, and change into it."""
    _mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in [*SYSTEM, *readable_prefixes()]:
        _show(Path(path))
    for device in DEVICES:
        _show(Path(device), readonly=False)
    for name, descriptor in STREAMS:
        (ROOT / "dev" / name).symlink_to(f"/proc/self/fd/{descriptor}")
    for folder in ("proc", "box"):
        (ROOT / folder).mkdir(exist_ok=True)
    (ROOT / "dev/shm").symlink_to("/box")  # multiprocessing's locks and queues lie there
    _mount("proc", ROOT / "proc", "proc", MS_NOSUID | MS_NODEV)
    _mount("tmpfs", ROOT / "box", "tmpfs", MS_NOSUID | MS_NODEV, f"size={BOX_BYTES},nr_inodes={BOX_FILES},mode=777")
    _mount("none", ROOT, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chroot(ROOT)
    os.chdir("/")


def _show(path: Path, readonly: bool = True) -> None:
    target = ROOT / path.relative_to("/")
    if path.is_symlink():  # /bin -> usr/bin
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_symlink():
            target.symlink_to(os.readlink(path))
        return
    if not path.exists() or os.path.ismount(target):
        return
    if path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(path, target, None, MS_BIND | MS_REC)
    if readonly:  # a user namespace may not clear flags the mount already has
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        _mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | kept)


def _mount(source, target, kind: str | None, flags: int, data: str = "") -> None:
    _call("mount", str(source).encode(), str(target).encode(), kind and kind.encode(), flags, data.encode())


# --- who the program is ----------------------------------------------------------------------------------------------


def claim_uids() -> tuple[int, socket.socket]:
    """Return the first of two uids no other host of this machine uses, and the socket that keeps them claimed.

    Limits on processes count by uid, and one host must not end another's programs. An abstract socket's name is free
    again when its owner dies, however it dies.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for uid in range(FIRST_UID, FIRST_UID + UIDS, 2):
        try:
            claim.bind(f"\0mopd-sandbox-uid-{uid}")
        except OSError:  # taken: the next one
            continue
        return uid, claim
    raise Refused(0, f"all sandbox uids from {FIRST_UID} to {FIRST_UID + UIDS} are taken")


def become(uid: int) -> None:
    """Become an unprivileged user that belongs to no group."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """Give up all capabilities: the root of a user namespace has them without being root outside."""
    for capability in range(64):
        if _LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # past the last one this kernel knows
    header = struct.pack("Ii", 0x20080522, 0)
    _call("capset", header, bytes(24))


def limit_for_good(output: int) -> None:
    """Set what is the same for the host and every program: bytes a file may have, open files, no core dumps, no locked memory."""
    for kind, value in (
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_NOFILE, 128),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _limit(kind, value)


def limit(*, cpu: float, memory: int, processes: int) -> None:
    """Set the limits of this process: CPU seconds, bytes of address space, processes of its user."""
    _limit(resource.RLIMIT_CPU, max(1, int(cpu + 1.999)))  # the host measures finely, this is the wall behind
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_NPROC, processes)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


# --- Landlock --------------------------------------------------------------------------------------------------------

_RULES_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15}  # how many kinds of file access a version knows; later ones 16
_READ = 0b1101  # execute, read file, read folder
SCOPES = 6  # the version that can keep signals in
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


def landlock_version() -> int:
    """Return the version of Landlock, 0 if there is none."""
    return max(0, _LIBC.syscall(_CREATE_RULESET, None, 0, 1))


def landlock(box: str) -> None:
    """See the interpreter, the system and `box`, write only in `box`; signal only what this process started."""
    version = landlock_version()
    everything = (1 << _RULES_BY_ABI.get(version, 16)) - 1
    attributes = struct.pack("QQQ", everything, 0, 0b11 if version >= SCOPES else 0)
    rules = _LIBC.syscall(_CREATE_RULESET, attributes, 24 if version >= SCOPES else 8, 0)
    if rules < 0:
        raise Refused(ctypes.get_errno(), "landlock_create_ruleset")
    for path, access in [*((p, _READ) for p in [*SYSTEM, *readable_prefixes()]), *((d, 0b110) for d in DEVICES), (box, everything)]:
        if os.path.exists(path):
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = access if os.path.isdir(path) else access & 0b111
            if _LIBC.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", allowed, handle), 0) != 0:
                raise Refused(ctypes.get_errno(), f"landlock_add_rule {path}")
            os.close(handle)
    if _LIBC.syscall(_RESTRICT_SELF, rules, 0) != 0:
        raise Refused(ctypes.get_errno(), "landlock_restrict_self")
    os.close(rules)


# --- seccomp ---------------------------------------------------------------------------------------------------------

_DENIED = {  # name: (x86-64, arm64)
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265), "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "pidfd_getfd": (438, 438), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "mq_open": (240, 180), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186),
}  # fmt: skip
_CLONE, _CLONE3 = (56, 220), 435
_SETSOCKOPT, _SOCKET_LEVEL, _BUFFER_SIZES = (54, 208), 1, (7, 8, 32, 33)  # memory that no other limit counts
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000


def seccomp_filter() -> bytes | None:
    """Return the filter's instructions, None on a machine it is not written for."""
    if platform.machine() not in _ARCHITECTURES:
        return None
    column, architecture = _ARCHITECTURES[platform.machine()]

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    new_spaces = NEWNS | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | 0x2000000  # the last: cgroup
    out = [step(_LOAD, 4), step(_EQUAL, architecture, 1), step(_RETURN, _KILL), step(_LOAD, 0)]
    if column == 0:
        out += [step(_AT_LEAST, 0x40000000, 0, 1), step(_RETURN, _KILL)]  # the x32 calls, which have other numbers
    out += [step(_EQUAL, _CLONE3, 0, 1), step(_RETURN, _ENOSYS)]  # its flags lie in memory: the C library falls back to clone
    for numbers in _DENIED.values():
        out += [step(_EQUAL, numbers[column], 0, 1), step(_RETURN, _EPERM)]
    out += [step(_EQUAL, _CLONE[column], 0, 4), step(_LOAD, 16), step(_ANY_BIT, new_spaces, 0, 1), step(_RETURN, _EPERM)]
    out += [step(_RETURN, _ALLOW), step(_EQUAL, _SETSOCKOPT[column], 1), step(_RETURN, _ALLOW)]
    out += [step(_LOAD, 24), step(_EQUAL, _SOCKET_LEVEL, 1), step(_RETURN, _ALLOW), step(_LOAD, 32)]
    for option in _BUFFER_SIZES:
        out += [step(_EQUAL, option, 0, 1), step(_RETURN, _EPERM)]
    return b"".join([*out, step(_RETURN, _ALLOW)])


def seccomp() -> None:
    """Refuse the system calls of `_DENIED` to this process and all it starts. Needs PR_SET_NO_NEW_PRIVS."""
    instructions = seccomp_filter()
    if instructions is None:
        raise Refused(0, f"no seccomp filter for {platform.machine()}")
    buffer = ctypes.create_string_buffer(instructions)
    program = struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(program)
    _call("prctl", PR_SET_SECCOMP, 2, ctypes.addressof(holder), 0, 0)
