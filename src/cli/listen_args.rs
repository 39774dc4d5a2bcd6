//! Flags that several servers have: ports, the data dir, TLS, announcements.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::settings;
use crate::lan::DISCOVERY_PORT;
use crate::services::announcement::AnnounceConfig;
use crate::services::tls::TlsConfig;

pub const DEFAULT_DATA_DIR: &str = "data/state";

/// One port or several: `8001` or `8001,8080`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(pub Vec<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Ports, String> {
        let port = |word: &str| word.trim().parse().map_err(|_| format!("{word:?} is no port: expected 0 to 65535"));
        text.split(',').map(port).collect::<Result<_, _>>().map(Ports)
    }
}

/// Where a server keeps what it has.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
    /// Database; without it, SQLite files in the data dir
    #[arg(long, value_name = "URL", env = "P2S2_DB")]
    pub db: Option<String>,
}

/// How listeners beyond loopback are guarded.
#[derive(Debug, Clone, Args)]
pub struct TlsArgs {
    /// Speak TLS, with the data dir's own certificate unless one is given
    #[arg(long, value_parser = settings::parse_switch())]
    tls: bool,
    /// The certificate to present, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Listen beyond loopback without TLS all the same
    #[arg(long, value_parser = settings::parse_switch())]
    insecure: bool,
}

impl TlsArgs {
    pub fn config(&self) -> TlsConfig {
        TlsConfig {
            own_certificate: self.tls,
            files: self.tls_cert.clone().zip(self.tls_key.clone()),
            insecure: self.insecure,
        }
    }
}

/// Whether and where a server announces itself.
#[derive(Debug, Clone, Args)]
pub struct AnnounceArgs {
    /// Port where everybody hears announcements: the same for all
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, default_value_t = DISCOVERY_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    discovery_port: u16,
    /// Do not announce this server; it is then not found by --server auto
    #[arg(long, value_parser = settings::parse_switch())]
    no_announce: bool,
}

impl AnnounceArgs {
    pub fn config(&self) -> AnnounceConfig {
        AnnounceConfig { discovery_port: self.discovery_port, enabled: !self.no_announce }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_several() {
        assert_eq!("8001".parse(), Ok(Ports(vec![8001])));
        assert_eq!("8001, 0".parse(), Ok(Ports(vec![8001, 0])));
        for error in ["", "8001,", "70000", "x"] {
            assert!(error.parse::<Ports>().is_err(), "{error}");
        }
    }
}
