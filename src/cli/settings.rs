//! Where settings come from: flag, else environment, else `.env` in the working directory, else the
//! default. Document 004's names (`SERVER_HOST`, …) stand in where ours are not set.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::builder::BoolishValueParser;

use super::dotenv;
use super::repl::clean;
use crate::model::text::spellings;
use crate::model::{FeeRate, Name, duration};
use crate::web::operator::warnings::log_by;

/// Document 004's names, which count where ours are not set.
const ALIASES: [&str; 14] = [
    "SERVER_HOST",
    "SERVER_PORT",
    "CLIENT_PORT_MIN",
    "CLIENT_PORT_MAX",
    "CLIENT_HEARTBEAT_INTERVAL",
    "CLIENT_INACTIVE_TIMEOUT",
    "ADMIN_API_HOST",
    "ADMIN_API_PORT",
    "CLIENT_API_HOST",
    "CLIENT_API_PORT",
    "JWT_SECRET_KEY",
    "SESSION_TIMEOUT",
    "ADMIN_USERNAME",
    "ADMIN_PASSWORD",
];

/// Makes the environment what the commands go by: a variable of ours without a value is none, and `.env` of
/// the working directory says what the environment does not. To be called before anything else: while
/// there is one thread.
///
/// # Errors
/// The file is there but cannot be read.
pub fn load_environment() -> anyhow::Result<()> {
    for (name, value) in std::env::vars_os() {
        let ours = name.to_str().is_some_and(|name| name.starts_with("P2S2_") || ALIASES.contains(&name));
        if ours && value.is_empty() {
            // SAFETY: no other thread is there yet that could read the environment meanwhile.
            unsafe { std::env::remove_var(&name) };
        }
    }
    let path = Path::new(".env");
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read(path).context("cannot read .env")?;
    for setting in dotenv::read(&text) {
        match setting {
            Ok((name, value)) if !value.is_empty() && std::env::var_os(&name).is_none() => {
                // SAFETY: as above.
                unsafe { std::env::set_var(name, value) };
            }
            Ok(_) => {}
            // The line may hold a secret: it is not repeated.
            Err(number) => eprintln!("warning: .env, line {number}: expected NAME=VALUE; the line has no effect"),
        }
    }
    Ok(())
}

/// Warns of variables that look like ours and that nothing reads: a name with a slip in it has no effect.
pub fn warn_of_unknown(known: &BTreeSet<String>) {
    for (name, _) in std::env::vars_os() {
        // This project's own tests have names of that beginning, which are none of the program's.
        let is_ours = |name: &&str| name.starts_with("P2S2_") && !name.starts_with("P2S2_TEST_");
        let Some(name) = name.to_str().filter(is_ours) else { continue };
        if !known.contains(name) {
            eprintln!("warning: {}: no flag has this name; the variable has no effect", clean(name));
        }
    }
}

/// For `value_parser`: a flag that is also a variable, on with `1`, `true`, `yes` or `on`, off with `0`,
/// `false`, `no` or `off`.
pub fn parse_switch() -> BoolishValueParser {
    BoolishValueParser::new()
}

/// For `value_parser`: a duration such as `500ms`, `5s`, `20min`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text)
}

/// For `value_parser`: a window, which must not be empty.
pub fn parse_window(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err("expected more than nothing".to_owned()),
        window => Ok(window),
    }
}

/// For `value_parser`: a percentage such as `10` or `2.5`.
pub fn parse_fee(text: &str) -> Result<FeeRate, String> {
    FeeRate::parse_percent(text)
}

