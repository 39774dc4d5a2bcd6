//! Tokens that identify a user: JWT, HS256 and nothing else, with the claims sub, username (the same), role, iat, exp
//! and jti. One that names another algorithm (or `none`), lacks a claim, or has reached its `exp` is rejected. Whoever
//! has the secret can impersonate anybody, so it is random and protected like a private key.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind as JwtError;
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::model::{Millis, Token, debug_fields, secret};
use crate::net::tls::read_or_create_secret;

pub const KEY_FILE: &str = "jwt.key";
/// The file holds twice as many hex digits.
const SECRET_BYTES: usize = 32;
/// Longer tokens are rejected unread.
const TOKEN_BYTES_MAX: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    Admin,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub sub: String,
    /// The same as `sub`, under the name in document 004. (Tokens of earlier builds lack it.)
    #[serde(default)]
    pub username: String,
    pub role: Role,
    /// When it was issued, in Unix seconds.
    pub iat: u64,
    /// When it expires, in Unix seconds.
    pub exp: u64,
    /// A random id: no two tokens are the same.
    pub jti: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token has expired: log in again")]
    Expired,
    /// It was not issued here, or was changed.
    #[error("the token is not valid: log in")]
    Invalid,
    /// The operator has blocked its account.
    #[error("the account of this token is blocked: ask the operator")]
    Blocked,
}

#[derive(Debug, thiserror::Error)]
pub enum JwtKeyError {
    #[error("the secret of tokens {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the secret of tokens {}: expected 64 hex digits; restore a backup, or remove the file (everybody has to log in again then)", path.display())]
    Content { path: PathBuf },
}

pub struct Jwt {
    encoding_key: EncodingKey,
    decoding_key: DecodingKey,
    validation: Validation,
    pub(super) life: Duration,
}

impl Jwt {
    /// Uses the secret of a data dir. The first start generates it, with mode 600; it is never replaced.
    pub fn load_or_create(data_dir: &Path, life: Duration) -> Result<Jwt, JwtKeyError> {
        let path = data_dir.join(KEY_FILE);
        let failed = |source| JwtKeyError::File { path: path.clone(), source };
        let make = || Ok(format!("{}\n", secret::random_hex::<SECRET_BYTES>()));
        let bytes = read_or_create_secret(&path, make, failed)?;
        let digits = bytes.trim_ascii();
        if digits.len() != 2 * SECRET_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(JwtKeyError::Content { path });
        }
        Ok(Jwt::with_secret(digits, life))
    }

    /// The secret may be known elsewhere too.
    pub fn with_secret(secret: &[u8], life: Duration) -> Jwt {
        // An error would mean that it was installed before, by us: nothing else in this program uses that crate.
        let _ = PROVIDER.install_default();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "sub"]);
        // Checked in `verify`, to the second and by our clock.
        validation.validate_exp = false;
        let (signing, checking) = (EncodingKey::from_secret(secret), DecodingKey::from_secret(secret));
        Jwt { encoding_key: signing, decoding_key: checking, validation, life }
    }

    /// The user must have been authenticated.
    pub fn issue(&self, now: Millis, sub: &str, role: Role) -> (Token, Claims) {
        let iat = now.0 / 1000;
        let life_s = self.life.as_secs() + u64::from(self.life.subsec_nanos() > 0);
        let exp = iat.saturating_add(life_s);
        let username = sub.to_owned();
        let claims = Claims { sub: sub.to_owned(), username, role, iat, exp, jti: secret::random_hex::<16>() };
        // It fails if the claims are not JSON or the algorithm does not fit the key: neither is possible.
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding_key)
            .expect("plain claims, signed with the algorithm of the key");
        (Token::from_text(token), claims)
    }

    /// The token must have been issued here and not have expired.
    pub fn verify(&self, now: Millis, token: &str) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid);
        }
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.decoding_key, &self.validation);
        let claims = decoded.map_err(|_| TokenError::Invalid)?.claims;
        if now.0 / 1000 >= claims.exp { Err(TokenError::Expired) } else { Ok(claims) }
    }
}

debug_fields!(Jwt, |jwt| life: jwt.life);

/// HS256 with ring, and no other algorithm.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: new_signer,
    verifier_factory: new_verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

struct Hs256Key(hmac::Key);

