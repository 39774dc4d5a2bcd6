//! A LAN inside this machine: hosts that are network namespaces, each with a cable to one switch (a
//! bridge in a namespace of its own). Nothing is put into the network of the machine itself.
//!
//! Who may not make namespaces, or has no `ip`, is told so in one line, which the capture of test
//! output does not swallow; the test is then left out.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use p2s2::net::interfaces::interfaces;

use crate::support::eventually;

/// In /run/netns, before the process's number: what is left of a killed one is found by it.
const PREFIX: &str = "p2s2-";

/// What the switch of every LAN is called there, and its bridges: hosts are cabled to the first, and
/// those that were parted to the second; another network has the third.
const BRIDGES: [&str; 3] = ["main", "parted", "second"];

/// A bridge has no more ports.
const MOST_HOSTS: usize = 1000;

/// A network of hosts. It is gone when this is dropped, also by a panic; programs that still run in it
/// keep its last rests alive until they end.
pub struct Lan {
    /// Of its namespaces.
    name: String,
    hosts: usize,
    /// Those with a cable to another network as well.
    doubled: BTreeSet<usize>,
    /// The namespaces that were made so far.
    made: Vec<String>,
}

impl Lan {
    /// Hosts numbered from 0, with the addresses that [`ip`](Lan::ip) tells. None where there is
    /// neither the tool nor the right to make them, which is then said on standard error.
    pub fn new(hosts: usize) -> Option<Lan> {
        assert!((1..=MOST_HOSTS).contains(&hosts), "1 to {MOST_HOSTS} hosts, not {hosts}");
        match Lan::try_new(hosts) {
            Ok(lan) => Some(lan),
            Err(why) => {
                let test = thread::current().name().unwrap_or("a test").to_owned();
                // Not by a macro: what those print is captured.
                let line = format!("skipped: {test}: {why}\n");
                io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
        }
    }

    /// The error is why this machine cannot have such networks; any other failure is a panic.
    fn try_new(hosts: usize) -> Result<Lan, String> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        forget_killed();
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let mut lan = Lan { name, hosts, doubled: BTreeSet::new(), made: Vec::new() };
        lan.make_namespace(lan.switch())?;
        let bridges = BRIDGES.map(|bridge| {
            format!(
                "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {bridge} up\n"
            )
        });
        lan.make("a bridge", &lan.switch(), &bridges.concat())?;
        for host in 0..hosts {
            lan.make_namespace(lan.host(host))?;
            lan.make("a cable", &lan.switch(), &lan.cable(host, "eth0", BRIDGES[0]))?;
        }
        for host in 0..hosts {
            let (ip, prefix) = (lan.ip(host), lan.prefix());
            lan.batch(
                &lan.host(host),
                &format!("link set lo up\naddr add {ip}/{prefix} brd + dev eth0\nlink set eth0 up\n"),
            );
        }
        lan.await_up();
        Ok(lan)
    }

    /// 10.77.0.1 and so on; with more than 250 hosts 10.77.1.1 after 10.77.0.250.
    pub fn ip(&self, host: usize) -> Ipv4Addr {
        assert!(host < self.hosts, "host {host} of {}", self.hosts);
        Ipv4Addr::new(10, 77, (host / 250) as u8, (host % 250 + 1) as u8)
    }

    /// Of its other network.
    pub fn second_ip(&self, host: usize) -> Ipv4Addr {
        let [_, _, high, low] = self.ip(host).octets();
        Ipv4Addr::new(10, 78, high, low)
    }

    fn prefix(&self) -> u8 {
        if self.hosts <= 250 { 24 } else { 16 }
    }

    /// Gives some hosts another interface, eth1, to a network of their own.
    pub fn second_network(&mut self, hosts: &[usize]) {
        for &host in hosts {
            assert!(self.doubled.insert(host), "host {host} has two interfaces already");
            let (ip, prefix) = (self.second_ip(host), self.prefix());
            self.batch(&self.switch(), &self.cable(host, "eth1", BRIDGES[2]));
            self.batch(&self.host(host), &format!("addr add {ip}/{prefix} brd + dev eth1\nlink set eth1 up\n"));
        }
        self.await_up();
    }

    /// Gives a host a further interface on the same network as its first, with an address of that.
    pub fn add_interface(&mut self, host: usize, ip: Ipv4Addr) {
        assert!(self.doubled.insert(host), "host {host} has two interfaces already");
        self.batch(&self.switch(), &self.cable(host, "eth1", BRIDGES[0]));
        let prefix = self.prefix();
        self.batch(&self.host(host), &format!("addr add {ip}/{prefix} brd + dev eth1\nlink set eth1 up\n"));
        self.await_up();
    }

    /// Pulls the cables of some hosts: none hears anybody.
    pub fn cut(&self, hosts: &[usize]) {
        let pull: String = hosts.iter().map(|&host| format!("link set {} down\n", self.port(host, "eth0"))).collect();
        self.batch(&self.switch(), &pull);
    }

    /// Some hosts hear only each other, the rest only each other.
    pub fn part(&self, hosts: &[usize]) {
        let port = |&host: &usize| format!("link set {} master {}\n", self.port(host, "eth0"), BRIDGES[1]);
        self.batch(&self.switch(), &hosts.iter().map(port).collect::<String>());
        self.await_up();
    }

    /// All hosts hear each other again.
    pub fn heal(&self) {
        let port = |host| format!("link set {} master {} up\n", self.port(host, "eth0"), BRIDGES[0]);
        self.batch(&self.switch(), &(0..self.hosts).map(port).collect::<String>());
        self.await_up();
    }

