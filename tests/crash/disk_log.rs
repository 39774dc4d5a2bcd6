//! The log of the shim (`preloaded.rs`), and the folders that a power cut may leave.
//!
//! The disk is taken at its word and no further: what was synced is there. Of the rest, anything may be:
//! each write whole, in part (by sectors of 512 bytes) or not at all, whatever its order; each name that
//! was made, moved or removed since its folder was synced either so or as it was.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use crate::claims::Port;
use crate::rng::Rng;

const SECTOR: usize = 512;

/// One call of the server, in the order in which they happened.
#[derive(Debug)]
pub enum Event {
    /// A file that was there, or is new: its number and name.
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
    /// Something is about to be said to a port.
    Said {
        port: Port,
        bytes: Vec<u8>,
    },
}

/// A recording.
pub struct DiskLog {
    /// Each with the length that the log had before it.
    pub events: Vec<(u64, Event)>,
    /// What lay in the folder before.
    base: BTreeMap<String, Vec<u8>>,
}

/// How much of what was not synced has reached the disk.
#[derive(Debug, Clone, Copy)]
pub enum Unsynced {
    Lost,
    Kept,
    /// Each write and each name by chance.
    Some,
    /// Each sector by chance.
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
                // One folder is all there is; more would need more of a model.
                assert!(!text.contains('/'), "{text}");
                text
            };
            let two = || {
                let (from, to) = text().split_once('\0').map(|(from, to)| (from.to_owned(), to.to_owned())).unwrap();
                (from, to)
            };
            let event = match header[0] {
                b'A' => Event::Opened { file, name: text(), is_new: false },
                b'C' => Event::Opened { file, name: text(), is_new: true },
                b'W' => Event::Write { file, offset, bytes: bytes.to_vec() },
                b'T' => Event::Truncate { file, length: offset },
                b'S' => Event::Sync { file },
                b'D' => Event::SyncFolder,
                b'R' => {
                    let (from, to) = two();
                    Event::Rename { from, to }
                }
                b'L' => {
                    let (from, to) = two();
                    Event::Link { from, to }
                }
                b'U' => Event::Unlink { name: text() },
                b'O' => {
                    let port = if file == 1 { Port::Tcp(offset as u16) } else { Port::Udp(offset as u16) };
                    Event::Said { port, bytes: bytes.to_vec() }
                }
                // The folder itself.
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

    /// The files that a power cut may leave, after the first `cut` events.
    pub fn after(&self, cut: usize, unsynced: Unsynced, rng: &mut Rng) -> BTreeMap<String, Vec<u8>> {
        let mut disk = Disk::default();
        // Under numbers of their own, until the server opens them.
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
struct Disk {
    files: HashMap<u64, File>,
    /// As programs see it.
    names: HashMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    pending_names: Vec<Vec<Rename>>,
}

/// A name that now stands for a file, or for none.
type Rename = (String, Option<u64>);

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone)]
enum Pending {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl Disk {
    fn apply(&mut self, event: &Event, base: &BTreeMap<String, Vec<u8>>) {
        match event {
            Event::Opened { file, name, is_new: true } => {
                self.files.insert(*file, File::default());
                self.rename(vec![(name.clone(), Some(*file))]);
            }
            // There from the start.
            Event::Opened { file, name, is_new: false } => {
                if let Some(content) = base.get(name) {
                    self.begins_with(*file, name, content);
                }
            }
            Event::Write { file, offset, bytes } => {
                self.file(*file).pending.push(Pending::Write(*offset, bytes.clone()));
            }
            Event::Truncate { file, length } => self.file(*file).pending.push(Pending::Truncate(*length)),
            Event::Sync { file } => {
                let file = self.file(*file);
                for pending in std::mem::take(&mut file.pending) {
                    pending.apply(&mut file.synced, |_| true);
                }
            }
            Event::SyncFolder => {
                for (name, file) in std::mem::take(&mut self.pending_names).into_iter().flatten() {
                    set(&mut self.synced_names, name, file);
                }
            }
            Event::Rename { from, to } => {
                let file = self.names.get(from).copied();
                self.rename(vec![(from.clone(), None), (to.clone(), file)]);
            }
            Event::Link { from, to } => {
                let file = self.names.get(from).copied();
                self.rename(vec![(to.clone(), file)]);
            }
            Event::Unlink { name } => self.rename(vec![(name.clone(), None)]),
            Event::Said { .. } => {}
        }
    }

    fn begins_with(&mut self, file: u64, name: &str, content: &[u8]) {
        self.files.insert(file, File { synced: content.to_vec(), pending: Vec::new() });
        self.names.insert(name.to_owned(), file);
        self.synced_names.insert(name.to_owned(), file);
    }

    fn file(&mut self, number: u64) -> &mut File {
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
        // By chance, but not always by the same: nearly all and nearly none are as likely as half.
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

impl Pending {
    /// Does it to those sectors of the disk that `kept` names; a truncation counts as one.
    fn apply(self, content: &mut Vec<u8>, mut kept: impl FnMut(usize) -> bool) {
        match self {
            Pending::Truncate(length) => {
                if kept(0) {
                    content.resize(length, 0);
                }
            }
            Pending::Write(offset, bytes) => {
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
    let opened = |file, name: &str| Event::Opened { file, name: name.to_owned(), is_new: true };
    let write = |file, offset, byte| Event::Write { file, offset, bytes: vec![byte; 600] };
    let events = vec![
        opened(1, "a.new"),
        write(1, 0, b'x'),
        Event::Sync { file: 1 },
        write(1, 0, b'y'),
        Event::SyncFolder,
        Event::Rename { from: "a.new".to_owned(), to: "a".to_owned() },
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
    // Torn: the first 512 bytes old and the rest new, or the other way round; both come up.
    let torn: Vec<_> = (0..200).map(|seed| log.after(4, Unsynced::Torn, &mut Rng::new(seed))).collect();
    let is = |first, last| torn.iter().any(|disk| disk.values().any(|file| (file[0], file[599]) == (first, last)));
    assert!(is(b'x', b'y') && is(b'y', b'x') && is(b'x', b'x') && is(b'y', b'y'));
}
