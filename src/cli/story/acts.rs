//! The four acts of the story, one for each room.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, ensure};

use super::ServerAddresses;
use super::environment::StoryEnvironment;

/// Two trading peers: negotiation, reservation, settlement.
pub(super) fn trade(
    environment: &StoryEnvironment,
    server: SocketAddr,
    plaintext: bool,
    suffix: &str,
) -> anyhow::Result<()> {
    let (alice, bob) = (format!("alice-{suffix}"), format!("bob-{suffix}"));
    say!("TRADE: {alice} sells a lamp for 120.00, or 90.00 at least; {bob} pays 100.00 at most.");
    let server = (server, plaintext);
    let mut alice = environment.start_peer(&alice, server, "4242424242424242", "2 Harbour Lane, Port Elm")?;
    let mut bob = environment.start_peer(&bob, server, "4111111111111111", "7 Mill Road, Oakfield")?;
    let lamp = format!("\"brass lamp {suffix}\"");

    alice.send_line(&format!("sell {lamp} 120 90 1 a desk lamp with a green shade"))?;
    alice.await_line("on sale for 120.00")?;
    bob.send_line(&format!("find {lamp} 100"))?;
    bob.await_line("searching [")?;
    say!("   (the only offer is above the maximum: the server negotiates)");
    alice.await_line("accepted [")?;
    alice.await_line("reserved [")?;
    bob.await_line("found [")?;
    bob.send_line("buy last")?;
    bob.await_line("buying [")?;
    let how = if plaintext { "without TLS, as it was started" } else { "over TLS with the certificate they know" };
    say!("   (the server connects to both, {how})");
    bob.await_line("bought [")?;
    alice.await_line("sold [")?;
    for peer in [&mut bob, &mut alice] {
        peer.send_line("deals")?;
        peer.await_line("completed")?;
        peer.send_line("leave")?;
        peer.await_line("let us go")?;
        peer.send_line("quit")?;
        peer.finish()?;
    }
    Ok(())
}

/// A seller lists an item; a buyer searches, fills a cart and purchases; the seller ships.
pub(super) fn shop(environment: &StoryEnvironment, server: ServerAddresses, suffix: &str) -> anyhow::Result<()> {
    say!("SHOP: sam-{suffix} sells lamps; bea-{suffix} buys two of them.");
    let mut sam = environment.start_client("seller", "sam", server.seller, suffix)?;
    sam.send_line(&format!("sell \"Brass Lamp\" 3 10.50 2 --keywords lamp,k{suffix} --used"))?;
    let listed = sam.await_line("on sale as ")?;
    let item = listed.split(' ').find_map(|word| word.strip_suffix(':')).context("no item id is named")?;

    let mut bea = environment.start_client("buyer", "bea", server.buyer, suffix)?;
    bea.send_line(&format!("search --category 3 lamp k{suffix}"))?;
    bea.await_line("Brass Lamp")?;
    bea.send_line(&format!("add {item} 2"))?;
    bea.await_line("in the cart")?;
    bea.send_line("purchase")?;
    bea.await_line("bought for 21.00")?;
    say!("   (stock, charge and history agree now, whichever component dies)");
    sam.send_line("orders")?;
    let order = sam.await_line(item)?;
    let purchase = order.split_whitespace().next().context("the order names no purchase")?;
    sam.send_line(&format!("ship {purchase} {item}"))?;
    sam.await_line("shipped ")?;
    bea.send_line(&format!("vote {item} up"))?;
    bea.await_line("voted on")?;
    bea.send_line("purchases")?;
    // The line has two dates: bought and shipped.
    let line = bea.await_line(item)?;
    ensure!(line.matches('Z').count() == 2, "the buyer does not see that it was shipped: {line}");
    sam.send_line("rating")?;
    sam.await_line("2 units sold")?;
    for client in [&mut bea, &mut sam] {
        client.send_line("logout")?;
        client.await_line("logged out")?;
        client.send_line("quit")?;
        client.finish()?;
    }
    Ok(())
}