    /// The command, which will run on a host once it is started.
    pub fn run_in(&self, host: usize, mut command: Command) -> Command {
        let namespace = self.namespace(host);
        // SAFETY: between fork and exec this only makes one system call, with a descriptor that the
        // closure owns.
        unsafe { command.pre_exec(move || namespace.try_enter()) };
        command
    }

    /// Does something on a host: the sockets that are made there belong to it ever after, whoever uses
    /// them.
    pub fn within<T: Send>(&self, host: usize, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace(host);
        let in_there = move || {
            namespace.enter();
            work()
        };
        // A thread of its own, for it does not come back from there.
        match thread::scope(|scope| scope.spawn(in_there).join()) {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A host's, for threads that are to belong to it.
    pub fn namespace(&self, host: usize) -> Namespace {
        let path = named(&self.host(host));
        Namespace(File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// A socket on a host that may broadcast.
    pub fn socket(&self, host: usize, at: impl Into<SocketAddr>) -> UdpSocket {
        let at = at.into();
        let socket = self.within(host, || UdpSocket::bind(at)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    fn host(&self, host: usize) -> String {
        assert!(host < self.hosts, "host {host} of {}", self.hosts);
        format!("{}-host{host}", self.name)
    }

    /// The switch's end of a cable.
    fn port(&self, host: usize, interface: &str) -> String {
        assert!(host < self.hosts, "host {host} of {}", self.hosts);
        format!("{interface}-{host}")
    }

    fn cable(&self, host: usize, interface: &str, bridge: &str) -> String {
        let port = self.port(host, interface);
        let other_end = self.host(host);
        format!(
            "link add {port} type veth peer name {interface} netns {other_end}\nlink set {port} master {bridge} up\n"
        )
    }

    fn make_namespace(&mut self, name: String) -> Result<(), String> {
        let made = ip(&["netns", "add", &name], "").map_err(|error| match error.kind() {
            ErrorKind::NotFound => "the tool `ip` is missing (Debian: apt-get install iproute2)".to_owned(),
            _ => format!("running ip: {error}"),
        })?;
        self.made.push(name);
        refusal(&made, "a network namespace")
    }

    /// The same as [`Lan::batch`], for what not every kernel has.
    fn make(&self, what: &str, namespace: &str, lines: &str) -> Result<(), String> {
        refusal(&ip(&["-n", namespace, "-batch", "-"], lines).unwrap(), what)
    }

    fn batch(&self, namespace: &str, lines: &str) {
        let done = ip(&["-n", namespace, "-batch", "-"], lines).unwrap();
        assert!(done.status.success(), "{namespace}: {lines}{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Waits until every cable that is plugged in carries: the kernel says so a little later.
    fn await_up(&self) {
        let is_down = |link: &&str| link.contains("NO-CARRIER") || link.contains("state DOWN");
        eventually("the cables to carry", || {
            let links = ip(&["-n", &self.switch(), "-d", "-o", "link", "show", "type", "bridge_slave"], "").unwrap();
            let links = String::from_utf8(links.stdout).unwrap();
            // One that was cut is down on purpose: it lacks the word UP among its flags.
            let plugged = links.lines().filter(|link| link.contains(",UP"));
            let all = plugged.clone().count();
            let forwarding = plugged.filter(|link| !is_down(link) && link.contains("state forwarding")).count();
            (all > 0 && all == forwarding).then_some(())
        });
        for host in 0..self.hosts {
            let wanted = 1 + usize::from(self.doubled.contains(&host));
            eventually("the interfaces to be up", || {
                let is_cut = || {
                    let port = self.port(host, "eth0");
                    let link = ip(&["-n", &self.switch(), "-o", "link", "show", "dev", &port], "").unwrap();
                    !String::from_utf8(link.stdout).unwrap().contains(",UP")
                };
                let up = self.within(host, || interfaces(Ipv4Addr::UNSPECIFIED)).unwrap();
                let up = up.iter().filter(|interface| !interface.ip.is_loopback()).count();
                (up == wanted || (up + 1 == wanted && is_cut())).then_some(())
            });
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // Their cables and bridges go with them.
        for name in &self.made {
            forget(name);
        }
    }
}

/// Runs `ip`.
fn ip(args: &[&str], input: &str) -> io::Result<Output> {
    let mut child =
        Command::new("ip").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let written = child.stdin.take().expect("it was piped").write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    match written {
        // It ended early: its output says why.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(output),
    }
}

/// An error where this machine does not allow, or have, what was to be made; a panic where it is
/// something else, which must not pass for that.
fn refusal(done: &Output, what: &str) -> Result<(), String> {
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; ");
    let not_here = ["not permitted", "ermission denied", "Unknown device type", "not supported", "Read-only file"];
    assert!(not_here.iter().any(|why| said.contains(why)), "making {what}: {said}");
    Err(format!("this machine does not let us make {what} (run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN): {said}"))
}

/// Where a host's network is.
pub struct Namespace(File);

impl Namespace {
    /// From now on the calling thread, and what it starts, is on the host.
    pub fn enter(&self) {
        self.try_enter().unwrap();
    }

    fn try_enter(&self) -> io::Result<()> {
        // SAFETY: a plain system call with a descriptor that is borrowed, so it is open.
        let failed = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) } != 0;
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn named(namespace: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace)
}

fn forget(namespace: &str) {
    let said = match ip(&["netns", "del", namespace], "") {
        Ok(done) if done.status.success() || !named(namespace).exists() => return,
        Ok(done) => String::from_utf8_lossy(&done.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    // Not a panic: it would be the second one where a test has failed.
    let line = format!("network namespace {namespace} is left over: {said}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Removes what processes that were killed have left.
fn forget_killed() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for name in names.flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            forget(&name);
        }
    }
}
