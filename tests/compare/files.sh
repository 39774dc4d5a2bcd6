#!/usr/bin/env bash
# A large file up and down through a node's HTTP routes, beside nginx (its DAV module for the upload) on the same
# machine, in turns, in one run: how much of nginx's pace the node has. Exit code 1 below 0.6 of it either way.
#
# Usage: tests/compare/files.sh PROGRAM [MIB] [ROUNDS]      The defaults: 1024 MiB, 5 rounds. A release build.
# Needs nginx with its DAV module, curl and python3 (Debian: apt-get install nginx-light curl python3). Everything is
# on loopback, in a folder that goes away, and lies where this is called from: on a disk with room for six such files.
#
# A node answers an upload once the file is synced; nginx answers once it is written. So nginx's time for an upload has
# in it the sync that it leaves to others, done beside it by `sync FILE`; both figures are told.
set -euo pipefail
here=$(realpath "$(dirname "$0")")

program=$(realpath "$1")
mib=${2:-1024}
rounds=${3:-5}
for tool in nginx curl python3; do
    command -v $tool >/dev/null || PATH=$PATH:/usr/sbin command -v $tool >/dev/null || {
        echo "error: $tool is missing (Debian: apt-get install nginx-light curl python3)" >&2
        exit 2
    }
done
PATH=$PATH:/usr/sbin

dir=$(mktemp -d -p .)
dir=$(realpath "$dir")
. "$here/../support/processes.sh"

mkdir -p "$dir/www" "$dir/tmp" "$dir/home"
chmod 755 "$dir"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$dir/nginx.conf" <<CONF
daemon off; pid $dir/nginx.pid; error_log $dir/nginx.log; worker_processes 1;
user $(id -un);
events { worker_connections 64; }
http {
    access_log off; sendfile on; tcp_nopush on;
    client_max_body_size 0; client_body_temp_path $dir/tmp; client_body_buffer_size 1m;
    server { listen 127.0.0.1:$port; location / { root $dir/www; dav_methods PUT; } }
}
CONF
nginx -c "$dir/nginx.conf" -e "$dir/nginx.log" &
pids+=($!)

export HOME="$dir/home" P2S2_SERVER_NO_ANNOUNCE=1
"$program" server --services share --data-dir "$dir/server" --registry-port 0 --api-port 0 \
    --ready-file "$dir/server.ready" >"$dir/server.log" 2>&1 &
pids+=($!)
api=$(said server.ready server_api)
registry=$(said server.ready registry)
"$program" share --name files --bind 127.0.0.1 --server 127.0.0.1 --registry-port "${registry##*:}" \
    --server-api-port "${api##*:}" --api-port 0 --data-dir "$dir/node" --ready-file "$dir/node.ready" \
    >"$dir/node.log" 2>&1 &
pids+=($!)
node=http://$(said node.ready client_api)/api/client
field() { python3 -c 'import json, sys; print(json.load(sys.stdin).get(sys.argv[1], ""))' "$1"; }
ask() { curl -sS -H 'Content-Type: application/json' "$@"; }
token=$(ask -d '{"username":"files","password":"files"}' "$node/register" | field token)
ask -H "Authorization: Bearer $token" -d '{"username":"files"}' "$node/init" >/dev/null

head -c "${mib}M" /dev/urandom >"$dir/file"
cp "$dir/file" "$dir/www/down"
rate() { curl -sS --fail -o /dev/null -w "%{$1}\n" "${@:2}"; }
now() { python3 -c 'import time; print(time.monotonic())'; }

declare -A all
note() { all[$1]="${all[$1]:-} $2"; }
for round in $(seq "$rounds"); do
    note node_up "$(rate speed_upload -H "Authorization: Bearer $token" -H 'Content-Type: application/octet-stream' \
        -H 'Expect:' -T "$dir/file" -X POST "$node/upload/file-$round")"
    began=$(now)
    note nginx_up_alone "$(rate speed_upload -H 'Expect:' -T "$dir/file" "http://127.0.0.1:$port/up-$round")"
    sync "$dir/www/up-$round"
    note nginx_up "$(python3 -c "print($mib * 2**20 / ($(now) - $began))")"
    note node_down "$(rate speed_download -H "Authorization: Bearer $token" "$node/files/file-$round/content")"
    note nginx_down "$(rate speed_download "http://127.0.0.1:$port/down")"
    cmp "$dir/file" <(curl -sS -H "Authorization: Bearer $token" "$node/files/file-$round/content")
    rm -f "$dir/www/up-$round" "$dir/node/repo/file-$round"
    echo "round $round of $rounds" >&2
done
python3 - "node_up=${all[node_up]}" "nginx_up=${all[nginx_up]}" "nginx_up_alone=${all[nginx_up_alone]}" \
    "node_down=${all[node_down]}" "nginx_down=${all[nginx_down]}" <<'PYTHON'
import statistics, sys
rates = {}
for given in sys.argv[1:]:
    name, values = given.split("=", 1)
    rates[name] = [float(value) / 1e6 for value in values.split()]
for name, values in rates.items():
    print(f"{name:15} {statistics.median(values):8.0f} MB/s   ({min(values):.0f} to {max(values):.0f})")
worst = 9.0
for way in ("up", "down"):
    ratios = [a / b for a, b in zip(rates["node_" + way], rates["nginx_" + way])]
    ratio = statistics.median(ratios)
    print(f"{way}: {ratio:.2f} of nginx (each round: {', '.join(f'{it:.2f}' for it in ratios)})")
    worst = min(worst, ratio)
sys.exit(0 if worst >= 0.6 else 1)
PYTHON
