//! The core compared with a simple model that uses plain lists and the rules of `docs/spec/share.md`.

use super::*;

/// The validity of a secret, minutes.
const MONTH: u64 = 30 * 24 * 60;
/// Small enough to be reached in a few steps.
const BOUNDS: RegistryLimits = RegistryLimits {
    hosts: 100,
    files: 100,
    hosts_per_source: 2,
    files_per_source: 3,
    unpublished_files: 100,
    unpublished_files_per_source: 100,
};

const NAMES: [&str; 3] = ["ann", "bob", "cid"];
const FILES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    /// Lets this many minutes pass.
    Wait(u64),
    Register {
        conn: u64,
        host: usize,
        source: u8,
        proof: AccountProof,
        /// Presents the secret that was issued this many registrations ago.
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
    let proof = prop_oneof![Just(AccountProof::None), Just(AccountProof::Token), Just(AccountProof::Address)];
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
    lease_id: u64,
    last_seen_at: u64,
    files: BTreeMap<String, (u64, bool)>,
}

#[derive(Debug, Clone, PartialEq)]
struct Answered {
    host: usize,
    secret: String,
    lease_id: u64,
    to_user: bool,
    at: u64,
}

#[derive(Default)]
struct Model {
    /// Milliseconds; no two steps have the same time.
    now: u64,
    hosts: BTreeMap<usize, Known>,
    /// In the order in which they were issued.
    secrets: Vec<Answered>,
    users: BTreeSet<usize>,
    lease_count: u64,
}

fn published(files: &BTreeMap<String, (u64, bool)>) -> usize {
    files.values().filter(|(_, is_published)| *is_published).count()
}

