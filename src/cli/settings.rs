//! Where settings come from: flag, else environment, else `.env` in the working directory, else the
//! default. Document 004's names (`SERVER_HOST`, …) stand in where ours are not set.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::repl::clean;
use crate::model::{FeeRate, duration};

/// Takes `.env` of the working directory into the environment, where that does not say otherwise.
///
/// # Errors
/// The file is there but cannot be read or understood.
pub fn load_dotenv() -> anyhow::Result<()> {
    let path = Path::new(".env");
    if !path.exists() {
        return Ok(());
    }
    dotenvy::from_path(path).context("cannot read .env")
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

/// The address to bind: the flag (or its own variable), else `SERVER_HOST`, else loopback.
///
/// A 0.0.0.0 that comes from `SERVER_HOST` alone is old habit, not a decision to be open to the world.
///
/// # Errors
/// `SERVER_HOST` is no IP address.
pub fn bind_address(flag: Option<IpAddr>) -> anyhow::Result<IpAddr> {
    if let Some(bind) = flag {
        return Ok(bind);
    }
    let Ok(host) = std::env::var("SERVER_HOST") else {
        return Ok(Ipv4Addr::LOCALHOST.into());
    };
    let bind = if host == "localhost" {
        Ipv4Addr::LOCALHOST.into()
    } else {
        host.parse::<IpAddr>().with_context(|| format!("SERVER_HOST={host}: expected an IP address"))?
    };
    if bind.is_unspecified() {
        log::warn!("SERVER_HOST={host} is bound as 127.0.0.1; to serve other machines say --bind {host} --tls");
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    Ok(bind)
}

/// Begins logging: `RUST_LOG`, else this level for our own lines. A line may quote what others said.
pub fn init_log(default_filter: &str) {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default_filter))
        .format(|out, record| {
            let (time, level, style) = (out.timestamp(), record.level(), out.default_level_style(record.level()));
            writeln!(out, "[{time} {style}{level:<5}{style:#}] {}", clean(&record.args().to_string()))
        })
        .init();
}
