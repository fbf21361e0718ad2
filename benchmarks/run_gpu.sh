#!/usr/bin/env bash
# Everything that benchmarks/README.md reports of a GPU, in one run of half an hour:
#
#   OUT=results benchmarks/run_gpu.sh        python3 on PATH has pinstream[server,gpu,bench], TensorRT and PyTorch
#
# PARTS        what is measured, in this order (all of them):
#              limits compare timeline latency decoding ensemble sweep startup; none to build only
# OUT          where bench-gpu.tar.gz goes (build)
# WORK         where models are built and kept for the next run (build/bench-gpu)
# LIMIT        seconds for all of it (what building and the parts may take together, 1950 with all of them);
#              a part gets what is left, and is left out where that is too little
# COMPARE_LIMIT, LATENCY_LIMIT, ENSEMBLE_LIMIT, SWEEP_LIMIT
#              seconds for these parts (400, 130 for each of two, 250, 350), each with a server's start and end
# LENGTH       of the windows (1); 0.5 to try things
# REPETITIONS  windows of each row (3), of which the sweep has two
# CONCURRENCY  of the comparison (1,8,32,64,128,256)
# INSTANCES    of the detector (8), each with EXECUTIONS (4)
# SIZES        image sides of the sweep beside 640 (320 1280)
# BATCH_US     what a batch of one takes the GPU, for the model that only waits as long (930, an H100)
# TAIL         lines of each part's output that are shown (40); all of it is in results/gpu/logs of WORK
#
# A part that fails is said and left out. What is there so far is in $OUT/bench-gpu.tar.gz after each part: unpack it
# into benchmarks/results. gpu/raw.tar.gz in it has what perf_analyzer wrote of every window.
set -uo pipefail
cd "$(dirname "$0")/.."

PARTS=${PARTS:-limits compare timeline latency decoding ensemble sweep startup}
OUT=${OUT:-build}
WORK=${WORK:-build/bench-gpu}
GPU=$WORK/results/gpu
LENGTH=${LENGTH:-1}
REPETITIONS=${REPETITIONS:-3}
CONCURRENCY=${CONCURRENCY:-1,8,32,64,128,256}
INSTANCES=${INSTANCES:-8}
EXECUTIONS=${EXECUTIONS:-4}
SIZES=${SIZES-320 1280}
BATCH_US=${BATCH_US:-930}
export WORK PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD:$PWD/backend:$PWD/client:$PWD/cli:$PWD/model_repository/yolox/1${PYTHONPATH:+:$PYTHONPATH}
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$PWD/$WORK/cache} TORCHINDUCTOR_CACHE_DIR=$PWD/$WORK/inductor
bench="python3 -m pinstream_cli bench"

# Seconds that each part may take.
declare -A most=(
  [build]=300
  [limits]=60
  [compare]=${COMPARE_LIMIT:-400}
  [timeline]=45
  [latency]=${LATENCY_LIMIT:-130}
  [latency-awake]=${LATENCY_LIMIT:-130}
  [decoding]=140
  [ensemble]=${ENSEMBLE_LIMIT:-250}
  [sweep]=${SWEEP_LIMIT:-350}
  [startup]=120
)
together() { # PART...: seconds that these may take, with what lies between them
  local sum=25 name
  for name in "$@"; do
    sum=$((sum + ${most[$name]:-0}))
  done
  echo "$sum"
}
# shellcheck disable=SC2086 # several words
LIMIT=${LIMIT:-$(together build ${PARTS/latency/latency latency-awake})}

left() { echo $((LIMIT - SECONDS - 3)); }
least() { if [ "$1" -lt "$2" ]; then echo "$1"; else echo "$2"; fi }
window() { python3 -c "print(max(0.3, $1 * $LENGTH))"; }
wants() { case " $PARTS " in *" $1 "*) ;; *) false ;; esac }

lacking() { # what this machine has not, a line each
  nvidia-smi -L > /dev/null 2>&1 || echo "an NVIDIA GPU: nvidia-smi -L finds none"
  if ! python3 -c "import pinstream_cli.main" 2> /dev/null; then
    echo "what pinstream[server,gpu,bench] needs: $(command -v python3) cannot import it"
  elif ! python3 -c "from pinstream.engines.flavour import load_flavour; load_flavour()" 2> /dev/null; then
    echo "TensorRT: $(command -v python3) has neither tensorrt nor tensorrt_rtx"
  fi
  [ -d "$WORK/plans640" ] || python3 -c "import torch" 2> /dev/null ||
    echo "PyTorch, which makes the networks: $(command -v python3) cannot import torch"
}
missing=$(lacking)
if [ -n "$missing" ]; then
  echo "Nothing can be measured here. There is lacking:"
  sed 's/^/  /' <<< "$missing"
  exit 1
