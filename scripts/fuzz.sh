#!/usr/bin/env bash
# Runs the Go fuzz targets of the module, one after the other, and prints what each has done:
#   fuzz.sh [-c] [TIME] [REGEX...]
# TIME is per target, a Go duration (30s) or a number of executions (10000000x). A REGEX chooses
# targets, written as folder.Name: shared/wire, FuzzDecodeV2$. -c goes on after a run that was
# interrupted: targets that have passed with this TIME are not run again. GOFLAGS=-parallel=1 leaves
# the other cores to others.
set -uo pipefail
cd "$(dirname "$0")/.."
again=1
if [ "${1:-}" = -c ]; then
	again=0
	shift
fi
time=${1:-30s}
choose=$(IFS='|' && echo "${*:2}")
done=build/fuzz-$time.tsv # target, executions, seconds, inputs that reached something new, result
mkdir -p build
[ $again = 0 ] || : >"$done"
touch "$done"

# fuzz TARGET: runs it and adds a line to $done. Minimising an input that reaches something new takes
# up to a minute by default, in which nothing is tried; inputs are small here without it.
fuzz() {
	local log start=$SECONDS result=ok execs new
	log=$(mktemp)
	go test "./${1%.*}" -run '^$' -fuzz "^${1##*.}\$" -fuzztime "$time" -fuzzminimizetime 100x 2>&1 | tee "$log" || result=CRASH
	execs=$(grep -oP 'execs: \K[0-9]+' "$log" | tail -1)
	new=$(grep -oP 'new interesting: \K[0-9]+' "$log" | tail -1)
	[ -n "$execs" ] || [ $result != ok ] || result=skipped
	rm -f "$log"
	printf '%s\t%s\t%s\t%s\t%s\n' "$1" "${execs:-0}" $((SECONDS - start)) "${new:-0}" $result >>"$done"
}

targets=$(git grep --untracked -oE -e '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed -E 's|/[^/]*:func |.|' | grep -E -e "$choose")
if [ -z "$targets" ]; then
	echo "fuzz.sh: no fuzz target matches $choose" >&2
	exit 1
fi
for target in $targets; do
	grep -q "^$target	.*ok\$" "$done" && continue
	echo "== $target, $time"
	fuzz "$target"
done
echo
awk -F'\t' -v time="$time" '
	BEGIN { printf "%-46s %12s %8s %8s %8s  %s\n", "target", "executions", "s", "/s", "new", "result" }
	{ printf "%-46s %12d %8d %8d %8d  %s\n", $1, $2, $3, $3 ? $2 / $3 : 0, $4, $5; n++; sum += $2; bad += $5 == "CRASH" }
	END { printf "%d fuzz targets, %d executions, %s\n", n, sum, bad ? bad " with a crash" : "no crash"; exit bad > 0 }' "$done"
