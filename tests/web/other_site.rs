//! A web site of another origin, with pages that a test defines.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

/// Serves until it is dropped.
pub struct OtherSite {
    at: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl OtherSite {
    /// Serves pages, given by path, content type and content.
    pub fn start(pages: &[(&str, &str, &str)]) -> OtherSite {
        let pages: Vec<[String; 3]> =
            pages.iter().map(|(path, kind, page)| [path, kind, page].map(|it| (*it).to_owned())).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (at, is_over) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let ends = Arc::clone(&is_over);
        thread::spawn(move || {
            for client in listener.incoming() {
                if ends.load(SeqCst) {
                    return;
                }
                let pages = pages.clone();
                // Errors are expected: browsers abort requests and open connections that they do not use.
                thread::spawn(move || client.and_then(|client| serve(&client, &pages)));
            }
        });
        OtherSite { at, is_over }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }
}

impl Drop for OtherSite {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(self.at);
    }
}

fn serve(client: &TcpStream, pages: &[[String; 3]]) -> std::io::Result<()> {
    let mut lines = BufReader::new(client).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let (status, kind, page) = match pages.iter().find(|page| page[0] == path) {
        Some([_, kind, page]) => ("200 OK", &**kind, &**page),
        None => ("404 Not Found", "text/plain", "nothing here"),
    };
    let mut client = client;
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    )
}
