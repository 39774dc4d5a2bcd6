//! `p2s2 server`: all services of a host in one process.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::listen_args::{AnnounceArgs, Ports, StoreArgs, TlsArgs};
use super::{ready, settings};
use crate::model::FeeRate;
use crate::net::cluster;
use crate::services::server::{self, ServerConfig};
use crate::services::shop::ShopConfig;
use crate::trade::deal::Windows;
use crate::trade::server::TradeServerConfig;

mod share_args;

use share_args::ShareServiceArgs;

/// Run the services of this machine in one process
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  p2s2 server
  p2s2 server --data-dir /var/lib/p2s2 --trade-port 7001 --reserve-window 2min
  p2s2 server --trade-port 0 --ready-file /tmp/p2s2.json      any free port; the file tells which

It announces itself as server-HOST on the networks that it is bound to (with 127.0.0.1 on this machine alone),
so that `--server auto` of the clients finds it; the log names the fingerprint that they are to confirm.")]
pub struct ServerArgs {
    /// Address to bind; anything but loopback opens the server to other machines
    #[arg(long, value_name = "IP")]
    bind: Option<IpAddr>,
    #[command(flatten)]
    store: StoreArgs,
    /// Services to run
    #[arg(long, value_delimiter = ',', default_value = "trade,shop,share")]
    services: Vec<Service>,
    /// Trade's port, for UDP and TCP
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, default_value_t = 7001)]
    trade_port: u16,
    /// How long offers are awaited
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, default_value = "5s")]
    offer_window: Duration,
    /// How long each seller may think about a lower price
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, default_value = "10s")]
    negotiate_window: Duration,
    /// How long what was found is held for the buyer
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, default_value = "120s")]
    reserve_window: Duration,
    /// How long each step of a settlement may take
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, default_value = "10s")]
    settle_timeout: Duration,
    /// What the house takes of each sale
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true, value_parser = FeeRate::parse_percent, default_value = "10")]
    fee_percent: FeeRate,
    /// Connections of all listeners together
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = parse_connections, default_value = "12000")]
    max_connections: usize,
    /// Settle without TLS (peers must say --plaintext too)
    #[arg(long, value_parser = settings::parse_switch())]
    plaintext: bool,
    /// Write the real addresses there, as JSON, when everything is bound
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    #[command(flatten)]
    announce: AnnounceArgs,
    #[command(flatten)]
    shop: ShopArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    share: ShareServiceArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Service {
    Trade,
    Shop,
    Share,
}

/// The shop's settings.
#[derive(Debug, Args)]
#[command(next_help_heading = "The shop")]
struct ShopArgs {
    /// The product database's port
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, default_value_t = 9001)]
    product_port: u16,
    /// The customer database's port
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, default_value_t = 9002)]
    customer_port: u16,
    /// The sellers' port; may be a list
    #[arg(long, value_name = "PORT", allow_hyphen_values = true, default_value = "8001")]
    seller_port: Ports,
    /// The buyers' port; may be a list
    #[arg(long, value_name = "PORT", allow_hyphen_values = true, default_value = "8002")]
    buyer_port: Ports,
    /// A session ends after so long without a request
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, default_value = "300s")]
    session_timeout: Duration,
    /// How long stock is held for a purchase
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, default_value = "60s")]
    hold_timeout: Duration,
    /// What components prove to each other (default: cluster.key in the data dir)
    #[arg(long, value_name = "FILE")]
    cluster_key: Option<PathBuf>,
}

/// For `value_parser`: a server needs at least one connection.
fn parse_connections(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|connections| *connections > 0).ok_or("expected a number from 1 on".to_owned())
}

pub fn run(args: ServerArgs) -> anyhow::Result<ExitCode> {
    settings::init_log("info");
    ready::serve(args.ready_file.as_deref(), || {
        if let Some(url) = &args.store.db {
            // The URL may contain a password, so it is not repeated.
            let kind = url.split_once("://").map_or("that", |(scheme, _)| scheme);
            bail!(
                "--db: this version keeps everything in SQLite files in --data-dir and cannot use {kind}; leave --db (P2S2_DB) out"
            );
        }
        server::start(args.config()?)
    })
}

impl ServerArgs {
    fn config(&self) -> anyhow::Result<ServerConfig> {
        let bind = settings::server_bind_address(self.bind)?;
        let has = |service| self.services.contains(&service);
        let tls = self.tls.config();
        let share = self.share.config(bind, &tls, has(Service::Share))?;
        Ok(ServerConfig {
            bind,
            data_dir: self.store.data_dir.clone(),
            trade: has(Service::Trade).then(|| self.trade_config(bind)),
            shop: has(Service::Shop).then(|| self.shop_config(bind)),
            share,
            max_connections: self.max_connections,
            tls,
            announce: self.announce.config(),
        })
    }

    fn trade_config(&self, bind: IpAddr) -> TradeServerConfig {
        TradeServerConfig {
            addr: SocketAddr::new(bind, self.trade_port),
            windows: Windows {
                offer: self.offer_window,
                negotiate: self.negotiate_window,
                reserve: self.reserve_window,
            },
            settle_timeout: self.settle_timeout,
            fee: self.fee_percent,
            plaintext: self.plaintext,
        }
    }

    fn shop_config(&self, bind: IpAddr) -> ShopConfig {
        let (shop, addr) = (&self.shop, |port| SocketAddr::new(bind, port));
        let addrs = |ports: &Ports| ports.0.iter().copied().map(addr).collect();
        ShopConfig {
            product: addr(shop.product_port),
            customer: addr(shop.customer_port),
            sellers: addrs(&shop.seller_port),
            buyers: addrs(&shop.buyer_port),
            hold_timeout: shop.hold_timeout,
            session_timeout: shop.session_timeout,
            fee: self.fee_percent,
            cluster_key: shop.cluster_key.clone().unwrap_or_else(|| self.store.data_dir.join(cluster::FILE_NAME)),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct ServerLine {
        #[command(flatten)]
        args: ServerArgs,
    }

    fn config(words: &[&str]) -> ServerConfig {
        ServerLine::parse_from([&["server"], words].concat()).args.config().unwrap()
    }

    #[test]
    fn only_the_services_that_are_named_are_configured() {
        let all = config(&["--bind", "127.0.0.1", "--data-dir", "d", "--buyer-port", "1,2", "--trade-port", "3"]);
        let shop = all.shop.unwrap();
        assert_eq!(shop.buyers, ["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()]);
        assert_eq!(shop.cluster_key, PathBuf::from("d").join(cluster::FILE_NAME));
        assert_eq!(all.trade.unwrap().addr, "127.0.0.1:3".parse().unwrap());
        assert!(all.share.registry.is_some());
        let one = config(&["--services", "shop", "--cluster-key", "k", "--no-announce"]);
        assert!(one.trade.is_none() && one.share.registry.is_none() && !one.announce.enabled);
        assert_eq!(one.shop.unwrap().cluster_key, PathBuf::from("k"));
    }
}
