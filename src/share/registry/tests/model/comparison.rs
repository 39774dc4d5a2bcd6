//! What the registry tells and stores, compared with what the model says.

use super::*;

/// Everything that the registry tells and stores is what the model says.
pub(super) fn compare(core: &mut Registry, model: &Model, disk: &Disk) {
    while core.expire(Millis(model.now), 2) {}
    compare_listing(core, model);
    compare_hosts(core, model);
    compare_holders(core, model);
    compare_disk(disk, model);
}

fn compare_listing(core: &Registry, model: &Model) {
    let there = model.live_hosts();
    let published = |host: usize| model.published_files(host);
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
}

fn compare_hosts(core: &mut Registry, model: &Model) {
    let now = Millis(model.now);
    let there = model.live_hosts();
    let published = |host: usize| model.published_files(host);
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
}

fn compare_holders(core: &mut Registry, model: &Model) {
    let now = Millis(model.now);
    let there = model.live_hosts();
    let published = |host: usize| model.published_files(host);
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
    for conn in 1..4 {
        assert_eq!(core.hostname_of(conn).map(Name::as_str), model.holder(conn).map(|host| NAMES[host]));
    }
}

fn compare_disk(disk: &Disk, model: &Model) {
    assert_eq!(disk.hosts.len(), model.hosts.len());
    for (host, known) in &model.hosts {
        let row = disk.hosts.values().find(|row| row.hostname.as_str() == NAMES[*host]).unwrap();
        let kept: BTreeMap<String, (u64, bool)> = disk
            .files
            .iter()
            .filter(|((id, _), _)| *id == row.id)
            .map(|((_, fname), entry)| (fname.as_str().to_owned(), (entry.size, entry.is_published)))
            .collect();
        assert_eq!(kept, known.files);
    }
    let secrets = model.secrets.iter().map(|known| (name(NAMES[known.host]), *key(&known.secret).bytes()));
    assert_eq!(disk.secrets, secrets.collect());
}

/// The content of the database according to the changes.
#[derive(Default, Debug)]
pub(super) struct Disk {
    hosts: BTreeMap<u64, HostRow>,
    files: BTreeMap<(u64, FileName), Arc<FileEntry>>,
    secrets: BTreeSet<(Name, [u8; 32])>,
}

impl Disk {
    pub(super) fn apply(&mut self, changes: Vec<RegistryChange>) {
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
