//! Who asks: the server's tokens, checked by the server. A node has no secret of its own.
//!
//! What the server said of a token holds for a minute, and never past the token's own end; while the server is
//! away, tokens that it has vouched for go on, and others have to wait. When a token ends is the server's word too:
//! it says for how long one is still good, and that is measured here, so that nothing depends on how this machine's
//! clock is set. One that was logged out is refused here for good. Which tokens are good is kept over a restart, by their
//! digests, so that whoever logs out then is not taken for the last; each is shown to the server again all the same.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::model::{Clock, Millis, Name, Token};
use crate::net::http::{Refusal, StatusCode};
use crate::share::api_client::{Answer, ApiClient};
use crate::share::client::shortened;
use crate::share::node::events::Session;
use crate::share::node::keep::{Keep, TOKENS_MAX};
use crate::storage::StoreError;

/// How long the server's word holds.
const KNOWN_FOR_MS: u64 = 60_000;
/// Most tokens that are remembered.
const KNOWN_MAX: usize = TOKENS_MAX;
/// An end that moved by no more than this is the same: the answer was under way for as long.
const SAME_END_MS: u64 = 5_000;
/// Longest token that is looked at, bytes.
const TOKEN_MAX: usize = 4_096;
/// One that was logged out is remembered for so much longer than it lasts: the clock may be set meanwhile.
const REFUSED_LONGER_MS: u64 = 7 * 24 * 3600 * 1000;

type Digest = [u8; 32];

/// A token that the server has vouched for.
#[derive(Debug, Clone)]
struct Known {
    user: Name,
    /// Its end, by the clock here.
    ends_at: Millis,
    checked_at: Millis,
}

/// Signs users in, and knows them again.
pub struct SignIn {
    server: ApiClient,
    keep: Keep,
    known: Mutex<HashMap<Digest, Known>>,
    /// Runs on evenly, also while the machine sleeps, and however its clock is set.
    now: Box<dyn Fn() -> Millis + Send + Sync>,
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
    pub fn new(server: ApiClient, keep: Keep, clock: Clock) -> SignIn {
        SignIn { server, keep, known: Mutex::default(), now: Box::new(move || clock.now()) }
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
            answer.body["user"]["username"].as_str().and_then(|name| Name::kept(name).ok()).ok_or_else(strange)?;
        let token = answer.body["token"].as_str().filter(|token| token.len() <= TOKEN_MAX).ok_or_else(strange)?;
        let token = Token::from_text(token);
        let display_name = answer.body["user"]["display_name"].as_str().and_then(|name| Name::kept(name).ok());
        let display_name = display_name.as_ref().unwrap_or(&user).to_string();
        // It was made just now, so all of its life is left.
        self.remember(&token, &user, life_of(&token))?;
        Ok(SignedIn { user, display_name, token, answer: answer.body })
    }

    /// Whose token it is, and what ends with it.
    ///
    /// # Errors
    /// What is to be answered instead: 401, or 503 where nobody can tell.
    pub fn user_of(&self, token: &Token) -> Result<(Name, Session), Refusal> {
        if token.reveal().len() > TOKEN_MAX {
            return Err(denied("the token is none of this server"));
        }
        let (digest, now) = (digest(token), (self.now)());
        if self.keep.is_refused(&digest).map_err(unavailable)? {
            return Err(logged_out());
        }
        let session = |known: &Known| Session { token: digest, ends_at: known.ends_at };
        let known = self.known.lock().get(&digest).cloned();
        if let Some(known) = &known
            && now < known.ends_at
            && now < known.checked_at.plus_ms(KNOWN_FOR_MS)
        {
            return Ok((known.user.clone(), session(known)));
        }
        // Where the server cannot tell, what it said before holds until the end that it named.
        let by_former_word = |away: Refusal| match &known {
            Some(known) if now < known.ends_at => Ok((known.user.clone(), session(known))),
            Some(_) => Err(denied("the token has expired: sign in again")),
            None => Err(away),
        };
        let answer = match self.ask("/api/user/verify", Some(token), &json!({})) {
            Ok(answer) => answer,
            Err(away) => return by_former_word(away),
        };
        if answer.status >= 500 || answer.status == 429 {
            // It cannot tell now, which says nothing of the token.
            return by_former_word(passed_on(&answer));
        }
        let user = answer.body["user"]["username"].as_str().filter(|_| answer.is_ok());
        let Some(user) = user.and_then(|name| Name::kept(name).ok()) else {
            self.known.lock().remove(&digest);
            self.keep.forget_token(digest).map_err(unavailable)?;
            return Err(denied(&shortened(&answer.error())));
        };
        let left_ms = answer.body["expires_in"].as_f64().map(|seconds| (seconds * 1000.0).max(0.0) as u64);
        let ends_at = self.remember(token, &user, left_ms)?;
        Ok((user, Session { token: digest, ends_at }))
    }

