//! Who asks: the server's tokens, checked by the server. A node has no secret of its own.
//!
//! What the server said of a token holds for a minute, and never past the token's own end; while the server is
//! away, tokens that it has vouched for go on, and others have to wait. One that was logged out is refused here
//! for good.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::model::{Clock, Millis, Name, Token};
use crate::net::http::{Refusal, StatusCode};
use crate::share::api_client::{Answer, ApiClient};
use crate::share::client::shortened;
use crate::share::node::keep::Keep;

/// How long the server's word holds.
const KNOWN_FOR_MS: u64 = 60_000;
/// Most tokens that are remembered.
const KNOWN_MAX: usize = 4_096;
/// Longest token that is looked at, bytes.
const TOKEN_MAX: usize = 4_096;

type Digest = [u8; 32];

/// A token that the server has vouched for.
#[derive(Debug, Clone)]
struct Known {
    user: Name,
    /// Its end, as it says itself.
    exp: Millis,
    checked_at: Millis,
}

/// Signs users in, and knows them again.
pub struct SignIn {
    server: ApiClient,
    keep: Keep,
    known: Mutex<HashMap<Digest, Known>>,
    /// By the wall: a token ends at a time of day, also after the machine has slept.
    now: fn() -> Millis,
}

/// Somebody who has signed in.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// The account.
    pub user: Name,
    /// The name for people.
    pub display_name: String,
    /// The server's token.
    pub token: Token,
    /// What the server answered.
    pub answer: Value,
}

impl SignIn {
    /// By this server API.
    pub fn new(server: ApiClient, keep: Keep) -> SignIn {
        SignIn { server, keep, known: Mutex::default(), now: Clock::wall }
    }

    /// Passes `register` or `login` on to the server.
    ///
    /// # Errors
    /// What is to be answered instead.
    pub fn sign_in(&self, what: &str, body: &Value) -> Result<SignedIn, Refusal> {
        let answer = self.ask(&format!("/api/user/{what}"), None, body)?;
        if !answer.is_ok() {
            return Err(passed_on(&answer));
        }
        let strange =
            || Refusal::new(StatusCode::BAD_GATEWAY, "the server answered what it should not: no user or no token");
        let user =
            answer.body["user"]["username"].as_str().and_then(|name| Name::new(name).ok()).ok_or_else(strange)?;
        let token = answer.body["token"].as_str().filter(|token| token.len() <= TOKEN_MAX).ok_or_else(strange)?;
        let token = Token::from_text(token);
        let display_name = answer.body["user"]["display_name"].as_str().and_then(|name| Name::new(name).ok());
        let display_name = display_name.as_ref().unwrap_or(&user).to_string();
        self.remember(&token, &user);
        Ok(SignedIn { user, display_name, token, answer: answer.body })
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// What is to be answered instead: 401, or 503 where nobody can tell.
    pub fn user_of(&self, token: &Token) -> Result<Name, Refusal> {
        if token.reveal().len() > TOKEN_MAX {
            return Err(denied("the token is none of this server"));
        }
        let (digest, now) = (digest(token), (self.now)());
        if self
            .keep
            .is_refused(&digest)
            .map_err(|why| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string()))?
        {
            return Err(denied("the token was logged out: sign in again"));
        }
        let known = self.known.lock().get(&digest).cloned();
        if let Some(known) = &known {
            if known.exp <= now {
                self.known.lock().remove(&digest);
                return Err(denied("the token has expired: sign in again"));
            }
            if now < known.checked_at.plus_ms(KNOWN_FOR_MS) {
                return Ok(known.user.clone());
            }
        }
        let answer = match self.ask("/api/user/verify", Some(token), &json!({})) {
            Ok(answer) => answer,
            Err(away) => return known.map(|known| known.user).ok_or(away),
        };
        if answer.status >= 500 || answer.status == 429 {
            // It cannot tell now, which says nothing of the token.
            return known.map(|known| known.user).ok_or_else(|| passed_on(&answer));
        }
        let user = answer.body["user"]["username"].as_str().filter(|_| answer.is_ok());
        let Some(user) = user.and_then(|name| Name::new(name).ok()) else {
            self.known.lock().remove(&digest);
            return Err(denied(&shortened(&answer.error())));
        };
        self.remember(token, &user);
        Ok(user)
    }

