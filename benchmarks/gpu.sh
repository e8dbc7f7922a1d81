#!/usr/bin/env bash
# Measure everything that needs a GPU, in about ten minutes: benchmarks/gpu.sh [--minutes 10] [--output DIR] [--data DIR]
# It needs python3 with torch, timm, scipy and safetensors, and no network; other packages come from a folder of wheels,
# which `benchmarks/gpu.sh --pack DIR` fills on a machine with network. See docs/benchmarks.md and --help.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH="$root/src:$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
