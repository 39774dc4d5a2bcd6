//! Accounts: making one, signing in, and what a token is good for.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{ServerApi, not_so, token_of};
use crate::identity::{Claims, Role, User, Users};
use crate::model::{Clock, Millis};
use crate::net::http::{Fields, Refusal, Request, Response, success};
use crate::share::server::Accounts;

impl Accounts for Users {
    fn is_account(&self, hostname: &str) -> bool {
        Users::is_account(self, hostname)
    }

    fn owner_of(&self, token: &str) -> Option<String> {
        Users::owner_of(self, token)
    }

    fn namesakes(&self) -> Vec<String> {
        Users::namesakes(self)
    }

    fn signed_in_from(&self, hostname: &str, ip: IpAddr) -> bool {
        Users::signed_in_from(self, hostname, ip)
    }
}

impl ServerApi {
    pub(super) fn register(&self, request: &Request) -> Result<Response, Refusal> {
        let fields = Fields::of(request)?;
        let display_name = fields.text_if_any("display_name")?;
        let source = request.source.ip();
        let made =
            self.users.register(fields.any_text("username")?, fields.any_text("password")?, display_name, source);
        let user = made.map_err(not_so)?;
        // A stranger may have had the hostname so far.
        if let Some(registry) = &self.registry {
            registry.account_created(user.username.as_str());
        }
        Ok(self.signed_in(&user))
    }

    pub(super) fn login(&self, request: &Request) -> Result<Response, Refusal> {
        let fields = Fields::of(request)?;
        let username = fields.any_text("username")?;
        let password = fields.any_text("password")?;
        let user = self.users.login(username, password, request.source.ip()).map_err(not_so)?;
        Ok(self.signed_in(&user))
    }

    pub(super) fn verify(&self, request: &Request) -> Result<Response, Refusal> {
        let (user, claims) = self.bearer_of(request)?;
        // Until when this holds, and for how long by the clock that counts: those who remember it may have another.
        let left_ms = Clock::wall().until(Millis::from_unix_s(claims.exp)).as_millis();
        let expires_in = left_ms as f64 / 1000.0;
        Ok(success(json!({"user": shown(&user), "exp": claims.exp, "expires_in": expires_in})))
    }

    pub(super) fn refresh(&self, request: &Request) -> Result<Response, Refusal> {
        let (user, _) = self.bearer_of(request)?;
        self.users.note_sign_in(&user.username, request.source.ip());
        Ok(self.signed_in(&user))
    }

    fn bearer_of(&self, request: &Request) -> Result<(User, Claims), Refusal> {
        let token = token_of(request, true)?;
        self.users.user_of(token.reveal()).map_err(not_so)
    }

    fn signed_in(&self, user: &User) -> Response {
        let (token, _) = self.users.issue(&user.username, Role::User);
        success(json!({"token": token.reveal(), "user": shown(user)}))
    }
}

fn shown(user: &User) -> Value {
    let mut shown = json!({
        "username": user.username, "display_name": user.display_name, "created_at": user.created_at.to_iso(),
    });
    if let Some(at) = user.last_login {
        shown["last_login"] = at.to_iso().into();
    }
    shown
}
