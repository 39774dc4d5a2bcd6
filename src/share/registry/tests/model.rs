//! The core against a model that does everything the plain way: lists, and the rules as SPEC.md says them.

use super::*;

/// A month, in minutes.
const MONTH: u64 = 30 * 24 * 60;
/// What is met in a few steps.
const BOUNDS: Bounds =
    Bounds { hosts: 100, files: 100, hosts_of_one: 2, files_of_one: 3, hidden: 100, hidden_of_one: 100 };

const NAMES: [&str; 3] = ["ann", "bob", "cid"];
const FILES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    /// Minutes go by.
    Wait(u64),
    Register {
        conn: u64,
        host: usize,
        source: u8,
        proof: Proof,
        /// The secret answered so many answers ago.
        resume: Option<usize>,
        files: Option<Vec<(usize, u64, bool)>>,
    },
    Publish(u64, usize, usize, u64),
    Unpublish(u64, usize, usize),
    Unregister(u64, usize),
    Ping(u64, usize),
    Close(u64),
    Account(usize),
    Tidy(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (conn, host, file) = (1..4_u64, 0..NAMES.len(), 0..FILES.len());
    let proof = prop_oneof![Just(Proof::None), Just(Proof::Token), Just(Proof::Address)];
    let files = prop::option::of(prop::collection::vec((file.clone(), 1..5_u64, any::<bool>()), 0..4));
    let resume = prop::option::of(0..4_usize);
    prop::collection::vec(
        prop_oneof![
            2 => prop_oneof![Just(1), Just(9), Just(20), Just(25), Just(MONTH - 20), Just(MONTH)].prop_map(Step::Wait),
            6 => (conn.clone(), host.clone(), 0..2_u8, proof, resume, files).prop_map(
                |(conn, host, source, proof, resume, files)| Step::Register { conn, host, source, proof, resume, files }
            ),
            5 => (conn.clone(), host.clone(), file.clone(), 1..5_u64).prop_map(|(c, h, f, s)| Step::Publish(c, h, f, s)),
            2 => (conn.clone(), host.clone(), file).prop_map(|(c, h, f)| Step::Unpublish(c, h, f)),
            1 => (conn.clone(), host.clone()).prop_map(|(c, h)| Step::Unregister(c, h)),
            2 => (conn.clone(), host.clone()).prop_map(|(c, h)| Step::Ping(c, h)),
            2 => conn.prop_map(Step::Close),
            1 => host.prop_map(Step::Account),
            1 => (1..5_usize).prop_map(Step::Tidy),
        ],
        1..60,
    )
}

#[derive(Debug, Clone, PartialEq)]
struct Known {
    conn: Option<u64>,
    source: u8,
    is_users: bool,
    tenure: u64,
    heard_at: u64,
    files: BTreeMap<String, (u64, bool)>,
}

#[derive(Debug, Clone, PartialEq)]
struct Answered {
    host: usize,
    secret: String,
    tenure: u64,
    to_user: bool,
    at: u64,
}

#[derive(Default)]
struct Model {
    /// Milliseconds; no two steps at the same time.
    now: u64,
    hosts: BTreeMap<usize, Known>,
    /// In the order in which they were answered.
    secrets: Vec<Answered>,
    users: BTreeSet<usize>,
    tenures: u64,
}

fn published(files: &BTreeMap<String, (u64, bool)>) -> usize {
    files.values().filter(|(_, is_published)| *is_published).count()
}

/// A REGISTER.
struct Said<'a> {
    conn: u64,
    host: usize,
    source: u8,
    proof: Proof,
    resume: Option<&'a str>,
    files: Option<BTreeMap<String, (u64, bool)>>,
    fresh: &'a str,
}

impl Model {
    fn holder(&self, conn: u64) -> Option<usize> {
        self.hosts.iter().find(|(_, host)| host.conn == Some(conn)).map(|(host, _)| *host)
    }

    fn own(&mut self, conn: u64, host: usize) -> Option<&mut Known> {
        if self.holder(conn) != Some(host) {
            return None;
        }
        self.hosts.get_mut(&host)
    }

    fn is_there(&self, host: usize) -> bool {
        self.hosts.get(&host).is_some_and(|host| self.now < host.heard_at + 20 * MINUTE)
    }

