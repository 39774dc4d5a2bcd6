//! Writes responses. Those of REQUEST, DISCOVER and LIST are produced a page at a time.
//!
//! No lock is held while writing, and no more than a page and a buffer is in memory, however long the response is and
//! however slowly the client reads.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{RegistryServerInner, RequestError, STEP_SIZE};
use crate::model::Name;
use crate::net::conn::ConnWriter;
use crate::share::registry::{
    ConnId, ListingChange, ListingChangeKind, ListingCursor, ListingPart, ListingUpdate, RegistryError,
};
use crate::share::unix_time::unix_seconds_of;
use crate::share::wire::{ChangesRequest, FileEntry, FileName, FileRequest, ListRequest, Seconds, responses as wire};
use crate::storage::StoreError;

const SIMILAR_FILES_MAX: usize = 100;
/// The next request gets the others.
const CHANGES_PER_RESPONSE: usize = 1_000;
/// Output is buffered up to this size.
const BUFFER_BYTES: usize = 32 * 1024;
/// How long writing one buffer may take; only the connection itself is occupied meanwhile.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) enum ResponseError {
    /// Nothing was written yet, so an error can be sent instead.
    Refused(#[from] RequestError),
    /// The connection is broken.
    Io(#[from] io::Error),
}

/// Writes a line in parts.
pub(super) struct ResponseWriter<'w> {
    writer: &'w ConnWriter,
    buffer: Vec<u8>,
    has_begun: bool,
}

impl<'w> ResponseWriter<'w> {
    pub(super) fn new(writer: &'w ConnWriter) -> ResponseWriter<'w> {
        ResponseWriter { writer, buffer: Vec::new(), has_begun: false }
    }

    pub(super) fn line(&mut self, line: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(line);
        self.end()
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.flush_if(BUFFER_BYTES)
    }

    fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        // Only strings and numbers: serializing them to memory cannot fail.
        serde_json::to_writer(&mut self.buffer, value)?;
        self.flush_if(BUFFER_BYTES)
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

    /// After a failed read: the error is sent to the client if nothing was written yet; otherwise the line
    /// cannot be completed, and the connection must end.
    fn read_failed(&mut self, error: StoreError) -> ResponseError {
        if self.has_begun {
            return ResponseError::Io(io::Error::other(error));
        }
        self.buffer.clear();
        ResponseError::Refused(error.into())
    }
}

/// A change as CHANGES sends it.
#[derive(Serialize)]
struct ChangeLine<'a> {
    hostname: &'a Name,
    display_name: &'a str,
    addr: (IpAddr, u16),
    #[serde(skip_serializing_if = "Option::is_none")]
    fname: Option<&'a FileName>,
    /// Null for what is no longer listed; absent for a host that is listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<Option<&'a FileEntry>>,
}

