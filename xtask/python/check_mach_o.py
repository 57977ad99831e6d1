"""Checks programs for Macs, and every library that they load, on a machine that is no Mac.

`cargo xtask apple` runs it on what zig linked. It reads the files with LIEF, and checks what macOS checks when a program
starts: the libraries are found, each imported symbol is in the library that has to have it, the file may run on this
version of macOS, its code signature fits its bytes. The libraries of macOS itself are not here: symbols of libSystem are
looked up in zig's stub, those of libc++ among the symbols that MLX's own library takes from it.

With `--controls`, copies of the files are broken in known ways, and the check has to notice each.

    python check_mach_o.py --macos 14.0 --controls FOLDER PROGRAM...
"""

import argparse
import hashlib
import os
import re
import struct
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import lief
import mac_sdk
from mac_sdk import LIBCXX, LIBSYSTEM, WEAK

SYSTEM = ("/usr/lib/", "/System/Library/")
COMMAND = lief.MachO.LoadCommand.TYPE


@dataclass
class Image:
    """What is checked of a program or library."""

    path: Path  # where macOS would find it
    install_name: str | None  # of a library
    libraries: list[str]
    rpaths: list[str]
    macos: tuple[int, ...]
    exports: set[str]
    definitions: set[str]  # all of them, exported or not
    imports: set[tuple[str, str | int]]
    problems: list[str]
    # The file of each library, once it was looked for.
    found: dict[str, Path | None] = field(default_factory=dict)


def read_image(path: Path, contents: Path | None = None) -> Image:
    """Reads the file at `path`, or other contents in its place."""
    file = contents or path
    binary = mac_sdk.read(file)
    install_names = [one.name for one in binary.libraries if one.command == COMMAND.ID_DYLIB]
    version = binary.build_version if binary.has_build_version else None
    problems = signature_problems(binary, file.read_bytes())
    if version is None or version.platform != lief.MachO.BuildVersion.PLATFORMS.MACOS:
        problems.append("is not made for macOS")
    if file.name == "libmlx.dylib":
        kernels = file.parent / "mlx.metallib"
        if not kernels.is_file() or kernels.open("rb").read(4) != b"MTLB":
            problems.append("has no Metal kernels beside it (mlx.metallib)")
    trie = binary.dyld_exports_trie if binary.has_dyld_exports_trie else None
    trie = trie or (binary.dyld_info if binary.has_dyld_info else None)
    return Image(
        path=path,
        install_name=install_names[0] if install_names else None,
        libraries=[one.name for one in binary.libraries if one.command != COMMAND.ID_DYLIB],
        rpaths=[rpath.path for rpath in binary.rpaths],
        macos=tuple(version.minos) if version else (),
        exports={export.symbol.name for export in trie.exports if export.has_symbol} if trie else set(),
        definitions=mac_sdk.definitions(binary),
        imports=mac_sdk.imports(binary),
        problems=problems,
    )