fi
mkdir -p "$OUT" "$WORK" "$GPU/logs"

forget() { # PART...: what a run before left of these in a kept WORK; it would be packed as if it were of this one
  local name
  for name in "$@"; do
    rm -rf "${GPU:?}/$name" "$GPU/$name.json" "$GPU"/{plots,raw}/"$name" "$GPU/logs/$name.log"
  done
  rm -f "$GPU/raw.tar.gz"
}
# shellcheck disable=SC2086 # several words
forget ${PARTS/latency/latency latency-awake}

part() { # NAME SECONDS COMMAND...: run it, at most so long, and go on whatever becomes of it
  local name=$1 limit began=$SECONDS code
  limit=$(least "$2" "$(left)")
  shift 2
  if [ "$limit" -lt 15 ]; then
    echo "== $name: left out, there is no time"
    return 1
  fi
  timeout -k 15 "$limit" "$@" > "$GPU/logs/$name.log" 2>&1
  code=$?
  echo "== $name: $((SECONDS - began)) s$([ $code = 0 ] || echo ", FAILED with code $code")"
  tail -n "${TAIL:-40}" "$GPU/logs/$name.log" | cut -c1-160
  return $code
}

measure() { # NAME STOP COMMAND...: a suite that is told to be done in time; a server takes STOP seconds to end
  local name=$1 stop=$2 limit
  limit=$(least "${most[$name]}" "$(left)")
  shift 2
  part "$name" "$limit" "$@" --plot "$GPU/plots/$name" --keep-raw "$GPU/raw/$name" --json "$GPU/$name.json" \
    --limit $((limit - stop > 1 ? limit - stop : 1))
  tar -C "$WORK/results" -czf "$OUT/.bench-gpu" gpu && mv "$OUT/.bench-gpu" "$OUT/bench-gpu.tar.gz"
}

plans() { # SIZE
  [ -d "$WORK/plans$1" ] && return
  if ! [ -f "$WORK/m$1.onnx" ]; then
    python3 -m training.export_random --model m --size "$1" --out "$WORK/m$1.onnx" || return
  fi
  python3 -m pinstream_cli build "$WORK/m$1.onnx" -o "$WORK/building$1" --plan --precision fp16 \
    --batch-sizes 1,2,4,8,12,16,24,32 && mv "$WORK/building$1" "$WORK/plans$1"
}
classic() {
  [ -d "$WORK/classic" ] && return
  python3 -m benchmarks.peers.classic.build --out "$WORK/building" && mv "$WORK/building" "$WORK/classic"
}
compiled() {
  [ -f "$WORK/compiled" ] && return
  python3 -m benchmarks.peers.torch.network && touch "$WORK/compiled"
}
export -f plans classic compiled

# Building needs the CPU, and measuring wants it for itself: everything is built first, side by side.
building=()
build() { # NAME COMMAND
  part "$1" "${most[build]}" bash -c "$2" &
  building+=($!)
}
build plans "plans 640"
if wants compare; then build classic classic; fi
if wants compare || wants latency; then build compiled compiled; fi
if wants sweep; then
  for size in $SIZES; do
    build "plans$size" "plans $size"
  done
fi
wait "${building[@]}"
if ! [ -d "$WORK/plans640" ]; then
  echo "no plans, so nothing can be measured; $GPU/logs/plans.log says why"
  exit 1
fi

