#!/usr/bin/env bash
# Password hashes computed one at a time, on sixteen threads in turn, leave hundreds of megabytes in the process for good.
#
# Versions:  argon2 0.6.0 (crates.io), default parameters (19 MiB a hash), on glibc 2.36 (Debian 12, x86_64).
# Asked:     48 hashes, never two at once, each on the next of sixteen threads that live on; then the resident size.
# Seen:      with `hash_password_into`, which makes a work area of 19 MiB for each hash and frees it, about 870 MiB stay:
#            three work areas a thread, although one was in use at any time. With one work area that all
#            share (`hash_password_into_with_memory`), 19 MiB stay. With the first way and
#            MALLOC_MMAP_THRESHOLD_=1048576 in the environment, nothing stays.
# Why:       glibc gives a first block of that size a mapping of its own. When that is freed, it takes the size for usual
#            and raises its threshold above it (mallopt(3), M_MMAP_THRESHOLD: "dynamic"), so that all later ones come
#            from the heap of whichever thread asks, and such a heap is not given back. Setting the threshold by hand turns
#            that off.
# Why it matters: a server with a thread per connection and hashes of that size grows by a work area or more for each
#            thread that ever checked a password. Work areas that are made once and used again bound it by themselves.
# Source:    argon2's docs.rs page (both calls); mallopt(3) on the dynamic threshold; the figures below.
#
# Prints the three figures, and exits 1 when one of them is another kind of size.
set -euo pipefail

command -v cargo >/dev/null || { echo "needs cargo"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "hashes"
version = "0.0.0"
edition = "2021"
[dependencies]
argon2 = "=0.6.0"
TOML
cat > src/main.rs <<'RUST'
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use argon2::{Algorithm, Argon2, Block, Params, Version};

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn main() {
    let is_shared = std::env::args().nth(1).as_deref() == Some("shared");
    let before = resident_kib();
    let area = if is_shared { vec![Block::default(); Params::default().block_count()] } else { Vec::new() };
    let area = Arc::new(Mutex::new(area));
    let threads: Vec<(Sender<()>, Receiver<()>)> = (0..16)
        .map(|_| {
            let ((job, jobs), (done, ended)) = (channel(), channel());
            let area = Arc::clone(&area);
            std::thread::spawn(move || {
                for () in jobs {
                    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::default());
                    let (mut area, mut hash) = (area.lock().unwrap(), [0; 32]);
                    if is_shared {
                        argon2.hash_password_into_with_memory(b"password", b"some salt", &mut hash, &mut area[..])
                    } else {
                        argon2.hash_password_into(b"password", b"some salt", &mut hash)
                    }
                    .unwrap();
                    done.send(()).unwrap();
                }
            });
            (job, ended)
        })
        .collect();
    for (job, ended) in threads.iter().cycle().take(48) {
        job.send(()).unwrap();
        ended.recv().unwrap();
    }
    println!("{}", (resident_kib() - before) / 1024);
}
RUST
cargo build -q --release

each=$(target/release/hashes each)
shared=$(target/release/hashes shared)
fixed=$(MALLOC_MMAP_THRESHOLD_=1048576 target/release/hashes each)
echo "$(ldd --version | head -1)"
echo "a work area for each hash:                $each MiB more after 48 hashes, one at a time"
echo "one work area for all:                    $shared MiB"
echo "the first way with a fixed threshold:     $fixed MiB"
[ "$each" -gt 200 ] && [ "$shared" -lt 40 ] && [ "$fixed" -lt 40 ]
