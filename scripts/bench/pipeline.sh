#!/usr/bin/env bash
# What the pipeline costs, measured in one run beside what it is made of: lenet through the whole
# system at 50 requests/s, the bare engine, a bare JetStream round trip; then the highest rate of
# small requests, and the memory of each process.
#
# usage: scripts/bench/pipeline.sh       with `make up` running in another terminal
#   RATE    requests/s of the latency run (default 50)
#   SPAN    how many seconds it lasts (default 20)
#   SEARCH  0 leaves the search for the highest rate out (it takes about three minutes)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

rate=${RATE:-50}
seconds=${SPAN:-20}
out=build/bench
mkdir -p "$out"
ready() { (exec 3<>/dev/tcp/127.0.0.1/4222) 2>/dev/null; }
ready || { echo "pipeline: nothing listens on 127.0.0.1:4222: run make up in another terminal" >&2; exit 2; }

echo "== load average $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) cores"
echo "== bare engine: lenet, batch 1, one every $(awk "BEGIN {print 1/$rate}") s, on half of the cores"
bin/worker exec lenet $((rate * seconds / 2)) 1 "$(awk "BEGIN {print 1/$rate}")" 50 --device cpu
echo "== bare JetStream: 1 KiB published, pulled, answered, acknowledged; core NATS beside it"
go test -run '^$' -bench 'RoundTrip' -benchtime 2s ./shared/bus | grep '^Benchmark'
echo "== lenet through the pipeline"
bin/loadgen run --rates "lenet=$rate" --duration "${seconds}s" --json "$out/lenet.json"
if [[ ${SEARCH:-1} != 0 ]]; then
	echo "== highest rate of lenet (784-byte requests) with at most 1 % over its SLO"
	bin/loadgen search --mix lenet=1 --from 500 --json "$out/search.json"
fi
echo "== memory of each process"
ps -C frontend,planner,worker -o pid=,rss=,args= |
	awk '{printf "%8.1f MiB  %s\n", $2 / 1024, substr($0, index($0, $3), 70)}'