    /// Refuses the token from now on.
    ///
    /// # Errors
    /// What is to be answered instead.
    pub fn log_out(&self, token: &Token) -> Result<(), Refusal> {
        let (digest, now) = (digest(token), (self.now)());
        // One that does not say when it ends is refused for as long as any could last.
        let until = end_of(token).unwrap_or(Millis(u64::MAX >> 1));
        self.keep
            .refuse_token(digest, until, now)
            .map_err(|why| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string()))?;
        self.known.lock().remove(&digest);
        Ok(())
    }

    fn ask(&self, path: &str, token: Option<&Token>, body: &Value) -> Result<Answer, Refusal> {
        self.server.post(path, token, body).map_err(|away| {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("the server cannot be asked now: {away}"))
        })
    }

    fn remember(&self, token: &Token, user: &Name) {
        // What does not say when it ends is asked for every time.
        let Some(exp) = end_of(token) else { return };
        let now = (self.now)();
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.retain(|_, known| known.exp > now);
        }
        if known.len() >= KNOWN_MAX {
            // The one that was looked at longest ago.
            let oldest = known.iter().min_by_key(|(_, known)| known.checked_at).map(|(digest, _)| *digest);
            oldest.map(|oldest| known.remove(&oldest));
        }
        known.insert(digest(token), Known { user: user.clone(), exp, checked_at: now });
    }
}

