#!/bin/sh
# On a system that is too old, the dynamic linker has to say what is missing.
set -eu
# shellcheck source=/dev/null
. /try/try-common.sh

mkdir /opt/here
tar xzf /try/archive.tar.gz -C /opt/here
program=$(echo /opt/here/mlx-models-*/bin/mlx-models)
if "$program" --version >/tmp/said 2>&1; then
  fail "the program runs, although the system is too old"
fi
grep "GLIBC_2.35' not found" /tmp/said || fail "the message is: $(cat /tmp/said)"

wheel=$(echo /try/wheels/mlx_models-*)
if pip3 install --no-index --find-links /try/wheels "$wheel" >/tmp/said 2>&1; then
  fail "pip installs the wheel, although the system is too old"
fi
grep "is not a supported wheel on this platform" /tmp/said || fail "the message is: $(cat /tmp/said)"
