//! Authentication by the server's tokens, which only the server can verify: a node does not have the signing key.
//!
//! A verification is cached for a minute, but never past the token's expiry. While the server is unavailable, tokens
//! that it has verified before stay valid, and others have to wait. How long a token is still valid, which the server
//! says, is measured here, so that nothing depends on how this machine's clock is set. A token that was logged out is
//! refused for good. Digests of valid tokens are stored, so that a logout after a restart is not mistaken for the
//! user's last session; each is still verified again then.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::model::{Clock, Millis, Name, Token};
use crate::net::http::{HttpError, StatusCode};
use crate::share::api_client::{ApiClient, ApiResponse};
use crate::share::client::truncate_reason;
use crate::share::node::events::WatchSession;
use crate::share::node::store::{NodeStore, TOKENS_MAX};
use crate::share::token_digest::token_sha256;
use crate::storage::StoreError;

const VERIFIED_FOR_MS: u64 = 60_000;
const VERIFIED_TOKENS_MAX: usize = TOKENS_MAX;
/// Expiry times that differ by no more than this count as equal: the difference is the latency of the response.
const EXPIRY_TOLERANCE_MS: u64 = 5_000;
const TOKEN_BYTES_MAX: usize = 4_096;
/// A logged-out token is remembered for this much longer than its lifetime, in case the clock is set back.
const REVOCATION_GRACE_MS: u64 = 7 * 24 * 3600 * 1000;

type TokenDigest = [u8; 32];

#[derive(Debug, Clone)]
struct VerifiedToken {
    user: Name,
    /// The expiry by the local clock.
    expires_at: Millis,
    verified_at: Millis,
}

pub struct Authenticator {
    server: ApiClient,
    store: NodeStore,
    verified: Mutex<HashMap<TokenDigest, VerifiedToken>>,
    /// A monotonic clock that also runs while the machine sleeps.
    now: Box<dyn Fn() -> Millis + Send + Sync>,
}

#[derive(Debug, Clone)]
pub struct SignInResult {
    pub user: Name,
    pub display_name: String,
    pub token: Token,
    pub response: Value,
}

impl Authenticator {
    pub fn new(server: ApiClient, store: NodeStore, clock: Clock) -> Authenticator {
        Authenticator { server, store, verified: Mutex::default(), now: Box::new(move || clock.now()) }
    }

    /// Forwards `register` or `login` to the server.
    pub fn sign_in(&self, what: &str, body: &Value) -> Result<SignInResult, HttpError> {
        let response = self.post(&format!("/api/user/{what}"), None, body)?;
        if !response.is_ok() {
            return Err(forward_error(&response));
        }
        let invalid_response =
            || HttpError::new(StatusCode::BAD_GATEWAY, "the server answered what it should not: no user or no token");
        let name_of = |field: &str| Name::from_stored(response.body["user"][field].as_str()?).ok();
        let user = name_of("username").ok_or_else(invalid_response)?;
        let token = response.body["token"].as_str().filter(|token| token.len() <= TOKEN_BYTES_MAX);
        let token = Token::from_text(token.ok_or_else(invalid_response)?);
        let display_name = name_of("display_name").as_ref().unwrap_or(&user).to_string();
        // It was issued just now, so its whole lifetime is left.
        self.cache_verification(&token, &user, lifetime_ms_of(&token))?;
        Ok(SignInResult { user, display_name, token, response: response.body })
    }

