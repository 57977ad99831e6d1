"""What linking for a Mac needs of macOS: stubs that say which library has which symbol.

Apple's SDK may not be copied. zig has a stub of libSystem. For the other libraries, this module lists the symbols that
our programs use. A symbol that is missing here is an error of the linker, so that a person looks whether macOS 14 has it.

    python mac_sdk.py FOLDER      # makes the folder that SDKROOT has to name
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import lief
import ziglang

lief.logging.disable()

# In place of a library: the symbol of whichever library has it first.
WEAK = -3
CLASS = lief.MachO.DyldBindingInfo.CLASS

LIBSYSTEM = "/usr/lib/libSystem.B.dylib"
LIBCXX = "/usr/lib/libc++.1.dylib"

# Symbols that mlx-c takes from libc++ beside those that MLX's own library takes. The headers of libc++ know since when
# macOS has a symbol, and the compiler refuses what is newer than the macOS that is built for.
STREAM = "NSt3__113basic_ostreamIcNS_11char_traitsIcEEE"
BUFFER = "NSt3__115basic_streambufIcNS_11char_traitsIcEEE"
LIBCXX_SYMBOLS = [
    f"__Z{STREAM}D0Ev",
    f"__Z{STREAM}D1Ev",
    f"__ZTI{STREAM}E",
    f"__ZTv0_n24_{STREAM}D0Ev",
    f"__ZTv0_n24_{STREAM}D1Ev",
    f"__ZTI{BUFFER}E",
    f"__Z{BUFFER}5imbueERKNS_6localeE",
    f"__Z{BUFFER}5uflowEv",
    f"__Z{BUFFER}6setbufEPcl",
    f"__Z{BUFFER}6xsgetnEPcl",
    f"__Z{BUFFER}7seekoffExNS_8ios_base7seekdirEj",
    f"__Z{BUFFER}7seekposENS_4fposI11__mbstate_tEEj",
    f"__Z{BUFFER}9pbackfailEi",
    f"__Z{BUFFER}9showmanycEv",
    f"__Z{BUFFER}9underflowEv",
    "__ZNSt3__16localeaSERKS0_",
    "__ZNKSt9exception4whatEv",
    # std::format of a number; since macOS 13.3.
    *(
        f"__ZNSt3__18to_charsEPcS0_{number}{form}"
        for number in "fde"
        for form in ("", "NS_12chars_formatE", "NS_12chars_formatEi")
    ),
]

# The functions of the Objective-C runtime that the crate objc2 calls, which ctrlc depends on.
OBJC_FUNCTIONS = """
class_addIvar class_addMethod class_copyIvarList class_copyMethodList class_copyProtocolList class_getClassMethod
class_getInstanceMethod class_getInstanceVariable class_getName class_getSuperclass class_isMetaClass
class_respondsToSelector ivar_getName ivar_getOffset ivar_getTypeEncoding method_copyArgumentType method_copyReturnType
method_getImplementation method_getName method_getTypeEncoding method_setImplementation objc_autoreleasePoolPop
objc_autoreleasePoolPush objc_copyClassList objc_copyProtocolList objc_getClass objc_getProtocol objc_msgSend
objc_registerProtocol objc_release objc_retain objc_retainAutoreleasedReturnValue object_getClass
protocol_addMethodDescription protocol_addProtocol protocol_copyMethodDescriptionList protocol_copyProtocolList
protocol_getName sel_getName sel_registerName
""".split()

# The other libraries of macOS that our programs name, each with its file in the SDK and the symbols that are used.
STUBS = {
    "/usr/lib/libobjc.A.dylib": ("usr/lib/libobjc.tbd", [f"_{name}" for name in OBJC_FUNCTIONS]),
    # objc2 links it so that its classes are there at run time.
    "/System/Library/Frameworks/Foundation.framework/Versions/C/Foundation": (
        "System/Library/Frameworks/Foundation.framework/Foundation.tbd",
        [],
    ),
}


def stub(install_name: str, symbols) -> str:
    """A text-based stub library, as linkers for macOS read it."""
    targets = "[ arm64-macos, arm64e-macos ]"
    names = ", ".join(f"'{symbol}'" for symbol in sorted(symbols))
    return (
        f"--- !tapi-tbd\ntbd-version: 4\ntargets: {targets}\ninstall-name: '{install_name}'\n"
        f"exports:\n  - targets: {targets}\n    symbols: [ {names} ]\n...\n"
    )


def stub_symbols(text: str) -> set[str]:
    """The symbols that a stub has for arm64, together with those of the libraries that it contains."""
    found = set()
    # A section goes on as long as its lines are indented.
    for section in re.findall(r"^(?:re)?exports:\n((?:[ \t].*\n|\n)*)", text + "\n", re.MULTILINE):
        for part in re.split(r"^  - ", section, flags=re.MULTILINE):
            targets = re.search(r"targets:\s*\[([^\]]*)\]", part)
            if targets is None or not re.search(r"\barm64e?-macos\b", targets[1]):
                continue
            for names in re.findall(r"\b(?:weak-|thread-local-)?symbols:\s*\[([^\]]*)\]", part):
                found.update(name.strip().strip("'\"") for name in names.split(","))
    return {name for name in found if name and not name.startswith("$ld$")}


def zig_libsystem() -> Path:
    return Path(ziglang.__file__).parent / "lib/libc/darwin/libSystem.tbd"


def read(file: Path) -> lief.MachO.Binary:
    """A Mach-O file, of which there must be one for arm64."""
    binaries = lief.MachO.parse(str(file))
    # Taken out of its container, which otherwise frees it.
    binary = binaries and binaries.take(lief.MachO.Header.CPU_TYPE.ARM64)
    if not binary:
        raise ValueError(f"{file} is no Mach-O file for arm64")
    return binary


def imports(binary: lief.MachO.Binary) -> set[tuple[str, str | int]]:
    """Each imported symbol with the library that has to have it, or the number (0 or less) of a special rule.

    Both places are read: what the dynamic linker binds, and the undefined symbols of the symbol table.
    """
    libraries = [
        library.name
        for library in binary.libraries
        if library.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB
    ]

    def library(number: int) -> str | int:
        # The symbol table has eight bits for the number.
        number = number - 256 if number >= 253 else number
        return libraries[number - 1] if 0 < number <= len(libraries) else number

    found = set()
    for binding in binary.bindings:
        if binding.has_symbol:
            # Older files list weak definitions in a table of their own, without a library.
            weak = isinstance(binding, lief.MachO.DyldBindingInfo) and binding.binding_class == CLASS.WEAK
            found.add((binding.symbol.name, WEAK if weak else library(binding.library_ordinal)))
    for symbol in binary.symbols:
        # External, of no section, and not of the debugger.
        if symbol.raw_type & 0xEF == 0x01 and symbol.name:
            found.add((symbol.name, library(symbol.library_ordinal)))
    return found


def definitions(binary: lief.MachO.Binary) -> set[str]:
    """The symbols that a file defines, whether other files may see them or not."""
    return {symbol.name for symbol in binary.symbols if symbol.raw_type & 0xEE == 0x0E}


def libcxx_symbols_of(file: Path) -> set[str]:
    """The symbols that a library takes from libc++. If Apple's linker made it, libc++ has them."""
    return {name for name, library in imports(read(file)) if library in (LIBCXX, WEAK)}


def write(file: Path, text: str) -> None:
    """Writes a file at once: another compiler may read it at this moment."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
        temporary.write(text)
    os.replace(temporary.name, file)


def main() -> None:
    (folder,) = map(Path, sys.argv[1:])
    write(folder / "usr/lib/libSystem.tbd", zig_libsystem().read_text())
    for install_name, (file, symbols) in STUBS.items():
        write(folder / file, stub(install_name, symbols))


if __name__ == "__main__":
    main()
