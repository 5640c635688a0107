#!/usr/bin/env bash
# The whole of gpulet on one machine without a GPU: LibTorch, build, three real models, the four
# programs with embedded JetStream, and Poisson load on them. See usage below.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
	cat <<'USAGE'
usage: scripts/demo.sh [--up]

Installs what is missing (scripts/setup.sh), builds, exports mobilenet_v2 and bert_tiny beside the
shipped lenet, starts frontend (with embedded JetStream), planner and worker (CPU gpu-lets), and then
  without --up  sends Poisson load for 20 s, shows the plan and the report, and stops everything;
                exits 0 only if every request was answered ok and at least 97 % of the digits were
                read right
  with --up     leaves it running, prints how to call it, and stops on Ctrl-C

Ports are the usual ones (HTTP 8000, gRPC 8001, metrics 8002, 8003 and 8004, NATS 4222 and 8222), or the next free ones
where those are taken. Models, logs and measured profiles are in build/demo, keys and queues in
build/demo/state, with --up in .gpulet.

environment:
  DEMO_RATES    requests/s by model   (lenet=100,mobilenet_v2=3,bert_tiny=20)
  DEMO_SECONDS  how long to send load (20)
USAGE
}

up=false
while (($#)); do
	case $1 in
	--up) up=true ;;
	-h | --help) usage; exit 0 ;;
	*) printf 'error: argument %s: expected --up (see -h)\n' "$1" >&2; exit 2 ;;
	esac
	shift
done

readonly dir=build/demo rates=${DEMO_RATES:-lenet=100,mobilenet_v2=3,bert_tiny=20} seconds=${DEMO_SECONDS:-20}
readonly models=(lenet mobilenet_v2 bert_tiny)
readonly logs=$dir/log repository=$dir/models
# With --up the state is where every program looks for keys, so that they need no flags.
state=$dir/state
$up && state=.gpulet
readonly state

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
step() { printf '%s== %s (%d s)%s\n' "$bold" "$*" "$SECONDS" "$plain"; }

# --- processes -----------------------------------------------------------------------------------

declare -A pid=()
order=() # in which they were started

# run starts a program with its log in a file. Its GPULET_* settings are those of this script alone.
run() {
	local name=$1
	shift
	env -i PATH="$PATH" HOME="${HOME:-/}" ${TMPDIR+TMPDIR="$TMPDIR"} ${LD_LIBRARY_PATH+LD_LIBRARY_PATH="$LD_LIBRARY_PATH"} \
		"bin/$name" "$@" >"$logs/$name.log" 2>&1 &
	pid[$name]=$!
	order+=("$name")
}

running() { kill -0 "${pid[$1]}" 2>/dev/null; }