    /// Whether a user has another token that is good, of those that were shown here, also before the last start.
    ///
    /// # Errors
    /// What is to be answered instead.
    pub fn has_another(&self, user: &Name, but_not: &Session) -> Result<bool, Refusal> {
        let kept = self.keep.tokens(user, Clock::wall()).map_err(unavailable)?;
        let now = (self.now)();
        let known = self.known.lock();
        let is_good =
            |(digest, known): (&Digest, &Known)| *digest != but_not.token && known.user == *user && now < known.ends_at;
        // Of those that were shown since the start it is known better when they end.
        let was_good = |digest: &Digest| *digest != but_not.token && !known.contains_key(digest);
        Ok(known.iter().any(is_good) || kept.iter().any(was_good))
    }

    /// Refuses the token from now on.
    ///
    /// # Errors
    /// What is to be answered instead.
    pub fn log_out(&self, token: &Token) -> Result<(), Refusal> {
        let (digest, now) = (digest(token), Clock::wall());
        // No more of its life is left than all of it. One that does not say is refused for as long as any could last.
        let until = life_of(token).map(|life_ms| now.plus_ms(life_ms.saturating_add(REFUSED_LONGER_MS)));
        let until = until.unwrap_or(Millis(u64::MAX >> 1));
        self.keep.refuse_token(digest, until, now).map_err(unavailable)?;
        self.known.lock().remove(&digest);
        Ok(())
    }

    fn ask(&self, path: &str, token: Option<&Token>, body: &Value) -> Result<Answer, Refusal> {
        self.server.post(path, token, body).map_err(|away| {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("the server cannot be asked now: {away}"))
        })
    }

    /// Keeps the server's word, and until when it holds. Of a token of which the server does not say how long it lasts
    /// the word holds as long as any: then it is asked again.
    ///
    /// A token may be logged out while the server is asked: whoever refuses it writes that down first and forgets it
    /// then, so that what is put in here is either seen to be refused, or forgotten there.
    fn remember(&self, token: &Token, user: &Name, left_ms: Option<u64>) -> Result<Millis, Refusal> {
        let (digest, now, left_ms) = (digest(token), (self.now)(), left_ms.unwrap_or(KNOWN_FOR_MS));
        let ends_at = now.plus_ms(left_ms);
        let former = self.put_in(digest, Known { user: user.clone(), ends_at, checked_at: now });
        let is_kept = former.is_some_and(|former| former.ends_at.0.abs_diff(ends_at.0) <= SAME_END_MS);
        let is_good = if is_kept {
            self.keep.is_refused(&digest).map(|is_refused| !is_refused)
        } else {
            let wall = Clock::wall();
            self.keep.put_token(digest, user, wall.plus_ms(left_ms), wall)
        };
        if is_good != Ok(true) {
            self.known.lock().remove(&digest);
        }
        if is_good.map_err(unavailable)? { Ok(ends_at) } else { Err(logged_out()) }
    }

    fn put_in(&self, digest: Digest, it: Known) -> Option<Known> {
        let now = it.checked_at;
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.retain(|_, known| now < known.ends_at);
        }
        if known.len() >= KNOWN_MAX {
            // The one that was looked at longest ago.
            let oldest = known.iter().min_by_key(|(_, known)| known.checked_at).map(|(digest, _)| *digest);
            oldest.map(|oldest| known.remove(&oldest));
        }
        known.insert(digest, it)
    }
}

fn digest(token: &Token) -> Digest {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.reveal().as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// How long a token lasts from when it was made, as it says itself, milliseconds: to be believed only of one that the
/// server has vouched for.
fn life_of(token: &Token) -> Option<u64> {
    let claims = URL_SAFE_NO_PAD.decode(token.reveal().split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let seconds = |claim: &str| {
        let claim = &claims[claim];
        claim.as_u64().or_else(|| claim.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| seconds as u64))
    };
    Some(seconds("exp")?.saturating_sub(seconds("iat")?).saturating_mul(1000))
}

fn unavailable(why: StoreError) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string())
}

