//! Another place on the web: a few pages of a test's own, on a port of their own.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

/// Serves until it is dropped.
pub struct Elsewhere {
    at: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl Elsewhere {
    /// Pages: their paths, what they are, what is on them.
    pub fn start(pages: &[(&str, &str, &str)]) -> Elsewhere {
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
                // A browser may go away in the middle of it, and opens connections that it does not use.
                thread::spawn(move || client.and_then(|client| serve(&client, &pages)));
            }
        });
        Elsewhere { at, is_over }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        // Accept is to see that it is over.
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
