#!/usr/bin/env bash
# Everything that benchmarks/README.md reports of a GPU, in one run of about eight minutes:
#
#   OUT=results benchmarks/run_gpu.sh                 python3 has pinstream[server,gpu,bench], TensorRT and PyTorch
#   PARTS="limits compare" OUT=results benchmarks/run_gpu.sh
#
# A part that fails or takes too long is said and left out; what is there so far is kept, in $OUT/bench-gpu.tar.gz too.
# WORK keeps what is built between two runs. LENGTH is that of the windows: 1 for figures to report, 0.5 to try things.
set -uo pipefail
cd "$(dirname "$0")/.."
PARTS=${PARTS:-limits compare ensemble sweep timeline startup}
OUT=${OUT:-benchmarks/results/gpu}; WORK=${WORK:-/tmp/pinstream-bench-gpu}; LENGTH=${LENGTH:-1}
REPETITIONS=${REPETITIONS:-3}; INSTANCES=${INSTANCES:-4}; SIZES=${SIZES:-320 960 1280}
export PYTHONPATH=$PWD:$PWD/backend:$PWD/client:$PWD/cli:$PWD/model_repository/yolox/1${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 XDG_CACHE_HOME=${XDG_CACHE_HOME:-$WORK/cache} TORCHINDUCTOR_CACHE_DIR=$WORK/inductor
OUT=$(mkdir -p "$OUT" && cd "$OUT" && pwd); GPU=$OUT/gpu; mkdir -p "$WORK" "$GPU/logs"
bench() { python3 -m pinstream_cli bench "$@"; }
window() { python3 -c "print($1 * $LENGTH)"; }
keep() { tar -C "$OUT" -czf "$OUT/bench-gpu.tar.gz" gpu; }

part() { # NAME SECONDS COMMAND...: run it, at most so long, and go on whatever becomes of it
  local name=$1 limit=$2 began=$SECONDS code; shift 2
  timeout -k 20 -s INT "$limit" "$@" > "$GPU/logs/$name.log" 2>&1; code=$?
  echo "== $name: $((SECONDS - began)) s$([ $code = 0 ] || echo ", FAILED with code $code")"
  tail -n "${TAIL:-30}" "$GPU/logs/$name.log" | cut -c1-180
  keep
}
wants() { case " $PARTS " in *" $1 "*) ;; *) false ;; esac }

export_model() { # SIZE
  [ -f "$WORK/m$1.onnx" ] || python3 -m training.export_random --model m --size "$1" --out "$WORK/m$1.onnx"
}
plans() { # SIZE BATCH-SIZES
  [ -d "$WORK/plans$1" ] && return
  export_model "$1" && bench_build "$1" "$2" "$WORK/building$1" && mv "$WORK/building$1" "$WORK/plans$1"
}
bench_build() { python3 -m pinstream_cli build "$WORK/m$1.onnx" -o "$3" --plan --precision fp16 --batch-sizes "$2"; }
classic() {
  [ -d "$WORK/classic" ] || { python3 -m benchmarks.peers.classic.build --out "$WORK/building" && mv "$WORK/building" "$WORK/classic"; }
}
peers() { # builds the peers side by side
  classic & local first=$!
  python3 -m benchmarks.peers.torch.network & local second=$!
  wait $first; local code=$?
  wait $second && return $code
}
repository() { # the detector with as many instances as asked for
  local model=$WORK/models/detector; mkdir -p "$model/1"; cp -un "$WORK"/plans640/* "$model/1/"
  printf 'backend: "pinstream"\nmax_batch_size: 32\ndynamic_batching { }\ninstance_group [ { count: %s } ]\n' \
    "$INSTANCES" > "$model/config.pbtxt"
}
export -f export_model plans bench_build classic peers repository bench
export WORK INSTANCES

# Building needs the CPU, measuring wants it for itself: everything is built first, side by side.
part plans 200 bash -c plans\ 640\ 1,4,8,16,32 & pids=$!
wants compare && { part peers 200 bash -c peers & pids="$pids $!"; }
if wants sweep; then for size in $SIZES; do part "plans$size" 200 bash -c "plans $size 1,8,32" & pids="$pids $!"; done; fi
wait $pids; repository
common=(--foreign 1 --reference-window 0.4 --repetitions "$REPETITIONS")
plots=(); [ "${PLOTS:-yes}" = yes ] && plots=(--plot "$GPU/plots")
model=(--model-repository "$WORK/models" --name detector)

wants limits && part limits 60 python3 -m benchmarks.limits --out "$GPU/limits.json"
if wants compare; then
  there=(); [ -d "$WORK/classic" ] && there=(--peer "$WORK/classic")
  part compare 330 bench compare "${model[@]}" --peer empty --peer torch "${there[@]}" --batch 1,8 \
    --concurrency "${CONCURRENCY:-1,8,32,64,128,256}" "${common[@]}" --window "$(window 1.0)" \
    --keep-raw "$GPU/raw/compare" --json "$GPU/compare.json" "${plots[@]}"
fi
if wants ensemble; then
  python3 -m benchmarks.pictures --out "$WORK/pictures" 2>&1 | tail -2
  images=(); for file in "$WORK"/pictures/*.jpg; do images+=(--image "$file"); done
  part ensemble 110 bench ensemble --model "$WORK/plans640" "${images[@]}" --batch 1,8 --concurrency 1,16,64 \
    "${common[@]}" --window "$(window 1.5)" --json "$GPU/ensemble.json" "${plots[@]}"
fi
if wants sweep; then
  also=(); for size in $SIZES; do [ -d "$WORK/plans$size" ] && also+=(--also "$WORK/plans$size"); done
  part sweep 150 bench sweep "${model[@]}" "${also[@]}" --concurrency 1,2,4,8,16,32,64,128,256 --batch 1,2,4,8,16,32 \
    "${common[@]}" --window "$(window 0.8)" --json "$GPU/sweep.json" "${plots[@]}"
fi
wants timeline && part timeline 60 bench timeline "${model[@]}" --concurrency 128 --out "$GPU/timeline"
wants startup && part startup 90 python3 benchmarks/startup.py "$WORK/plans640" --out "$GPU/startup.json" --repetitions 2
keep
echo "== all: $SECONDS s; $OUT/bench-gpu.tar.gz"