detector() { # DIRECTORY INSTANCES MORE-CONFIGURATION
  rm -rf "$1"
  mkdir -p "$1/1"
  cp "$WORK"/plans640/* "$1/1/"
  printf 'backend: "pinstream"\nmax_batch_size: 32\ndynamic_batching { }\ninstance_group [ { count: %s } ]\n%s\n' \
    "$2" "$3" > "$1/config.pbtxt"
  [ "$2" = 1 ] || parameter "$1" EXECUTIONS "$EXECUTIONS"
}
parameter() { # DIRECTORY KEY VALUE
  printf 'parameters { key: "%s" value { string_value: "%s" } }\n' "$2" "$3" >> "$1/config.pbtxt"
}
detector "$WORK/models/detector" "$INSTANCES" ""
# The same with an engine and instances that look for what they wait for all the time.
looking='optimization { cuda { busy_wait_events: true } }'
detector "$WORK/peers/detector_looking" "$INSTANCES" "$looking"
model=(--model-repository "$WORK/models" --name detector)
# A GPU is nobody else's, and a loop on it needs no long windows.
quick=(--foreign 1 --reference-window 0.4)

if wants limits; then
  part limits "${most[limits]}" python3 -m benchmarks.limits --out "$GPU/limits.json"
fi
if wants compare; then
  peers=(--peer empty --peer "$WORK/peers/detector_looking")
  [ -d "$WORK/classic" ] && peers+=(--peer "$WORK/classic")
  [ -f "$WORK/compiled" ] && peers+=(--peer torch)
  measure compare 40 $bench compare "${model[@]}" "${peers[@]}" --batch 1,8 --concurrency "$CONCURRENCY" \
    "${quick[@]}" --repetitions "$REPETITIONS" --window "$(window 1.0)"
fi
if wants timeline; then
  part timeline "${most[timeline]}" $bench timeline "${model[@]}" --concurrency 128 --seconds 1 --out "$GPU/timeline"
fi
if wants latency; then
  # One request at a time: a single instance that looks for the GPU all the time, the detector as it is and with its
  # engine looking all the time as well, PyTorch, and an empty model that takes as long as a batch of one, the least
  # that any Python model can do; and all of them again where no core ever sleeps.
  # The single one has the batch of one alone: no other is run, and none need be measured bare.
  detector "$WORK/one/single" 1 "$looking"
  sed -i 's/^max_batch_size: 32/max_batch_size: 1/' "$WORK/one/single/config.pbtxt"
  parameter "$WORK/one/single" BUCKETS 1
  rm -rf "$WORK/peers/spinning"
  cp -r benchmarks/peers/empty "$WORK/peers/spinning"
  parameter "$WORK/peers/spinning" SPIN_US "$BATCH_US"
  one=(--model-repository "$WORK/one" --name single --peer empty --peer "$WORK/peers/spinning")
  one+=(--peer "$WORK/models/detector" --peer "$WORK/peers/detector_looking" --batch 1 --concurrency 1)
  [ -f "$WORK/compiled" ] && one+=(--peer torch)
  one+=(--no-poisson "${quick[@]}" --repetitions "$REPETITIONS" --window "$(window 1.0)")
  measure latency 30 $bench compare "${one[@]}"
  measure latency-awake 30 python3 -m benchmarks.awake $bench compare "${one[@]}"
fi
if wants ensemble || wants decoding; then
  python3 -m benchmarks.pictures --out "$WORK/pictures"
fi
if wants decoding; then
  part decoding "${most[decoding]}" python3 -m benchmarks.decoding --pictures "$WORK/pictures" \
    --plans "$WORK/plans640" --out "$GPU/decoding.json"
fi
if wants ensemble; then
  images=()
  for file in "$WORK"/pictures/*.jpg; do
    images+=(--image "$file")
  done
  # With 256 under way a request takes a tenth of a second, and in windows of one second the load was still rising.
  measure ensemble 30 $bench ensemble --model "$WORK/plans640" "${images[@]}" --batch 1,8 --concurrency 128,256 \
    --transport grpc --transport grpc+shm \
    --foreign 1 --reference-window 0.9 --repetitions "$REPETITIONS" --window "$(window 5)"
fi
if wants sweep; then
  also=()
  for size in $SIZES; do
    [ -d "$WORK/plans$size" ] && also+=(--also "$WORK/plans$size")
  done
  measure sweep 30 $bench sweep "${model[@]}" "${also[@]}" --concurrency 1,2,4,8,16,32,64,128,256 \
    --batch 1,2,4,8,16,32 "${quick[@]}" --repetitions 2 --window "$(window 0.7)"
fi
if wants startup; then
  part startup "${most[startup]}" python3 -m benchmarks.startup "$WORK/plans640" --repetitions 2 \
    --out "$GPU/startup.json"
fi

# Every window's CSV and output, by suite.
[ -d "$GPU/raw" ] && tar -C "$GPU/raw" -czf "$GPU/raw.tar.gz" .
tar -C "$WORK/results" --exclude=gpu/raw -czf "$OUT/bench-gpu.tar.gz" gpu
echo "== all: $SECONDS s; $OUT/bench-gpu.tar.gz has $(tar -tzf "$OUT/bench-gpu.tar.gz" | wc -l) files"
