"""Runs a static x86-64 Linux program on an emulated Sapphire Rapids processor, with the emulator Bochs.

The script makes a bootable CD with a boot loader, a Linux kernel and the program, which the kernel starts as its first
process. The program's output comes through an emulated serial line. The exit status is that of the program, or 99 if the
program did not end in time.
"""

import argparse
import gzip
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import pycdlib

# Each line that the kernel prints begins with a time.
KERNEL = re.compile(rb"\[ *\d+\.\d{6}\].*\n")
# The kernel prints this when its first process ends. The number is a wait status, as waitpid returns it.
ENDED = re.compile(rb"Attempted to kill init! exitcode=0x([0-9a-f]{8})")


def archive(program):
    """The initial file system, in the format newc of cpio: the program, and random numbers for proptest."""
    # Name: (mode, major and minor number of a device, contents). The kernel makes /dev and the console itself.
    files = {
        "program": (0o100755, 0, 0, program),
        "dev/random": (0o020666, 1, 8, b""),
        "dev/urandom": (0o020666, 1, 9, b""),
        "TRAILER!!!": (0, 0, 0, b""),
    }
    out = io.BytesIO()
    for number, (name, (mode, major, minor, data)) in enumerate(files.items(), 1):
        # Inode, mode, owner, group, links, time, size, disk (2), device (2), length of the name, no checksum.
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0]
        for part in (b"070701" + b"".join(b"%08x" % x for x in fields) + name.encode() + b"\0", data):
            out.write(part + b"\0" * (-len(part) % 4))
    return gzip.compress(out.getvalue(), 1)


def disc(to, kernel, isolinux, modules, program, arguments, environment):
    """A CD that boots into the program."""
    # The kernel passes options that it does not know to the first process: NAME=VALUE before the dashes as its
    # environment, and what follows the dashes as its arguments.
    # `clearcpuid=580` switches FSRM off, with which the kernel does not start in Bochs 3.0.
    line = ["initrd=/FILES", "rdinit=/program", "console=ttyS0", "quiet", "mitigations=off", "clearcpuid=580"]
    line = " ".join([*line, *environment, "--", *arguments])
    config = f"DEFAULT run\nLABEL run\n  KERNEL /LINUX\n  APPEND {line}\n"
    iso = pycdlib.PyCdlib()
    iso.new()
    iso.add_directory("/ISOLINUX")
    for name, data in {
        "/LINUX": kernel.read_bytes(),
        "/FILES": archive(program.read_bytes()),
        "/ISOLINUX/ISOLINUX.BIN": isolinux.read_bytes(),
        "/ISOLINUX/LDLINUX.C32": modules.joinpath("ldlinux.c32").read_bytes(),
        "/ISOLINUX/ISOLINUX.CFG": config.encode(),
    }.items():
        iso.add_fp(io.BytesIO(data), len(data), f"{name if '.' in name else name + '.'};1")
    iso.add_eltorito("/ISOLINUX/ISOLINUX.BIN;1", "/ISOLINUX/BOOT.CAT;1", boot_load_size=4, boot_info_table=True)
    iso.write(str(to))
    iso.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bochs", type=pathlib.Path, required=True, help="folder in which Bochs was built")
    parser.add_argument("--kernel", type=pathlib.Path, required=True, help="a Linux kernel (bzImage)")
    parser.add_argument("--isolinux", type=pathlib.Path, default="/usr/lib/ISOLINUX/isolinux.bin")
    parser.add_argument("--modules", type=pathlib.Path, default="/usr/lib/syslinux/modules/bios")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="environment of the program")
    parser.add_argument("--seconds", type=float, default=3600, help="how long it may take")
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        iso = folder / "disc.iso"
        disc(iso, given.kernel, given.isolinux, given.modules, given.program, given.arguments, given.env)
        # Without page tables of five levels (LA57), which the system management mode of Bochs 3.0 does not support.
        (folder / "bochsrc").write_text(
            f"""
romimage: file={given.bochs / "bios/BIOS-bochs-latest"}
vgaromimage: file={given.bochs / "bios/VGABIOS-lgpl-latest.bin"}
display_library: nogui
cpu: model=sapphire_rapids, exclude_features="la57", ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=512, host=512
ata0-master: type=cdrom, path={iso}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder / "serial"}
log: {folder / "log"}
panic: action=fatal
error: action=ignore
info: action=ignore
speaker: enabled=0
"""
        )
        bochs = subprocess.Popen(
            [given.bochs / "bochs", "-q", "-f", folder / "bochsrc"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        status, serial, shown, end = 99, b"", 0, time.monotonic() + given.seconds
        try:
            while time.monotonic() < end:
                time.sleep(1)
                now = (folder / "serial").read_bytes() if (folder / "serial").exists() else b""
                printed = KERNEL.sub(b"", now[: now.rfind(b"\n") + 1].replace(b"\r", b""))
                sys.stdout.buffer.write(printed[shown:])
                sys.stdout.flush()
                # The kernel's message may come before the program's last lines, so wait until nothing more comes.
                quiet, serial, shown = now == serial, now, len(printed)
                if quiet and (found := ENDED.search(now)):
                    status = os.waitstatus_to_exitcode(int(found[1], 16))
                    break
                if quiet and (b"Kernel panic" in now or bochs.poll() is not None):
                    sys.stderr.buffer.write(now + (folder / "log").read_bytes())
                    break
        finally:
            bochs.kill()
            bochs.wait()
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
