//! A library to be preloaded (`LD_PRELOAD`) under a server, for `tests/crash`: it writes down, in order,
//! what reaches the files of one folder and when it was synced, and what was said on sockets. From that
//! log a test rebuilds what a disk may hold after a power cut at any point of it.
//!
//! It can also play a disk that fails. Settings are environment variables:
//!
//! | variable | meaning |
//! |---|---|
//! | `POWERCUT_DIR` | the folder that is watched; without it nothing is |
//! | `POWERCUT_LOG` | the log, outside of it |
//! | `POWERCUT_LIE` | syncs of files whose name begins so (with nothing: all, and of the folder) succeed and do nothing: none is logged |
//! | `POWERCUT_FAULT` | a file; while it holds `full`, nothing more fits on the disk; `sync`: syncing fails; `read`: reading too |
//!
//! A record is: kind (1 byte), number (8), offset (8), length (4), that many bytes; little-endian. The
//! test (`tests/crash/disk_log.rs`) says what the kinds mean. `-shm` files are left out: SQLite maps them,
//! and builds them anew.

/// Elsewhere there is no `LD_PRELOAD` of this kind; the tests say that they are skipped.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod shim {
    use std::collections::HashMap;
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

    use libc::{c_char, c_int, c_void, iovec, mode_t, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t};

    /// Calls the function of this name that would be there without us.
    macro_rules! real {
        ($name:ident : fn($($arg:ty),*) -> $result:ty) => {{
            static FOUND: OnceLock<usize> = OnceLock::new();
            let found = *FOUND.get_or_init(|| {
                // SAFETY: the name is a C string that lives forever.
                let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, concat!(stringify!($name), "\0").as_ptr().cast()) };
                assert!(!symbol.is_null(), concat!("no ", stringify!($name)));
                symbol as usize
            });
            // SAFETY: the C library's function of that name has this type.
            unsafe { std::mem::transmute::<usize, unsafe extern "C" fn($($arg),*) -> $result>(found) }
        }};
    }

    /// What is watched, or nothing.
    static WATCH: OnceLock<Option<Watch>> = OnceLock::new();

    struct Watch {
        dir: PathBuf,
        log: Option<c_int>,
        lie: Option<Vec<u8>>,
        fault: Option<Vec<u8>>,
        /// Held while a call happens and is logged: the order of the log is the order of the calls.
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        fds: HashMap<c_int, Open>,
        /// The number that a file has in the log, by its inode.
        numbers: HashMap<u64, u64>,
        next: u64,
    }

    #[derive(Clone)]
    enum Open {
        File { number: u64, appends: bool, lies: bool },
        Dir(PathBuf),
    }

    fn watch() -> Option<&'static Watch> {
        WATCH
            .get_or_init(|| {
                let dir = PathBuf::from(std::env::var_os("POWERCUT_DIR")?);
                let c_string = |name| {
                    let mut bytes = std::env::var_os(name)?.as_bytes().to_vec();
                    bytes.push(0);
                    Some(bytes)
                };
                let log = c_string("POWERCUT_LOG").map(|path| {
                    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
                    let open = real!(open64: fn(*const c_char, c_int, mode_t) -> c_int);
                    // SAFETY: the path ends with a zero.
                    let fd = unsafe { open(path.as_ptr().cast(), flags, 0o600) };
                    assert!(fd >= 0, "POWERCUT_LOG cannot be written");
                    fd
                });
                let lie = std::env::var_os("POWERCUT_LIE").map(|name| name.as_bytes().to_vec());
                let fault = c_string("POWERCUT_FAULT");
                Some(Watch { dir, log, lie, fault, state: Mutex::default() })
            })
            .as_ref()
    }

    impl Watch {
        fn lock(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// The path within the folder (empty for the folder itself), if it is in there.
        fn inside(&self, path: *const c_char) -> Option<PathBuf> {
            if path.is_null() {
                return None;
            }
            // SAFETY: callers of open, rename, … pass a C string.
            let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
            let path = path.strip_prefix(&self.dir).ok()?;
            (!path.as_os_str().as_bytes().ends_with(b"-shm")).then(|| path.to_owned())
        }

        fn log(&self, kind: u8, number: u64, offset: u64, bytes: &[u8]) {
            let Some(fd) = self.log else { return };
            let mut record = Vec::with_capacity(21 + bytes.len());
            record.push(kind);
            record.extend(number.to_le_bytes());
            record.extend(offset.to_le_bytes());
            record.extend((bytes.len() as u32).to_le_bytes());
            record.extend(bytes);
            let write = real!(write: fn(c_int, *const c_void, size_t) -> ssize_t);
            // SAFETY: the record is that long.
            let written = unsafe { write(fd, record.as_ptr().cast(), record.len()) };
            if written != record.len() as ssize_t {
                // A log with a hole would prove anything.
                std::process::abort();
            }
        }

        /// Whether this fault is being played now.
        fn fails(&self, fault: &[u8]) -> bool {
            let Some(path) = &self.fault else { return false };
            let open = real!(open64: fn(*const c_char, c_int, mode_t) -> c_int);
            let read = real!(read: fn(c_int, *mut c_void, size_t) -> ssize_t);
            let close = real!(close: fn(c_int) -> c_int);
            let mut bytes = [0u8; 32];
            // SAFETY: the path ends with a zero, the buffer is that long, the descriptor is our own.
            let length = unsafe {
                let fd = open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC, 0);
                if fd < 0 {
                    return false;
                }
                let length = read(fd, bytes.as_mut_ptr().cast(), bytes.len());
                close(fd);
                length
            };
            bytes[..length.max(0) as usize].split(|byte| *byte == b' ').any(|word| word.trim_ascii() == fault)
        }
    }

    fn fail(errno: c_int) -> c_int {
        // SAFETY: the thread's own errno.
        unsafe { *libc::__errno_location() = errno };
        -1
    }

    fn stat(fd: c_int) -> Option<libc::stat64> {
        // SAFETY: a zeroed stat is valid, and fstat fills it.
        unsafe {
            let mut stat: libc::stat64 = std::mem::zeroed();
            (libc::fstat64(fd, &mut stat) == 0).then_some(stat)
        }
    }

    /// Opens, and notes what was opened.
    fn opened(path: *const c_char, flags: c_int, open: impl FnOnce() -> c_int) -> c_int {
        let Some(watch) = watch() else { return open() };
        let Some(inside) = watch.inside(path) else { return open() };
        let mut state = watch.lock();
        // SAFETY: a C string; F_OK asks for nothing but being there.
        let existed = unsafe { libc::access(path, libc::F_OK) } == 0;
        if !existed && flags & libc::O_CREAT != 0 && watch.fails(b"full") {
            return fail(libc::ENOSPC);
        }
        let fd = open();
        let Some(stat) = (fd >= 0).then(|| stat(fd)).flatten() else { return fd };
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            state.fds.insert(fd, Open::Dir(inside));
            return fd;
        }
        let known = state.numbers.get(&stat.st_ino).copied().filter(|_| existed);
        let number = known.unwrap_or_else(|| {
            state.next += 1;
            let number = state.next;
            state.numbers.insert(stat.st_ino, number);
            watch.log(if existed { b'A' } else { b'C' }, number, 0, inside.as_os_str().as_bytes());
            number
        });
        if existed && flags & libc::O_TRUNC != 0 {
            watch.log(b'T', number, 0, &[]);
        }
        let lies = watch.lie.as_ref().is_some_and(|prefix| inside.as_os_str().as_bytes().starts_with(prefix));
        state.fds.insert(fd, Open::File { number, appends: flags & libc::O_APPEND != 0, lies });
        fd
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        let real = real!(open: fn(*const c_char, c_int, mode_t) -> c_int);
        // SAFETY: what we were given is handed on.
        opened(path, flags, || unsafe { real(path, flags, mode) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        let real = real!(open64: fn(*const c_char, c_int, mode_t) -> c_int);
        // SAFETY: what we were given is handed on.
        opened(path, flags, || unsafe { real(path, flags, mode) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn close(fd: c_int) -> c_int {
        let real = real!(close: fn(c_int) -> c_int);
        let Some(watch) = watch() else {
            // SAFETY: what we were given is handed on.
            return unsafe { real(fd) };
        };
        // Under the lock, so that nobody gets the number before we have forgotten it.
        let mut state = watch.lock();
        state.fds.remove(&fd);
        // SAFETY: what we were given is handed on.
        unsafe { real(fd) }
    }

    /// Writes to a file of ours at an offset (none: where it stands), or says something on a socket.
    fn written(
        fd: c_int,
        offset: Option<off_t>,
        parts: &[&[u8]],
        to: Option<u16>,
        write: impl FnOnce() -> ssize_t,
    ) -> ssize_t {
        let Some(watch) = watch() else { return write() };
        let state = watch.lock();
        let (number, appends) = match state.fds.get(&fd) {
            Some(Open::File { number, appends, .. }) => (*number, *appends),
            Some(Open::Dir(_)) => return write(),
            None => {
                if let Some(port) = to.or_else(|| peer_port(fd)) {
                    // Before it is sent: what is synced later in the log was not when this left.
                    watch.log(b'O', u64::from(is_stream(fd)), port.into(), &parts.concat());
                }
                drop(state);
                return write();
            }
        };
        if watch.fails(b"full") {
            return fail(libc::ENOSPC) as ssize_t;
        }
        let offset = offset.unwrap_or_else(|| match stat(fd) {
            Some(stat) if appends => stat.st_size,
            // SAFETY: asks where the descriptor stands.
            _ => unsafe { libc::lseek64(fd, 0, libc::SEEK_CUR) },
        });
        let length = write();
        if length > 0 {
            let mut bytes = parts.concat();
            bytes.truncate(length as usize);
            watch.log(b'W', number, offset as u64, &bytes);
        }
        length
    }

    /// Whether a socket is one of TCP: a port of UDP is another one of that number.
    fn is_stream(fd: c_int) -> bool {
        let (mut kind, mut length) = (0 as c_int, size_of::<c_int>() as socklen_t);
        // SAFETY: asks for one whole number, of which the length is told.
        let found = unsafe {
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut length) == 0
        };
        found && kind == libc::SOCK_STREAM
    }

    /// The other end of a connected socket; nothing for anything else.
    fn peer_port(fd: c_int) -> Option<u16> {
        // SAFETY: a zeroed sockaddr_storage is valid, and its length is given.
        unsafe {
            let mut address: libc::sockaddr_storage = std::mem::zeroed();
            let mut length = size_of_val(&address) as socklen_t;
            let found = libc::getpeername(fd, (&raw mut address).cast(), &mut length) == 0;
            found.then(|| port((&raw const address).cast())).flatten()
        }
    }

    fn port(address: *const sockaddr) -> Option<u16> {
        if address.is_null() {
            return None;
        }
        // SAFETY: an address begins with its family, which tells its type.
        unsafe {
            match c_int::from((*address).sa_family) {
                libc::AF_INET => Some(u16::from_be((*address.cast::<libc::sockaddr_in>()).sin_port)),
                libc::AF_INET6 => Some(u16::from_be((*address.cast::<libc::sockaddr_in6>()).sin6_port)),
                _ => None,
            }
        }
    }

    /// # Safety
    /// `bytes` must be readable for `length`, as write(2) wants it.
    unsafe fn part<'a>(bytes: *const c_void, length: size_t) -> &'a [u8] {
        if length == 0 {
            return &[];
        }
        // SAFETY: by the caller's word.
        unsafe { std::slice::from_raw_parts(bytes.cast(), length) }
    }

    /// # Safety
    /// `list` must hold `count` valid parts, as writev(2) wants it.
    unsafe fn parts<'a>(list: *const iovec, count: usize) -> Vec<&'a [u8]> {
        // SAFETY: by the caller's word.
        (0..count).map(|at| unsafe { part((*list.add(at)).iov_base, (*list.add(at)).iov_len) }).collect()
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, length: size_t) -> ssize_t {
        let real = real!(write: fn(c_int, *const c_void, size_t) -> ssize_t);
        // SAFETY: what we were given is handed on.
        written(fd, None, &[unsafe { part(bytes, length) }], None, || unsafe { real(fd, bytes, length) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn writev(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
        let real = real!(writev: fn(c_int, *const iovec, c_int) -> ssize_t);
        // SAFETY: what we were given is handed on.
        written(fd, None, &unsafe { parts(list, count.max(0) as usize) }, None, || unsafe { real(fd, list, count) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, length: size_t, offset: off_t) -> ssize_t {
        let real = real!(pwrite: fn(c_int, *const c_void, size_t, off_t) -> ssize_t);
        // SAFETY: what we were given is handed on.
        written(fd, Some(offset), &[unsafe { part(bytes, length) }], None, || unsafe {
            real(fd, bytes, length, offset)
        })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, length: size_t, offset: off_t) -> ssize_t {
        let real = real!(pwrite64: fn(c_int, *const c_void, size_t, off_t) -> ssize_t);
        // SAFETY: what we were given is handed on.
        written(fd, Some(offset), &[unsafe { part(bytes, length) }], None, || unsafe {
            real(fd, bytes, length, offset)
        })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn send(fd: c_int, bytes: *const c_void, length: size_t, flags: c_int) -> ssize_t {
        let real = real!(send: fn(c_int, *const c_void, size_t, c_int) -> ssize_t);
        // SAFETY: what we were given is handed on.
        written(fd, None, &[unsafe { part(bytes, length) }], None, || unsafe { real(fd, bytes, length, flags) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn sendto(
        fd: c_int,
        bytes: *const c_void,
        length: size_t,
        flags: c_int,
        to: *const sockaddr,
        to_length: socklen_t,
    ) -> ssize_t {
        type SendTo = unsafe extern "C" fn(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t;
        let real: SendTo =
            real!(sendto: fn(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t);
        // SAFETY: what we were given is handed on.
        written(fd, None, &[unsafe { part(bytes, length) }], port(to), || unsafe {
            real(fd, bytes, length, flags, to, to_length)
        })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        let real = real!(sendmsg: fn(c_int, *const msghdr, c_int) -> ssize_t);
        // SAFETY: sendmsg(2) wants a valid message of valid parts.
        let (parts, to) =
            unsafe { (parts((*message).msg_iov, (*message).msg_iovlen), port((*message).msg_name.cast())) };
        // SAFETY: likewise.
        written(fd, None, &parts, to, || unsafe { real(fd, message, flags) })
    }

    fn truncated(fd: c_int, length: off_t, truncate: impl FnOnce() -> c_int) -> c_int {
        let Some(watch) = watch() else { return truncate() };
        let state = watch.lock();
        let result = truncate();
        if let (0, Some(Open::File { number, .. })) = (result, state.fds.get(&fd)) {
            watch.log(b'T', *number, length as u64, &[]);
        }
        result
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn ftruncate(fd: c_int, length: off_t) -> c_int {
        let real = real!(ftruncate: fn(c_int, off_t) -> c_int);
        // SAFETY: what we were given is handed on.
        truncated(fd, length, || unsafe { real(fd, length) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn ftruncate64(fd: c_int, length: off_t) -> c_int {
        let real = real!(ftruncate64: fn(c_int, off_t) -> c_int);
        // SAFETY: what we were given is handed on.
        truncated(fd, length, || unsafe { real(fd, length) })
    }

    fn synced(fd: c_int, sync: impl FnOnce() -> c_int) -> c_int {
        let Some(watch) = watch() else { return sync() };
        let state = watch.lock();
        let Some(open) = state.fds.get(&fd) else {
            drop(state);
            return sync();
        };
        if watch.fails(b"sync") {
            return fail(libc::EIO);
        }
        let lies = match open {
            Open::File { lies, .. } => *lies,
            Open::Dir(_) => watch.lie.as_ref().is_some_and(Vec::is_empty),
        };
        if lies {
            return 0;
        }
        let result = sync();
        if result == 0 {
            match open {
                Open::File { number, .. } => watch.log(b'S', *number, 0, &[]),
                Open::Dir(path) => watch.log(b'D', 0, 0, path.as_os_str().as_bytes()),
            }
        }
        result
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn fsync(fd: c_int) -> c_int {
        let real = real!(fsync: fn(c_int) -> c_int);
        // SAFETY: what we were given is handed on.
        synced(fd, || unsafe { real(fd) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
        let real = real!(fdatasync: fn(c_int) -> c_int);
        // SAFETY: what we were given is handed on.
        synced(fd, || unsafe { real(fd) })
    }

    /// A change of names: logged with one path, or two with a zero between.
    fn named(kind: u8, paths: &[*const c_char], change: impl FnOnce() -> c_int) -> c_int {
        let Some(watch) = watch() else { return change() };
        let inside: Vec<PathBuf> = paths.iter().filter_map(|path| watch.inside(*path)).collect();
        if inside.len() != paths.len() {
            return change();
        }
        let _state = watch.lock();
        let result = change();
        if result == 0 {
            let paths: Vec<&[u8]> = inside.iter().map(|path| path.as_os_str().as_bytes()).collect();
            watch.log(kind, 0, 0, &paths.join(&0));
        }
        result
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
        let real = real!(rename: fn(*const c_char, *const c_char) -> c_int);
        // SAFETY: what we were given is handed on.
        named(b'R', &[from, to], || unsafe { real(from, to) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
        let real = real!(link: fn(*const c_char, *const c_char) -> c_int);
        // SAFETY: what we were given is handed on.
        named(b'L', &[from, to], || unsafe { real(from, to) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn linkat(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_int) -> c_int {
        type LinkAt = unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, c_int) -> c_int;
        let real: LinkAt = real!(linkat: fn(c_int, *const c_char, c_int, *const c_char, c_int) -> c_int);
        // Paths in the folder are absolute here, so that the descriptors mean nothing.
        // SAFETY: what we were given is handed on.
        named(b'L', &[from, to], || unsafe { real(a, from, b, to, flags) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
        let real = real!(unlink: fn(*const c_char) -> c_int);
        // SAFETY: what we were given is handed on.
        named(b'U', &[path], || unsafe { real(path) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
        let real = real!(mkdir: fn(*const c_char, mode_t) -> c_int);
        // SAFETY: what we were given is handed on.
        named(b'M', &[path], || unsafe { real(path, mode) })
    }

    fn fetched(fd: c_int, read: impl FnOnce() -> ssize_t) -> ssize_t {
        let Some(watch) = watch() else { return read() };
        if watch.fault.is_some() && watch.lock().fds.contains_key(&fd) && watch.fails(b"read") {
            return fail(libc::EIO) as ssize_t;
        }
        read()
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn pread64(fd: c_int, bytes: *mut c_void, length: size_t, offset: off_t) -> ssize_t {
        let real = real!(pread64: fn(c_int, *mut c_void, size_t, off_t) -> ssize_t);
        // SAFETY: what we were given is handed on.
        fetched(fd, || unsafe { real(fd, bytes, length, offset) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn pread(fd: c_int, bytes: *mut c_void, length: size_t, offset: off_t) -> ssize_t {
        let real = real!(pread: fn(c_int, *mut c_void, size_t, off_t) -> ssize_t);
        // SAFETY: what we were given is handed on.
        fetched(fd, || unsafe { real(fd, bytes, length, offset) })
    }
}
