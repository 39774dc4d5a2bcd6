#!/usr/bin/env bash
# A valid OpenAPI 3.1 description whose answers hold a pair (`prefixItems`) cannot be tested with schemathesis: each
# answer is an error of the schema, not of the answer.
#
# Versions:  schemathesis 4.32.5, openapi-spec-validator 0.9.0, jsonschema 4 (PyPI), Python 3.11, Linux.
# Asked:     a server whose one route answers {"addr": ["127.0.0.1", 80]}, described as an object whose `addr` is an
#            array with `prefixItems` text and integer, two at least and at most; then the same with `items` that may be
#            either.
# Seen:      the validator of OpenAPI takes both descriptions, and jsonschema finds the answer good by both. schemathesis
#            holds the answer good by the second; by the first it reports "Invalid Schema Object in response definition"
#            at `properties -> addr -> items`, where the description has no `items` at all.
# Why:       it makes of `prefixItems` the `items` with a list of schemas that drafts before 2020-12 had, and then checks
#            that by the rules of 2020-12, in which `items` is one schema.
# Why it matters: JSON has no other way to describe [host, port] or [x, y] exactly. Whoever wants such a description
#            tested says less: `items` with `anyOf`, and the number of them.
# Source:    JSON Schema 2020-12, core, 10.3.1; OpenAPI 3.1.0, "Schema Object"; issues 3842 and 4099 of the project are
#            of the same family; what is printed below.
#
# Prints what each of the three said of both, and exits 1 when one of them says something else.
set -euo pipefail

command -v python3 >/dev/null || { echo "needs python3 with venv"; exit 2; }
work=$(mktemp -d)
server=
end() {
    [ -z "$server" ] || { kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; } || true
    rm -rf "$work"
}
trap end EXIT
cd "$work"
python3 -m venv v
v/bin/pip --quiet install schemathesis==4.32.5 openapi-spec-validator==0.9.0

cat > pair.py <<'PYTHON'
import http.server, json, sys

ANSWER = {"addr": ["127.0.0.1", 80]}


def description(kind):
    kinds = [{"type": "string"}, {"type": "integer"}]
    pair = {"type": "array", "minItems": 2, "maxItems": 2}
    pair |= {"prefixItems": kinds} if kind == "exact" else {"items": {"anyOf": kinds}}
    schema = {"type": "object", "properties": {"addr": pair}, "required": ["addr"]}
    answer = {"description": "a pair", "content": {"application/json": {"schema": schema}}}
    return {"openapi": "3.1.0", "info": {"title": "pair", "version": "1"}, "paths": {"/pair": {"get": {"responses": {"200": answer}}}}}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(description(sys.argv[1]) if self.path == "/openapi.json" else ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *ignored):
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
PYTHON
cat > others.py <<'PYTHON'
import sys
import jsonschema, openapi_spec_validator
from pair import ANSWER, description

told = description(sys.argv[1])
openapi_spec_validator.validate(told)
schema = told["paths"]["/pair"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
jsonschema.Draft202012Validator.check_schema(schema)
jsonschema.Draft202012Validator(schema).validate(ANSWER)
print("the description is valid, and so is the answer by it")
PYTHON

for kind in exact loose; do
    echo "== $kind"
    v/bin/python others.py $kind | tee "$kind.others"
    python3 pair.py $kind > port &
    server=$!
    until [ -s port ]; do sleep 0.1; done
    v/bin/st run "http://127.0.0.1:$(cat port)/openapi.json" --checks response_schema_conformance --phases fuzzing \
        --max-examples 3 --seed 1 --warnings off > "$kind.st" 2>&1 || true
    kill $server; wait $server 2>/dev/null || true; server=; rm port
    grep -E "Invalid Schema Object|properties -> addr|is not of types|No issues found|1 error" "$kind.st" || true
done
if grep -q "Invalid Schema Object" exact.st && grep -q "addr -> items" exact.st && grep -q "No issues found" loose.st; then
    echo "as before"
else
    echo "CHANGED"
    exit 1
fi
