"""Starts the program mlx-models, which lies in this package. There is nothing to import."""

import os
import sys

MLX = "MLX_PACKAGE"


def library_folder():
    """The folder of MLX's library where it is not beside this package, else None.

    pip may install the two packages in different folders, for example this one for a user and MLX for all users.
    """
    name = "libmlx.dylib" if sys.platform == "darwin" else "libmlx.so"
    # The program looks beside its real place, also where an installer has made links to the files.
    packages = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(program()))))
    if os.path.exists(os.path.join(packages, "mlx", "lib", name)):
        return None
    # Here, since it takes longer to load than everything else.
    from importlib.metadata import PackageNotFoundError, files

    try:
        for file in files(MLX) or []:
            if file.name == name:
                return os.path.dirname(os.path.realpath(file.locate()))
    except PackageNotFoundError:
        pass
    sys.exit(f"mlx-models: the package {MLX} is missing; install mlx-models again with pip")


def program():
    """The path of the program."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "mlx-models")


def main():
    """Replaces this process by the program."""
    folder = library_folder()
    if folder:
        name = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
        os.environ[name] = os.pathsep.join(filter(None, [folder, os.environ.get(name)]))
    os.execv(program(), ["mlx-models", *sys.argv[1:]])
