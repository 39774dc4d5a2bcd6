//! The log of the preloaded library (`preloaded.rs`), and the folders that a power cut may leave.
//!
//! Only what was synced is certain. Unsynced writes may be there completely, partly (by sectors of 512 bytes) or not at
//! all, in any order; names that were created, renamed or removed since their folder was synced may be in either state.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use crate::claims::Port;
use crate::rng::Rng;

const SECTOR: usize = 512;

/// One recorded call of the server; calls are in order.
#[derive(Debug)]
pub enum DiskEvent {
    /// A file that existed or was created: its number and name.
    Opened {
        file: u64,
        name: String,
        is_new: bool,
    },
    Write {
        file: u64,
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        file: u64,
        length: usize,
    },
    Sync {
        file: u64,
    },
    SyncFolder,
    Rename {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    Unlink {
        name: String,
    },
    /// A message is about to be sent to a port.
    Said {
        port: Port,
        bytes: Vec<u8>,
    },
}

/// A recording of the server's disk operations.
pub struct DiskLog {
    /// Each with the length of the log before it.
    pub events: Vec<(u64, DiskEvent)>,
    /// The folder's contents before the recording.
    base: BTreeMap<String, Vec<u8>>,
}

/// How much of what was not synced has reached the disk.
#[derive(Debug, Clone, Copy)]
pub enum Unsynced {
    Lost,
    Kept,
    /// A random subset of writes and names.
    Some,
    /// A random subset of sectors.
    Torn,
}

impl DiskLog {
    pub fn read(path: &Path, base: BTreeMap<String, Vec<u8>>) -> DiskLog {
        let log = fs::read(path).unwrap();
        let mut events = Vec::new();
        let mut at = 0;
        // The last record may have been cut off by the kill.
        while let Some(header) = log.get(at..at + 21) {
            let number = |from: usize| u64::from_le_bytes(header[from..from + 8].try_into().unwrap());
            let length = u32::from_le_bytes(header[17..].try_into().unwrap()) as usize;
            let (file, offset) = (number(1), number(9) as usize);
            let Some(bytes) = log.get(at + 21..at + 21 + length) else { break };
            let text = || {
                let text = String::from_utf8(bytes.to_vec()).unwrap();
                // The model supports a single folder.
                assert!(!text.contains('/'), "{text}");
                text
            };
            let two = || {
                let (from, to) = text().split_once('\0').map(|(from, to)| (from.to_owned(), to.to_owned())).unwrap();
                (from, to)
            };
            let event = match header[0] {
                b'A' => DiskEvent::Opened { file, name: text(), is_new: false },
                b'C' => DiskEvent::Opened { file, name: text(), is_new: true },
                b'W' => DiskEvent::Write { file, offset, bytes: bytes.to_vec() },
                b'T' => DiskEvent::Truncate { file, length: offset },
                b'S' => DiskEvent::Sync { file },
                b'D' => DiskEvent::SyncFolder,
                b'R' => {
                    let (from, to) = two();
                    DiskEvent::Rename { from, to }
                }
                b'L' => {
                    let (from, to) = two();
                    DiskEvent::Link { from, to }
                }
                b'U' => DiskEvent::Unlink { name: text() },
                b'O' => {
                    let port = if file == 1 { Port::Tcp(offset as u16) } else { Port::Udp(offset as u16) };
                    DiskEvent::Said { port, bytes: bytes.to_vec() }
                }
                // Creation of the folder itself.
                b'M' => {
                    at += 21 + length;
                    continue;
                }
                other => panic!("no record begins with {other}"),
            };
            events.push((at as u64, event));
            at += 21 + length;
        }
        DiskLog { events, base }
    }

    /// A possible state of the files after a power cut that follows the first `cut` events.
    pub fn after(&self, cut: usize, unsynced: Unsynced, rng: &mut Rng) -> BTreeMap<String, Vec<u8>> {
        let mut disk = SimulatedDisk::default();
        // Under separate numbers, until the server opens them.
        for (number, (name, content)) in (1..).map(|n| u64::MAX - n).zip(&self.base) {
            disk.begins_with(number, name, content);
        }
        for (_, event) in &self.events[..cut] {
            disk.apply(event, &self.base);
        }
        disk.cut(unsynced, rng)
    }
}

#[derive(Default)]
struct SimulatedDisk {
    files: HashMap<u64, SimulatedFile>,
    /// Names as programs see them.
    names: HashMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    pending_names: Vec<Vec<Rename>>,
}

/// A name and the file that it now refers to, if any.
type Rename = (String, Option<u64>);

#[derive(Default)]
struct SimulatedFile {
    synced: Vec<u8>,
    pending: Vec<PendingWrite>,
}

#[derive(Clone)]
enum PendingWrite {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl SimulatedDisk {
    fn apply(&mut self, event: &DiskEvent, base: &BTreeMap<String, Vec<u8>>) {
        match event {
            DiskEvent::Opened { file, name, is_new: true } => {
                self.files.insert(*file, SimulatedFile::default());
                self.rename(vec![(name.clone(), Some(*file))]);
            }
            // The file existed from the start.
            DiskEvent::Opened { file, name, is_new: false } => {
                if let Some(content) = base.get(name) {
                    self.begins_with(*file, name, content);
                }
            }
            DiskEvent::Write { file, offset, bytes } => {
                self.file(*file).pending.push(PendingWrite::Write(*offset, bytes.clone()));
            }
            DiskEvent::Truncate { file, length } => self.file(*file).pending.push(PendingWrite::Truncate(*length)),
            DiskEvent::Sync { file } => {
                let file = self.file(*file);
                for pending in std::mem::take(&mut file.pending) {
                    pending.apply(&mut file.synced, |_| true);
                }
            }
            DiskEvent::SyncFolder => {
                for (name, file) in std::mem::take(&mut self.pending_names).into_iter().flatten() {
                    set(&mut self.synced_names, name, file);
                }
            }
            DiskEvent::Rename { from, to } => {
                let file = self.names.get(from).copied();
                self.rename(vec![(from.clone(), None), (to.clone(), file)]);
            }
            DiskEvent::Link { from, to } => {
                let file = self.names.get(from).copied();
                self.rename(vec![(to.clone(), file)]);
            }
            DiskEvent::Unlink { name } => self.rename(vec![(name.clone(), None)]),
            DiskEvent::Said { .. } => {}
        }
    }

