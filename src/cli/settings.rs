//! Sources of settings, in order: flag, environment, `.env` in the working directory, default. Legacy variables
//! (`SERVER_HOST`, …) apply where the newer ones are not set.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::builder::BoolishValueParser;

use super::dotenv;
use super::output::sanitize;
use crate::model::duration;
use crate::web::operator::warnings::install_logger;

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

/// Removes our variables that are empty, and sets those that only `.env` in the working directory defines. Must be
/// called before other threads start.
pub fn load_environment() -> anyhow::Result<()> {
    for (name, value) in std::env::vars_os() {
        let ours = name.to_str().is_some_and(|name| name.starts_with("P2S2_") || ALIASES.contains(&name));
        if ours && value.is_empty() {
            // SAFETY: no other thread exists yet that could access the environment.
            unsafe { std::env::remove_var(&name) };
        }
    }
    let path = Path::new(".env");
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read(path).context("cannot read .env")?;
    for setting in dotenv::parse(&text) {
        match setting {
            Ok((name, value)) if !value.is_empty() && std::env::var_os(&name).is_none() => {
                // SAFETY: as above.
                unsafe { std::env::set_var(name, value) };
            }
            Ok(_) => {}
            // The line may contain a secret, so it is not repeated.
            Err(number) => eprintln!("warning: .env, line {number}: expected NAME=VALUE; the line has no effect"),
        }
    }
    Ok(())
}

/// Warns of variables with our prefix that nothing reads, because a misspelled name has no effect.
pub fn warn_of_unknown(known: &BTreeSet<String>) {
    for (name, _) in std::env::vars_os() {
        // The tests of this project use variables with this prefix.
        let is_ours = |name: &&str| name.starts_with("P2S2_") && !name.starts_with("P2S2_TEST_");
        let Some(name) = name.to_str().filter(is_ours) else { continue };
        if !known.contains(name) {
            eprintln!("warning: {}: no flag has this name; the variable has no effect", sanitize(name));
        }
    }
}

/// For a flag that can also be set by a variable. On: `1`, `true`, `yes`, `on`; off: `0`, `false`, `no`, `off`.
pub fn parse_switch() -> BoolishValueParser {
    BoolishValueParser::new()
}

/// For `value_parser`: a duration above zero.
pub fn parse_window(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err("expected more than nothing".to_owned()),
        window => Ok(window),
    }
}

/// Expects `HOST:PORT` with an IP address or a syntactically valid host name, which is resolved only when connecting.
pub fn parse_host_port(text: &str) -> Result<String, String> {
    let is_word = |label: &str| {
        let may_be = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(may_be) && !label.starts_with('-')
    };
    // A host of digits and dots only is meant to be an address.
    let is_name = |host: &str| {
        let labels = host.strip_suffix('.').unwrap_or(host);
        host.len() <= 253
            && labels.split('.').all(is_word)
            && !host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let text = text.trim();
    let error = || "expected HOST:PORT, for example 127.0.0.1:9001, db.example:9001 or [::1]:9001".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
    if port.starts_with('+') || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(format!("expected a port from 1 to 65535 behind the last colon, not {port:?}"));
    }
    match text.parse::<std::net::SocketAddr>() {
        Ok(addr) if addr.ip().is_unspecified() || addr.ip().is_multicast() => {
            Err(format!("{} is nobody's address: expected one that can be connected to", addr.ip()))
        }
        Ok(_) => Ok(text.to_owned()),
        Err(_) if is_name(host) => Ok(text.to_owned()),
        Err(_) => Err(error()),
    }
}

pub fn parse_fingerprint(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_lowercase());
    }
    Err("expected 64 hex digits".to_owned())
}

/// The address to bind: that of the flag (or its own variable), else of a legacy variable, else the default. An
/// unspecified address such as 0.0.0.0 in the legacy variable becomes loopback: old configurations have it by habit,
/// which is no decision to accept connections from other machines.
pub fn bind_address(given: Option<IpAddr>, variable: &str, flag: &str, default: IpAddr) -> anyhow::Result<IpAddr> {
    if let Some(bind) = given {
        return Ok(bind);
    }
    let Ok(host) = std::env::var(variable) else { return Ok(default) };
    let bind = if host == "localhost" {
        Ipv4Addr::LOCALHOST.into()
    } else {
        host.parse::<IpAddr>().with_context(|| format!("{variable}={host}: expected an IP address"))?
    };
    if bind.is_unspecified() {
        log::warn!("{variable}={host} is bound as 127.0.0.1; to serve other machines say {flag} {host} --tls");
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    Ok(bind)
}

/// The address that a server binds.
pub fn server_bind_address(given: Option<IpAddr>) -> anyhow::Result<IpAddr> {
    bind_address(given, "SERVER_HOST", "--bind", Ipv4Addr::LOCALHOST.into())
}

/// Refuses `--db`: this version knows no other database than SQLite.
pub fn refuse_db(db: Option<&str>) -> anyhow::Result<()> {
    if db.is_some() {
        // The URL may contain a password, so it is not repeated.
        bail!("--db: this version keeps everything in SQLite files in --data-dir; leave --db (P2S2_DB) out");
    }
    Ok(())
}

/// The flag (or its own variable), else a legacy variable, else the default.
pub fn flag_or_variable<T>(
    flag: Option<T>,
    variable: &str,
    default: T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> anyhow::Result<T> {
    if let Some(value) = flag {
        return Ok(value);
    }
    match std::env::var(variable) {
        Ok(text) => parse(&text).map_err(|error| anyhow::anyhow!("{variable}={text}: {error}")),
        Err(_) => Ok(default),
    }
}

/// Starts logging at the level of `RUST_LOG`, or at this one. Lines are sanitized because they may quote others.
/// Warnings are also kept in memory for the operator API.
pub fn init_log(default_filter: &str) {
    let logger = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default_filter))
        .format(|out, record| {
            let (time, level, style) = (out.timestamp(), record.level(), out.default_level_style(record.level()));
            writeln!(out, "[{time} {style}{level:<5}{style:#}] {}", sanitize(&record.args().to_string()))
        })
        .build();
    let filter = logger.filter();
    // An earlier logger stays in place.
    if let Err(error) = install_logger(logger, filter) {
        eprintln!("warning: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for error in [
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
            assert!(parse_host_port(error).is_err(), "{error}");
        }
    }
}
