//! A library for `LD_PRELOAD` under a server, used by `tests/crash`. It logs, in order, the writes to the files of one
//! folder, the syncs, and the messages sent on sockets. From the log a test rebuilds what a disk may contain after a
//! power cut at any point.
//!
//! It can also simulate disk faults. Settings are environment variables:
//!
//! | variable | meaning |
//! |---|---|
//! | `POWERCUT_DIR` | the watched folder; without it nothing is watched |
//! | `POWERCUT_LOG` | the log, outside of that folder |
//! | `POWERCUT_LIE` | a prefix: syncs of files with such a name (empty: of all files and of the folder) succeed without effect and are not logged |
//! | `POWERCUT_FAULT` | a file that names the current fault: `full`: the disk is full; `sync`: syncs fail; `read`: reads fail |
//!
//! A record consists of kind (1 byte), number (8), offset (8), length (4) and that many bytes, little-endian. The kinds
//! are described in `tests/crash/disk_log.rs`. `-shm` files are left out, because SQLite maps and rebuilds them.

/// Other systems have no such `LD_PRELOAD`; the tests report that they are skipped.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod shim {
    use std::collections::HashMap;
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

    use libc::{c_char, c_int, c_void, iovec, mode_t, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t};

    /// Calls the next definition of this function (the C library's).
    macro_rules! real {
        ($name:ident : fn($($arg:ty),*) -> $result:ty) => {{
            static FOUND: OnceLock<usize> = OnceLock::new();
            let found = *FOUND.get_or_init(|| {
                // SAFETY: the name is a static C string.
                let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, concat!(stringify!($name), "\0").as_ptr().cast()) };
                assert!(!symbol.is_null(), concat!("no ", stringify!($name)));
                symbol as usize
            });
            // SAFETY: the C library's function of that name has this type.
            unsafe { std::mem::transmute::<usize, unsafe extern "C" fn($($arg),*) -> $result>(found) }
        }};
    }

    /// The watched folder, if any.
    static WATCH: OnceLock<Option<WatchedDir>> = OnceLock::new();

    struct WatchedDir {
        dir: PathBuf,
        log: Option<c_int>,
        lie: Option<Vec<u8>>,
        fault: Option<Vec<u8>>,
        /// Held while a call is executed and logged, so that the log has the order of the calls.
        state: Mutex<OpenFiles>,
    }

    #[derive(Default)]
    struct OpenFiles {
        fds: HashMap<c_int, OpenFd>,
        /// File numbers of the log by inode.
        numbers: HashMap<u64, u64>,
        next: u64,
    }

    #[derive(Clone)]
    enum OpenFd {
        File { number: u64, appends: bool, lies: bool },
        Dir(PathBuf),
    }

    fn watch() -> Option<&'static WatchedDir> {
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
                    // SAFETY: the path is NUL-terminated.
                    let fd = unsafe { open(path.as_ptr().cast(), flags, 0o600) };
                    assert!(fd >= 0, "POWERCUT_LOG cannot be written");
                    fd
                });
                let lie = std::env::var_os("POWERCUT_LIE").map(|name| name.as_bytes().to_vec());
                let fault = c_string("POWERCUT_FAULT");
                Some(WatchedDir { dir, log, lie, fault, state: Mutex::default() })
            })
            .as_ref()
    }

    impl WatchedDir {
        fn lock(&self) -> MutexGuard<'_, OpenFiles> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// The path relative to the watched folder (empty for the folder itself), if it is inside.
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
            // SAFETY: the pointer and the length are those of the record.
            let written = unsafe { write(fd, record.as_ptr().cast(), record.len()) };
            if written != record.len() as ssize_t {
                // A log with a gap would be worthless.
                std::process::abort();
            }
        }

        /// Whether this fault is currently requested.
        fn fails(&self, fault: &[u8]) -> bool {
            let Some(path) = &self.fault else { return false };
            let open = real!(open64: fn(*const c_char, c_int, mode_t) -> c_int);
            let read = real!(read: fn(c_int, *mut c_void, size_t) -> ssize_t);
            let close = real!(close: fn(c_int) -> c_int);
            let mut bytes = [0u8; 32];
            // SAFETY: the path is NUL-terminated, the buffer has this length, and the descriptor is our own.
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

    /// Opens a file and records it.
    fn opened(path: *const c_char, flags: c_int, open: impl FnOnce() -> c_int) -> c_int {
        let Some(watch) = watch() else { return open() };
        let Some(inside) = watch.inside(path) else { return open() };
        let mut state = watch.lock();
        // SAFETY: a C string; F_OK only tests existence.
        let existed = unsafe { libc::access(path, libc::F_OK) } == 0;
        if !existed && flags & libc::O_CREAT != 0 && watch.fails(b"full") {
            return fail(libc::ENOSPC);
        }
        let fd = open();
        let Some(stat) = (fd >= 0).then(|| stat(fd)).flatten() else { return fd };
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            state.fds.insert(fd, OpenFd::Dir(inside));
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
        state.fds.insert(fd, OpenFd::File { number, appends: flags & libc::O_APPEND != 0, lies });
        fd
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        let real = real!(open: fn(*const c_char, c_int, mode_t) -> c_int);
        // SAFETY: the arguments are passed through.
        opened(path, flags, || unsafe { real(path, flags, mode) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        let real = real!(open64: fn(*const c_char, c_int, mode_t) -> c_int);
        // SAFETY: the arguments are passed through.
        opened(path, flags, || unsafe { real(path, flags, mode) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn close(fd: c_int) -> c_int {
        let real = real!(close: fn(c_int) -> c_int);
        let Some(watch) = watch() else {
            // SAFETY: the arguments are passed through.
            return unsafe { real(fd) };
        };
        // Under the lock, so that the descriptor is not reused before it is forgotten.
        let mut state = watch.lock();
        state.fds.remove(&fd);
        // SAFETY: the arguments are passed through.
        unsafe { real(fd) }
    }

    /// Writes to a watched file at an offset (none: the current position), or sends on a socket.
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
            Some(OpenFd::File { number, appends, .. }) => (*number, *appends),
            Some(OpenFd::Dir(_)) => return write(),
            None => {
                if let Some(port) = to.or_else(|| peer_port(fd)) {
                    // Logged before sending: what is synced later in the log was not synced when the message left.
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
            // SAFETY: queries the position of the descriptor.
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

    /// Whether a socket is TCP: UDP and TCP ports of the same number are different.
    fn is_stream(fd: c_int) -> bool {
        let (mut kind, mut length) = (0 as c_int, size_of::<c_int>() as socklen_t);
        // SAFETY: the option is an integer, and its length is given.
        let found = unsafe {
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut length) == 0
        };
        found && kind == libc::SOCK_STREAM
    }

    /// The remote port of a connected socket.
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
        // SAFETY: an address begins with its family, which determines its type.
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
        // SAFETY: guaranteed by the caller.
        unsafe { std::slice::from_raw_parts(bytes.cast(), length) }
    }

    /// # Safety
    /// `list` must hold `count` valid parts, as writev(2) wants it.
    unsafe fn parts<'a>(list: *const iovec, count: usize) -> Vec<&'a [u8]> {
        // SAFETY: guaranteed by the caller.
        (0..count).map(|at| unsafe { part((*list.add(at)).iov_base, (*list.add(at)).iov_len) }).collect()
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, length: size_t) -> ssize_t {
        let real = real!(write: fn(c_int, *const c_void, size_t) -> ssize_t);
        // SAFETY: the arguments are passed through.
        written(fd, None, &[unsafe { part(bytes, length) }], None, || unsafe { real(fd, bytes, length) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn writev(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
        let real = real!(writev: fn(c_int, *const iovec, c_int) -> ssize_t);
        // SAFETY: the arguments are passed through.
        written(fd, None, &unsafe { parts(list, count.max(0) as usize) }, None, || unsafe { real(fd, list, count) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, length: size_t, offset: off_t) -> ssize_t {
        let real = real!(pwrite: fn(c_int, *const c_void, size_t, off_t) -> ssize_t);
        // SAFETY: the arguments are passed through.
        written(fd, Some(offset), &[unsafe { part(bytes, length) }], None, || unsafe {
            real(fd, bytes, length, offset)
        })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, length: size_t, offset: off_t) -> ssize_t {
        let real = real!(pwrite64: fn(c_int, *const c_void, size_t, off_t) -> ssize_t);
        // SAFETY: the arguments are passed through.
        written(fd, Some(offset), &[unsafe { part(bytes, length) }], None, || unsafe {
            real(fd, bytes, length, offset)
        })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn send(fd: c_int, bytes: *const c_void, length: size_t, flags: c_int) -> ssize_t {
        let real = real!(send: fn(c_int, *const c_void, size_t, c_int) -> ssize_t);
        // SAFETY: the arguments are passed through.
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
        // SAFETY: the arguments are passed through.
        written(fd, None, &[unsafe { part(bytes, length) }], port(to), || unsafe {
            real(fd, bytes, length, flags, to, to_length)
        })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        let real = real!(sendmsg: fn(c_int, *const msghdr, c_int) -> ssize_t);
        // SAFETY: sendmsg(2) requires a valid message with valid parts.
        let (parts, to) =
            unsafe { (parts((*message).msg_iov, (*message).msg_iovlen), port((*message).msg_name.cast())) };
        // SAFETY: as above.
        written(fd, None, &parts, to, || unsafe { real(fd, message, flags) })
    }

    fn truncated(fd: c_int, length: off_t, truncate: impl FnOnce() -> c_int) -> c_int {
        let Some(watch) = watch() else { return truncate() };
        let state = watch.lock();
        let result = truncate();
        if let (0, Some(OpenFd::File { number, .. })) = (result, state.fds.get(&fd)) {
            watch.log(b'T', *number, length as u64, &[]);
        }
        result
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn ftruncate(fd: c_int, length: off_t) -> c_int {
        let real = real!(ftruncate: fn(c_int, off_t) -> c_int);
        // SAFETY: the arguments are passed through.
        truncated(fd, length, || unsafe { real(fd, length) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn ftruncate64(fd: c_int, length: off_t) -> c_int {
        let real = real!(ftruncate64: fn(c_int, off_t) -> c_int);
        // SAFETY: the arguments are passed through.
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
            OpenFd::File { lies, .. } => *lies,
            OpenFd::Dir(_) => watch.lie.as_ref().is_some_and(Vec::is_empty),
        };
        if lies {
            return 0;
        }
        let result = sync();
        if result == 0 {
            match open {
                OpenFd::File { number, .. } => watch.log(b'S', *number, 0, &[]),
                OpenFd::Dir(path) => watch.log(b'D', 0, 0, path.as_os_str().as_bytes()),
            }
        }
        result
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn fsync(fd: c_int) -> c_int {
        let real = real!(fsync: fn(c_int) -> c_int);
        // SAFETY: the arguments are passed through.
        synced(fd, || unsafe { real(fd) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
        let real = real!(fdatasync: fn(c_int) -> c_int);
        // SAFETY: the arguments are passed through.
        synced(fd, || unsafe { real(fd) })
    }

    /// Executes and logs a change of names, with one path or two separated by NUL.
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
        // SAFETY: the arguments are passed through.
        named(b'R', &[from, to], || unsafe { real(from, to) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
        let real = real!(link: fn(*const c_char, *const c_char) -> c_int);
        // SAFETY: the arguments are passed through.
        named(b'L', &[from, to], || unsafe { real(from, to) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn linkat(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_int) -> c_int {
        type LinkAt = unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, c_int) -> c_int;
        let real: LinkAt = real!(linkat: fn(c_int, *const c_char, c_int, *const c_char, c_int) -> c_int);
        // Paths in the folder are absolute here, so the descriptors are not used.
        // SAFETY: the arguments are passed through.
        named(b'L', &[from, to], || unsafe { real(a, from, b, to, flags) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
        let real = real!(unlink: fn(*const c_char) -> c_int);
        // SAFETY: the arguments are passed through.
        named(b'U', &[path], || unsafe { real(path) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
        let real = real!(mkdir: fn(*const c_char, mode_t) -> c_int);
        // SAFETY: the arguments are passed through.
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
        // SAFETY: the arguments are passed through.
        fetched(fd, || unsafe { real(fd, bytes, length, offset) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn pread(fd: c_int, bytes: *mut c_void, length: size_t, offset: off_t) -> ssize_t {
        let real = real!(pread: fn(c_int, *mut c_void, size_t, off_t) -> ssize_t);
        // SAFETY: the arguments are passed through.
        fetched(fd, || unsafe { real(fd, bytes, length, offset) })
    }
}
