#!/usr/bin/env bash
# Installs what gpulet needs on a fresh Debian or Ubuntu that has Go, git and make.
# Quick and silent about everything that is already there; never reads from stdin.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
	cat <<'USAGE'
usage: scripts/setup.sh [--check] [--for test|demo|gpu]

Installs, through apt, what is missing:
  demo   LibTorch, OpenBLAS, libjpeg-turbo, a C++ compiler, PyTorch and torchvision for Python   (make demo, make up; the default)
  test   the same: its end-to-end tests export models too                         (make test)
  train  the same without torchvision, with scikit-learn                          (scripts/train_digits.py)
  gpu    a C++ compiler, libjpeg-turbo; checks driver, MPS, CUDA headers and a PyTorch with CUDA, which apt does not have

  --check   install nothing; say what is missing

examples:
  scripts/setup.sh                     everything that make demo needs
  scripts/setup.sh --for test --check  exit 0 when make test can run, else 1 with the missing packages

exit status: 0 nothing is missing (any more), 1 something is, 2 usage
USAGE
}

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

purpose=demo check=false
while (($#)); do
	case $1 in
	--check) check=true ;;
	--for)
		purpose=${2-}
		shift
		;;
	--for=*) purpose=${1#--for=} ;;
	-h | --help) usage; exit 0 ;;
	*) printf 'error: argument %s: expected --check or --for PURPOSE (see -h)\n' "$1" >&2; exit 2 ;;
	esac
	shift
done

engine=(g++ libtorch-dev libopenblas0-serial libjpeg-dev python3-torch python3-msgpack)
case $purpose in
test | demo) packages=("${engine[@]}" python3-torchvision) ;;
train) packages=("${engine[@]}" python3-sklearn) ;;
gpu) packages=(g++ libjpeg-dev) ;;
*) printf 'error: --for %s: expected test, demo, train or gpu\n' "'$purpose'" >&2; exit 2 ;;
esac

# missing prints those of the packages that are not installed, one per line.
missing() {
	local installed
	installed=$(dpkg-query -W -f '${Status} ${Package}\n' "$@" 2>/dev/null | awk '$3 == "installed" {print $4}' || true)
	comm -23 <(printf '%s\n' "$@" | sort -u) <(sort -u <<<"$installed")
}

# as_root runs its arguments as root: directly, or through sudo where that asks nothing or a person can answer.
as_root() {
	if ((EUID == 0)); then
		"$@"
	elif ! command -v sudo >/dev/null; then
		die "installing needs root and there is no sudo: run as root: apt-get install -y $wanted"
	elif sudo -n true 2>/dev/null || { [[ -t 0 && -z ${CI-} ]] && say "sudo may ask for your password:" && sudo -v; }; then
		sudo "$@"
	else
		die "installing needs root and sudo would ask for a password: run: sudo apt-get install -y $wanted"
	fi
}

install() {
	say "installing through apt: $wanted"
	local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -q)
	# Package lists that are there may be good enough; a fresh container has none at all.
	if ! as_root "${apt[@]}" install -y --no-install-recommends $wanted </dev/null; then
		say "trying again with fresh package lists"
		as_root "${apt[@]}" update </dev/null || die "apt-get update failed: is a package mirror reachable?"
		as_root "${apt[@]}" install -y --no-install-recommends $wanted </dev/null ||
			die "apt-get could not install: $wanted (on Ubuntu they are in 'universe': sudo add-apt-repository universe)"
	fi
}

# check_gpu says what a CUDA host has and lacks of what apt cannot give; fails when something lacks.
check_gpu() {
	local lacking=0
	need() { # need WHAT HOW COMMAND...: COMMAND tells whether WHAT is there
		local what=$1 how=$2
		shift 2
		if "$@" >/dev/null 2>&1; then say "found: $what"; else
			say "missing: $what: $how"
			lacking=1
		fi
	}
	need "NVIDIA driver" "install it from your distribution or NVIDIA, then reboot" nvidia-smi -L
	need "MPS control daemon" "nvidia-cuda-mps-control comes with the driver's compute utilities" command -v nvidia-cuda-mps-control
	need "CUDA headers" "install a CUDA toolkit, or set CUDA_HOME to it" test -e "${CUDA_HOME:-/usr/local/cuda}/include/cuda.h"
	need "PyTorch with CUDA" "pip install torch in some environment and set GPULET_PYTHON to its python" \
		"$(scripts/python.sh --path)" -c 'import torch, sys; sys.exit(torch.version.cuda is None)'
	return "$lacking"
}

command -v go >/dev/null || say "missing: go: needed to build ($(awk '$1 == "go" {print $2}' go.mod) or newer): https://go.dev/dl" >&2

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
	. /etc/os-release 2>/dev/null || true
	die "this is ${PRETTY_NAME:-$(uname -s)}: setup.sh knows Debian and Ubuntu. Install yourself: a C++17 compiler, LibTorch 1.13 or newer with its headers, OpenBLAS, and Python with torch, torchvision and msgpack. Without LibTorch the reference and simulated engines still work."
fi

wanted=$(missing "${packages[@]}" | paste -sd' ')
if [[ -n $wanted ]]; then
	if $check; then
		say "missing: $wanted (scripts/setup.sh --for $purpose installs them)"
		exit 1
	fi
	install
fi

# A torch that pip installed is as good as Debian's; what counts is that one python has it.
if [[ $purpose == gpu ]]; then
	check_gpu
elif ! scripts/python.sh --path >/dev/null; then
	exit 1
fi
