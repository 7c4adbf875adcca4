#!/bin/sh
# Everything that wants a GPU, in under nine minutes, on one card, without a network; one table comes last.
#
#   sh benchmarks/gpu.sh [--nanogpt DIR]      PYTHON=python3.12 chooses the interpreter
#
# Needs torch 2.11 or newer and numpy; nothing has to be installed of Overnight's own.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$here/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
began=$(date +%s)
if "$python" -c 'import pytest, hypothesis, tyro, xdist' 2>/dev/null; then
  timeout 180 "$python" -m pytest -q -n 6 "$here/tests/test_cuda.py"  # 76 s on an H200
else
  echo "tests/test_cuda.py: not run, pytest, pytest-xdist, hypothesis or tyro is not installed"
fi
spent=$(( $(date +%s) - began ))
exec "$python" "$here/benchmarks/gpu.py" --minutes "$(( (510 - spent) / 60 ))" "$@"