fn digest(token: &Token) -> Digest {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.reveal().as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// When a token ends, as it says itself: to be believed only of one that the server has vouched for.
fn end_of(token: &Token) -> Option<Millis> {
    let claims = URL_SAFE_NO_PAD.decode(token.reveal().split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let exp = &claims["exp"];
    exp.as_u64().or_else(|| exp.as_f64().filter(|exp| *exp >= 0.0).map(|exp| exp as u64)).map(Millis::from_unix_s)
}

fn denied(why: &str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, why)
}

/// The server's own refusal.
fn passed_on(answer: &Answer) -> Refusal {
    let status = StatusCode::from_u16(answer.status).ok().filter(|status| status.is_client_error());
    let status =
        status.unwrap_or(if answer.status == 503 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_GATEWAY });
    Refusal::new(status, shortened(&answer.error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
    use std::time::Duration;

    static NOW: AtomicU64 = AtomicU64::new(0);

    fn token(user: &str, exp_s: u64) -> Token {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({"sub": user, "exp": exp_s});
        Token::from_text(format!("{}.{}.x", part(json!({"alg": "HS256"})), part(claims)))
    }

    /// A server that vouches for every token as ann's, or says what it is told to; how often it was asked.
    struct Server {
        port: u16,
        asked: Arc<AtomicUsize>,
        status: Arc<AtomicUsize>,
    }

    fn server() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, status) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(200)));
        let (counted, said) = (Arc::clone(&asked), Arc::clone(&status));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"{}") {
                    let mut bytes = [0; 1024];
                    let len = stream.read(&mut bytes).unwrap();
                    request.extend_from_slice(&bytes[..len]);
                }
                counted.fetch_add(1, SeqCst);
                let status = said.load(SeqCst);
                let body = json!({"success": status == 200, "error": "no", "user": {"username": "ann"}}).to_string();
                let head =
                    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        Server { port, asked, status }
    }

    fn sign_in(port: u16, dir: &std::path::Path) -> SignIn {
        let server = ApiClient::new("127.0.0.1", port, None, Duration::from_secs(5));
        let mut sign_in = SignIn::new(server, Keep::open(dir).unwrap());
        sign_in.now = || Millis(NOW.load(SeqCst));
        sign_in
    }

    #[test]
    fn the_servers_word_holds_for_a_minute_and_never_past_the_end() {
        let (dir, server) = (tempfile::tempdir().unwrap(), server());
        let sign_in = sign_in(server.port, dir.path());
        let status = |token: &Token| sign_in.user_of(token).map_or_else(|no| no.status.as_u16(), |_| 200);
        let anns = token("ann", 100);
        for (at_ms, asked) in [(0, 1), (59_999, 1), (60_000, 2), (99_999, 2)] {
            NOW.store(at_ms, SeqCst);
            assert_eq!(sign_in.user_of(&anns).unwrap().as_str(), "ann");
            assert_eq!(server.asked.load(SeqCst), asked, "at {at_ms}");
        }
        NOW.store(100_000, SeqCst);
        assert_eq!((status(&anns), server.asked.load(SeqCst)), (401, 2));
        // While the server cannot tell, who is known goes on, who is not has to wait.
        NOW.store(0, SeqCst);
        let (known, unknown, bad) = (token("ann", 1000), token("ann", 1001), token("ann", 1002));
        assert_eq!(status(&known), 200);
        NOW.store(70_000, SeqCst);
        server.status.store(503, SeqCst);
        assert_eq!((status(&known), status(&unknown)), (200, 503));
        // What it refuses is refused at once.
        server.status.store(401, SeqCst);
        assert_eq!((status(&known), status(&bad)), (401, 401));
        server.status.store(200, SeqCst);
        assert_eq!(status(&bad), 200);
        sign_in.log_out(&bad).unwrap();
        let asked = server.asked.load(SeqCst);
        assert_eq!((status(&bad), server.asked.load(SeqCst)), (401, asked));
        assert_eq!(status(&Token::from_text("x".repeat(TOKEN_MAX + 1))), 401);
        // Nobody there at all.
        let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let other = tempfile::tempdir().unwrap();
        let alone = self::sign_in(nowhere, other.path());
        assert_eq!(alone.user_of(&known).unwrap_err().status, 503);
        alone.remember(&known, &Name::new("ann").unwrap());
        NOW.store(200_000, SeqCst);
        assert_eq!(alone.user_of(&known).unwrap().as_str(), "ann");
        NOW.store(1_000_000, SeqCst);
        assert_eq!(alone.user_of(&known).unwrap_err().status, 401);
    }

    #[test]
    fn what_the_server_says_is_never_passed_on_at_any_length() {
        let long = "é".repeat(1 << 20);
        let refused = passed_on(&Answer { status: 401, body: json!({"error": long}) });
        assert!(refused.status == StatusCode::UNAUTHORIZED && refused.reason.len() < 2_000, "{}", refused.reason.len());
        for (token, display_name, expected) in
            [("t", &*long, Some("ann")), ("t", "Ann", Some("Ann")), (&long, "Ann", None)]
        {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let body = json!({"token": token, "user": {"username": "ann", "display_name": display_name}}).to_string();
            let served = std::thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                let mut request = Vec::new();
                while !request.ends_with(b"{}") {
                    let mut bytes = [0; 1024];
                    let len = stream.read(&mut bytes).unwrap();
                    request.extend_from_slice(&bytes[..len]);
                }
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            });
            let dir = tempfile::tempdir().unwrap();
            let signed_in = sign_in(port, dir.path()).sign_in("login", &json!({}));
            served.join().unwrap();
            assert_eq!(signed_in.ok().map(|it| it.display_name).as_deref(), expected);
        }
    }

    #[test]
    fn a_token_tells_its_end() {
        assert_eq!(end_of(&token("ann", 100)), Some(Millis(100_000)));
        for strange in ["", "a", "a.b.c", "a.e30.c", "a.!.c"] {
            assert_eq!(end_of(&Token::from_text(strange)), None, "{strange}");
        }
    }
}