/// The parameters of a REGISTER.
struct Said<'a> {
    conn: u64,
    host: usize,
    source: u8,
    proof: AccountProof,
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
        self.hosts.get(&host).is_some_and(|host| self.now < host.last_seen_at + 20 * MINUTE)
    }

    fn secret(&self, host: usize, secret: &str) -> Option<Answered> {
        let found = self.secrets.iter().find(|known| known.host == host && known.secret == secret)?;
        (self.is_good(found) && (found.to_user || !self.users.contains(&host))).then(|| found.clone())
    }

    fn is_good(&self, secret: &Answered) -> bool {
        let last_seen = self.hosts.get(&secret.host).filter(|host| host.lease_id == secret.lease_id);
        self.now < secret.at.max(last_seen.map_or(0, |host| host.last_seen_at)) + MONTH * MINUTE
    }

    /// Number of anonymous hosts of a source, and of their published files, except for one host.
    fn held(&self, source: u8, but_for: usize) -> (usize, usize) {
        let others = self.hosts.iter().filter(|(host, known)| **host != but_for && !known.is_users);
        let of_source: Vec<&Known> = others.map(|(_, known)| known).filter(|known| known.source == source).collect();
        (of_source.len(), of_source.iter().map(|known| published(&known.files)).sum())
    }

    /// Whether a host may have this many published files; silent hosts of the same source are evicted for it.
    fn has_room(&mut self, host: usize, source: u8, is_users: bool, files: usize) -> bool {
        if is_users {
            return true;
        }
        let own = self.hosts.get(&host).filter(|known| known.source == source && !known.is_users);
        let own = own.map(|known| published(&known.files));
        loop {
            let (hosts, others) = self.held(source, host);
            // Using no more than before always fits.
            let is_host_fine = own.is_some() || hosts < BOUNDS.hosts_per_source;
            let is_list_fine = files <= own.unwrap_or(0) || others + files <= BOUNDS.files_per_source;
            if is_host_fine && is_list_fine {
                return true;
            }
            let silent = self.hosts.iter().filter(|(other, known)| {
                **other != host && known.source == source && !known.is_users && !self.is_there(**other)
            });
            let Some(oldest) = silent.min_by_key(|(_, known)| known.last_seen_at).map(|(other, _)| *other) else {
                return false;
            };
            let gone = self.hosts.remove(&oldest).unwrap();
            let its = self.secrets.iter_mut().filter(|secret| secret.host == oldest);
            its.for_each(|secret| secret.at = secret.at.max(gone.last_seen_at));
        }
    }

    /// `None` if it is refused; otherwise whether the file list stays, and whether the secret does.
    fn register(&mut self, said: &Said<'_>) -> Option<(bool, bool)> {
        let Said { conn, host, source, proof, resume, .. } = *said;
        if self.holder(conn).is_some_and(|held| held != host) {
            return None;
        }
        let is_user = self.users.contains(&host);
        let shows_user = is_user && proof != AccountProof::None;
        let secret = resume.and_then(|resume| self.secret(host, resume));
        let known = self.hosts.get(&host).cloned();
        let is_own = known.as_ref().is_some_and(|known| known.conn == Some(conn) && known.is_users == is_user);
        if is_user && !shows_user && secret.is_none() && !is_own {
            return None;
        }
        let is_same = known.as_ref().is_some_and(|known| {
            let is_same_lease = secret.as_ref().is_some_and(|secret| secret.lease_id == known.lease_id);
            is_own || is_user && known.is_users || is_same_lease && known.is_users == is_user
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
        // A new holder from now on.
        let is_new = !is_same && secret.is_none();
        let old = std::mem::take(&mut self.secrets);
        self.secrets =
            old.iter().filter(|known| known.host != host || self.is_good(known) && !is_new).cloned().collect();
        self.lease_count += 1;
        let lease_id = match (&known, &secret) {
            (Some(known), _) if is_same => known.lease_id,
            (_, Some(secret)) => secret.lease_id,
            _ => self.lease_count,
        };
        let is_users = is_user;
        self.hosts
            .insert(host, Known { conn: Some(conn), source, is_users, lease_id, last_seen_at: self.now, files: list });
        let answered = secret.as_ref().map_or(said.fresh.to_owned(), |secret| secret.secret.clone());
        self.secrets.retain(|known| known.host != host || known.secret != answered);
        self.secrets.push(Answered { host, secret: answered, lease_id, to_user: is_user, at: self.now });
        if self.secrets.iter().filter(|known| known.host == host).count() > 4 {
            let oldest = self.secrets.iter().position(|known| known.host == host).unwrap();
            self.secrets.remove(oldest);
        }
        Some((stay, secret.is_some()))
    }
}

/// The content of the database according to the changes.
#[derive(Default, Debug)]
struct Disk {
    hosts: BTreeMap<u64, HostRow>,
    files: BTreeMap<(u64, FileName), Arc<FileEntry>>,
    secrets: BTreeSet<(Name, [u8; 32])>,
}

impl Disk {
    fn apply(&mut self, changes: Vec<RegistryChange>) {
        for change in changes {
            match change {
                RegistryChange::Host(row) => drop(self.hosts.insert(row.id, *row)),
                RegistryChange::DropHost(id) => {
                    self.hosts.remove(&id);
                    self.files.retain(|(host, _), _| *host != id);
                }
                RegistryChange::File { host, fname, entry } => drop(self.files.insert((host, fname), entry)),
                RegistryChange::DropFile { host, fname } => drop(self.files.remove(&(host, fname))),
                RegistryChange::Secret { hostname, key, .. } => drop(self.secrets.insert((hostname, *key.bytes()))),
                RegistryChange::DropSecret { hostname, key } => {
                    assert!(self.secrets.remove(&(hostname, *key.bytes())), "it was there");
                }
            }
        }
        let names: BTreeSet<_> = self.hosts.values().map(|row| row.hostname.clone()).collect();
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
    // List everything at once and page by page.
    for items in [1, 2, 1000] {
        let (mut hosts, mut cursor) = (Vec::new(), ListingCursor::Offset(0));
        while cursor != ListingCursor::End {
            let (parts, next) = core.list(cursor, &mut usize::MAX.clone(), items);
            for part in parts {
                match part {
                    ListingPart::Host(host) => hosts.push((host.hostname.as_str().to_owned(), BTreeMap::new())),
                    ListingPart::Files(files) => {
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
        let (parts, _) = core.list(ListingCursor::Offset(offset), &mut 1, 1000);
        let first = parts
            .first()
            .map(|part| matches!(part, ListingPart::Host(host) if host.hostname.as_str() == NAMES[there[offset]]));
        assert_eq!(first, there.get(offset).map(|_| true));
    }
    assert_eq!(core.live_host_count(), there.len());
    let (mut files, mut size) = (0, 0);
    for host in &there {
        files += published(*host).len() as u64;
        size += published(*host).values().sum::<u64>();
    }
    let active = there.iter().filter(|host| model.hosts[host].conn.is_some()).count() as u64;
    let totals = RegistryTotals {
        total_clients: there.len() as u64,
        active_clients: active,
        total_files: files,
        total_size: size,
    };
    assert_eq!(core.totals(), totals);
    let is_live_users = |host: &&HostRecord| host.is_live && host.is_user;
    assert_eq!(core.live_user_count(), core.slots.iter().flatten().filter(is_live_users).count());
    let names: Vec<Name> = there.iter().map(|host| name(NAMES[*host])).collect();
    assert_eq!(core.names_from(0, 99), names);
    let (found, more) = core.search_names(&TextFilter::default(), None, 99);
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
        assert_eq!(core.hostname_of(conn).map(Name::as_str), model.holder(conn).map(|host| NAMES[host]));
    }
    // The database matches the model, except that expired hosts are removed later.
    for (host, known) in &model.hosts {
        let Some(row) = disk.hosts.values().find(|row| row.hostname.as_str() == NAMES[*host]) else {
            assert!(known.last_seen_at + MONTH * MINUTE <= model.now);
            continue;
        };
        let kept: BTreeMap<String, (u64, bool)> = disk
            .files
            .iter()
            .filter(|((id, _), _)| *id == row.id)
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
                // Expired in the model, whenever the registry removes them.
                model.hosts.retain(|_, host| now < host.last_seen_at + MONTH * MINUTE);
                let mut changes = Vec::new();
                while core.expire(Millis(now), 3) {}
                while core.purge_expired(Millis(now), 3, &mut changes) {}
                disk.apply(changes);
            }
            Step::Register { conn, host, source, proof, resume, files } => {
                fresh += 1;
                let is_user = model.users.contains(&host);
                let resume = resume.and_then(|ago| answered.len().checked_sub(ago + 1)).map(|n| answered[n].clone());
                let list = files.map(|files| -> BTreeMap<String, (u64, bool)> {
                    files.into_iter().map(|(file, size, is)| (FILES[file].to_owned(), (size, is))).collect()
                });
                let new: Option<FileMap> = list
                    .as_ref()
                    .map(|list| list.iter().map(|(file, (size, is))| (fname(file), entry(*size, *is))).collect());
                let claim = HostnameClaim {
                    source: ip(&format!("192.0.2.{source}")),
                    status: if is_user { HostnameStatus::Account(proof) } else { HostnameStatus::Free },
                    resume_secret: resume.as_deref().map(key),
                    new_secret: key(&format!("{fresh}")),
                    keeps_files: list.is_none() && resume.is_some(),
                    file_count: list.as_ref().map_or(0, published),
                    ..claim(NAMES[host])
                };
                let mut room = Vec::new();
                assert!(!core.evict_for_claim(now, conn, &claim, 100, &mut room));
                disk.apply(room);
                let granted = core.register(now, conn, &claim);
                let (resumes, fresh) = (resume.as_deref(), &format!("{fresh}"));
                let said = Said { conn, host, source, proof, resume: resumes, files: list, fresh };
                let expected = model.register(&said);
                let outcome = granted.as_ref().ok().map(|granted| (granted.keeps_files, granted.is_resumed));
                assert_eq!(outcome, expected, "{granted:?}");
                if let Ok(granted) = granted {
                    answered.push(if granted.is_resumed { resume.unwrap() } else { fresh.clone() });
                    disk.apply(granted.changes);
                    let (mut after, mut changes) = (None, Vec::new());
                    let new = new.unwrap_or_default();
                    let mut is_done = granted.keeps_files;
                    while !is_done {
                        after = core.replace_files(conn, &new, after.as_ref(), 2, &mut changes).unwrap();
                        is_done = after.is_none();
                    }
                    disk.apply(changes);
                }
            }
            Step::Publish(conn, host, file, size) => {
                let mut room = Vec::new();
                core.evict_for_publish(now, conn, &name(NAMES[host]), &fname(FILES[file]), 100, &mut room);
                disk.apply(room);
                let done = core.publish(now, conn, &name(NAMES[host]), &fname(FILES[file]), entry(size, true));
                let minute = model.now;
                let wanted = model.own(conn, host).map(|own| {
                    // A sign of life even if it is refused.
                    own.last_seen_at = minute;
                    let is_shown = own.files.get(FILES[file]).is_some_and(|(_, is_published)| *is_published);
                    (own.source, own.is_users, published(&own.files) + usize::from(!is_shown))
                });
                let fits =
                    wanted.is_some_and(|(source, is_users, files)| model.has_room(host, source, is_users, files));
                assert_eq!(done.is_ok(), fits, "{done:?}");
                let own = model.own(conn, host).filter(|_| fits);
                if let Some(own) = own {
                    own.files.insert(FILES[file].to_owned(), (size, true));
                    own.last_seen_at = minute;
                }
                disk.apply(done.unwrap_or_default());
            }
            Step::Unpublish(conn, host, file) => {
                let done = core.unpublish(now, conn, &name(NAMES[host]), &fname(FILES[file]));
                let minute = model.now;
                let own = model.own(conn, host);
                assert_eq!(done.is_ok(), own.as_ref().is_some_and(|own| own.files.contains_key(FILES[file])));
                if let Some(own) = own {
                    own.last_seen_at = minute;
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
                    // The 30 days start now.
                    let minute = model.now;
                    model.secrets.iter_mut().filter(|known| known.host == host).for_each(|known| known.at = minute);
                }
            }
            Step::Ping(conn, host) => {
                core.record_activity(now, conn);
                let minute = model.now;
                if let Some(held) = model.holder(conn) {
                    model.hosts.get_mut(&held).unwrap().last_seen_at = minute;
                }
                assert_eq!(core.presence(now, NAMES[host]).is_some(), model.is_there(host));
            }
            Step::Close(conn) => {
                core.connection_closed(conn);
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
                core.purge_expired(now, at_most, &mut changes);
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