    fn secret(&self, host: usize, secret: &str) -> Option<Answered> {
        let found = self.secrets.iter().find(|known| known.host == host && known.secret == secret)?;
        (self.is_good(found) && (found.to_user || !self.users.contains(&host))).then(|| found.clone())
    }

    fn is_good(&self, secret: &Answered) -> bool {
        let heard = self.hosts.get(&secret.host).filter(|host| host.tenure == secret.tenure);
        self.now < secret.at.max(heard.map_or(0, |host| host.heard_at)) + MONTH * MINUTE
    }

    /// Hosts without an account from there, and their published files, but for one host's.
    fn held(&self, source: u8, but_for: usize) -> (usize, usize) {
        let others = self.hosts.iter().filter(|(host, known)| **host != but_for && !known.is_users);
        let of_source: Vec<&Known> = others.map(|(_, known)| known).filter(|known| known.source == source).collect();
        (of_source.len(), of_source.iter().map(|known| published(&known.files)).sum())
    }

    /// Whether a host may hold so many published files; the silent ones of the same source give way.
    fn has_room(&mut self, host: usize, source: u8, is_users: bool, files: usize) -> bool {
        if is_users {
            return true;
        }
        let own = self.hosts.get(&host).filter(|known| known.source == source && !known.is_users);
        let own = own.map(|known| published(&known.files));
        loop {
            let (hosts, others) = self.held(source, host);
            // What takes no more is no matter of room.
            let is_host_fine = own.is_some() || hosts < BOUNDS.hosts_of_one;
            let is_list_fine = files <= own.unwrap_or(0) || others + files <= BOUNDS.files_of_one;
            if is_host_fine && is_list_fine {
                return true;
            }
            let silent = self.hosts.iter().filter(|(other, known)| {
                **other != host && known.source == source && !known.is_users && !self.is_there(**other)
            });
            let Some(oldest) = silent.min_by_key(|(_, known)| known.heard_at).map(|(other, _)| *other) else {
                return false;
            };
            let gone = self.hosts.remove(&oldest).unwrap();
            let its = self.secrets.iter_mut().filter(|secret| secret.host == oldest);
            its.for_each(|secret| secret.at = secret.at.max(gone.heard_at));
        }
    }

    /// None if it is refused; else whether the list stays, and whether the secret does.
    fn register(&mut self, said: &Said<'_>) -> Option<(bool, bool)> {
        let Said { conn, host, source, proof, resume, .. } = *said;
        if self.holder(conn).is_some_and(|held| held != host) {
            return None;
        }
        let is_user = self.users.contains(&host);
        let shows_user = is_user && proof != Proof::None;
        let secret = resume.and_then(|resume| self.secret(host, resume));
        let known = self.hosts.get(&host).cloned();
        let is_own = known.as_ref().is_some_and(|known| known.conn == Some(conn) && known.is_users == is_user);
        if is_user && !shows_user && secret.is_none() && !is_own {
            return None;
        }
        let is_same = known.as_ref().is_some_and(|known| {
            let same_tenure = secret.as_ref().is_some_and(|secret| secret.tenure == known.tenure);
            is_own || is_user && known.is_users || same_tenure && known.is_users == is_user
        });
        if let Some(known) = &known
            && !is_same
            && !shows_user
            && secret.is_none()
        {
            let is_free = known.conn.is_none() && known.source == source || !self.is_there(host);
            if !is_free {
                return None;
            }
        }
        let stay = said.files.is_none() && is_same && secret.is_some() && resume.is_some();
        let list = match &known {
            Some(known) if stay => known.files.clone(),
            _ => said.files.clone().unwrap_or_default(),
        };
        if !self.has_room(host, source, is_user, published(&list)) {
            return None;
        }
        // Another holds it from now on.
        let is_new = !is_same && secret.is_none();
        let old = std::mem::take(&mut self.secrets);
        self.secrets =
            old.iter().filter(|known| known.host != host || self.is_good(known) && !is_new).cloned().collect();
        self.tenures += 1;
        let tenure = match (&known, &secret) {
            (Some(known), _) if is_same => known.tenure,
            (_, Some(secret)) => secret.tenure,
            _ => self.tenures,
        };
        let is_users = is_user;
        self.hosts.insert(host, Known { conn: Some(conn), source, is_users, tenure, heard_at: self.now, files: list });
        let answered = secret.as_ref().map_or(said.fresh.to_owned(), |secret| secret.secret.clone());
        self.secrets.retain(|known| known.host != host || known.secret != answered);
        self.secrets.push(Answered { host, secret: answered, tenure, to_user: is_user, at: self.now });
        if self.secrets.iter().filter(|known| known.host == host).count() > 4 {
            let oldest = self.secrets.iter().position(|known| known.host == host).unwrap();
            self.secrets.remove(oldest);
        }
        Some((stay, secret.is_some()))
    }
}

