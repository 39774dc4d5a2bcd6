//! A virtual LAN on this machine: each host is a network namespace with a virtual cable (veth) to a switch, a bridge in
//! a namespace of its own. The network of the machine itself is not changed.
//!
//! Without the privilege to create namespaces, or without `ip`, tests are skipped with one line on standard error,
//! which the capture of test output does not swallow.
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

use p2s2::internals::net::interfaces::interfaces;

use crate::support::eventually;

/// The prefix of names in /run/netns, followed by the process id: leftovers of killed processes are found by it.
const PREFIX: &str = "p2s2-";

/// The switch's bridges: hosts are connected to the first one, parted hosts to the second one; the third one is the
/// second network.
const BRIDGES: [&str; 3] = ["main", "parted", "second"];

/// The number of ports of a bridge.
const MOST_HOSTS: usize = 1000;

/// A virtual network of hosts. It is removed when dropped, also by a panic; programs that still run in it keep parts of
/// it alive until they end.
pub struct Lan {
    /// The prefix of its namespaces.
    name: String,
    hosts: usize,
    /// Hosts that have a second interface.
    with_second_interface: BTreeSet<usize>,
    /// The namespaces that have been created.
    namespaces: Vec<String>,
}

impl Lan {
    /// Creates hosts numbered from 0, with the addresses of [`ip`](Lan::ip). `None` if the tool or the privilege is
    /// missing, which is reported on standard error.
    pub fn new(hosts: usize) -> Option<Lan> {
        assert!((1..=MOST_HOSTS).contains(&hosts), "1 to {MOST_HOSTS} hosts, not {hosts}");
        match Lan::try_new(hosts) {
            Ok(lan) => Some(lan),
            Err(why) => {
                let test = thread::current().name().unwrap_or("a test").to_owned();
                // Not by a macro, whose output would be captured.
                let line = format!("skipped: {test}: {why}\n");
                io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
        }
    }

    /// The error says why this machine cannot have such networks; any other failure is a panic.
    fn try_new(hosts: usize) -> Result<Lan, String> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        remove_leftovers();
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let mut lan = Lan { name, hosts, with_second_interface: BTreeSet::new(), namespaces: Vec::new() };
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

    /// The address of a host in the second network.
    pub fn second_ip(&self, host: usize) -> Ipv4Addr {
        let [_, _, high, low] = self.ip(host).octets();
        Ipv4Addr::new(10, 78, high, low)
    }

    fn prefix(&self) -> u8 {
        if self.hosts <= 250 { 24 } else { 16 }
    }

    /// Connects some hosts to the second network, by another interface, eth1.
    pub fn second_network(&mut self, hosts: &[usize]) {
        for &host in hosts {
            assert!(self.with_second_interface.insert(host), "host {host} has two interfaces already");
            let (ip, prefix) = (self.second_ip(host), self.prefix());
            self.batch(&self.switch(), &self.cable(host, "eth1", BRIDGES[2]));
            self.batch(&self.host(host), &format!("addr add {ip}/{prefix} brd + dev eth1\nlink set eth1 up\n"));
        }
        self.await_up();
    }

    /// Gives a host a second interface on the first network, with this address.
    pub fn add_interface(&mut self, host: usize, ip: Ipv4Addr) {
        assert!(self.with_second_interface.insert(host), "host {host} has two interfaces already");
        self.batch(&self.switch(), &self.cable(host, "eth1", BRIDGES[0]));
        let prefix = self.prefix();
        self.batch(&self.host(host), &format!("addr add {ip}/{prefix} brd + dev eth1\nlink set eth1 up\n"));
        self.await_up();
    }

    /// Unplugs some hosts.
    pub fn cut(&self, hosts: &[usize]) {
        let pull: String = hosts.iter().map(|&host| format!("link set {} down\n", self.port(host, "eth0"))).collect();
        self.batch(&self.switch(), &pull);
    }

    /// Partitions the network: these hosts reach only each other, and so do the others.
    pub fn part(&self, hosts: &[usize]) {
        let port = |&host: &usize| format!("link set {} master {}\n", self.port(host, "eth0"), BRIDGES[1]);
        self.batch(&self.switch(), &hosts.iter().map(port).collect::<String>());
        self.await_up();
    }

    /// Plugs all hosts into the first network again.
    pub fn heal(&self) {
        let port = |host| format!("link set {} master {} up\n", self.port(host, "eth0"), BRIDGES[0]);
        self.batch(&self.switch(), &(0..self.hosts).map(port).collect::<String>());
        self.await_up();
    }

    /// Makes a command run on a host.
    pub fn run_in(&self, host: usize, mut command: Command) -> Command {
        let namespace = self.namespace(host);
        // SAFETY: between fork and exec this only makes one system call, with a descriptor that the
        // closure owns.
        unsafe { command.pre_exec(move || namespace.try_enter()) };
        command
    }

    /// Runs a closure on a host. Sockets that it creates belong to that host for ever, whoever uses them.
    pub fn within<T: Send>(&self, host: usize, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace(host);
        let in_namespace = move || {
            namespace.enter();
            work()
        };
        // On a thread of its own, as that cannot leave the namespace again.
        match thread::scope(|scope| scope.spawn(in_namespace).join()) {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The namespace of a host, for threads that shall enter it.
    pub fn namespace(&self, host: usize) -> Namespace {
        let path = namespace_path(&self.host(host));
        Namespace(File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// A socket on a host, with permission to broadcast.
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

    /// The name of the switch's end of a cable.
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
        self.namespaces.push(name);
        check_supported(&made, "a network namespace")
    }

    /// The same as [`Lan::batch`], for features that not every kernel has.
    fn make(&self, what: &str, namespace: &str, lines: &str) -> Result<(), String> {
        check_supported(&ip(&["-n", namespace, "-batch", "-"], lines).unwrap(), what)
    }

    fn batch(&self, namespace: &str, lines: &str) {
        let done = ip(&["-n", namespace, "-batch", "-"], lines).unwrap();
        assert!(done.status.success(), "{namespace}: {lines}{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Waits until every plugged cable has a carrier, which takes the kernel a moment.
    fn await_up(&self) {
        let is_down = |link: &&str| link.contains("NO-CARRIER") || link.contains("state DOWN");
        eventually("the cables to carry", || {
            let links = ip(&["-n", &self.switch(), "-d", "-o", "link", "show", "type", "bridge_slave"], "").unwrap();
            let links = String::from_utf8(links.stdout).unwrap();
            // Unplugged ones are down on purpose: they lack the flag UP.
            let plugged = links.lines().filter(|link| link.contains(",UP"));
            let all = plugged.clone().count();
            let forwarding = plugged.filter(|link| !is_down(link) && link.contains("state forwarding")).count();
            (all > 0 && all == forwarding).then_some(())
        });
        for host in 0..self.hosts {
            let wanted = 1 + usize::from(self.with_second_interface.contains(&host));
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
        // Cables and bridges are removed with their namespaces.
        for name in &self.namespaces {
            remove_namespace(name);
        }
    }
}

/// Runs the tool `ip`.
fn ip(args: &[&str], input: &str) -> io::Result<Output> {
    let mut child =
        Command::new("ip").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let written = child.stdin.take().expect("it was piped").write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    match written {
        // If it has ended early, its output says why.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(output),
    }
}

/// An error if this machine does not permit or support what was to be made; a panic on any other failure, which must
/// not skip the test.
fn check_supported(done: &Output, what: &str) -> Result<(), String> {
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; ");
    let not_here = ["not permitted", "ermission denied", "Unknown device type", "not supported", "Read-only file"];
    assert!(not_here.iter().any(|why| said.contains(why)), "making {what}: {said}");
    Err(format!("this machine does not let us make {what} (run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN): {said}"))
}

/// A host's network namespace.
pub struct Namespace(File);

impl Namespace {
    /// Moves the calling thread, and all that it starts, to the host.
    pub fn enter(&self) {
        self.try_enter().unwrap();
    }

    fn try_enter(&self) -> io::Result<()> {
        // SAFETY: a plain system call with a descriptor that is borrowed, so it is open.
        let failed = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) } != 0;
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn namespace_path(namespace: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace)
}

fn remove_namespace(namespace: &str) {
    let said = match ip(&["netns", "del", namespace], "") {
        Ok(done) if done.status.success() || !namespace_path(namespace).exists() => return,
        Ok(done) => String::from_utf8_lossy(&done.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    // Not a panic, which would be the second one if a test has failed.
    let line = format!("network namespace {namespace} is left over: {said}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Removes the namespaces of processes that were killed.
fn remove_leftovers() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for name in names.flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            remove_namespace(&name);
        }
    }
}