/// Two LAN peers without a server find each other and talk.
pub(super) fn lan(environment: &StoryEnvironment, suffix: &str) -> anyhow::Result<()> {
    let (ann, ben) = (format!("ann-{suffix}"), format!("ben-{suffix}"));
    say!("LAN: {ann} and {ben} meet on this machine and talk, with no server.");
    let port = free_port()?;
    let (mut ann_at, addr) = environment.start_lan_peer(&ann, port, None)?;
    // Only Linux delivers broadcasts on loopback.
    let known = if cfg!(target_os = "linux") { None } else { Some(addr) };
    let (mut ben_at, _) = environment.start_lan_peer(&ben, port, known)?;
    ann_at.await_line(&format!("{ben} is here"))?;
    ben_at.await_line(&format!("{ann} is here"))?;
    say!("   (each has heard the other's announcement)");
    ann_at.send_line("post the harbour market opens at eight")?;
    ben_at.await_line(&format!("{ann}: the harbour market opens at eight"))?;
    ben_at.send_line(&format!("dm {ann} keep me a lamp"))?;
    ann_at.await_line(&format!("{ben} (to you): keep me a lamp"))?;
    ben_at.await_line(&format!("{ann} has your message"))?;
    say!("   (it is on her disk: only then she confirmed it)");
    ann_at.send_line("profile Ann of the harbour | lamps since 1974")?;
    ben_at.await_line(&format!("{ann} is Ann of the harbour | lamps since 1974"))?;
    for peer in [&mut ben_at, &mut ann_at] {
        peer.send_line("quit")?;
        peer.finish()?;
    }
    Ok(())
}

/// One node publishes a file; another fetches it directly from that node.
pub(super) fn share(environment: &StoryEnvironment, server: ServerAddresses, suffix: &str) -> anyhow::Result<()> {
    let (cleo, dan) = (format!("cleo-{suffix}"), format!("dan-{suffix}"));
    say!("SHARE: {cleo} has a chart of the harbour; {dan} fetches it from her machine, not from the server.");
    let chart: String = (0..20_000).map(|sounding| format!("sounding {sounding}: {} m\n", sounding % 37)).collect();
    let (published, fetched) =
        (environment.dir.join(format!("chart-{suffix}.txt")), environment.dir.join(format!("fetched-{suffix}.txt")));
    std::fs::write(&published, &chart).context("the chart cannot be written")?;
    let (mut cleo_at, cleo_api) = environment.start_node(&cleo, server)?;
    let (mut dan_at, dan_api) = environment.start_node(&dan, server)?;
    environment.run_node_command(&cleo, cleo_api, &["register", &cleo])?;
    environment.run_node_command(&cleo, cleo_api, &["publish", &published.display().to_string()])?;
    say!("   (it stays where it lies: the registry knows its name, its size and who has it)");
    environment.run_node_command(&dan, dan_api, &["register", &dan])?;
    environment.run_node_command(&dan, dan_api, &["search", &format!("chart-{suffix}")])?;
    environment.run_node_command(
        &dan,
        dan_api,
        &["fetch", &format!("chart-{suffix}.txt"), "--to", &fetched.display().to_string()],
    )?;
    let fetched_text = std::fs::read_to_string(&fetched).context("what was fetched is not there")?;
    ensure!(fetched_text == chart, "what was fetched is not what was published");
    say!("   (every byte is the same)");
    for (name, api) in [(&dan, dan_api), (&cleo, cleo_api)] {
        environment.run_node_command(name, api, &["logout"])?;
    }
    for node in [&mut dan_at, &mut cleo_at] {
        node.finish()?;
    }
    Ok(())
}

/// A currently free port, for announcements that nobody else should receive.
fn free_port() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(socket.local_addr()?.port())
}