    /// The user of a token, and the session that ends with it. Refused with 401, or 503 if it cannot be verified now.
    pub fn authenticate(&self, token: &Token) -> Result<(Name, WatchSession), HttpError> {
        if token.reveal().len() > TOKEN_BYTES_MAX {
            return Err(unauthorized("the token is none of this server"));
        }
        let (digest, now) = (token_sha256(token), (self.now)());
        if self.store.is_refused(&digest).map_err(unavailable)? {
            return Err(logged_out());
        }
        let session = |verified: &VerifiedToken| {
            (verified.user.clone(), WatchSession { token: digest, expires_at: verified.expires_at })
        };
        let verified = self.verified.lock().get(&digest).cloned();
        if let Some(verified) = &verified
            && now < verified.expires_at
            && now < verified.verified_at.plus_ms(VERIFIED_FOR_MS)
        {
            return Ok(session(verified));
        }
        // While the server cannot verify the token, an earlier verification holds until the token's expiry.
        let use_cached = |error: HttpError| match &verified {
            Some(verified) if now < verified.expires_at => Ok(session(verified)),
            Some(_) => Err(unauthorized("the token has expired: sign in again")),
            None => Err(error),
        };
        let response = match self.post("/api/user/verify", Some(token), &json!({})) {
            Ok(response) => response,
            Err(error) => return use_cached(error),
        };
        if response.status >= 500 || response.status == 429 {
            // The server is overloaded or failing, which says nothing about the token.
            return use_cached(forward_error(&response));
        }
        let user = response.body["user"]["username"].as_str().filter(|_| response.is_ok());
        let Some(user) = user.and_then(|name| Name::from_stored(name).ok()) else {
            self.verified.lock().remove(&digest);
            self.store.delete_token(digest).map_err(unavailable)?;
            return Err(unauthorized(&truncate_reason(&response.error())));
        };
        let left_ms = response.body["expires_in"].as_f64().map(|seconds| (seconds * 1000.0).max(0.0) as u64);
        let expires_at = self.cache_verification(token, &user, left_ms)?;
        Ok((user, WatchSession { token: digest, expires_at }))
    }

    /// Whether the user has another valid token of those presented here, including before the last restart.
    pub fn has_other_session(&self, user: &Name, except: &WatchSession) -> Result<bool, HttpError> {
        let stored = self.store.tokens(user, Clock::wall()).map_err(unavailable)?;
        let now = (self.now)();
        let verified = self.verified.lock();
        let is_valid = |(digest, verified): (&TokenDigest, &VerifiedToken)| {
            *digest != except.token && verified.user == *user && now < verified.expires_at
        };
        // For tokens presented since the start, the cached expiry is more exact than the stored one.
        let is_valid_stored = |digest: &TokenDigest| *digest != except.token && !verified.contains_key(digest);
        Ok(verified.iter().any(is_valid) || stored.iter().any(is_valid_stored))
    }

    pub fn log_out(&self, token: &Token) -> Result<(), HttpError> {
        let (digest, now) = (token_sha256(token), Clock::wall());
        // At most its whole lifetime is left. A token without a lifetime is refused for good.
        let until = lifetime_ms_of(token).map(|life_ms| now.plus_ms(life_ms.saturating_add(REVOCATION_GRACE_MS)));
        let until = until.unwrap_or(Millis(u64::MAX >> 1));
        self.store.refuse_token(digest, until, now).map_err(unavailable)?;
        self.verified.lock().remove(&digest);
        Ok(())
    }

    fn post(&self, path: &str, token: Option<&Token>, body: &Value) -> Result<ApiResponse, HttpError> {
        self.server.post(path, token, body).map_err(|error| {
            HttpError::new(StatusCode::SERVICE_UNAVAILABLE, format!("the server cannot be asked now: {error}"))
        })
    }

