#!/usr/bin/env bash
# What a netcat does with a TCP connection when its standard input ends depends on which netcat it is.
#
# Versions:  netcat-openbsd 1.219-1, netcat-traditional 1.10-47, ncat 7.93+dfsg1-1, socat 1.7.4.4-2 (Debian 12).
# Asked:     printf '{"a":1}' | CLIENT HOST PORT, at a server that answers a request when its line ends, or when the client
#            has ended its sending, and takes a while for it.
# Seen:      nc (OpenBSD) and nc (traditional) keep their half of the connection open: the server never learns that
#            nothing more comes, so a last line without its line end is not answered at all, and both wait for as long as
#            the server does. With -N (OpenBSD) or -q SECONDS (traditional) they end their half, and the answer comes.
#            ncat ends it by itself. socat ends it too, but then waits half a second and no longer: an answer that takes 1.5 s
#            is lost, and the exit code is 0; with -t 5 it comes.
# Why it matters: "the client ended its sending" is a line's end only where a client says so. A server whose answers wait
#            for a disk or another machine loses socat's users without an error on either side, and one that waits for
#            the end of sending hangs with two of the four.
# Source:    what these four do, watched from a server's side; nc(1) under -N, nc.traditional(1) under -q, socat(1) under -t.
#
# Prints what each did, and exits 1 when one of them does something else.
set -euo pipefail

command -v apt-get >/dev/null && command -v python3 >/dev/null || { echo "needs Debian's apt-get and python3"; exit 2; }
work=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
apt-get download -qq netcat-openbsd=1.219-1 netcat-traditional=1.10-47 ncat=7.93+dfsg1-1 socat=1.7.4.4-2 \
    libbsd0 liblua5.3-0 libpcap0.8 libwrap0 2>/dev/null
for package in ./*.deb; do dpkg -x "$package" root; done
library_path=$(dirname "$(find root -name 'libwrap.so.0' | head -1)"):root/usr/lib/$(uname -m)-linux-gnu
export LD_LIBRARY_PATH=$work/${library_path//:/:$work/}

cat > server.py <<'PY'
import socket, threading, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def serve(connection):
    connection.settimeout(6)
    try:
        while (received := connection.recv(4096)) and b"\n" not in received: pass
        time.sleep(1.5)
        connection.sendall(b"answer\n")
    except OSError:
        pass
    connection.close()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
PY
python3 server.py > port &
server=$!
until [ -s port ]; do sleep 0.05; done
port=$(cat port)

status=0
expect() { # what is expected, the request, the client
    local expected=$1 request=$2 answer code=0
    shift 2
    answer=$(printf "$request" | timeout 4 "$@") || code=$?
    local seen="${answer:-nothing}, exit code $code"
    printf '%-34s %-12s %s\n' "${*##*/bin/}" "$request" "$seen"
    [ "$seen" = "$expected" ] || { echo "  expected: $expected"; status=1; }
}
line='{"a":1}\n' rest='{"a":1}'
expect "answer, exit code 0" "$line" root/bin/nc.openbsd -N 127.0.0.1 "$port"
expect "answer, exit code 0" "$rest" root/bin/nc.openbsd -N 127.0.0.1 "$port"
expect "nothing, exit code 124" "$rest" root/bin/nc.openbsd 127.0.0.1 "$port"
expect "answer, exit code 0" "$rest" root/bin/nc.traditional -q 3 127.0.0.1 "$port"
expect "nothing, exit code 124" "$rest" root/bin/nc.traditional 127.0.0.1 "$port"
expect "answer, exit code 0" "$rest" root/usr/bin/ncat 127.0.0.1 "$port"
expect "nothing, exit code 0" "$line" root/usr/bin/socat - "TCP:127.0.0.1:$port"
expect "nothing, exit code 0" "$rest" root/usr/bin/socat - "TCP:127.0.0.1:$port"
expect "answer, exit code 0" "$rest" root/usr/bin/socat -t 5 - "TCP:127.0.0.1:$port"
exit "$status"