/// What is on disk, as the changes say.
#[derive(Default, Debug)]
struct Disk {
    hosts: BTreeMap<u64, HostRow>,
    files: BTreeMap<(u64, FileName), Arc<FileEntry>>,
    secrets: BTreeSet<(Name, [u8; 32])>,
}

impl Disk {
    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Host(row) => drop(self.hosts.insert(row.id(), *row)),
                Change::DropHost(id) => {
                    self.hosts.remove(&id);
                    self.files.retain(|(host, _), _| *host != id);
                }
                Change::File { host, fname, entry } => drop(self.files.insert((host, fname), entry)),
                Change::DropFile { host, fname } => drop(self.files.remove(&(host, fname))),
                Change::Secret { hostname, key, .. } => drop(self.secrets.insert((hostname, *key.bytes()))),
                Change::DropSecret { hostname, key } => {
                    assert!(self.secrets.remove(&(hostname, *key.bytes())), "it was there");
                }
            }
        }
        let names: BTreeSet<_> = self.hosts.values().map(|row| row.hostname().clone()).collect();
        assert_eq!(names.len(), self.hosts.len(), "one row a hostname");
    }
}

fn compare(core: &mut Registry, model: &Model, disk: &Disk) {
    let now = Millis(model.now);
    while core.expire(now, 2) {}
    let there: Vec<usize> = (0..NAMES.len()).filter(|host| model.is_there(*host)).collect();
    let published = |host: usize| -> BTreeMap<FileName, u64> {
        let files = model.hosts[&host].files.iter().filter(|(_, (_, is_published))| *is_published);
        files.map(|(fname, (size, _))| (super::fname(fname), *size)).collect()
    };
    // Whole and page by page.
    for items in [1, 2, 1000] {
        let (mut hosts, mut cursor) = (Vec::new(), Cursor::Offset(0));
        while cursor != Cursor::End {
            let (pieces, next) = core.list(cursor, &mut usize::MAX.clone(), items);
            for piece in pieces {
                match piece {
                    Piece::Host(host) => hosts.push((host.hostname.as_str().to_owned(), BTreeMap::new())),
                    Piece::Files(files) => {
                        let list = &mut hosts.last_mut().unwrap().1;
                        list.extend(files.into_iter().map(|(fname, entry)| (fname, entry.size)));
                    }
                }
            }
            cursor = next;
        }
        let expected: Vec<_> = there.iter().map(|host| (NAMES[*host].to_owned(), published(*host))).collect();
        assert_eq!(hosts, expected);
    }
    for offset in 0..3 {
        let (pieces, _) = core.list(Cursor::Offset(offset), &mut 1, 1000);
        let first = pieces
            .first()
            .map(|piece| matches!(piece, Piece::Host(host) if host.hostname.as_str() == NAMES[there[offset]]));
        assert_eq!(first, there.get(offset).map(|_| true));
    }
    assert_eq!(core.listed(), there.len());
    let (mut files, mut size) = (0, 0);
    for host in &there {
        files += published(*host).len() as u64;
        size += published(*host).values().sum::<u64>();
    }
    let active = there.iter().filter(|host| model.hosts[host].conn.is_some()).count() as u64;
    let totals =
        Totals { total_clients: there.len() as u64, active_clients: active, total_files: files, total_size: size };
    assert_eq!(core.totals(), totals);
    let is_live_users = |host: &&Host| host.is_live && host.by_account;
    assert_eq!(core.listed_users(), core.slots.iter().flatten().filter(is_live_users).count());
    let names: Vec<Name> = there.iter().map(|host| name(NAMES[*host])).collect();
    assert_eq!(core.names_from(0, 99), names);
    let (found, more) = core.named_like(&Sought::default(), None, 99);
    assert_eq!((found, more), (names, None));
    for (host, name) in NAMES.iter().enumerate() {
        assert_eq!(core.presence(now, name).is_some(), model.is_there(host));
        let shown = core.discover(now, name);
        assert_eq!(shown.map(|shown| shown.file_count), model.is_there(host).then(|| published(host).len() as u64));
    }
    for file in FILES {
        let (mut holders, mut after) = (BTreeSet::new(), None);
        loop {
            let (page, next) = core.holders(now, &fname(file), after, 1);
            for holder in page {
                assert!(holders.insert((holder.hostname.as_str().to_owned(), holder.file.size)), "each once");
            }
            if next.is_none() {
                break;
            }
            after = next;
        }
        let expected: BTreeSet<_> = there
            .iter()
            .filter_map(|host| published(*host).get(&fname(file)).map(|size| (NAMES[*host].to_owned(), *size)))
            .collect();
        assert_eq!(holders, expected);
    }
    for size in 1..5_u64 {
        let content = Digest([size as u8; 32]);
        let copies = core.copies(now, &content, None, 100).0.len();
        let expected = there.iter().flat_map(|host| published(*host)).filter(|(_, of)| *of == size && size % 2 == 0);
        assert_eq!(copies, expected.count());
    }
    for conn in 1..4 {
        assert_eq!(core.held_by(conn).map(Name::as_str), model.holder(conn).map(|host| NAMES[host]));
    }
    // What is on disk is what is known. (What nothing brings back goes later.)
    for (host, known) in &model.hosts {
        let Some(row) = disk.hosts.values().find(|row| row.hostname().as_str() == NAMES[*host]) else {
            assert!(known.heard_at + MONTH * MINUTE <= model.now);
            continue;
        };
        let kept: BTreeMap<String, (u64, bool)> = disk
            .files
            .iter()
            .filter(|((id, _), _)| *id == row.id())
            .map(|((_, fname), entry)| (fname.as_str().to_owned(), (entry.size, entry.is_published)))
            .collect();
        assert_eq!(kept, known.files);
    }
    for known in &model.secrets {
        let is_kept = disk.secrets.contains(&(name(NAMES[known.host]), *key(&known.secret).bytes()));
        assert!(is_kept || !model.is_good(known), "{known:?}");
    }
    assert!(disk.secrets.len() >= disk.hosts.len().min(1));
}