    /// If the server does not say how long the token is valid, it is verified again after the cache time.
    ///
    /// A token may be logged out while the server verifies it. Logging out first stores the refusal and then removes
    /// the cache entry, so an entry that is added here is either found to be refused here, or removed there.
    fn cache_verification(&self, token: &Token, user: &Name, left_ms: Option<u64>) -> Result<Millis, HttpError> {
        let (digest, now, left_ms) = (token_sha256(token), (self.now)(), left_ms.unwrap_or(VERIFIED_FOR_MS));
        let expires_at = now.plus_ms(left_ms);
        let former = self.insert_verified(digest, VerifiedToken { user: user.clone(), expires_at, verified_at: now });
        let is_kept = former.is_some_and(|former| former.expires_at.0.abs_diff(expires_at.0) <= EXPIRY_TOLERANCE_MS);
        let is_valid = if is_kept {
            self.store.is_refused(&digest).map(|is_refused| !is_refused)
        } else {
            let wall = Clock::wall();
            self.store.put_token(digest, user, wall.plus_ms(left_ms), wall)
        };
        if is_valid != Ok(true) {
            self.verified.lock().remove(&digest);
        }
        if is_valid.map_err(unavailable)? { Ok(expires_at) } else { Err(logged_out()) }
    }

    fn insert_verified(&self, digest: TokenDigest, it: VerifiedToken) -> Option<VerifiedToken> {
        let now = it.verified_at;
        let mut verified = self.verified.lock();
        if verified.len() >= VERIFIED_TOKENS_MAX {
            verified.retain(|_, verified| now < verified.expires_at);
        }
        if verified.len() >= VERIFIED_TOKENS_MAX {
            // The one that was verified longest ago.
            let oldest = verified.iter().min_by_key(|(_, verified)| verified.verified_at).map(|(digest, _)| *digest);
            oldest.map(|oldest| verified.remove(&oldest));
        }
        verified.insert(digest, it)
    }
}

/// The lifetime according to the token's claims, which are to be trusted only if the server has verified it.
fn lifetime_ms_of(token: &Token) -> Option<u64> {
    let claims = URL_SAFE_NO_PAD.decode(token.reveal().split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let seconds = |claim: &str| {
        let claim = &claims[claim];
        claim.as_u64().or_else(|| claim.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| seconds as u64))
    };
    Some(seconds("exp")?.saturating_sub(seconds("iat")?).saturating_mul(1000))
}

fn unavailable(why: StoreError) -> HttpError {
    HttpError::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string())
}

fn logged_out() -> HttpError {
    unauthorized("the token was logged out: sign in again")
}

fn unauthorized(why: &str) -> HttpError {
    HttpError::new(StatusCode::UNAUTHORIZED, why)
}