def signature_problems(binary: lief.MachO.Binary, contents: bytes) -> list[str]:
    """A Mac with Apple silicon ends a program without a signature, or with other bytes than those that were signed.

    The format is that of `xnu/osfmk/kern/cs_blobs.h`: blobs of big-endian numbers.
    """
    if not binary.has_code_signature:
        return ["has no code signature"]
    start = binary.code_signature.data_offset
    magic, _, count = struct.unpack_from(">III", contents, start)
    if magic != 0xFADE0CC0:
        return ["has a code signature that cannot be read"]
    for number in range(count):
        directory = start + struct.unpack_from(">II", contents, start + 12 + 8 * number)[1]
        numbers = struct.unpack_from(">9I4B", contents, directory)
        if numbers[0] != 0xFADE0C02:
            continue
        hashes, pages, end = directory + numbers[4], numbers[7], numbers[8]
        hash_size, hash_kind, _, page_bits = numbers[9:]
        if hash_kind != 2 or hash_size != 32:
            continue
        page = 1 << page_bits
        if end != start or pages != -(-end // page):
            return ["has a code signature of another length"]
        for index in range(pages):
            part = contents[index * page : min((index + 1) * page, end)]
            signed = contents[hashes + 32 * index : hashes + 32 * (index + 1)]
            if hashlib.sha256(part).digest() != signed:
                return [f"has a code signature that does not fit its bytes (page {index})"]
        return []
    return ["has no code signature with SHA-256"]


class Checker:
    """Follows the libraries of programs, and says what is wrong with each file."""

    def __init__(self, macos: tuple[int, ...], replaced: dict[Path, Path] | None = None):
        self.macos = macos
        self.replaced = replaced or {}
        self.libraries: dict[Path, Image] = {}
        self.libsystem = mac_sdk.stub_symbols(mac_sdk.zig_libsystem().read_text())
        self.listed = {library: set(symbols) for library, (_, symbols) in mac_sdk.STUBS.items()}
        self.listed[LIBCXX] = set(mac_sdk.LIBCXX_SYMBOLS)
        self.of_mlx: set[str] = set()
        # Imports by the place where the symbol was found.
        self.bound: Counter[str] = Counter()
        self.unchecked: Counter[str] = Counter()
        self.problems: list[str] = []

    def check(self, images: list[Image]) -> None:
        for image in images:
            self.load([image])
        mlx = next((one for path, one in self.libraries.items() if path.name == "libmlx.dylib"), None)
        if mlx is None:
            self.problems.append("no program loads libmlx.dylib")
        else:
            self.of_mlx = {name for name, library in mlx.imports if library in (LIBCXX, WEAK)}
        for image in [*images, *self.libraries.values()]:
            self.check_file(image)
            for name, library in sorted(image.imports, key=str):
                self.check_import(image, name, library)

    def say(self, image: Image, problem: str) -> None:
        self.problems.append(f"{image.path}: {problem}")

    def find(self, name: str, chain: list[Image]) -> Path | None:
        """The file that macOS loads for a library's name. The rpaths of all that led to it count: `chain`, from the program."""
        places = [(name, chain[-1])]
        if name.startswith("@rpath/"):
            places = [
                (rpath + name.removeprefix("@rpath"), image) for image in reversed(chain) for rpath in image.rpaths
            ]
        paths = [Path(os.path.normpath(expanded(place, image, chain[0]))) for place, image in places]
        return next((path for path in paths if path in self.replaced or path.is_file()), None)

    def load(self, chain: list[Image]) -> None:
        """Reads the libraries of the last image, and theirs."""
        image = chain[-1]
        for name in image.libraries:
            if name.startswith(SYSTEM):
                continue
            path = self.find(name, chain)
            image.found[name] = path
            if path is None:
                self.say(image, f"loads {name}, which is not found")
                continue
            if path not in self.libraries:
                library = self.libraries[path] = read_image(path, self.replaced.get(path))
                self.load([*chain, library])
            if self.libraries[path].install_name != name:
                self.say(image, f"loads {name}, and the install name is {self.libraries[path].install_name}")

    def check_file(self, image: Image) -> None:
        for problem in image.problems:
            self.say(image, problem)
        if image.macos > self.macos:
            self.say(image, f"needs macOS {dotted(image.macos)}, and {dotted(self.macos)} was asked for")
        # A library that can be moved has several relative rpaths, for the places where it may lie.
        missing = [rpath for rpath in image.rpaths if not Path(expanded(rpath, image, image)).is_dir()]
        relative = [rpath for rpath in image.rpaths if rpath.startswith("@loader_path/")]
        for rpath in missing:
            if rpath not in relative or set(relative) <= set(missing):
                self.say(image, f"has the rpath {rpath}, which is no folder")

    def check_import(self, image: Image, name: str, library: str | int) -> None:
        is_mlx = image.path.name in ("libmlx.dylib", "libjaccl.dylib")
        if library == WEAK:
            self.check_weak(image, name)
        elif isinstance(library, int):
            self.say(image, f"imports {name} from no certain library ({library})")
        elif not library.startswith(SYSTEM):
            path = image.found.get(library)
            if path and name in self.libraries[path].exports:
                self.bound[path.name] += 1
            else:
                self.say(image, f"imports {name}, which {library} does not export")
        elif library == LIBSYSTEM:
            if name in self.libsystem:
                self.bound["libSystem (zig's stub)"] += 1
            else:
                self.say(image, f"imports {name}, which libSystem does not export")
        elif is_mlx:
            # Apple's linker has found these, when MLX's package was made.
            self.unchecked[Path(library).name] += 1
        elif library == LIBCXX and name in self.of_mlx:
            self.bound["libc++ (MLX's own library takes them too)"] += 1
        elif name in self.listed.get(library, ()):
            self.bound[f"{Path(library).name} (listed in mac_sdk.py)"] += 1
        else:
            self.say(image, f"imports {name} from {library}, which is not known to have it")

    def check_weak(self, image: Image, name: str) -> None:
        """A definition that several files may have; the first one counts for all."""
        others = [self.libraries[path] for path in image.found.values() if path]
        if name in image.definitions:
            self.bound["the same file (weak definitions)"] += 1
        elif any(name in one.exports for one in others):
            self.bound["any library (weak definitions)"] += 1
        elif name in self.of_mlx | self.listed[LIBCXX]:
            self.bound["libc++ (MLX's own library takes them too)"] += 1
        else:
            self.say(image, f"imports {name}, which no library exports")


def expanded(path: str, image: Image, program: Image) -> str:
    """A path without the names that stand for the folders of the loading file and of the program."""
    return path.replace("@loader_path", str(image.path.parent)).replace(
        "@executable_path", str(program.path.parent)
    )


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@dataclass
class Control:
    """Copies of which one is broken, and what the check has to say about it. Without `expected` none is broken."""

    what: str
    expected: str | None
    program: Image
    replaced: dict[Path, Path]

    def passes(self, macos: tuple[int, ...]) -> bool:
        checker = Checker(macos, self.replaced)
        checker.check([self.program])
        if self.expected is None:
            return not checker.problems
        return any(self.expected in problem for problem in checker.problems)


def changed_copy(file: Path, to: Path, old: str, new: str) -> Path:
    """A copy with another name of the same length in it. Longer names that contain it stay."""
    contents = file.read_bytes()
    changed, count = re.subn(rb"(?<!\w)" + re.escape(old.encode()) + rb"\0", new.encode() + b"\0", contents)
    if not count or len(changed) != len(contents):
        raise ValueError(f"{file} has no {old} that can become {new}")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(changed)
    return to


def rewritten_copy(file: Path, to: Path, change) -> Path:
    binary = mac_sdk.read(file)
    change(binary)
    to.parent.mkdir(parents=True, exist_ok=True)
    binary.write(str(to))
    return to


def other_name(name: str) -> str:
    """A name of the same length that nothing has."""
    return name[:-1] + ("y" if name.endswith("x") else "x")


def imports_of(image: Image, library: Image) -> list[str]:
    return sorted(name for name, source in image.imports if source == library.install_name)


def controls_of_program(program: Image, mlxc: Image, folder: Path) -> list[Control]:
    symbol = imports_of(program, mlxc)[0]
    missing = changed_copy(program.path, folder / "missing", symbol, other_name(symbol))
    unsigned = rewritten_copy(program.path, folder / "unsigned", lambda binary: binary.remove_signature())

    def for_macos_99(binary):
        binary.build_version.minos = [99, 0, 0]

    newer = rewritten_copy(program.path, folder / "newer", for_macos_99)
    cases = [
        ("a program that imports what no library exports", f"imports {other_name(symbol)}, ", missing),
        ("a program that was changed after it was signed", "has a code signature that does not fit", missing),
        ("a program without a signature", "has no code signature", unsigned),
        ("a program for a newer macOS", "needs macOS 99", newer),
    ]
    return [Control(what, said, read_image(program.path, copy), {}) for what, said, copy in cases]


def controls_of_libraries(program: Image, mlxc: Image, mlx: Image, folder: Path) -> list[Control]:
    def changed(place: str, old: str, new: str) -> dict[Path, Path]:
        return {mlxc.path: changed_copy(mlxc.path, folder / place / "libmlxc.dylib", old, new)}

    symbol = imports_of(mlxc, mlx)[0]
    wrong = other_name(mlxc.install_name)
    alone = folder / "alone/libmlx.dylib"
    alone.parent.mkdir(parents=True, exist_ok=True)
    alone.unlink(missing_ok=True)
    alone.symlink_to(mlx.path)
    name = f"the install name is {wrong}"
    rpath = mlxc.rpaths[0]
    return [
        Control("unchanged copies", None, program, changed("same", symbol, symbol)),
        Control(
            "libmlxc.dylib that imports what MLX does not export",
            f"imports {other_name(symbol)}, ",
            program,
            changed("symbol", symbol, other_name(symbol)),
        ),
        Control(
            "libmlxc.dylib with another install name", name, program, changed("name", mlxc.install_name, wrong)
        ),
        Control(
            "libmlxc.dylib with another rpath",
            "loads @rpath/libmlx.dylib, which is not found",
            program,
            changed("rpath", rpath, other_name(rpath)),
        ),
        Control("libmlx.dylib without its Metal kernels", "has no Metal kernels", program, {mlx.path: alone}),
    ]


def run_controls(images: list[Image], libraries: dict[Path, Image], folder: Path, macos) -> tuple[int, int]:
    """Returns how many controls passed, and how many there are."""
    by_name = {path.name: image for path, image in libraries.items()}
    mlxc, mlx = by_name["libmlxc.dylib"], by_name["libmlx.dylib"]
    users = [image for image in images if imports_of(image, mlxc)]
    program = min(users, key=lambda image: image.path.stat().st_size)
    controls = controls_of_program(program, mlxc, folder)
    controls += controls_of_libraries(program, mlxc, mlx, folder)
    passed = 0
    for control in controls:
        is_right = control.passes(macos)
        passed += is_right
        verdict = "accepted" if control.expected is None else "refused"
        print(f"  control: {control.what}: {verdict if is_right else 'NOT ' + verdict}")
    return passed, len(controls)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check programs for Macs, and the libraries that they load.")
    parser.add_argument("--macos", required=True, help="the oldest macOS on which the files have to run")
    parser.add_argument("--controls", type=Path, help="break copies in this folder, and check that each is noticed")
    parser.add_argument("programs", nargs="+", type=Path)
    arguments = parser.parse_args()
    macos = tuple(int(number) for number in arguments.macos.split("."))
    macos += (0,) * (3 - len(macos))

    with ProcessPoolExecutor() as pool:
        images = list(pool.map(read_image, arguments.programs))
    checker = Checker(macos)
    checker.check(images)
    for problem in checker.problems:
        print(f"  {problem}")
    libraries = sorted(path.name for path in checker.libraries)
    print(f"{len(images)} programs and the libraries {', '.join(libraries)}, for macOS {dotted(macos)} and newer")
    for source, count in checker.bound.most_common():
        print(f"  {count:7} imports found in {source}")
    for source, count in checker.unchecked.most_common():
        print(f"  {count:7} imports of MLX's own libraries not checked, since {source} is not here")

    # Files that are wrong already cannot show what a change does.
    passed, controls = (0, 0)
    if arguments.controls and not checker.problems:
        passed, controls = run_controls(images, checker.libraries, arguments.controls, macos)
    bound, unchecked = checker.bound.total(), checker.unchecked.total()
    judged = f"; {passed} of {controls} controls as they have to be" if arguments.controls else ""
    print(
        f"{len(images) + len(libraries)} files: {bound} imports found, {unchecked} not checked, "
        f"{len(checker.problems)} problems{judged}"
    )
    is_right = passed == controls and bool(controls) == bool(arguments.controls)
    return 0 if not checker.problems and is_right else 1


if __name__ == "__main__":
    sys.exit(main())
