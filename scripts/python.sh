#!/usr/bin/env bash
# Runs a script with a Python that has torch and msgpack. The first python3 in PATH is often another one
# (pyenv, conda) than the one that apt installs packages for.
#
#   scripts/python.sh scripts/export_models.py --list
#   scripts/python.sh --path        only print which Python that is
#
# GPULET_PYTHON names one; it is then the only candidate.
set -euo pipefail

probe='import importlib.util as u, sys; sys.exit(not all(u.find_spec(m) for m in ("torch", "msgpack")))'
for python in ${GPULET_PYTHON:-python3 /usr/bin/python3}; do
	if path=$(command -v "$python") && "$path" -c "$probe" 2>/dev/null; then
		if [[ ${1-} == --path ]]; then
			echo "$path"
			exit 0
		fi
		exec "$path" "$@"
	fi
done
echo "error: no Python with torch and msgpack among: ${GPULET_PYTHON:-python3 /usr/bin/python3}: run scripts/setup.sh, or set GPULET_PYTHON" >&2
exit 1
