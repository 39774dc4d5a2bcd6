//! The core compared with a simple model that uses plain lists and the rules of `docs/spec/share.md`.

use super::*;

mod comparison;

use comparison::{Disk, compare};

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
    /// Hosts that were removed while a secret can get their names back, with their sources, in that order.
    departed: Vec<(usize, u8)>,
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

    /// Another has the name, or nobody: secrets are good for a month after their host was last seen.
    fn extend_secrets(&mut self, host: usize, last_seen_at: u64) {
        let its = self.secrets.iter_mut().filter(|secret| secret.host == host);
        its.for_each(|secret| secret.at = secret.at.max(last_seen_at));
    }

    /// Removes a host. A source has as many departed ones as hosts; beyond that its oldest are forgotten.
    fn depart(&mut self, host: usize) {
        let gone = self.hosts.remove(&host).unwrap();
        self.extend_secrets(host, gone.last_seen_at);
        if !self.secrets.iter().any(|secret| secret.host == host && !secret.to_user) {
            return;
        }
        let of_source: Vec<usize> =
            self.departed.iter().filter(|(_, source)| *source == gone.source).map(|(host, _)| *host).collect();
        if of_source.len() == BOUNDS.hosts_per_source {
            self.secrets.retain(|secret| secret.host != of_source[0]);
            self.departed.retain(|(host, _)| *host != of_source[0]);
        }
        self.departed.push((host, gone.source));
    }

    /// Time has passed: hosts and secrets end.
    fn expire(&mut self) {
        let now = self.now;
        self.hosts.retain(|_, host| now < host.last_seen_at + MONTH * MINUTE);
        self.secrets = self.secrets.iter().filter(|secret| self.is_good(secret)).cloned().collect();
        self.departed.retain(|(host, _)| self.secrets.iter().any(|secret| secret.host == *host));
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
            self.depart(oldest);
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
        if let Some(former) = known.as_ref().filter(|_| !is_same) {
            self.extend_secrets(host, former.last_seen_at);
        }
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
        self.departed.retain(|(departed, _)| *departed != host);
        if self.secrets.iter().filter(|known| known.host == host).count() > 4 {
            let oldest = self.secrets.iter().position(|known| known.host == host).unwrap();
            self.secrets.remove(oldest);
        }
        Some((stay, secret.is_some()))
    }
}

impl Model {
    /// The hosts that are live now, in the order of their names.
    fn live_hosts(&self) -> Vec<usize> {
        (0..NAMES.len()).filter(|host| self.is_there(*host)).collect()
    }

    /// A host's published files with their sizes.
    fn published_files(&self, host: usize) -> BTreeMap<FileName, u64> {
        let files = self.hosts[&host].files.iter().filter(|(_, (_, is_published))| *is_published);
        files.map(|(fname, (size, _))| (super::fname(fname), *size)).collect()
    }
}

/// The registry beside its model, and the database as the registry's changes make it.
struct World {
    core: Registry,
    model: Model,
    disk: Disk,
    /// The secrets that were issued, in their order.
    answered: Vec<String>,
    fresh: u64,
}

impl World {
    fn new() -> World {
        let core = Registry::new(TIMEOUT, BOUNDS);
        World { core, model: Model::default(), disk: Disk::default(), answered: Vec::new(), fresh: 0 }
    }

    /// Does one step in both, and compares the outcomes.
    fn step(&mut self, step: Step) {
        self.model.now += 1;
        match step {
            Step::Wait(minutes) => self.wait(minutes),
            Step::Register { conn, host, source, proof, resume, files } => {
                self.register(conn, host, (source, proof), resume, files);
            }
            Step::Publish(conn, host, file, size) => self.publish(conn, host, file, size),
            Step::Unpublish(conn, host, file) => self.unpublish(conn, host, file),
            Step::Unregister(conn, host) => self.unregister(conn, host),
            Step::Ping(conn, host) => self.ping(conn, host),
            Step::Close(conn) => self.close(conn),
            Step::Account(host) => self.make_account(host),
            Step::Tidy(at_most) => self.tidy(at_most),
        }
        compare(&mut self.core, &self.model, &self.disk);
    }

    fn wait(&mut self, minutes: u64) {
        self.model.now += minutes * MINUTE;
        let now = self.model.now;
        self.model.expire();
        let mut changes = Vec::new();
        while self.core.expire(Millis(now), 3) {}
        // Secrets are gone through some at a time, from where the last call ended.
        for _ in 0..4 {
            while self.core.purge_expired(Millis(now), 3, &mut changes) {}
        }
        self.disk.apply(changes);
    }