impl RegistryServerInner {
    pub(super) fn write_holders(&self, fname: &FileName, out: &mut ResponseWriter<'_>) -> Result<(), ResponseError> {
        let (mut after, mut any) = (None, false);
        loop {
            let page = self.registry.read(|core, now| core.holders(now, fname, after, STEP_SIZE));
            let (hosts, next) = page.map_err(|error| out.read_failed(error))?;
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
        Ok(out.line(if any { b"]}" } else { wire::NOT_FOUND })?)
    }

    pub(super) fn write_similar_files(
        &self,
        conn: ConnId,
        wanted: &FileRequest,
        size: u64,
        out: &mut ResponseWriter<'_>,
    ) -> Result<(), ResponseError> {
        let modified = wanted.modified.map(Seconds::get);
        let found = self
            .registry
            .read(|core, now| core.similar_files(now, conn, &wanted.fname, size, modified, SIMILAR_FILES_MAX));
        let found = found.map_err(|error| out.read_failed(error))?;
        if found.is_empty() {
            return Ok(out.line(wire::NOT_FOUND)?);
        }
        out.push(b"{\"status\":\"FOUND\",\"hosts\":[")?;
        for (number, (fname, host)) in found.iter().enumerate() {
            if number > 0 {
                out.push(b",")?;
            }
            out.json(&wire::SimilarFile { fname, host })?;
        }
        Ok(out.line(b"]}")?)
    }

    pub(super) fn write_host(&self, hostname: &Name, out: &mut ResponseWriter<'_>) -> Result<(), ResponseError> {
        let shown = self.registry.read(|core, now| core.discover(now, hostname.as_str()));
        let shown = shown.map_err(|error| out.read_failed(error))?;
        let Some(shown) = shown else { return Err(RequestError::from(RegistryError::UnknownHost).into()) };
        out.push(b"{\"status\":\"OK\",\"addr\":")?;
        out.json(&(shown.ip, shown.port))?;
        out.push(b",\"files\":{")?;
        // No further host is requested, so the listing ends after this host's files.
        self.write_parts(ListingCursor::files_of(&shown), 0, out)?;
        Ok(out.line(b"}}")?)
    }

    pub(super) fn write_list(&self, list: ListRequest, out: &mut ResponseWriter<'_>) -> Result<(), ResponseError> {
        let whole = |number: Option<u64>, or: usize| number.map_or(or, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let (cursor, hosts) = (ListingCursor::Offset(whole(list.offset, 0)), whole(list.limit, usize::MAX));
        let total = self.registry.read(|core, _now| core.live_host_count()).map_err(|error| out.read_failed(error))?;
        out.push(format!("{{\"status\":\"OK\",\"total\":{total},\"registry\":{{").as_bytes())?;
        let has_open_host = self.write_parts(cursor, hosts, out)?;
        Ok(out.line(if has_open_host { b"}}}}" } else { b"}}" })?)
    }

    /// Writes at most so many hosts from the cursor on. Returns whether the object of a host is still open.
    fn write_parts(
        &self,
        mut cursor: ListingCursor,
        mut hosts: usize,
        out: &mut ResponseWriter<'_>,
    ) -> Result<bool, ResponseError> {
        let (mut is_first_file, mut has_open_host) = (true, false);
        while cursor != ListingCursor::End {
            let page = self.registry.read(|core, _now| core.list(cursor, &mut hosts, STEP_SIZE));
            let (parts, next) = page.map_err(|error| out.read_failed(error))?;
            for part in &parts {
                self.write_part(part, &mut is_first_file, &mut has_open_host, out)?;
            }
            cursor = next;
        }
        Ok(has_open_host)
    }

    /// Responds once there is a change, together with those that follow closely.
    pub(super) fn write_changes(
        &self,
        asked: ChangesRequest,
        out: &mut ResponseWriter<'_>,
    ) -> Result<(), ResponseError> {
        let deadline = Instant::now() + Duration::from_secs_f64(asked.wait.map_or(0.0, Seconds::get));
        // A request without a wait gets what there is.
        let mut has_coalesced = asked.wait.is_none_or(|wait| wait.get() == 0.0);
        let update = loop {
            let update = self.registry.read(|core, now| core.changes_since(now, asked.since, CHANGES_PER_RESPONSE));
            let update = update.map_err(|error| out.read_failed(error))?;
            match &update {
                ListingUpdate::Changes(version, changes) if changes.is_empty() && Instant::now() < deadline => {
                    if !self.registry.wait_for_change(*version, deadline) {
                        break update;
                    }
                }
                ListingUpdate::Changes(_, changes)
                    if !has_coalesced && (1..CHANGES_PER_RESPONSE).contains(&changes.len()) =>
                {
                    self.coalesce_changes();
                    has_coalesced = true;
                }
                _ => break update,
            }
        };
        let (version, changes) = match update {
            ListingUpdate::Reset(version) => {
                return Ok(out.line(format!("{{\"status\":\"OK\",\"version\":{version},\"reset\":true}}").as_bytes())?);
            }
            ListingUpdate::Changes(version, changes) => (version, changes),
        };
        out.push(format!("{{\"status\":\"OK\",\"version\":{version},\"changes\":[").as_bytes())?;
        for (number, changed) in changes.iter().enumerate() {
            if number > 0 {
                out.push(b",")?;
            }
            let ListingChange { hostname, display_name, addr, kind } = changed;
            let (fname, entry) = match kind {
                ListingChangeKind::HostListed => (None, None),
                ListingChangeKind::HostUnlisted => (None, Some(None)),
                ListingChangeKind::File(fname, entry) => (Some(fname), Some(entry.as_deref())),
            };
            out.json(&ChangeLine { hostname, display_name, addr: *addr, fname, entry })?;
        }
        Ok(out.line(b"]}")?)
    }

    fn write_part(
        &self,
        part: &ListingPart,
        is_first_file: &mut bool,
        has_open_host: &mut bool,
        out: &mut ResponseWriter<'_>,
    ) -> io::Result<()> {
        match part {
            ListingPart::Host(host) => {
                if std::mem::replace(has_open_host, true) {
                    out.push(b"}},")?;
                }
                *is_first_file = true;
                #[derive(Serialize)]
                struct HostHeader<'a> {
                    addr: (IpAddr, u16),
                    display_name: &'a str,
                    last_seen: Seconds,
                    connected_at: Seconds,
                }
                let header = wire::to_json(&HostHeader {
                    addr: (host.ip, host.port),
                    display_name: &host.display_name,
                    last_seen: unix_seconds_of(self.registry.wall_time(host.last_seen)),
                    connected_at: unix_seconds_of(self.registry.wall_time(host.connected_at)),
                });
                out.json(&host.hostname)?;
                out.push(b":")?;
                // Without the closing brace: the files follow inside the object.
                out.push(header.strip_suffix(b"}").unwrap_or(&header))?;
                out.push(b",\"files\":{")
            }
            ListingPart::Files(files) => {
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
