#!/bin/sh
# Unpacks the archive and runs the program, from several folders.
set -eu
# shellcheck source=/dev/null
. /try/try-common.sh

mkdir /opt/here
tar xzf /try/archive.tar.gz -C /opt/here
top=$(echo /opt/here/mlx-models-*)
generates "archive" "$top/bin/mlx-models"

mkdir "/opt/a folder, elsewhere"
mv "$top" "/opt/a folder, elsewhere/renamed"
cd "/opt/a folder, elsewhere/renamed/share"
generates "archive, moved and called by a relative path" ../bin/mlx-models

cd /
ln -s "/opt/a folder, elsewhere/renamed/bin/mlx-models" /usr/local/bin/mlx-models
generates "archive, called through a link" mlx-models

# Libraries of the same names elsewhere do not disturb the program.
mkdir /opt/other
for library in libmlxc.so libmlx_kernels.so libmlx.so; do
  echo "no library" >"/opt/other/$library"
done
LD_LIBRARY_PATH=/opt/other mlx-models --version >/dev/null || fail "LD_LIBRARY_PATH comes before the archive's libraries"

cd "/opt/a folder, elsewhere/renamed"
for file in README.md LICENSE-MIT LICENSE-APACHE licences/mlx.txt licences/rust-crates.txt; do
  [ -s "$file" ] || fail "$file is missing"
done
bash -n share/bash-completion/completions/mlx-models || fail "completions for bash"
grep -q '^\.TH' share/man/man1/mlx-models.1 || fail "the manual page"
[ -z "$(find . -type f -newermt 1980-01-02)" ] || fail "a file has another date"