    fn register(
        &mut self,
        conn: ConnId,
        host: usize,
        (source, proof): (u8, AccountProof),
        resume: Option<usize>,
        files: Option<Vec<(usize, u64, bool)>>,
    ) {
        let now = Millis(self.model.now);
        self.fresh += 1;
        let is_user = self.model.users.contains(&host);
        let resume = resume.and_then(|ago| self.answered.len().checked_sub(ago + 1)).map(|n| self.answered[n].clone());
        let list = files.map(|files| -> BTreeMap<String, (u64, bool)> {
            files.into_iter().map(|(file, size, is)| (FILES[file].to_owned(), (size, is))).collect()
        });
        let new: Option<FileMap> =
            list.as_ref().map(|list| list.iter().map(|(file, (size, is))| (fname(file), entry(*size, *is))).collect());
        let claim = HostnameClaim {
            source: ip(&format!("192.0.2.{source}")),
            status: if is_user { HostnameStatus::Account(proof) } else { HostnameStatus::Free },
            resume_secret: resume.as_deref().map(key),
            new_secret: key(&self.fresh.to_string()),
            keeps_files: list.is_none() && resume.is_some(),
            file_count: list.as_ref().map_or(0, published),
            ..claim(NAMES[host])
        };
        let mut room = Vec::new();
        assert!(!self.core.evict_for_claim(now, conn, &claim, 100, &mut room));
        self.disk.apply(room);
        let granted = self.core.register(now, conn, &claim);
        let (resumes, fresh) = (resume.as_deref(), &self.fresh.to_string());
        let said = Said { conn, host, source, proof, resume: resumes, files: list, fresh };
        let expected = self.model.register(&said);
        let outcome = granted.as_ref().ok().map(|granted| (granted.keeps_files, granted.is_resumed));
        assert_eq!(outcome, expected, "{granted:?}");
        if let Ok(granted) = granted {
            self.answered.push(if granted.is_resumed { resume.unwrap() } else { fresh.clone() });
            self.disk.apply(granted.changes);
            let (mut after, mut changes) = (None, Vec::new());
            let new = new.unwrap_or_default();
            let mut is_done = granted.keeps_files;
            while !is_done {
                after = self.core.replace_files(conn, &new, after.as_ref(), 2, &mut changes).unwrap();
                is_done = after.is_none();
            }
            self.disk.apply(changes);
        }
    }

    fn publish(&mut self, conn: ConnId, host: usize, file: usize, size: u64) {
        let now = Millis(self.model.now);
        let mut room = Vec::new();
        self.core.evict_for_publish(now, conn, &name(NAMES[host]), &fname(FILES[file]), 100, &mut room);
        self.disk.apply(room);
        let done = self.core.publish(now, conn, &name(NAMES[host]), &fname(FILES[file]), entry(size, true));
        let minute = self.model.now;
        let wanted = self.model.own(conn, host).map(|own| {
            // A sign of life even if it is refused.
            own.last_seen_at = minute;
            let is_shown = own.files.get(FILES[file]).is_some_and(|(_, is_published)| *is_published);
            (own.source, own.is_users, published(&own.files) + usize::from(!is_shown))
        });
        let fits = wanted.is_some_and(|(source, is_users, files)| self.model.has_room(host, source, is_users, files));
        assert_eq!(done.is_ok(), fits, "{done:?}");
        let own = self.model.own(conn, host).filter(|_| fits);
        if let Some(own) = own {
            own.files.insert(FILES[file].to_owned(), (size, true));
            own.last_seen_at = minute;
        }
        self.disk.apply(done.unwrap_or_default());
    }

    fn unpublish(&mut self, conn: ConnId, host: usize, file: usize) {
        let now = Millis(self.model.now);
        let done = self.core.unpublish(now, conn, &name(NAMES[host]), &fname(FILES[file]));
        let minute = self.model.now;
        let own = self.model.own(conn, host);
        assert_eq!(done.is_ok(), own.as_ref().is_some_and(|own| own.files.contains_key(FILES[file])));
        if let Some(own) = own {
            own.last_seen_at = minute;
            if let Some((_, is_published)) = own.files.get_mut(FILES[file]) {
                *is_published = false;
            }
        }
        self.disk.apply(done.unwrap_or_default());
    }

    fn unregister(&mut self, conn: ConnId, host: usize) {
        let now = Millis(self.model.now);
        let done = self.core.unregister(now, conn, &name(NAMES[host]));
        assert_eq!(done.is_ok(), self.model.own(conn, host).is_some());
        if let Ok(changes) = done {
            self.disk.apply(changes);
            // The 30 days start now.
            self.model.hosts.get_mut(&host).unwrap().last_seen_at = self.model.now;
            self.model.depart(host);
        }
    }

    fn ping(&mut self, conn: ConnId, host: usize) {
        let now = Millis(self.model.now);
        self.core.record_activity(now, conn);
        let minute = self.model.now;
        if let Some(held) = self.model.holder(conn) {
            self.model.hosts.get_mut(&held).unwrap().last_seen_at = minute;
        }
        assert_eq!(self.core.presence(now, NAMES[host]).is_some(), self.model.is_there(host));
    }

    fn close(&mut self, conn: ConnId) {
        self.core.connection_closed(conn);
        if let Some(held) = self.model.holder(conn) {
            self.model.hosts.get_mut(&held).unwrap().conn = None;
        }
    }

    fn make_account(&mut self, host: usize) {
        self.model.users.insert(host);
        self.disk.apply(self.core.account_created(NAMES[host]));
        if self.model.hosts.get(&host).is_some_and(|known| !known.is_users) {
            self.model.hosts.remove(&host);
        }
        self.model.secrets.retain(|known| known.host != host || known.to_user);
        self.model.expire();
    }

    fn tidy(&mut self, at_most: usize) {
        let now = Millis(self.model.now);
        let mut changes = Vec::new();
        self.core.purge_expired(now, at_most, &mut changes);
        self.disk.apply(changes);
    }
}

fn run(steps: Vec<Step>) {
    let mut world = World::new();
    for step in steps {
        world.step(step);
    }
}

proptest! {
    #[test]
    fn it_does_what_the_rules_say(steps in steps()) {
        run(steps);
    }
}
