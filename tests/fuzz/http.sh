#!/usr/bin/env bash
# Both HTTP APIs under schemathesis, a property-based tester that makes its requests from an API's own description
# (/api/openapi.json): no answer may be 500 or another status than is described, and each must fit what is described.
#
# Usage: tests/fuzz/http.sh PROGRAM [EXAMPLES]     `make fuzz-http` builds the program and calls this.
# Everything is on loopback, in a folder that goes away; python3 with venv is needed, and PyPI once.
set -euo pipefail
here=$(realpath "$(dirname "$0")")

program=$(realpath "$1")
examples=${2:-60}
schemathesis=schemathesis==4.32.5
tools=target/fuzz-http
[ -x "$tools/bin/st" ] || {
    command -v python3 >/dev/null || { echo "error: python3 is missing (Debian: apt-get install python3-venv)" >&2; exit 1; }
    python3 -m venv "$tools"
    "$tools/bin/pip" --quiet install "$schemathesis"
}
st=$(realpath "$tools/bin/st")

dir=$(mktemp -d)
. "$here/../support/processes.sh"

# One request, and a field of its answer.
asked() {
    python3 - "$@" <<'PYTHON'
import json, sys, urllib.request
url, body, field = sys.argv[1:4]
headers = {"Content-Type": "application/json"}
if len(sys.argv) > 4:
    headers["Authorization"] = "Bearer " + sys.argv[4]
answer = urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers))
print(json.load(answer).get(field, ""))
PYTHON
}

mkdir "$dir/shared" "$dir/home"
for n in 1 2 3; do echo "file $n" >"$dir/shared/file-$n.txt"; done
export HOME="$dir/home" ADMIN_USERNAME=admin ADMIN_PASSWORD=fuzzed P2S2_SERVER_NO_ANNOUNCE=1
zero=(--trade-port 0 --registry-port 0 --api-port 0 --product-port 0 --customer-port 0 --seller-port 0 --buyer-port 0)
"$program" server --data-dir "$dir/server" "${zero[@]}" --ready-file "$dir/server.ready" >"$dir/server.log" 2>&1 &
pids+=($!)
api=$(said server.ready server_api)
registry=$(said server.ready registry)
"$program" share --name fuzz --bind 127.0.0.1 --server 127.0.0.1 --registry-port "${registry##*:}" \
    --server-api-port "${api##*:}" --api-port 0 --data-dir "$dir/node" --folder "$dir/shared" \
    --ready-file "$dir/node.ready" >"$dir/node.log" 2>&1 &
pids+=($!)
node=$(said node.ready client_api)

admin=$(asked "http://$api/api/admin/login" '{"username":"admin","password":"fuzzed"}' token)
user=$(asked "http://$node/api/client/register" '{"username":"fuzz","password":"fuzzed"}' token)
asked "http://$node/api/client/init" '{"username":"fuzz"}' success "$user" >/dev/null

# What ends the token, or never ends, is asked by the project's own tests. Wrong passwords come so often here that the
# port pauses them (429), as it should.
checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance
checks=$checks,response_headers_conformance,unsupported_method,ignored_auth
run() {
    (cd "$dir" && "$st" run "http://$1/api/openapi.json" --url "http://$1" --header "Authorization: Bearer $2" \
        --checks "$checks" --max-examples "$examples" --phases examples,coverage,fuzzing --seed 1 \
        --request-timeout 30 --exclude-path-regex '(events|logout|/block|/unblock)$' --warnings off)
}
failed=0
echo "== server API"
run "$api" "$admin" || failed=1
echo "== client API"
run "$node" "$user" || failed=1
for log in server node; do
    ! grep -n "panicked" "$dir/$log.log" || failed=1
done
exit $failed
