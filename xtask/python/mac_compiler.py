"""A compiler of C and C++ for Macs: zig, made to behave as Apple's compiler does.

`cargo xtask apple` names it in CC and CXX, and zig's archiver in AR and RANLIB, so build scripts run it. SDKROOT names the
folder that mac_sdk.py made.

    python mac_compiler.py cc|c++|ar|ranlib ARGUMENTS
"""

import os
import sys
from pathlib import Path

import ziglang

# zig has its own names for the target and its own SDK; it refuses these options, or ignores them with a warning.
REFUSED = ("--target=", "-mmacosx-version-min=", "-mmacos-version-min=")
REFUSED_WITH_VALUE = ("-arch", "-isysroot", "-target")

# libc++ of zig assumes the newest macOS; with this it keeps to what the oldest supported one has. Apple's compiler calls
# no `operator delete` with a size. MLX's headers use functions of <cmath> that another header of Apple's libc++ brings.
CXX = [
    "-U_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS",
    "-D_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=1",
    "-fno-sized-deallocation",
    "-include",
    "cmath",
]


def without_refused(arguments: list[str]) -> list[str]:
    kept = []
    given = iter(arguments)
    for argument in given:
        if argument in REFUSED_WITH_VALUE:
            next(given, None)
        elif not argument.startswith(REFUSED):
            kept.append(argument)
    return kept


def folders_of_libraries(arguments: list[str]) -> list[Path]:
    after = [second for first, second in zip(arguments, arguments[1:]) if first == "-L"]
    return [Path(folder) for folder in after + [a[2:] for a in arguments if a.startswith("-L") and a != "-L"]]


def linking_with_libcxx(arguments: list[str], sdk: Path) -> list[str]:
    """zig would put its own libc++ into the library. Macs have one, which MLX uses too."""
    # Here, since it loads LIEF, which takes longer than compiling a small file.
    import mac_sdk

    symbols = set(mac_sdk.LIBCXX_SYMBOLS)
    for folder in folders_of_libraries(arguments):
        if (folder / "libmlx.dylib").is_file():
            symbols |= mac_sdk.libcxx_symbols_of(folder / "libmlx.dylib")
    mac_sdk.write(sdk / "usr/lib/libc++.1.tbd", mac_sdk.stub(mac_sdk.LIBCXX, symbols))
    # zig takes `-lc++` for its own.
    return ["-nostdlib++", *arguments, f"-L{sdk / 'usr/lib'}", "-lc++.1"]


def compiling(language: str, arguments: list[str]) -> list[str]:
    sdk = Path(os.environ.pop("SDKROOT"))
    macos = os.environ.get("MACOSX_DEPLOYMENT_TARGET") or "14.0"
    # With more arguments, zig leaves an empty file in the working directory.
    if "--version" in arguments:
        return ["--version"]
    arguments = without_refused(arguments)
    if language == "c++":
        if any(argument in ("-c", "-E", "-S", "-fsyntax-only") for argument in arguments):
            # Build scripts have the compiler read a C file to see which one it is.
            is_c = any(argument.endswith(".c") for argument in arguments)
            arguments = arguments if is_c else [*CXX, *arguments]
        elif "-o" in arguments:
            arguments = linking_with_libcxx(arguments, sdk)
    # Without the checks that zig adds by default, which need its own library.
    return ["-target", f"aarch64-macos.{macos}", "-fno-sanitize=all", *arguments]


def main() -> None:
    name, *arguments = sys.argv[1:]
    zig = str(Path(ziglang.__file__).parent / "zig")
    if name in ("cc", "c++"):
        arguments = compiling(name, arguments)
    os.execv(zig, [zig, name, *arguments])


if __name__ == "__main__":
    main()
