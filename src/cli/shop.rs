//! `p2s2 product-db`, `customer-db`, `seller-server` and `buyer-server`: the shop's components as commands of their own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::listen_args::{AnnounceArgs, DEFAULT_DATA_DIR, Ports, StoreArgs, TlsArgs};
use super::{ready, settings};
use crate::model::FeeRate;
use crate::services::ServiceProcess;
use crate::services::component::{self, ComponentConfig, FrontendComponentConfig};
use crate::shop::ops::Role;

/// What every component's command has.
#[derive(Debug, Clone, Args)]
struct ComponentArgs {
    /// Address to bind; anything but loopback opens it to other machines
    #[arg(long, value_name = "IP")]
    bind: Option<IpAddr>,
    /// What components prove to each other (default: cluster.key in the data dir)
    #[arg(long, value_name = "FILE")]
    cluster_key: Option<PathBuf>,
    /// Write the real addresses there, as JSON, when everything is bound
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 12_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    #[command(flatten)]
    tls: TlsArgs,
}

/// The shop's products: items, search, stock
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 product-db --port 9001 --data-dir /var/lib/p2s2")]
pub struct ProductArgs {
    /// Where frontends come in
    #[arg(long, value_name = "PORT", default_value_t = 9001)]
    port: u16,
    #[command(flatten)]
    store: StoreArgs,
    /// How long stock is held for a purchase
    #[arg(long, value_name = "TIME", value_parser = settings::parse_window, default_value = "60s")]
    hold_timeout: Duration,
    #[command(flatten)]
    common: ComponentArgs,
}

/// The shop's customers: accounts, sessions, carts, purchases, the ledger
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 customer-db --port 9002 --data-dir /var/lib/p2s2 --session-timeout 5m")]
pub struct CustomerArgs {
    /// Where frontends come in
    #[arg(long, value_name = "PORT", default_value_t = 9002)]
    port: u16,
    #[command(flatten)]
    store: StoreArgs,
    /// A session ends after so long without a request
    #[arg(long, value_name = "TIME", value_parser = settings::parse_window, default_value = "300s")]
    session_timeout: Duration,
    /// What the house takes of each sale
    #[arg(long, value_name = "PERCENT", value_parser = FeeRate::parse_percent, allow_hyphen_values = true, default_value = "10")]
    fee_percent: FeeRate,
    #[command(flatten)]
    common: ComponentArgs,
}

/// Where sellers' clients connect
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 seller-server --port 8001 --product 127.0.0.1:9001 --customer 127.0.0.1:9002")]
pub struct SellerServerArgs {
    /// Where clients come in; may be a list
    #[arg(long, value_name = "PORT", default_value = "8001")]
    port: Ports,
    #[command(flatten)]
    frontend: FrontendArgs,
}

/// Where buyers' clients connect
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 buyer-server --port 8002 --product 127.0.0.1:9001 --customer 127.0.0.1:9002")]
pub struct BuyerServerArgs {
    /// Where clients come in; may be a list
    #[arg(long, value_name = "PORT", default_value = "8002")]
    port: Ports,
    #[command(flatten)]
    frontend: FrontendArgs,
}

/// What the commands of both frontends have.
#[derive(Debug, Clone, Args)]
struct FrontendArgs {
    /// The product database
    #[arg(long, value_name = "HOST:PORT", value_parser = settings::parse_host_port, default_value = "127.0.0.1:9001")]
    product: String,
    /// The customer database
    #[arg(long, value_name = "HOST:PORT", value_parser = settings::parse_host_port, default_value = "127.0.0.1:9002")]
    customer: String,
    #[command(flatten)]
    announce: AnnounceArgs,
    #[command(flatten)]
    common: ComponentArgs,
}

pub fn run_product(args: ProductArgs) -> anyhow::Result<ExitCode> {
    settings::refuse_db(args.store.db.as_deref())?;
    run(&args.common, &args.store.data_dir, |config| component::product(config, args.port, args.hold_timeout))
}

pub fn run_customer(args: CustomerArgs) -> anyhow::Result<ExitCode> {
    settings::refuse_db(args.store.db.as_deref())?;
    run(&args.common, &args.store.data_dir, |config| {
        component::customer(config, args.port, args.session_timeout, args.fee_percent)
    })
}

pub fn run_seller_server(args: SellerServerArgs) -> anyhow::Result<ExitCode> {
    run_frontend(Role::Seller, args.port, args.frontend)
}

pub fn run_buyer_server(args: BuyerServerArgs) -> anyhow::Result<ExitCode> {
    run_frontend(Role::Buyer, args.port, args.frontend)
}

fn run_frontend(role: Role, ports: Ports, args: FrontendArgs) -> anyhow::Result<ExitCode> {
    let FrontendArgs { product, customer, announce, common } = args;
    let own = FrontendComponentConfig { role, ports: ports.0, product, customer, announce: announce.config() };
    run(&common, Path::new(DEFAULT_DATA_DIR), |config| component::frontend(config, own))
}

fn run(
    common: &ComponentArgs,
    data_dir: &Path,
    start: impl FnOnce(&ComponentConfig) -> anyhow::Result<ServiceProcess>,
) -> anyhow::Result<ExitCode> {
    settings::init_log("info");
    ready::serve(common.ready_file.as_deref(), || {
        start(&ComponentConfig {
            bind: settings::server_bind_address(common.bind)?,
            data_dir: data_dir.to_owned(),
            cluster_key: common.cluster_key.clone(),
            max_connections: common.max_connections as usize,
            tls: common.tls.config(),
        })
    })
}