fn run(steps: Vec<Step>) {
    let mut core = Registry::new(TIMEOUT, BOUNDS);
    let (mut model, mut disk) = (Model::default(), Disk::default());
    let mut answered: Vec<String> = Vec::new();
    let mut fresh = 0;
    for step in steps {
        model.now += 1;
        let now = Millis(model.now);
        match step {
            Step::Wait(minutes) => {
                model.now += minutes * MINUTE;
                let now = model.now;
                // Nobody can have them back, whenever they are let go.
                model.hosts.retain(|_, host| now < host.heard_at + MONTH * MINUTE);
                let mut changes = Vec::new();
                while core.expire(Millis(now), 3) {}
                while core.tidy(Millis(now), 3, &mut changes) {}
                disk.apply(changes);
            }
            Step::Register { conn, host, source, proof, resume, files } => {
                fresh += 1;
                let is_user = model.users.contains(&host);
                let resume = resume.and_then(|ago| answered.len().checked_sub(ago + 1)).map(|n| answered[n].clone());
                let list = files.map(|files| -> BTreeMap<String, (u64, bool)> {
                    files.into_iter().map(|(file, size, is)| (FILES[file].to_owned(), (size, is))).collect()
                });
                let new: Option<Files> = list
                    .as_ref()
                    .map(|list| list.iter().map(|(file, (size, is))| (fname(file), entry(*size, *is))).collect());
                let claim = Claim {
                    source: ip(&format!("192.0.2.{source}")),
                    standing: if is_user { Standing::Account(proof) } else { Standing::Free },
                    resume: resume.as_deref().map(key),
                    fresh: key(&format!("{fresh}")),
                    keeps_files: list.is_none() && resume.is_some(),
                    file_count: list.as_ref().map_or(0, published),
                    ..claim(NAMES[host])
                };
                let mut room = Vec::new();
                assert!(!core.make_room(now, conn, &claim, 100, &mut room));
                disk.apply(room);
                let granted = core.register(now, conn, &claim);
                let (resumes, fresh) = (resume.as_deref(), &format!("{fresh}"));
                let said = Said { conn, host, source, proof, resume: resumes, files: list, fresh };
                let expected = model.register(&said);
                let outcome = granted.as_ref().ok().map(|granted| (granted.files_stay, granted.resumed));
                assert_eq!(outcome, expected, "{granted:?}");
                if let Ok(granted) = granted {
                    answered.push(if granted.resumed { resume.unwrap() } else { fresh.clone() });
                    disk.apply(granted.changes);
                    let (mut after, mut changes) = (None, Vec::new());
                    let new = new.unwrap_or_default();
                    let mut is_done = granted.files_stay;
                    while !is_done {
                        after = core.replace_files(conn, &new, after.as_ref(), 2, &mut changes).unwrap();
                        is_done = after.is_none();
                    }
                    disk.apply(changes);
                }
            }
            Step::Publish(conn, host, file, size) => {
                let mut room = Vec::new();
                core.make_room_to_publish(now, conn, &name(NAMES[host]), &fname(FILES[file]), 100, &mut room);
                disk.apply(room);
                let done = core.publish(now, conn, &name(NAMES[host]), &fname(FILES[file]), entry(size, true));
                let minute = model.now;
                let wanted = model.own(conn, host).map(|own| {
                    // Also when it is refused.
                    own.heard_at = minute;
                    let is_shown = own.files.get(FILES[file]).is_some_and(|(_, is_published)| *is_published);
                    (own.source, own.is_users, published(&own.files) + usize::from(!is_shown))
                });
                let fits =
                    wanted.is_some_and(|(source, is_users, files)| model.has_room(host, source, is_users, files));
                assert_eq!(done.is_ok(), fits, "{done:?}");
                let own = model.own(conn, host).filter(|_| fits);
                if let Some(own) = own {
                    own.files.insert(FILES[file].to_owned(), (size, true));
                    own.heard_at = minute;
                }
                disk.apply(done.unwrap_or_default());
            }
            Step::Unpublish(conn, host, file) => {
                let done = core.unpublish(now, conn, &name(NAMES[host]), &fname(FILES[file]));
                let minute = model.now;
                let own = model.own(conn, host);
                assert_eq!(done.is_ok(), own.as_ref().is_some_and(|own| own.files.contains_key(FILES[file])));
                if let Some(own) = own {
                    own.heard_at = minute;
                    if let Some((_, is_published)) = own.files.get_mut(FILES[file]) {
                        *is_published = false;
                    }
                }
                disk.apply(done.unwrap_or_default());
            }
            Step::Unregister(conn, host) => {
                let done = core.unregister(now, conn, &name(NAMES[host]));
                assert_eq!(done.is_ok(), model.own(conn, host).is_some());
                if let Ok(changes) = done {
                    disk.apply(changes);
                    model.hosts.remove(&host);
                    // From then on 30 days.
                    let minute = model.now;
                    model.secrets.iter_mut().filter(|known| known.host == host).for_each(|known| known.at = minute);
                }
            }
            Step::Ping(conn, host) => {
                core.hear(now, conn);
                let minute = model.now;
                if let Some(held) = model.holder(conn) {
                    model.hosts.get_mut(&held).unwrap().heard_at = minute;
                }
                assert_eq!(core.presence(now, NAMES[host]).is_some(), model.is_there(host));
            }
            Step::Close(conn) => {
                core.closed(conn);
                if let Some(held) = model.holder(conn) {
                    model.hosts.get_mut(&held).unwrap().conn = None;
                }
            }
            Step::Account(host) => {
                model.users.insert(host);
                disk.apply(core.account_created(NAMES[host]));
                if model.hosts.get(&host).is_some_and(|known| !known.is_users) {
                    model.hosts.remove(&host);
                }
                model.secrets.retain(|known| known.host != host || known.to_user);
            }
            Step::Tidy(at_most) => {
                let mut changes = Vec::new();
                core.tidy(now, at_most, &mut changes);
                disk.apply(changes);
            }
        }
        compare(&mut core, &model, &disk);
    }
}

proptest! {
    #[test]
    fn it_does_what_the_rules_say(steps in steps()) {
        run(steps);
    }
}