    fn begins_with(&mut self, file: u64, name: &str, content: &[u8]) {
        self.files.insert(file, SimulatedFile { synced: content.to_vec(), pending: Vec::new() });
        self.names.insert(name.to_owned(), file);
        self.synced_names.insert(name.to_owned(), file);
    }

    fn file(&mut self, number: u64) -> &mut SimulatedFile {
        self.files.get_mut(&number).unwrap_or_else(|| panic!("file {number} was never opened"))
    }

    fn rename(&mut self, change: Vec<Rename>) {
        for (name, file) in &change {
            match file {
                Some(file) => self.names.insert(name.clone(), *file),
                None => self.names.remove(name),
            };
        }
        self.pending_names.push(change);
    }

    fn cut(self, unsynced: Unsynced, rng: &mut Rng) -> BTreeMap<String, Vec<u8>> {
        // The probability is random too, so that nearly all and nearly none are as likely as half.
        let likely = rng.below(101);
        let mut kept = || match unsynced {
            Unsynced::Lost => false,
            Unsynced::Kept => true,
            Unsynced::Some | Unsynced::Torn => rng.percent(likely),
        };
        let mut names = self.synced_names;
        for change in self.pending_names {
            if kept() {
                change.into_iter().for_each(|(name, file)| set(&mut names, name, file));
            }
        }
        let files = names.into_iter().map(|(name, file)| {
            let file = &self.files[&file];
            let mut content = file.synced.clone();
            for pending in &file.pending {
                match unsynced {
                    Unsynced::Torn => pending.clone().apply(&mut content, |_sector| kept()),
                    _ if kept() => pending.clone().apply(&mut content, |_sector| true),
                    _ => {}
                }
            }
            (name, content)
        });
        files.collect()
    }
}

fn set(names: &mut BTreeMap<String, u64>, name: String, file: Option<u64>) {
    match file {
        Some(file) => names.insert(name, file),
        None => names.remove(&name),
    };
}

impl PendingWrite {
    /// Applies it to the sectors for which `kept` returns true; a truncation counts as one sector.
    fn apply(self, content: &mut Vec<u8>, mut kept: impl FnMut(usize) -> bool) {
        match self {
            PendingWrite::Truncate(length) => {
                if kept(0) {
                    content.resize(length, 0);
                }
            }
            PendingWrite::Write(offset, bytes) => {
                let mut done = 0;
                while done < bytes.len() {
                    let at = offset + done;
                    let length = (SECTOR - at % SECTOR).min(bytes.len() - done);
                    if kept(at / SECTOR) {
                        if content.len() < at + length {
                            content.resize(at + length, 0);
                        }
                        content[at..at + length].copy_from_slice(&bytes[done..done + length]);
                    }
                    done += length;
                }
            }
        }
    }
}

#[test]
fn only_what_was_synced_is_sure() {
    let opened = |file, name: &str| DiskEvent::Opened { file, name: name.to_owned(), is_new: true };
    let write = |file, offset, byte| DiskEvent::Write { file, offset, bytes: vec![byte; 600] };
    let events = vec![
        opened(1, "a.new"),
        write(1, 0, b'x'),
        DiskEvent::Sync { file: 1 },
        write(1, 0, b'y'),
        DiskEvent::SyncFolder,
        DiskEvent::Rename { from: "a.new".to_owned(), to: "a".to_owned() },
        opened(2, "b"),
        write(2, 300, b'z'),
    ];
    let log = DiskLog { events: events.into_iter().map(|event| (0, event)).collect(), base: BTreeMap::new() };
    let mut rng = Rng::new(1);
    assert_eq!(log.after(1, Unsynced::Lost, &mut rng), BTreeMap::new());
    assert_eq!(log.after(8, Unsynced::Lost, &mut rng), BTreeMap::from([("a.new".to_owned(), vec![b'x'; 600])]));
    let b = [vec![0; 300], vec![b'z'; 600]].concat();
    let all = BTreeMap::from([("a".to_owned(), vec![b'y'; 600]), ("b".to_owned(), b)]);
    assert_eq!(log.after(8, Unsynced::Kept, &mut rng), all);
    // Torn: the first 512 bytes old and the rest new, or vice versa; both occur.
    let torn: Vec<_> = (0..200).map(|seed| log.after(4, Unsynced::Torn, &mut Rng::new(seed))).collect();
    let is = |first, last| torn.iter().any(|disk| disk.values().any(|file| (file[0], file[599]) == (first, last)));
    assert!(is(b'x', b'y') && is(b'y', b'x') && is(b'x', b'x') && is(b'y', b'y'));
}
