#!/usr/bin/env bash
# deploy.sh IMAGE [USER@HOST]: put an image into service with compose.yaml, on this machine or on one reached by ssh; where it does not
# answer as smoke.py expects, go back to the release before it. A release is a folder of its own in $FASHION_RELEASES (~/fashion), so
# that what is gone back to is all that was deployed then; settings of the host are in .env there, as compose.yaml names them. With
# FASHION_KEYS_FILE among them, FASHION_SMOKE_KEY there (or, without ssh, in the environment) is one of its keys, for smoke.py alone.
# The host needs Docker with compose.
set -euo pipefail
cd "$(dirname "$0")"
[ $# -ge 1 ] && [ $# -le 2 ] || { echo "usage: deploy.sh IMAGE [USER@HOST]; IMAGE is such as ghcr.io/owner/fashion_nbdev:0.1.0" >&2; exit 2; }
image=$1 host=${2:-}
files=(compose.yaml config monitoring smoke.py deploy.sh)

if [ -n "$host" ]; then # the same there; the host's own shell reads what is quoted by %q
    tar -c "${files[@]}" | ssh -o BatchMode=yes "$host" \
        "$(printf 'set -e; work=$(mktemp -d); trap "rm -rf $work" EXIT; tar -x -C "$work"; "$work/deploy.sh" %q' "$image")"
    exit
fi

root=${FASHION_RELEASES:-$HOME/fashion}
mkdir -p "$root"
exec 9> "$root/.lock"
flock --nonblock 9 || { echo "deploy.sh: another deployment is at work in $root: wait for its end" >&2; exit 1; }
key=${FASHION_SMOKE_KEY:-$([ ! -f "$root/.env" ] || sed -nE "s/^FASHION_SMOKE_KEY=[\"']?([^\"']*)[\"']?\$/\1/p" "$root/.env" | tail -1)}
release=$root/$(date -u +%Y%m%dT%H%M%S.%NZ)
previous=$(readlink "$root/current" || true)

compose() { # compose RELEASE ARGUMENT...
    local folder=$1; shift
    env -u FASHION_IMAGE docker compose --file "$folder/compose.yaml" "$@" 9>&-
}
serve() { # serve RELEASE: start it, and ask it what it is there for
    compose "$1" up --detach --no-build --wait --wait-timeout 180 --remove-orphans && # the key goes where no list of processes shows it
        { printf '%s\n' "$key"; cat "$1/smoke.py"; } | compose "$1" exec -T fashion_serve sh -c 'IFS= read -r FASHION_SMOKE_KEY; export FASHION_SMOKE_KEY; exec python -'
}

mkdir "$release"
cp -r "${files[@]}" "$release"
(umask 077; { [ ! -f "$root/.env" ] || sed '/^FASHION_SMOKE_KEY=/d' "$root/.env"; printf '\nFASHION_IMAGE=%s\n' "$image"; } > "$release/.env")
if serve "$release"; then
    ln -sfn "$release" "$root/current.new"
    mv -T "$root/current.new" "$root/current"
    find "$root" -mindepth 1 -maxdepth 1 -type d -name '20*T*Z' | sort | head -n -5 | xargs -r -d '\n' rm -rf # the last five are kept
    echo "deploy.sh: $image is in service"
    exit
fi

compose "$release" logs --tail 50 fashion_serve >&2 || true
if [ -z "$previous" ]; then
    compose "$release" down || true
    echo "deploy.sh: $image did not come into service, and there is none to go back to: nothing serves" >&2
elif serve "$previous"; then
    echo "deploy.sh: $image did not come into service; $(sed -n 's/^FASHION_IMAGE=//p' "$previous/.env" | tail -1) serves again" >&2
else
    echo "deploy.sh: $image did not come into service, and neither did the release before it: look after $previous" >&2
fi
exit 1
