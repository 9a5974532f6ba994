#!/usr/bin/env bash
# Installs kustomize 5 into FOLDER, from the Debian mirror that apt uses. It needs no root and changes nothing else.
#   k8s/install-kustomize.sh FOLDER
# It does nothing if kustomize is installed already. Debian packages kustomize since version 13; the program itself
# runs on version 12 as well.
set -euo pipefail
folder=$1
release=trixie
PATH="$folder:$PATH"
command -v kustomize >/dev/null && exit

fail() {
    echo "cannot install kustomize: $1; install version 5 yourself, anywhere on PATH" >&2
    exit 1
}
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "this system is not Debian"
find_mirror() { apt-get indextargets --format '$(SITE)' 'Label: Debian' 'Created-By: Packages' | head -n 1; }
mirror=$(find_mirror)
if [ -z "$mirror" ] && [ "$(id -u)" = 0 ]; then  # a new container has no package lists yet
    apt-get update -qq
    mirror=$(find_mirror)
fi
[ -n "$mirror" ] || fail "apt has no Debian mirror in its package lists; run apt-get update"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb $mirror $release main" >"$work/sources.list"
apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)" "$@"
}
apt update
(cd "$work" && apt download kustomize)
dpkg-deb --extract "$work"/kustomize_*.deb "$work/package"
install -D "$work/package/usr/bin/kustomize" "$folder/kustomize"