/// For `value_parser`: `HOST:PORT`, with an address or a name that can be one. Whether anybody is there is seen when
/// it is asked.
pub fn parse_host_port(text: &str) -> Result<String, String> {
    let is_word = |label: &str| {
        let may_be = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(may_be) && !label.starts_with('-')
    };
    // Of digits and dots alone, it is meant as an address.
    let is_name = |host: &str| {
        let labels = host.strip_suffix('.').unwrap_or(host);
        host.len() <= 253
            && labels.split('.').all(is_word)
            && !host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let text = text.trim();
    let wrong = || "expected HOST:PORT, for example 127.0.0.1:9001, db.example:9001 or [::1]:9001".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    if port.starts_with('+') || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(format!("expected a port from 1 to 65535 behind the last colon, not {port:?}"));
    }
    match text.parse::<std::net::SocketAddr>() {
        Ok(addr) if addr.ip().is_unspecified() || addr.ip().is_multicast() => {
            Err(format!("{} is nobody's address: expected one that can be connected to", addr.ip()))
        }
        Ok(_) => Ok(text.to_owned()),
        Err(_) if is_name(host) => Ok(text.to_owned()),
        Err(_) => Err(wrong()),
    }
}

/// For `value_parser`: the SHA-256 of a certificate.
pub fn parse_fingerprint(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_lowercase());
    }
    Err("expected 64 hex digits".to_owned())
}

/// The address to bind: the flag (or its own variable), else `SERVER_HOST`, else loopback.
///
/// # Errors
/// `SERVER_HOST` is no IP address.
pub fn bind_address(flag: Option<IpAddr>) -> anyhow::Result<IpAddr> {
    if let Some(bind) = flag {
        return Ok(bind);
    }
    Ok(host_of("SERVER_HOST", "--bind")?.unwrap_or(Ipv4Addr::LOCALHOST.into()))
}

/// The address in a variable of document 004's, if it is set; for which this flag stands.
///
/// A 0.0.0.0 that comes from there alone is old habit, not a decision to be open to the world.
///
/// # Errors
/// It is no IP address.
pub fn host_of(variable: &str, flag: &str) -> anyhow::Result<Option<IpAddr>> {
    let Ok(host) = std::env::var(variable) else { return Ok(None) };
    let bind = if host == "localhost" {
        Ipv4Addr::LOCALHOST.into()
    } else {
        host.parse::<IpAddr>().with_context(|| format!("{variable}={host}: expected an IP address"))?
    };
    if bind.is_unspecified() {
        log::warn!("{variable}={host} is bound as 127.0.0.1; to serve other machines say {flag} {host} --tls");
        return Ok(Some(Ipv4Addr::LOCALHOST.into()));
    }
    Ok(Some(bind))
}

