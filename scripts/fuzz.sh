#!/usr/bin/env bash
# Runs every Go fuzz target of the module, one after the other: fuzz.sh [TIME]
# TIME is per target, a Go duration (30s) or a number of executions (10000000x).
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
found=0
while IFS=: read -r file target; do
	found=$((found + 1))
	echo "== $target (./$(dirname "$file"), $time)"
	go test "./$(dirname "$file")" -run '^$' -fuzz "^${target}\$" -fuzztime "$time"
done < <(git grep -oE -e '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed 's/:func /:/')
if [ "$found" -eq 0 ]; then
	echo "fuzz.sh: no fuzz target found" >&2
	exit 1
fi
echo "$found fuzz targets, no crash"
