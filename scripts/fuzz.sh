#!/usr/bin/env bash
# Runs the Go fuzz targets of the module and prints what each has done:
#   fuzz.sh [-c] [-j JOBS] [TIME] [REGEX...]
# TIME is per target, a Go duration (30s) or a number of executions (10000000x). A REGEX chooses
# targets, written as folder.Name: shared/wire, FuzzDecodeV2$. -c goes on after a run that was
# interrupted: targets that have passed with this TIME are not run again. JOBS targets run at a time
# (default: one per core), a core each.
#
# A target is built from its folder's fuzz_test.go alone, without the other tests: after every
# execution Go reads the counters of all the code in the binary, and with all that tests need
# (servers, comparing, HTTP) that has taken several times as long as what is tried. Where the rest of
# the package is too much as well, a first line of fuzz_test.go names the files that it takes:
#   //fuzz:with body.go outputs.go
set -uo pipefail
cd "$(dirname "$0")/.."
again=1 jobs=$(nproc)
while getopts cj: option; do
	case $option in
	c) again=0 ;;
	j) jobs=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
if ! [[ $jobs =~ ^[1-9][0-9]*$ ]]; then
	echo "fuzz.sh: -j $jobs: expected a number of at least 1" >&2
	exit 2
fi
time=${1:-30s}
choose=$(IFS='|' && echo "${*:2}")
root=$PWD
build=$root/build/fuzz
done=$root/build/fuzz-$time.tsv # target, executions, seconds, inputs that reached something new, result
mkdir -p "$build"
touch "$done"
if [ $again = 0 ]; then
	sed -i '/\tok$/!d' "$done"
else
	: >"$done"
fi

# compile FOLDER: makes its test binary, of fuzz_test.go and, if that is not of an external test
# package, of the files that its line //fuzz:with names, or else of the whole package.
compile() {
	local files
	cd "$1" || return
	files=$(sed -n 's|^//fuzz:with ||p' fuzz_test.go)
	if [[ -z $files ]] && ! grep -q '^package .*_test$' fuzz_test.go; then
		files=$(go list -f '{{range .GoFiles}}{{.}} {{end}}{{range .CgoFiles}}{{.}} {{end}}' .)
	fi
	# shellcheck disable=SC2086 # file names of ours, without spaces
	go test -c -o "$build/${1//\//-}.test" -fuzz . fuzz_test.go $files
}

# fuzz TARGET: runs it and adds a line to $done. Minimising an input that reaches something new takes
# up to a minute by default, in which nothing is tried; inputs are small here without it.
fuzz() {
	local log folder=${1%.*} name=${1##*.} start=$SECONDS result=ok execs new
	log=$build/${folder//\//-}.$name.log
	(cd "$folder" && GOMAXPROCS=1 "$build/${folder//\//-}.test" -test.run '^$' -test.fuzz "^$name\$" \
		-test.fuzztime "$time" -test.fuzzminimizetime 100x -test.parallel 1 -test.timeout 0 \
		-test.fuzzcachedir "$build/cache/${folder//\//-}") >"$log" 2>&1 || result=CRASH
	execs=$(grep -oP 'execs: \K[0-9]+' "$log" | tail -1)
	new=$(grep -oP 'new interesting: \K[0-9]+' "$log" | tail -1)
	[ -n "$execs" ] || [ $result != ok ] || result=skipped
	[ $result != CRASH ] || cat "$log"
	printf '%s\t%s\t%s\t%s\t%s\n' "$1" "${execs:-0}" $((SECONDS - start)) "${new:-0}" $result | tee -a "$done"
}

stray=$(git grep --untracked -lE -e '^func Fuzz' -- '*_test.go' | grep -v '/fuzz_test\.go$')
if [ -n "$stray" ]; then
	echo "fuzz.sh: fuzz targets belong in their folder's fuzz_test.go, not in ${stray//$'\n'/ }" >&2
	exit 1
fi
targets=$(git grep --untracked -oE -e '^func Fuzz[A-Za-z0-9_]+' -- '*/fuzz_test.go' | sed -E 's|/[^/]*:func |.|' | grep -E -e "$choose")
if [ -z "$targets" ]; then
	echo "fuzz.sh: no fuzz target matches $choose" >&2
	exit 1
fi
for folder in $(printf '%s\n' "$targets" | sed 's/\.[^.]*$//' | sort -u); do
	(compile "$folder") || exit 1
done
# Every target is a process group, to be ended as a whole: one that is interrupted has not passed.
set -m
trap 'for job in $(jobs -rp); do kill -- "-$job"; done; exit 130' INT TERM
for target in $targets; do
	grep -q "^$target	.*ok\$" "$done" && continue
	while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
	fuzz "$target" &
done
wait
echo
awk -F'\t' -v time="$time" '
	BEGIN { printf "%-46s %12s %8s %8s %8s  %s\n", "target", "executions", "s", "/s", "new", "result" }
	{ printf "%-46s %12d %8d %8d %8d  %s\n", $1, $2, $3, $3 ? $2 / $3 : 0, $4, $5; n++; sum += $2; bad += $5 == "CRASH" }
	END { printf "%d fuzz targets, %d executions, %s\n", n, sum, bad ? bad " with a crash" : "no crash"; exit bad > 0 }' "$done"
