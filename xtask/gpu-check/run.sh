#!/bin/sh
# Checks this build of mlx-models on the NVIDIA GPU of this machine. Needs no network and no compiler.
#
#   ./run.sh [--device gpu|cpu] [--model DIR] [--python PROGRAM]
#
#   --device cpu      run the same checks on the CPU
#   --model DIR       measure the speed of the checkpoint in this folder, too
#   --python PROGRAM  a Python that has mlx-lm, whose speed is measured beside ours (default: python3 with the folder python/
#                     of this one, if there is one)
#
# Writes report/report.txt. Ends with 0 if every check passed, with 1 if one failed, with 2 for a wrong argument, and with 3 if
# there is no GPU that can be used. A program that runs for more than 5 minutes is ended, and its check fails.

here=$(cd "$(dirname "$0")" && pwd) || exit 1
device=gpu
model=
python=
while [ $# -gt 0 ]; do
  case $1 in
    --device | --model | --python)
      [ $# -ge 2 ] || { echo "run.sh: $1 needs a value" >&2; exit 2; }
      ;;
  esac
  case $1 in
    --device) device=$2 ;;
    --model) model=$2 ;;
    --python) python=$2 ;;
    *) echo "run.sh: unknown argument $1" >&2; exit 2 ;;
  esac
  shift 2
done
case $device in
  gpu | cpu) ;;
  *) echo "run.sh: --device is gpu or cpu, not $device" >&2; exit 2 ;;
esac

report=$here/report
rm -rf "$report"
mkdir -p "$report" || exit 1
# The driver may be found by the machine's own path. Ours goes before it, so that no other cuDNN on it is taken.
machine_path=${LD_LIBRARY_PATH:-}
LD_LIBRARY_PATH=$here/lib:$here/lib/cuda/nvidia/cudnn/lib${machine_path:+:$machine_path}
export LD_LIBRARY_PATH
# Else a GPU rounds the inputs of float32 products to 10 bits.
MLX_ENABLE_TF32=0
export MLX_ENABLE_TF32
failed=0

say() {
  echo "$*" | tee -a "$report/report.txt"
}

# check NAME COMMAND...: runs a command, writes its output to report/NAME.txt and its last line to the report.
check() {
  name=$1
  shift
  "$@" >"$report/$name.txt" 2>&1
  status=$?
  last=$(tail -n 1 "$report/$name.txt")
  if [ "$status" = 0 ]; then
    say "passed  $name: $last"
  else
    say "FAILED  $name, status $status: $last"
    failed=1
  fi
}

# limited COMMAND...: ends the command after 5 minutes, with status 124, so that a GPU that hangs does not stop the report.
limited() {
  if command -v timeout >/dev/null; then
    timeout -k 10 300 "$@"
  else
    "$@"
  fi
}

mlx() {
  program=$1
  shift
  limited "$here/bin/$program" "$@"
}

say "device: $device"
say "machine: $(uname -srm), $(date -u +%Y-%m-%d)"
if command -v nvidia-smi >/dev/null; then
  say "GPU: $(limited nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | head -n 1)"
fi

MLX_MODELS_DEVICE=$device
export MLX_MODELS_DEVICE
if ! mlx mlx-models generate --prompt 'Once upon a time' --max-tokens 1 >"$report/start.txt" 2>&1; then
  say "the device $device cannot be used: $(cat "$report/start.txt")"
  # Other failures than these, such as a kernel that does not compile, are failures of the build.
  if grep -q 'models cannot run on a GPU, because' "$report/start.txt" &&
    ! grep -q 'library for NVIDIA GPUs cannot be loaded' "$report/start.txt"; then
    exit 3
  fi
  exit 1
fi

# Models in float32, and rotations. docs/parity.md states the tolerances.
for cases in _f32 hf_ rope_; do
  name=parity-$(echo "$cases" | tr -d _)
  check "$name" mlx mlx-lab parity --cases "$here/cases" --filter "$cases" --json "$report/$name.json"
done

# The demo models say on this device what they say on the CPU. `check` calls these functions.
# shellcheck disable=SC2329
greedy() (
  # In a subshell, since some shells keep a variable that is set for the call of a function.
  MLX_MODELS_DEVICE=$1
  for prompt in 'Once upon a time' 'The sun was' 'Tom and Mia'; do
    mlx mlx-models generate --model "demo:$2" --prompt "$prompt" --max-tokens 100 --ignore-eos \
      --verbose false || exit 1
  done
)
# shellcheck disable=SC2329
same_text() {
  greedy "$device" "$1" >"$report/$1-$device.txt" && greedy cpu "$1" >"$report/$1-cpu.txt" &&
    cmp "$report/$1-$device.txt" "$report/$1-cpu.txt" && echo '3 texts of 100 tokens are equal'
}
for demo in gemma3 lille-130m olmo3 phi3; do
  check "demo-$demo" same_text "$demo"
done

# All other cases: half precision and quantized weights, which the reference computed on a CPU. For information.
mlx mlx-lab parity --cases "$here/cases" --json "$report/parity-all.json" >"$report/parity-all.txt" 2>&1
say "all cases, for information: $(tail -n 1 "$report/parity-all.txt")"

if [ -n "$model" ]; then
  unset MLX_ENABLE_TF32
  check speed mlx mlx-models bench --model "$model" --prompt-tokens 256 --gen-tokens 128 --repeats 3
  cat "$report/speed.txt" >>"$report/report.txt"
  if [ -z "$python" ] && [ -d "$here/python" ]; then
    python=python3
    PYTHONPATH=$here/python
    export PYTHONPATH
  fi
  if [ -n "$python" ]; then
    # Its MLX finds its own libraries.
    LD_LIBRARY_PATH=$machine_path
    [ -n "$machine_path" ] || unset LD_LIBRARY_PATH
    check speed-of-mlx-lm limited "$python" -m mlx_lm benchmark --model "$model" --prompt-tokens 256 --generation-tokens 128 \
      --num-trials 3
    cat "$report/speed-of-mlx-lm.txt" >>"$report/report.txt"
  else
    say "mlx-lm's speed: not measured, since there is no Python with mlx-lm (--python)"
  fi
fi

if [ "$failed" = 0 ]; then
  say "every check passed on the $device"
else
  say "a check failed on the $device"
fi
exit "$failed"