fn hs256(algorithm: Algorithm, secret: &[u8]) -> Result<Box<Hs256Key>, jsonwebtoken::errors::Error> {
    match algorithm {
        Algorithm::HS256 => Ok(Box::new(Hs256Key(hmac::Key::new(hmac::HMAC_SHA256, secret)))),
        _ => Err(JwtError::InvalidAlgorithm.into()),
    }
}

fn new_signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, jsonwebtoken::errors::Error> {
    Ok(hs256(*algorithm, key.as_bytes())?)
}

fn new_verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, jsonwebtoken::errors::Error> {
    Ok(hs256(*algorithm, key.try_get_as_bytes()?)?)
}

impl Signer<Vec<u8>> for Hs256Key {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hs256Key {
    /// Compares in constant time.
    fn verify(&self, message: &[u8], tag: &Vec<u8>) -> Result<(), signature::Error> {
        hmac::verify(&self.0, message, tag).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Hs256Key {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256Key {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const NOW: Millis = Millis(1_795_253_400_000);
    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn jwt() -> Jwt {
        Jwt::with_secret(SECRET, Duration::from_secs(3600))
    }

    fn claims() -> Value {
        let at = NOW.0 / 1000;
        json!({"sub": "ann", "role": "user", "iat": at, "exp": at + 3600, "jti": "00"})
    }

    /// A token built by hand from RFC 7519 alone.
    fn made(header: &Value, claims: &Value, algorithm: hmac::Algorithm, secret: &[u8]) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let tag = hmac::sign(&hmac::Key::new(algorithm, secret), message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    fn hs256(claims: &Value) -> String {
        made(&json!({"alg": "HS256", "typ": "JWT"}), claims, hmac::HMAC_SHA256, SECRET)
    }

    #[test]
    fn a_token_says_what_it_was_made_for_until_its_second() {
        let jwt = jwt();
        let (token, made) = jwt.issue(NOW, "ann", Role::User);
        assert_eq!((made.iat, made.exp), (1_795_253_400, 1_795_257_000));
        assert_eq!((&*made.sub, &*made.username), ("ann", "ann"));
        assert_eq!(jwt.verify(NOW, token.reveal()), Ok(made.clone()));
        let last = Millis(1_795_256_999_999);
        assert_eq!(jwt.verify(last, token.reveal()), Ok(made.clone()));
        assert_eq!(jwt.verify(last.plus_ms(1), token.reveal()), Err(TokenError::Expired), "no leeway");
        let (again, other) = jwt.issue(NOW, "ann", Role::Admin);
        assert_ne!((again.reveal(), &other.jti), (token.reveal(), &made.jti));
        assert_eq!(jwt.verify(NOW, again.reveal()).unwrap().role, Role::Admin);
        // Other implementations can read it too.
        let header = token.reveal().split('.').next().unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(header).unwrap(), br#"{"typ":"JWT","alg":"HS256"}"#);
        let short = Jwt::with_secret(SECRET, Duration::from_millis(1500));
        assert_eq!(short.issue(NOW, "ann", Role::User).1.exp, 1_795_253_402, "never shorter than asked");
    }

    #[test]
    fn what_was_made_by_the_letter_is_taken_and_every_missing_claim_missed() {
        let jwt = jwt();
        assert_eq!(jwt.verify(NOW, &hs256(&claims())).unwrap().sub, "ann");
        for claim in ["sub", "role", "iat", "exp", "jti"] {
            let mut without = claims();
            without.as_object_mut().unwrap().remove(claim);
            assert_eq!(jwt.verify(NOW, &hs256(&without)), Err(TokenError::Invalid), "{claim}");
            let mut null = claims();
            null[claim] = Value::Null;
            assert_eq!(jwt.verify(NOW, &hs256(&null)), Err(TokenError::Invalid), "{claim}");
        }
        for (claim, wrong) in [
            ("exp", json!("1795257000")),
            ("exp", json!(-1)),
            ("exp", json!(1e300)),
            ("role", json!("root")),
            ("role", json!("Admin")),
            ("sub", json!(["ann"])),
            ("aud", json!("elsewhere")),
        ] {
            let mut other = claims();
            other[claim] = wrong.clone();
            assert_eq!(jwt.verify(NOW, &hs256(&other)), Err(TokenError::Invalid), "{claim}: {wrong}");
        }
        let mut old = claims();
        old["exp"] = json!(NOW.0 / 1000);
        assert_eq!(jwt.verify(NOW, &hs256(&old)), Err(TokenError::Expired));
    }

    #[test]
    fn no_other_algorithm_and_no_other_key() {
        let jwt = jwt();
        let foreign = made(&json!({"alg": "HS256"}), &claims(), hmac::HMAC_SHA256, b"another secret");
        assert_eq!(jwt.verify(NOW, &foreign), Err(TokenError::Invalid));
        for (alg, with) in [("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)] {
            let other = made(&json!({"alg": alg}), &claims(), with, SECRET);
            assert_eq!(jwt.verify(NOW, &other), Err(TokenError::Invalid), "{alg}");
        }
        // A valid tag under the name of another algorithm.
        for alg in ["none", "None", "NONE", "RS256", "ES256", "PS256", "EdDSA", "HS384", "hs256", ""] {
            let other = made(&json!({"alg": alg}), &claims(), hmac::HMAC_SHA256, SECRET);
            assert_eq!(jwt.verify(NOW, &other), Err(TokenError::Invalid), "{alg}");
            let (message, _) = other.rsplit_once('.').unwrap();
            assert_eq!(jwt.verify(NOW, &format!("{message}.")), Err(TokenError::Invalid), "{alg}, without a tag");
            assert_eq!(jwt.verify(NOW, message), Err(TokenError::Invalid), "{alg}, without that part");
        }
        let without = made(&json!({"typ": "JWT"}), &claims(), hmac::HMAC_SHA256, SECRET);
        assert_eq!(jwt.verify(NOW, &without), Err(TokenError::Invalid));
        // A key in the header is ignored.
        let own = json!({"alg": "HS256", "jwk": {"kty": "oct", "k": "b3du"}, "kid": "../../dev/null"});
        assert_eq!(jwt.verify(NOW, &made(&own, &claims(), hmac::HMAC_SHA256, b"own")), Err(TokenError::Invalid));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let jwt = jwt();
        let (token, _) = jwt.issue(NOW, "ann", Role::User);
        let token = token.reveal();
        for at in 0..token.len() {
            let mut changed = token.as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'E' } else { b'A' };
            assert_eq!(jwt.verify(NOW, &String::from_utf8(changed).unwrap()), Err(TokenError::Invalid), "at {at}");
        }
        for cut in [0, 1, token.len() / 2, token.len() - 1] {
            assert_eq!(jwt.verify(NOW, &token[..cut]), Err(TokenError::Invalid));
        }
        assert_eq!(jwt.verify(NOW, &format!("{token}{}", "A".repeat(TOKEN_BYTES_MAX))), Err(TokenError::Invalid));
    }

    #[test]
    fn the_secret_is_made_once_and_kept_to_ourselves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        let first = Jwt::load_or_create(dir.path(), Duration::from_secs(60)).unwrap();
        let (token, claims) = first.issue(NOW, "ann", Role::User);
        let again = Jwt::load_or_create(dir.path(), Duration::from_secs(60)).unwrap();
        assert_eq!(again.verify(NOW, token.reveal()), Ok(claims));
        assert!(!format!("{again:?}").contains(fs::read_to_string(&path).unwrap().trim()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let other = tempfile::tempdir().unwrap();
        let stranger = Jwt::load_or_create(other.path(), Duration::from_secs(60)).unwrap();
        assert_eq!(stranger.verify(NOW, token.reveal()), Err(TokenError::Invalid));
        for damaged in ["", "x", &"g".repeat(64), &"0".repeat(63), "\u{ff}"] {
            fs::write(&path, damaged).unwrap();
            let error = Jwt::load_or_create(dir.path(), Duration::from_secs(60)).unwrap_err();
            assert!(matches!(error, JwtKeyError::Content { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged, "never replaced");
        }
        assert!(Jwt::load_or_create(&dir.path().join("absent"), Duration::from_secs(60)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_a_token_or_ends_anything(text in ".{0,200}", parts in proptest::collection::vec("[A-Za-z0-9_-]{0,80}", 0..5)) {
            prop_assert!(jwt().verify(NOW, &text).is_err());
            prop_assert!(jwt().verify(NOW, &parts.join(".")).is_err());
        }
    }
}
