//! Answers on their way out: REQUEST, DISCOVER and LIST are made a page at a time, and written between pages.
//!
//! No lock is held while anything is written, and no more than a page and a buffer is in memory, however long the
//! answer is and however slowly it is read.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Failure, STEP, Shared};
use crate::model::{Millis, Name};
use crate::net::conn::ConnWriter;
use crate::share::registry::{Changed, ConnId, Cursor, Piece, Refusal, Told, What};
use crate::share::wire::{Changes, FileEntry, FileName, List, Seconds, Wanted, answers as wire};
use crate::storage::StoreError;

/// Most files that are shown as like another.
const ALIKE_MAX: usize = 100;
/// Most changes of an answer: the next request gets the others.
const CHANGES_AT_ONCE: usize = 1_000;
/// So much is gathered before it is written, bytes.
const BUFFER: usize = 32 * 1024;
/// How long one such part may take to be written: nothing is held meanwhile but the connection itself.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Why an answer did not come about.
pub(super) enum Broken {
    /// Nothing of it was written.
    Refused(Failure),
    /// The connection is of no use any more.
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Io(error)
    }
}

/// A line that is written in parts.
pub(super) struct Output<'w> {
    writer: &'w ConnWriter,
    buffer: Vec<u8>,
    has_begun: bool,
}

impl<'w> Output<'w> {
    pub(super) fn new(writer: &'w ConnWriter) -> Output<'w> {
        Output { writer, buffer: Vec::new(), has_begun: false }
    }

    /// A whole line.
    pub(super) fn line(&mut self, line: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(line);
        self.end()
    }

    /// Some bytes of it.
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.flush_if(BUFFER)
    }

    /// Some JSON of it.
    fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        // Texts and numbers alone: writing them to memory cannot fail.
        serde_json::to_writer(&mut self.buffer, value)?;
        self.flush_if(BUFFER)
    }

    fn end(&mut self) -> io::Result<()> {
        self.buffer.push(b'\n');
        self.flush_if(1)
    }

    fn flush_if(&mut self, at_least: usize) -> io::Result<()> {
        if self.buffer.len() >= at_least {
            self.has_begun = true;
            self.writer.write_all(&self.buffer, Instant::now() + WRITE_TIMEOUT)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// What could not be read from the store: told, if nothing of the answer is out; else the line cannot be
    /// completed, and the connection ends.
    fn broken(&mut self, error: StoreError) -> Broken {
        if self.has_begun {
            return Broken::Io(io::Error::other(error));
        }
        self.buffer.clear();
        Broken::Refused(error.into())
    }
}

/// A time as Unix seconds.
pub(super) fn seconds(at: Millis) -> Option<Seconds> {
    // Exact to the millisecond for as long as calendars have four digits.
    Seconds::new(at.0 as f64 / 1000.0).ok()
}

/// A change on the wire.
#[derive(Serialize)]
struct Line<'a> {
    hostname: &'a Name,
    display_name: &'a str,
    addr: (IpAddr, u16),
    #[serde(skip_serializing_if = "Option::is_none")]
    fname: Option<&'a FileName>,
    /// Null of what is gone; a host that has come has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<Option<&'a FileEntry>>,
}

impl Shared {
    /// The answer of REQUEST.
    pub(super) fn found(&self, fname: &FileName, out: &mut Output<'_>) -> Result<(), Broken> {
        let (mut after, mut any) = (None, false);
        loop {
            let page = self.keeper.look(|core, now| core.holders(now, fname, after, STEP));
            let (hosts, next) = page.map_err(|error| out.broken(error))?;
            for host in &hosts {
                out.push(if any { b"," } else { b"{\"status\":\"FOUND\",\"hosts\":[" })?;
                out.json(host)?;
                any = true;
            }
            if next.is_none() {
                break;
            }
            after = next;
        }
        if any {
            out.push(b"]}")?;
            out.end()?;
        } else {
            out.line(wire::NOT_FOUND)?;
        }
        Ok(())
    }

    /// The answer of REQUEST with a size.
    pub(super) fn alike(&self, conn: ConnId, wanted: &Wanted, size: u64, out: &mut Output<'_>) -> Result<(), Broken> {
        let modified = wanted.modified.map(Seconds::get);
        let found = self.keeper.look(|core, now| core.alike(now, conn, &wanted.fname, size, modified, ALIKE_MAX));
        let found = found.map_err(|error| out.broken(error))?;
        if found.is_empty() {
            return Ok(out.line(wire::NOT_FOUND)?);
        }
        out.push(b"{\"status\":\"FOUND\",\"hosts\":[")?;
        for (number, (fname, host)) in found.iter().enumerate() {
            if number > 0 {
                out.push(b",")?;
            }
            out.json(&wire::Alike { fname, host })?;
        }
        out.push(b"]}")?;
        Ok(out.end()?)
    }

