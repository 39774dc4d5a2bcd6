# Shared by the shell scripts of tests: processes in a temporary folder, and their ready files.
# The sourcing script sets `dir` and adds the ids of the processes that it starts to `pids`.

pids=()
end() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap end EXIT

# Waits for a ready file and prints one of its fields.
said() {
    for _ in $(seq 300); do
        [ -s "$dir/$1" ] && break
        sleep 0.1
    done
    [ -s "$dir/$1" ] || { echo "error: $1 did not come within 30 s; what was said so far:" >&2; cat "$dir"/*.log >&2; return 1; }
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$dir/$1" "$2"
}
