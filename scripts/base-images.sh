#!/usr/bin/env bash
# Makes the base images of deploy/Dockerfile and docker-compose.yml on a machine that can reach a Debian
# mirror and a Go module proxy but no image registry.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
	cat <<'USAGE'
usage: scripts/base-images.sh [--force] [debian] [go] [nats]

Makes, under the very tags that deploy/Dockerfile and docker-compose.yml name, whichever is missing:
  debian   a minimal Debian (debootstrap, docker import)
  go       that Debian with this machine's Go toolchain and a C compiler
  nats     that Debian with the nats-server that go.mod pins
The Debian image takes over this machine's apt proxy and its extra certificates, so that building inside it
reaches what this machine reaches. Where a registry can be reached none of this is needed.

  --force  make them again

environment: DEBIAN_MIRROR (default http://deb.debian.org/debian)
needs: docker, go; for debian also debootstrap (apt-get install debootstrap) and root or sudo

examples:
  scripts/base-images.sh && docker compose up -d
  scripts/base-images.sh --force nats

exit status: 0 done, 1 an image could not be made, 2 usage
USAGE
}

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

default_of() { sed -n "s/^ARG $1=//p" deploy/Dockerfile; }
DEBIAN_TAG=$(default_of DEBIAN_IMAGE)
GO_TAG=$(default_of GO_IMAGE)
NATS_TAG=$(sed -n 's/.*image: .*:-\(nats:[^}]*\)}.*/\1/p' docker-compose.yml)
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
suite=${DEBIAN_TAG#*:} suite=${suite%-slim}

force=false images=()
while (($#)); do
	case $1 in
	--force) force=true ;;
	-h | --help) usage; exit 0 ;;
	debian | go | nats) images+=("$1") ;;
	*) printf 'error: argument %s: expected --force, debian, go or nats (see -h)\n' "$1" >&2; exit 2 ;;
	esac
	shift
done
((${#images[@]})) || images=(debian go nats)

docker version >/dev/null 2>&1 || die "docker does not answer: is the Docker Engine running, and may $(id -un) use it?"
command -v go >/dev/null || die "go is missing: needed for the go and nats images"

tmp=$(mktemp -d)
root=()
((EUID == 0)) || root=(sudo)
trap '"${root[@]}" rm -rf --one-file-system "$tmp"' EXIT

# wanted TAG: is TAG to be made?
wanted() {
	if ! $force && docker image inspect "$1" >/dev/null 2>&1; then
		echo "$1: already there"
		return 1
	fi
	echo "$1: making it"
}

# build TAG CONTEXT: docker build with the Dockerfile on stdin, its output shown only when it fails.
build() {
	docker build -t "$1" -f - "$2" >"$tmp/log" 2>&1 || { tail -n 20 "$tmp/log" >&2; die "$1 could not be built"; }
}

debian() {
	wanted "$DEBIAN_TAG" || return 0
	command -v debootstrap >/dev/null || PATH=$PATH:/usr/sbin command -v debootstrap >/dev/null ||
		die "debootstrap is missing: apt-get install debootstrap"
	local fs=$tmp/debian
	"${root[@]}" env PATH="$PATH:/usr/sbin:/sbin" debootstrap --variant=minbase --include=ca-certificates \
		"$suite" "$fs" "$MIRROR" >"$tmp/log" 2>&1 || { tail -n 5 "$tmp/log" >&2; die "debootstrap of $suite from $MIRROR failed"; }
	# From here on the image's apt behaves like this machine's.
	apt-config dump 2>/dev/null | grep -E '^Acquire::https?::Proxy ' | "${root[@]}" tee "$fs/etc/apt/apt.conf.d/90host" >/dev/null || true
	printf '%s\n' 'Acquire::Languages "none";' 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' \
		'DPkg::Post-Invoke {"rm -f /var/cache/apt/archives/*.deb";};' |
		"${root[@]}" tee "$fs/etc/apt/apt.conf.d/80slim" >/dev/null
	printf 'deb %s %s main\ndeb %s %s-updates main\n' "$MIRROR" "$suite" "$MIRROR" "$suite" |
		"${root[@]}" tee "$fs/etc/apt/sources.list" >/dev/null
	if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
		"${root[@]}" cp /usr/local/share/ca-certificates/*.crt "$fs/usr/local/share/ca-certificates/"
		"${root[@]}" chroot "$fs" update-ca-certificates >/dev/null 2>&1
	fi
	"${root[@]}" rm -rf "$fs"/var/cache/apt/* "$fs"/var/lib/apt/lists/* "$fs"/usr/share/{doc,man,info} "$fs"/usr/share/locale/??*
	"${root[@]}" find "$fs/var/log" -type f -delete
	"${root[@]}" tar -C "$fs" -c . | docker import --change 'CMD ["bash"]' - "$DEBIAN_TAG" >/dev/null
}

go_image() {
	wanted "$GO_TAG" || return 0
	local goroot
	goroot=$(go env GOROOT)
	build "$GO_TAG" "$goroot" <<-DOCKERFILE
		FROM $DEBIAN_TAG
		RUN apt-get update \
		 && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev git make \
		 && rm -rf /var/lib/apt/lists/*
		COPY . /usr/local/go
		ENV GOPATH=/go GOTOOLCHAIN=local PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
		WORKDIR /go
	DOCKERFILE
}

nats() {
	wanted "$NATS_TAG" || return 0
	local version
	version=$(go list -m -f '{{.Version}}' github.com/nats-io/nats-server/v2)
	CGO_ENABLED=0 GOBIN=$tmp/nats go install -trimpath -ldflags '-s -w' "github.com/nats-io/nats-server/v2@$version" ||
		die "nats-server $version could not be built"
	build "$NATS_TAG" "$tmp/nats" <<-DOCKERFILE
		FROM $DEBIAN_TAG
		RUN apt-get update && apt-get install -y --no-install-recommends busybox-static \
		 && ln -s busybox /bin/wget && rm -rf /var/lib/apt/lists/*
		COPY nats-server /usr/local/bin/
		EXPOSE 4222 8222
		CMD ["nats-server"]
	DOCKERFILE
}

for image in "${images[@]}"; do
	case $image in
	debian) debian ;;
	go) go_image ;;
	nats) nats ;;
	esac
done