# stop ends the programs, the last started first, and waits for each: the worker answers what it holds.
stop() {
	local i name
	for ((i = ${#order[@]} - 1; i >= 0; i--)); do
		name=${order[i]}
		kill -TERM "${pid[$name]}" 2>/dev/null || true
		for ((n = 0; n < 200; n++)); do
			running "$name" || break
			sleep 0.1
		done
		if running "$name"; then
			printf '%s did not stop within 20 s: killing it\n' "$name" >&2
			kill -KILL "${pid[$name]}" 2>/dev/null || true
		fi
		wait "${pid[$name]}" 2>/dev/null || true
	done
	order=()
}

show_logs() {
	local name
	for name in frontend planner worker; do
		[[ -s $logs/$name.log ]] || continue
		printf -- '--- the last lines of %s\n' "$logs/$name.log" >&2
		tail -n 15 "$logs/$name.log" >&2
	done
}

fail() {
	printf 'error: %s\n' "$*" >&2
	show_logs
	exit 1
}

on_exit() {
	local code=$?
	trap '' INT TERM HUP # once is enough: what follows ends by itself
	stop
	exit "$code"
}
trap on_exit EXIT
trap 'printf "\nstopping\n"; $up && exit 0; exit 130' INT
trap 'exit 143' TERM HUP

# --- ports ---------------------------------------------------------------------------------------

taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

claimed=" "
# port NAME DEFAULT sets the variable NAME to the default port or the next free one.
port() {
	local p=$2
	while taken "$p" || [[ $claimed == *" $p "* ]]; do
		((p < $2 + 200)) || fail "no free port from $2 to $p"
		((++p))
	done
	((p == $2)) || printf 'port %d is taken: %s on %d instead\n' "$2" "$3" "$p"
	claimed+="$p "
	printf -v "$1" %d "$p"
}

# http GETs a path of the frontend and prints the answer, its status line first; curl may be missing.
http() {
	(
		exec 3<>"/dev/tcp/127.0.0.1/$http_port" || exit 1
		printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$1" >&3
		cat <&3
	) 2>/dev/null
}

# --- steps ---------------------------------------------------------------------------------------

prepare() {
	step "what is needed"
	scripts/setup.sh --for demo
	step "build"
	make --no-print-directory build engine
	step "models"
	scripts/python.sh scripts/export_models.py "$repository" "${models[@]}" \
		--slo mobilenet_v2=400ms --slo bert_tiny=200ms --slo lenet=100ms \
		--timeout mobilenet_v2=5s --timeout bert_tiny=5s --timeout lenet=5s
	scripts/python.sh - "$repository/lenet/samples.msgpack" "$dir/digit.json" <<'PYTHON'
import json, sys
import msgpack

with open(sys.argv[1], "rb") as f:
    samples = msgpack.unpack(f)
image = samples["inputs"][0]
size = len(image["data"]) // image["shape"][0]
request = {"inputs": [{"name": image["name"], "datatype": image["dtype"], "shape": [1] + image["shape"][1:], "data": list(image["data"][:size])}]}
with open(sys.argv[2], "w") as f:
    json.dump(request, f)
print("a digit that is a", samples["labels"][0], "is in", sys.argv[2])
PYTHON
}

start() {
	step "start"
	port http_port 8000 "HTTP"
	port grpc_port 8001 "gRPC"
	port metrics_port 8002 "metrics of the frontend"
	port worker_metrics 8003 "metrics of the worker"
	port planner_metrics 8004 "metrics of the planner"
	port nats_port 4222 "NATS"
	port monitor_port 8222 "NATS monitoring"
	readonly nats=nats://127.0.0.1:$nats_port
	$up || rm -rf "$state/jetstream" # queues and plans of an earlier demo; measured profiles stay
	run frontend serve --http-addr "127.0.0.1:$http_port" --grpc-addr "127.0.0.1:$grpc_port" --metrics-addr "127.0.0.1:$metrics_port" \
		--nats-port "$nats_port" --nats-monitor-port "$monitor_port" --state-dir "$state"
	await frontend "embedded NATS to be ready" taken "$nats_port"
	run planner run --nats-url "$nats" --state-dir "$state" --models "$repository" --profiles profiles \
		--metrics-addr "127.0.0.1:$planner_metrics" --epoch 5s
	run worker run --nats-url "$nats" --state-dir "$state" --models "$repository" --device cpu --engine torch --profile-cache "$dir/profiles" \
		--engine-lib build/lib/libgpulet_torch.so --metrics-addr "127.0.0.1:$worker_metrics"
	printf 'logs are in %s\n' "$logs"
}

# await NAME WHAT COMMAND... repeats a command until it succeeds, for 3 minutes at most.
await() {
	local name=$1 what=$2
	shift 2
	for ((n = 0; n < 900; n++)); do
		"$@" && return
		for p in "${order[@]}"; do
			running "$p" || fail "$p has ended while waiting for $what"
		done
		sleep 0.2
	done
	fail "$name: waited 3 minutes for $what"
}

model_ready() { http "/v2/models/$1/ready" | head -n 1 | grep -q ' 200 '; }

await_models() {
	step "the worker measures this machine (the first time), the planner plans, gpu-lets load"
	for m in "${models[@]}"; do
		await "$m" "model $m to be ready" model_ready "$m"
		printf '%s is ready\n' "$m"
	done
}

client() { "bin/$1" "${@:2}" --nats-url "$nats" --state-dir "$state"; }

show_plan() {
	step "the plan"
	client planner status || fail "planner status failed"
}

send_load() {
	step "Poisson load for $seconds s: $rates"
	# The long timeout is for machines that are busy with other things: late answers are shown as
	# violations of the SLO, and are answers all the same.
	client loadgen run --log-level warn --models "$repository" --rates "$rates" --duration "${seconds}s" \
		--timeout 10s --strict --min-accuracy 97% \
		--json "$dir/run.json" --html "$dir/run.html" || return
	printf 'every request was answered, and the digits were read right; %s/run.html shows more\n' "$dir"
}

tell_how() {
	local url=http://127.0.0.1:$http_port
	cat <<HOW

${bold}gpulet is up.${plain} Ctrl-C stops it.
  status page            $url/
  v2 API                 $url/v2, gRPC 127.0.0.1:$grpc_port
  metrics                http://127.0.0.1:$metrics_port/metrics
  NATS                   $nats, keys in $state/keys
  logs                   $logs

Call it, from this folder:
  curl     curl -s $url/v2/models/lenet/infer -d @$dir/digit.json
  Go       go run ./examples/infer-go -url $url $dir/digit.json
  Python   python3 examples/infer.py --url $url $dir/digit.json
  NATS     nats --server $nats --nkey $state/keys/client.nk --inbox-prefix _INBOX_client sub '_INBOX_client.me.>' &
           nats --server $nats --nkey $state/keys/client.nk pub infer.lenet --force-stdin \\
             -H Content-Type:application/json -H Gpulet-Reply-To:_INBOX_client.me.1 <$dir/digit.json

Look at it and load it:
  bin/planner status --nats-url $nats --state-dir $state
  bin/loadgen run --nats-url $nats --state-dir $state --models $repository --rates $rates
HOW
}

mkdir -p "$logs" "$state"
exec 9>"$dir/lock"
flock -n 9 || { printf 'error: another demo is running in %s\n' "$dir" >&2; trap - EXIT; exit 1; }
rm -f "$logs"/*.log
prepare
start 9>&-
await_models
show_plan
if $up; then
	tell_how
	wait -n "${pid[@]}" || true # until Ctrl-C, or until one of them ends
	fail "a program has ended"
fi
send_load || fail "the load generator failed"
step "stop"
stop
step "done"
