#!/bin/sh
# Installs the wheel in each way that there is, and runs the program.
set -eu
# shellcheck source=/dev/null
. /try/try-common.sh

export PIP_NO_INDEX=1 PIP_FIND_LINKS=/try/wheels PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Debian 12 lets pip install packages outside of a virtual environment only if it is asked to.
export PIP_BREAK_SYSTEM_PACKAGES=1

# pip, without its warnings that it runs as root.
pip() {
  python3 -m pip "$@" 2>/tmp/pip || fail "pip $*: $(cat /tmp/pip)"
}

python3 -m venv /opt/venv
/opt/venv/bin/pip install mlx-models
generates "wheel in a virtual environment" /opt/venv/bin/mlx-models
generates "wheel, called as a module" /opt/venv/bin/python -m mlx_models
du -sm /opt/venv/lib/python3*/site-packages/mlx* | sed 's/^/  MB: /'
# The process of Python becomes the program, so exit status and signals are those of the program.
status=0
/opt/venv/bin/mlx-models --no-such-option 2>/dev/null || status=$?
[ "$status" = 2 ] || fail "the exit status is $status"

pip install --user mlx-models
generates "wheel for a user" "$HOME/.local/bin/mlx-models"
pip uninstall --yes mlx-models mlx-cpu

pip install --target /opt/target mlx-models
generates "wheel in a folder" env PYTHONPATH=/opt/target python3 -m mlx_models
generates "wheel in a folder, without Python" /opt/target/mlx_models/bin/mlx-models

pip install mlx-cpu
pip install --user mlx-models
[ -z "$(find "$HOME/.local" -name libmlx.so)" ] || fail "MLX is installed for the user too"
generates "wheel for a user, MLX for all users" "$HOME/.local/bin/mlx-models"
pip uninstall --yes mlx-models

pip install mlx-models
generates "wheel for all users" mlx-models
# Without MLX there is one sentence.
pip uninstall --yes mlx-cpu
if said=$(mlx-models --version 2>&1); then fail "the program runs without MLX"; fi
[ "$said" = "mlx-models: the package mlx-cpu is missing; install mlx-models again with pip" ] || fail "the message is: $said"
pip uninstall --yes mlx-models

generates "uvx" /try/uvx --quiet --offline --no-index --find-links /try/wheels mlx-models
generates "uvx with links" /try/uvx --quiet --offline --no-index --link-mode symlink --cache-dir /tmp/links \
  --find-links /try/wheels mlx-models
