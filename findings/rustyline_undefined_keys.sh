#!/usr/bin/env bash
# At a terminal where a special key is switched off (`stty eof undef`), rustyline takes Ctrl-Space for that key.
#
# Versions:  rustyline 19.0.0 (crates.io); GNU readline 8.2 through Python 3.11 for comparison (Debian 12), Linux.
# Asked:     a prompt at a pseudo-terminal; Ctrl-Space (the byte 0) on an empty line, then the word `hello` and Enter.
#            Once with the settings of a new terminal, once with its key for the end of input switched off.
# Seen:      rustyline reads the line with the settings of a new terminal (Ctrl-Space does nothing), and with the key
#            switched off reports the end of input at the Ctrl-Space, so that a program which ends with its input ends.
#            readline reads the line both times.
# Why:       in termios a special key that is off is _POSIX_VDISABLE, which is the number 0 on Linux (termios(3)).
#            rustyline binds whatever character stands in the place of VEOF, VINTR, VQUIT and VSUSP, without asking
#            whether it is that number; and the byte 0 is what a terminal sends for Ctrl-Space and Ctrl-@.
# Why it matters: programs that switch such a key off (to have ^D as a plain byte while no line is read, say), and
#            people who did so in their shell, have a key that ends or stops programs and that editors use to mark text.
#            Binding Ctrl-Space to nothing by hand cures it.
# Source:    termios(3), "special characters"; rustyline's docs on Cmd::EndOfFile; what is printed below.
#
# Prints what each of the four said, and exits 1 when one of them says something else.
set -euo pipefail

command -v cargo >/dev/null && command -v python3 >/dev/null || { echo "needs cargo and python3"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "prompt"
version = "0.0.0"
edition = "2021"
[dependencies]
rustyline = { version = "=19.0.0", default-features = false }
TOML
cat > src/main.rs <<'RUST'
fn main() {
    let mut editor = rustyline::DefaultEditor::new().unwrap();
    match editor.readline("ready> ") {
        Ok(line) => println!("[line {line:?}]"),
        Err(error) => println!("[{error:?}]"),
    }
}
RUST
cargo build -q
cat > other.py <<'PYTHON'
import readline
try:
    print("[line %r]" % input("ready> "))
except EOFError:
    print("[Eof]")
PYTHON
cat > at_terminal.py <<'PYTHON'
import os, pty, select, sys, termios

def until(screen, wanted, seen=b""):
    while wanted not in seen:
        if not select.select([screen], [], [], 20)[0]:
            sys.exit("nothing more came after %r" % seen)
        try:
            seen += os.read(screen, 4096)
        except OSError:
            break
    return seen

is_off, command = sys.argv[1] == "off", sys.argv[2:]
child, screen = pty.fork()
if child == 0:
    if is_off:
        settings = termios.tcgetattr(0)
        settings[6][termios.VEOF] = b"\0"
        termios.tcsetattr(0, termios.TCSANOW, settings)
    os.environ["TERM"] = "xterm"
    os.execvp(command[0], command)
seen = until(screen, b"ready> ")
os.write(screen, b"\0")
os.write(screen, b"hello\r")
seen = until(screen, b"]\r\n", seen)
os.waitpid(child, 0)
print([part for part in seen.decode().replace("\r", "\n").split("\n") if part.startswith("[")][-1])
PYTHON

said() { python3 at_terminal.py "$@"; }
plain=$(said on target/debug/prompt)
undefined=$(said off target/debug/prompt)
other_plain=$(said on python3 other.py)
other_undefined=$(said off python3 other.py)
echo "rustyline, a new terminal:            $plain"
echo "rustyline, no key for end of input:   $undefined"
echo "readline, a new terminal:             $other_plain"
echo "readline, no key for end of input:    $other_undefined"
[ "$plain" = '[line "hello"]' ] && [ "$undefined" = '[Eof]' ] \
    && [ "$other_plain" = "[line 'hello']" ] && [ "$other_undefined" = "[line 'hello']" ]