    /// The answer of DISCOVER.
    pub(super) fn discovered(&self, hostname: &Name, out: &mut Output<'_>) -> Result<(), Broken> {
        let shown = self.keeper.look(|core, now| core.discover(now, hostname.as_str()));
        let shown = shown.map_err(|error| out.broken(error))?;
        let Some(shown) = shown else { return Err(Broken::Refused(Refusal::UnknownHost.into())) };
        out.push(b"{\"status\":\"OK\",\"addr\":")?;
        out.json(&(shown.ip, shown.port))?;
        out.push(b",\"files\":{")?;
        let (mut cursor, mut is_first) = (Cursor::files_of(&shown), true);
        // No further host; so it ends behind this one's files.
        while cursor != Cursor::End {
            let page = self.keeper.look(|core, _now| core.list(cursor, &mut 0, STEP));
            let (pieces, next) = page.map_err(|error| out.broken(error))?;
            for piece in &pieces {
                self.write_piece(piece, &mut is_first, &mut false, out)?;
            }
            cursor = next;
        }
        out.push(b"}}")?;
        Ok(out.end()?)
    }

    /// The answer of LIST.
    pub(super) fn listed(&self, list: List, out: &mut Output<'_>) -> Result<(), Broken> {
        let whole = |number: Option<u64>, or: usize| number.map_or(or, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let mut cursor = Cursor::Offset(whole(list.offset, 0));
        let mut hosts = whole(list.limit, usize::MAX);
        let total = self.keeper.look(|core, _now| core.listed()).map_err(|error| out.broken(error))?;
        out.push(format!("{{\"status\":\"OK\",\"total\":{total},\"registry\":{{").as_bytes())?;
        let (mut is_first_file, mut is_open) = (true, false);
        while cursor != Cursor::End {
            let page = self.keeper.look(|core, _now| core.list(cursor, &mut hosts, STEP));
            let (pieces, next) = page.map_err(|error| out.broken(error))?;
            for piece in &pieces {
                self.write_piece(piece, &mut is_first_file, &mut is_open, out)?;
            }
            cursor = next;
        }
        out.push(if is_open { b"}}}}" } else { b"}}" })?;
        Ok(out.end()?)
    }

    /// The answer of CHANGES: as soon as there is one, with those that come right behind it.
    pub(super) fn changed(&self, asked: Changes, out: &mut Output<'_>) -> Result<(), Broken> {
        let until = Instant::now() + Duration::from_secs_f64(asked.wait.map_or(0.0, Seconds::get));
        // Whoever does not wait gets what there is.
        let mut has_gathered = asked.wait.is_none_or(|wait| wait.get() == 0.0);
        let told = loop {
            let told = self.keeper.look(|core, now| core.changes(now, asked.since, CHANGES_AT_ONCE));
            let told = told.map_err(|error| out.broken(error))?;
            match &told {
                Told::Since(version, changes) if changes.is_empty() && Instant::now() < until => {
                    if !self.keeper.wait_for_change(*version, until) {
                        break told;
                    }
                }
                Told::Since(_, changes) if !has_gathered && (1..CHANGES_AT_ONCE).contains(&changes.len()) => {
                    self.gather();
                    has_gathered = true;
                }
                _ => break told,
            }
        };
        let (version, changes) = match told {
            Told::Anew(version) => {
                return Ok(out.line(format!("{{\"status\":\"OK\",\"version\":{version},\"reset\":true}}").as_bytes())?);
            }
            Told::Since(version, changes) => (version, changes),
        };
        out.push(format!("{{\"status\":\"OK\",\"version\":{version},\"changes\":[").as_bytes())?;
        for (number, changed) in changes.iter().enumerate() {
            if number > 0 {
                out.push(b",")?;
            }
            let Changed { hostname, display_name, addr, what } = changed;
            let (fname, entry) = match what {
                What::Came => (None, None),
                What::Gone => (None, Some(None)),
                What::File(fname, entry) => (Some(fname), Some(entry.as_deref())),
            };
            out.json(&Line { hostname, display_name, addr: *addr, fname, entry })?;
        }
        out.push(b"]}")?;
        Ok(out.end()?)
    }

    fn write_piece(
        &self,
        piece: &Piece,
        is_first_file: &mut bool,
        is_open: &mut bool,
        out: &mut Output<'_>,
    ) -> io::Result<()> {
        match piece {
            Piece::Host(host) => {
                if std::mem::replace(is_open, true) {
                    out.push(b"}},")?;
                }
                *is_first_file = true;
                #[derive(Serialize)]
                struct Head<'a> {
                    addr: (std::net::IpAddr, u16),
                    display_name: &'a str,
                    last_seen: Option<Seconds>,
                    connected_at: Option<Seconds>,
                }
                let head = wire::json(&Head {
                    addr: (host.ip, host.port),
                    display_name: &host.display_name,
                    last_seen: seconds(self.keeper.dated(host.last_seen)),
                    connected_at: seconds(self.keeper.dated(host.connected_at)),
                });
                out.json(&host.hostname)?;
                out.push(b":")?;
                // Without its end: the files go on inside it.
                out.push(head.strip_suffix(b"}").unwrap_or(&head))?;
                out.push(b",\"files\":{")
            }
            Piece::Files(files) => {
                for (fname, entry) in files {
                    if !std::mem::take(is_first_file) {
                        out.push(b",")?;
                    }
                    out.json(fname)?;
                    out.push(b":")?;
                    out.json(&**entry)?;
                }
                Ok(())
            }
        }
    }
}