fn logged_out() -> Refusal {
    denied("the token was logged out: sign in again")
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
        let claims = json!({"sub": user, "iat": 0, "exp": exp_s});
        Token::from_text(format!("{}.{}.x", part(json!({"alg": "HS256"})), part(claims)))
    }

    /// A server that vouches for every token as ann's, or says what it is told to; how often it was asked. Its clock
    /// counts from when the tokens were made.
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
                let head = String::from_utf8_lossy(&request).into_owned();
                let token = head.split_once("Bearer ").or(head.split_once("bearer ")).unwrap().1.split('\r').next();
                let life_ms = life_of(&Token::from_text(token.unwrap())).unwrap();
                let left_ms = life_ms.saturating_sub(NOW.load(SeqCst));
                let status = if left_ms == 0 && status == 200 { 401 } else { status };
                let expires_in = left_ms as f64 / 1000.0;
                let body = json!({"success": status == 200, "error": "no", "user": {"username": "ann"},
                    "expires_in": expires_in})
                .to_string();
                let head =
                    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        Server { port, asked, status }
    }

    fn sign_in(port: u16, dir: &std::path::Path) -> SignIn {
        let server = ApiClient::new("127.0.0.1", port, None, Duration::from_secs(5));
        let mut sign_in = SignIn::new(server, Keep::open(dir).unwrap(), Clock::start());
        // A clock that is far from the server's: only how long something takes counts.
        sign_in.now = Box::new(|| Millis(7_200_000 + NOW.load(SeqCst)));
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
            let (user, session) = sign_in.user_of(&anns).unwrap();
            assert_eq!((user.as_str(), session.ends_at), ("ann", Millis(7_300_000)));
            assert_eq!(server.asked.load(SeqCst), asked, "at {at_ms}");
        }
        NOW.store(100_000, SeqCst);
        assert_eq!((status(&anns), server.asked.load(SeqCst)), (401, 3));
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
        let ann = Name::new("ann").unwrap();
        alone.remember(&known, &ann, Some(930_000)).unwrap();
        NOW.store(200_000, SeqCst);
        let (user, session) = alone.user_of(&known).unwrap();
        assert_eq!(user, ann);
        // Others of the same user, which are good still.
        let has_another = |sign_in: &SignIn| sign_in.has_another(&ann, &session).unwrap();
        assert!(!has_another(&alone));
        alone.remember(&token("ann", 5), &ann, Some(1)).unwrap();
        alone.remember(&token("bob", 6), &Name::new("bob").unwrap(), Some(1_000_000)).unwrap();
        NOW.store(200_001, SeqCst);
        assert!(!has_another(&alone));
        let another = token("ann", 7);
        alone.remember(&another, &ann, Some(1_000_000)).unwrap();
        assert!(has_another(&alone));
        NOW.store(1_000_000, SeqCst);
        assert_eq!(alone.user_of(&known).unwrap_err().status, 401);
        // After a restart it is there still, though nobody has shown it yet.
        drop(alone);
        let restarted = self::sign_in(nowhere, other.path());
        assert!(has_another(&restarted));
        // The server is asked about a token while that is logged out: its word comes too late.
        for is_known in [false, true] {
            let slow = token("ann", 8 + u64::from(is_known));
            if is_known {
                restarted.remember(&slow, &ann, Some(1_000_000)).unwrap();
            }
            restarted.keep.refuse_token(digest(&slow), Millis(u64::MAX >> 1), Millis(0)).unwrap();
            assert_eq!(restarted.remember(&slow, &ann, Some(1_000_000)).unwrap_err().status, 401);
            assert!(!restarted.known.lock().contains_key(&digest(&slow)));
        }
        restarted.log_out(&another).unwrap();
        assert!(!has_another(&restarted));
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
    fn a_token_tells_how_long_it_lasts() {
        assert_eq!(life_of(&token("ann", 100)), Some(100_000));
        for strange in ["", "a", "a.b.c", "a.e30.c", "a.!.c"] {
            assert_eq!(life_of(&Token::from_text(strange)), None, "{strange}");
        }
    }
}
