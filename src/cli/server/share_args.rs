//! The flags of the share service and of the HTTP port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use crate::cli::{ready, settings};
use crate::identity::users::AdminCredentials;
use crate::model::Name;
use crate::net::http::{RequestPolicy, parse_allowed_origin, parse_host_name};
use crate::services::share::ShareServiceConfig;
use crate::services::tls::TlsConfig;
use crate::share::server::{AuthMode, RegistryServerConfig};

/// The settings of share, and of the HTTP port.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sharing files, and the HTTP port")]
pub(super) struct ShareServiceArgs {
    /// The registry's port [default: 9000]
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    registry_port: Option<u16>,
    /// The HTTP port: server API, admin page, metrics [default: 5500]
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    api_port: Option<u16>,
    /// Address to bind for HTTP, if not that of --bind
    #[arg(long, value_name = "IP")]
    api_bind: Option<IpAddr>,
    /// How long a host of the registry counts as there after it was last heard [default: 20min]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window)]
    peer_timeout: Option<Duration>,
    /// What gives a client the hostname that is a user's name: the token, or also the address the user logged in from
    #[arg(long, value_name = "HOW", default_value = "strict")]
    registry_auth: RegistryAuth,
    /// How long a login lasts [default: 1h]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window)]
    jwt_ttl: Option<Duration>,
    /// Pages of this origin may use the HTTP port; may repeat
    #[arg(long, value_name = "URL", value_parser = parse_allowed_origin, value_delimiter = ',')]
    allow_origin: Vec<String>,
    /// The HTTP port answers under this name too, not only under addresses and localhost; may repeat
    #[arg(long, value_name = "NAME", value_parser = parse_host_name, value_delimiter = ',')]
    http_host: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum RegistryAuth {
    Strict,
    Address,
}

impl ShareServiceArgs {
    /// Combines flags, legacy variables and defaults.
    pub(super) fn config(
        &self,
        bind: IpAddr,
        tls: &TlsConfig,
        with_registry: bool,
    ) -> anyhow::Result<ShareServiceConfig> {
        let api_bind = settings::bind_address(self.api_bind, "ADMIN_API_HOST", "--api-bind", bind)?;
        if !api_bind.is_loopback() && !tls.is_guarded() {
            bail!(
                "HTTP at {api_bind} is open to other hosts: say --tls (with the data dir's own certificate), --insecure, \
                 or --api-bind 127.0.0.1"
            );
        }
        let username = secret_variable("ADMIN_USERNAME")?
            .map(|text| Name::new(&text).map_err(|rule| anyhow::anyhow!("ADMIN_USERNAME: {rule}")))
            .transpose()?;
        let registry = RegistryServerConfig {
            addr: SocketAddr::new(bind, port(self.registry_port, "SERVER_PORT", 9000)?),
            peer_timeout: time(self.peer_timeout, "CLIENT_INACTIVE_TIMEOUT", Duration::from_secs(20 * 60))?,
            auth: match self.registry_auth {
                RegistryAuth::Strict => AuthMode::Strict,
                RegistryAuth::Address => AuthMode::Address,
            },
        };
        Ok(ShareServiceConfig {
            registry: with_registry.then_some(registry),
            api_addr: SocketAddr::new(api_bind, port(self.api_port, "ADMIN_API_PORT", 5500)?),
            jwt_ttl: time(self.jwt_ttl, "SESSION_TIMEOUT", Duration::from_secs(3600))?,
            policy: RequestPolicy::from_flags(self.http_host.clone(), self.allow_origin.clone()),
            admin: AdminCredentials { username, password: secret_variable("ADMIN_PASSWORD")? },
            secret: secret_variable("JWT_SECRET_KEY")?,
            announce_admin: ready::print_new_admin,
        })
    }
}

fn port(flag: Option<u16>, variable: &str, default: u16) -> anyhow::Result<u16> {
    settings::flag_or_variable(flag, variable, default, |text| text.parse().map_err(|_| "expected a port".to_owned()))
}

fn time(flag: Option<Duration>, variable: &str, default: Duration) -> anyhow::Result<Duration> {
    settings::flag_or_variable(flag, variable, default, settings::parse_window)
}

/// The value of a variable that may hold a secret, so errors do not quote it. Trailing line breaks are removed, because
/// files of secrets end with one.
fn secret_variable(name: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value.trim_end_matches(['\r', '\n']).to_owned())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{name}: expected UTF-8"),
    }
}
