#!/bin/sh
# What all trials share. It is read by the other scripts, inside of a root file system.
set -eu

fail() {
  echo "trial: $*" >&2
  exit 1
}

# The archive must need nothing of this.
for program in cc c++ gcc clang rustc cargo cmake; do
  ! command -v "$program" >/dev/null || fail "this system has $program"
done
[ ! -e "$HOME/.mlx" ] || fail "this system has ~/.mlx"
# Without a network there is only the loopback device, which is off.
[ "$(grep -c : /proc/net/dev)" = 1 ] || fail "this system has a network"

# generates NAME COMMAND...: the command is a program mlx-models, which has to generate, chat and convert.
generates() {
  name=$1
  shift
  "$@" --version | grep -q '^mlx-models ' || fail "$name: --version"
  text=$("$@" generate --prompt "Once upon a time" --max-tokens 20 2>/dev/null)
  [ ${#text} -gt 20 ] || fail "$name: generate printed \"$text\""
  for demo in gemma3 lille-130m olmo3 phi3; do
    [ -n "$("$@" generate --model "demo:$demo" --prompt "Once upon a time" --max-tokens 20 2>/dev/null)" ] || fail "$name: $demo"
  done
  text=$(printf 'Hello\nAnd then?\n' | "$@" chat --max-tokens 20 2>/dev/null)
  [ ${#text} -gt 20 ] || fail "$name: chat printed \"$text\""
  rm -rf /tmp/converted
  "$@" convert --model demo:olmo3 --out /tmp/converted --quantize --bits 4 >/dev/null 2>&1 || fail "$name: convert"
  [ -n "$("$@" generate --model /tmp/converted --prompt "Once upon a time" --max-tokens 20 2>/dev/null)" ] ||
    fail "$name: generate with the converted model"
  echo "$name: generate, chat and convert work"
}
