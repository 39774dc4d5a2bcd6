//! Which services answer already, and how.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::STEP_TIMEOUT;
use crate::share::api_client::ApiClient;
use crate::shop::client::{Client, ClientConfig};
use crate::shop::ops::ErrorCode;
use crate::trade::wire::DATAGRAM_MAX;

const RESPONSE_TIMEOUT: Duration = Duration::from_millis(300);

pub(super) fn is_trade_server(server: SocketAddr) -> anyhow::Result<bool> {
    let request = json!({"type": "STATUS", "rq": 1, "name": "story"});
    let response = request_until_answered(&loopback_socket(server)?, server, request, 3);
    ensure!(
        response.as_ref().is_none_or(|response| response["rq"] == 1),
        "what answers at {server} is no trade server"
    );
    Ok(response.is_some())
}

/// Whether a shop frontend responds: it answers requests without a session with NotLoggedIn.
pub(super) fn is_shop_frontend(server: SocketAddr) -> bool {
    let mut client = Client::new(ClientConfig::plain(server.to_string()));
    let response = client.call("GetSellerRating", json!({}));
    response.is_err_and(|error| error.code() == Some(ErrorCode::NotLoggedIn))
}

pub(super) fn is_healthy_server_api(api: SocketAddr) -> bool {
    let api = ApiClient::new(&api.ip().to_string(), api.port(), None, STEP_TIMEOUT);
    api.get("/api/health", None).is_ok_and(|response| response.is_ok() && response.body["status"] == "healthy")
}

/// Whether the server settles without TLS. REGISTERED tells that, so a temporary peer registers and leaves.
pub(super) fn settles_in_plaintext(server: SocketAddr, suffix: &str) -> anyhow::Result<bool> {
    let socket = loopback_socket(server)?;
    let (here, name) = (socket.local_addr()?, format!("visitor-{suffix}"));
    // The server never connects to this peer.
    let (ip, port) = (here.ip(), here.port());
    let register = json!({"type": "REGISTER", "rq": 1, "name": name, "ip": ip, "udp_port": port, "tcp_port": port});
    let tries = (STEP_TIMEOUT.as_millis() / RESPONSE_TIMEOUT.as_millis()) as usize;
    let response =
        request_until_answered(&socket, server, register, tries).context("the server does not answer a REGISTER")?;
    ensure!(response["type"] == "REGISTERED", "the server at {server} takes nobody: {}", response["reason"]);
    let leave = json!({"type": "DE-REGISTER", "rq": 2, "name": name, "token": response["token"]});
    request_until_answered(&socket, server, leave, tries).context("the server does not answer a DE-REGISTER")?;
    Ok(response["cert_sha256"].is_null())
}

fn loopback_socket(server: SocketAddr) -> anyhow::Result<UdpSocket> {
    let here: IpAddr = if server.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let socket = UdpSocket::bind((here, 0))?;
    socket.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    Ok(socket)
}

/// Sends a request until a response arrives; `None` after `tries` attempts.
fn request_until_answered(socket: &UdpSocket, server: SocketAddr, mut request: Value, tries: usize) -> Option<Value> {
    // The response to an unverified sender may be at most three times as long as the request.
    request["padding"] = " ".repeat(64).into();
    let request_text = request.to_string();
    let mut bytes = [0; DATAGRAM_MAX];
    for _ in 0..tries {
        // If nobody listens, either call may report it.
        let mut received = socket.send_to(request_text.as_bytes(), server).and_then(|_| socket.recv_from(&mut bytes));
        while let Ok((length, _)) = received {
            let response: Value = serde_json::from_slice(&bytes[..length]).unwrap_or_default();
            // A SEARCH notification or a late duplicate of another response may arrive in between.
            if response["mid"].is_null() && (response["rq"] == request["rq"] || response["rq"].is_null()) {
                return Some(response);
            }
            received = socket.recv_from(&mut bytes);
        }
    }
    None
}