/// The flag (or its own variable), else what a variable of document 004's says, else the default.
///
/// # Errors
/// The variable says something else.
pub fn or_variable<T>(
    flag: Option<T>,
    variable: &str,
    default: T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> anyhow::Result<T> {
    if let Some(value) = flag {
        return Ok(value);
    }
    match std::env::var(variable) {
        Ok(text) => parse(&text).map_err(|wrong| anyhow::anyhow!("{variable}={text}: {wrong}")),
        Err(_) => Ok(default),
    }
}

/// Most bytes of a file's or folder's name that every file system takes, less what stands around it.
pub const FILE_NAME_MAX: usize = 200;

/// A name of a file or folder: the prefix, and a text with what may not be there written as `%XX`.
pub fn file_name(prefix: &str, text: &str) -> String {
    let mut name = String::from(prefix);
    for c in text.chars() {
        if c.is_alphanumeric() || matches!(c, '-' | '_') {
            name.push(c);
        } else {
            let mut bytes = [0; 4];
            name.extend(c.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")));
        }
    }
    if name.len() > FILE_NAME_MAX {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        name = format!("{prefix}{}", crate::model::secret::hex(digest.as_ref()));
    }
    name
}

/// Where what belongs to a name is kept in a folder: under its form C, which is one for all its spellings. What is there
/// under the spelling that was given, or else under another one, is used: an earlier version kept it so.
pub fn path_of(folder: &Path, prefix: &str, text: &str, ending: &str) -> PathBuf {
    let [given, composed, apart] = paths_of(folder, prefix, text, ending);
    let usual = composed.clone();
    [given, composed, apart].into_iter().find(|path| path.exists()).unwrap_or(usual)
}

/// Everywhere where what belongs to a name may be, as [`spellings`] has them.
pub fn paths_of(folder: &Path, prefix: &str, text: &str, ending: &str) -> [PathBuf; 3] {
    spellings(text).map(|text| folder.join(format!("{}{ending}", file_name(prefix, &text))))
}

/// Where everything of a name is kept that takes part in something: `data/state/PREFIXNAME`, with what may not be in a
/// folder's name written as `%XX`.
pub fn default_data_dir(prefix: &str, name: &Name) -> PathBuf {
    path_of(Path::new("data/state"), prefix, name.as_str(), "")
}

/// Where a user's own things are kept, for every program that he runs: sessions, servers that he has
/// confirmed. Nothing is created.
///
/// # Errors
/// Nobody knows where the user's configuration is.
pub fn config_folder() -> anyhow::Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = variable("XDG_CONFIG_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".config")))
        .or_else(|| variable("APPDATA"))
        .context("where is your configuration folder? Set XDG_CONFIG_HOME")?;
    Ok(folder.join("p2s2"))
}

/// Begins logging: `RUST_LOG`, else this level for our own lines. A line may quote what others said. Warnings are kept
/// as well, for whoever asks the process itself.
pub fn init_log(default_filter: &str) {
    let logger = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default_filter))
        .format(|out, record| {
            let (time, level, style) = (out.timestamp(), record.level(), out.default_level_style(record.level()));
            writeln!(out, "[{time} {style}{level:<5}{style:#}] {}", clean(&record.args().to_string()))
        })
        .build();
    let filter = logger.filter();
    // One that is there already goes on.
    if let Err(error) = log_by(logger, filter) {
        eprintln!("warning: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_folder_however_it_is_spelled() {
        let dir = tempfile::tempdir().unwrap();
        let at = |text: &str| path_of(dir.path(), "peer-", text, "");
        let (composed, apart) = ("Zo\u{eb}", "Zoe\u{308}");
        let [of_composed, of_apart] = [composed, apart].map(|text| dir.path().join(file_name("peer-", text)));
        assert_ne!(of_composed, of_apart);
        assert_eq!([at(composed), at(apart)], [of_composed.clone(), of_composed.clone()]);
        // That of an earlier version is used, whoever asks.
        std::fs::create_dir(&of_apart).unwrap();
        assert_eq!([at(composed), at(apart)], [of_apart.clone(), of_apart.clone()]);
        // Where it made two, each stays with its own.
        std::fs::create_dir(&of_composed).unwrap();
        assert_eq!([at(composed), at(apart)], [of_composed, of_apart]);
    }

    #[test]
    fn each_name_has_a_folder_of_its_own_inside_the_data_dir() {
        for (name, folder) in [("alice", "peer-alice"), ("../x y", "peer-%2E%2E%2Fx%20y"), ("Zoë", "peer-Zoë")] {
            assert_eq!(default_data_dir("peer-", &Name::new(name).unwrap()), Path::new("data/state").join(folder));
        }
        let long =
            |last: &str| default_data_dir("peer-", &Name::new(&format!("{}{last}", "\u{1f600}".repeat(63))).unwrap());
        assert!(long("a").file_name().unwrap().len() < 255 && long("a") != long("b"));
    }

    #[test]
    fn an_address_that_cannot_be_one_is_refused() {
        for good in [
            "127.0.0.1:9001",
            "[::1]:9001",
            "[fe80::1%2]:9001",
            "localhost:1",
            "db_1.shop-east.example.:65535",
            "3com.example:80",
        ] {
            assert_eq!(parse_host_port(good).as_deref(), Ok(good));
        }
        for wrong in [
            "nonsense",
            "",
            ":",
            ":9001",
            "host:",
            "host:0",
            "host:65536",
            "host:-1",
            "host:+1x",
            "::1:9001",
            "300.1.2.3:9001",
            "1.2.3:9001",
            "two words:9001",
            "http://host:9001",
            "host/:9001",
            "a..b:1",
            "-a:1",
            "[::1:9001",
            "0.0.0.0:9001",
            "[::]:9001",
            "224.0.0.1:9001",
        ] {
            assert!(parse_host_port(wrong).is_err(), "{wrong}");
        }
    }
}