fn forward_error(response: &ApiResponse) -> HttpError {
    let is_forwarded = |status: &StatusCode| status.is_client_error() || *status == StatusCode::SERVICE_UNAVAILABLE;
    let status = StatusCode::from_u16(response.status).ok().filter(is_forwarded);
    HttpError::new(status.unwrap_or(StatusCode::BAD_GATEWAY), truncate_reason(&response.error()))
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

    /// A server that verifies every token as ann's, or answers with the given status, and counts the requests. Its
    /// clock counts from when the tokens were issued.
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
                let life_ms = lifetime_ms_of(&Token::from_text(token.unwrap())).unwrap();
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

    fn sign_in(port: u16, dir: &std::path::Path) -> Authenticator {
        let server = ApiClient::new("127.0.0.1", port, None, Duration::from_secs(5));
        let mut sign_in = Authenticator::new(server, NodeStore::open(dir).unwrap(), Clock::start());
        // A clock that is far from the server's: only durations matter.
        sign_in.now = Box::new(|| Millis(7_200_000 + NOW.load(SeqCst)));
        sign_in
    }

    #[test]
    fn the_servers_word_holds_for_a_minute_and_never_past_the_end() {
        let (dir, server) = (tempfile::tempdir().unwrap(), server());
        let sign_in = sign_in(server.port, dir.path());
        let status = |token: &Token| sign_in.authenticate(token).map_or_else(|no| no.status.as_u16(), |_| 200);
        let anns = token("ann", 100);
        for (at_ms, asked) in [(0, 1), (59_999, 1), (60_000, 2), (99_999, 2)] {
            NOW.store(at_ms, SeqCst);
            let (user, session) = sign_in.authenticate(&anns).unwrap();
            assert_eq!((user.as_str(), session.expires_at), ("ann", Millis(7_300_000)));
            assert_eq!(server.asked.load(SeqCst), asked, "at {at_ms}");
        }
        NOW.store(100_000, SeqCst);
        assert_eq!((status(&anns), server.asked.load(SeqCst)), (401, 3));
        // While the server is unavailable, verified tokens stay valid and others have to wait.
        NOW.store(0, SeqCst);
        let (verified, unknown, bad) = (token("ann", 1000), token("ann", 1001), token("ann", 1002));
        assert_eq!(status(&verified), 200);
        NOW.store(70_000, SeqCst);
        server.status.store(503, SeqCst);
        assert_eq!((status(&verified), status(&unknown)), (200, 503));
        // A token that the server refuses is refused at once.
        server.status.store(401, SeqCst);
        assert_eq!((status(&verified), status(&bad)), (401, 401));
        server.status.store(200, SeqCst);
        assert_eq!(status(&bad), 200);
        sign_in.log_out(&bad).unwrap();
        let asked = server.asked.load(SeqCst);
        assert_eq!((status(&bad), server.asked.load(SeqCst)), (401, asked));
        assert_eq!(status(&Token::from_text("x".repeat(TOKEN_BYTES_MAX + 1))), 401);
        // No server at all.
        let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let other = tempfile::tempdir().unwrap();
        let alone = self::sign_in(nowhere, other.path());
        assert_eq!(alone.authenticate(&verified).unwrap_err().status, 503);
        let ann = Name::new("ann").unwrap();
        alone.cache_verification(&verified, &ann, Some(930_000)).unwrap();
        NOW.store(200_000, SeqCst);
        let (user, session) = alone.authenticate(&verified).unwrap();
        assert_eq!(user, ann);
        // Other valid tokens of the same user.
        let has_another = |sign_in: &Authenticator| sign_in.has_other_session(&ann, &session).unwrap();
        assert!(!has_another(&alone));
        alone.cache_verification(&token("ann", 5), &ann, Some(1)).unwrap();
        alone.cache_verification(&token("bob", 6), &Name::new("bob").unwrap(), Some(1_000_000)).unwrap();
        NOW.store(200_001, SeqCst);
        assert!(!has_another(&alone));
        let another = token("ann", 7);
        alone.cache_verification(&another, &ann, Some(1_000_000)).unwrap();
        assert!(has_another(&alone));
        NOW.store(1_000_000, SeqCst);
        assert_eq!(alone.authenticate(&verified).unwrap_err().status, 401);
        // After a restart the token still counts, though it has not been presented yet.
        drop(alone);
        let restarted = self::sign_in(nowhere, other.path());
        assert!(has_another(&restarted));
        // A token is logged out while the server verifies it: the verification comes too late.
        for is_known in [false, true] {
            let slow = token("ann", 8 + u64::from(is_known));
            if is_known {
                restarted.cache_verification(&slow, &ann, Some(1_000_000)).unwrap();
            }
            restarted.store.refuse_token(token_sha256(&slow), Millis(u64::MAX >> 1), Millis(0)).unwrap();
            assert_eq!(restarted.cache_verification(&slow, &ann, Some(1_000_000)).unwrap_err().status, 401);
            assert!(!restarted.verified.lock().contains_key(&token_sha256(&slow)));
        }
        restarted.log_out(&another).unwrap();
        assert!(!has_another(&restarted));
    }

    #[test]
    fn what_the_server_says_is_never_passed_on_at_any_length() {
        let long = "é".repeat(1 << 20);
        let refused = forward_error(&ApiResponse { status: 401, body: json!({"error": long}) });
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
        assert_eq!(lifetime_ms_of(&token("ann", 100)), Some(100_000));
        for malformed in ["", "a", "a.b.c", "a.e30.c", "a.!.c"] {
            assert_eq!(lifetime_ms_of(&Token::from_text(malformed)), None, "{malformed}");
        }
    }
}
