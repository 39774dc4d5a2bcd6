//! Accounts: registration, sign-in and tokens.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{ServerApi, request_token, to_http_error};
use crate::identity::{Claims, Role, User, Users};
use crate::model::{Clock, Millis};
use crate::net::http::{HandlerResult, HttpError, JsonFields, Request, Response, RouteCall, success};
use crate::share::server::AccountDirectory;

impl AccountDirectory for Users {
    fn is_account(&self, hostname: &str) -> bool {
        Users::account_exists(self, hostname)
    }

    fn owner_of(&self, token: &str) -> Option<String> {
        Users::hostname_of_token(self, token)
    }

    fn namesakes(&self) -> Vec<String> {
        Users::accounts_without_hostname(self)
    }

    fn signed_in_from(&self, hostname: &str, ip: IpAddr) -> bool {
        Users::has_signed_in_from(self, hostname, ip)
    }
}

impl ServerApi {
    pub(super) fn register(&self, call: &RouteCall<'_>) -> HandlerResult {
        let fields = JsonFields::from_body(call.request)?;
        let display_name = fields.non_empty_text("display_name")?;
        let (username, password) = (fields.any_text("username")?, fields.any_text("password")?);
        let made = self.users.register(username, password, display_name, call.request.source.ip());
        let user = made.map_err(to_http_error)?;
        // An anonymous host may have had the hostname so far.
        if let Some(registry) = &self.registry {
            registry.account_created(user.username.as_str());
        }
        Ok(self.signed_in(&user))
    }

    pub(super) fn login(&self, call: &RouteCall<'_>) -> HandlerResult {
        let fields = JsonFields::from_body(call.request)?;
        let (username, password) = (fields.any_text("username")?, fields.any_text("password")?);
        let user = self.users.login(username, password, call.request.source.ip()).map_err(to_http_error)?;
        Ok(self.signed_in(&user))
    }

    pub(super) fn verify(&self, call: &RouteCall<'_>) -> HandlerResult {
        let (user, claims) = self.authenticated_user(call.request)?;
        // Both the expiry time and the remaining duration: the clock of a caller that caches this may differ.
        let expires_in = Clock::wall().until(Millis::from_unix_s(claims.exp)).as_millis() as f64 / 1000.0;
        Ok(success(json!({"user": user_json(&user), "exp": claims.exp, "expires_in": expires_in})))
    }

    pub(super) fn refresh(&self, call: &RouteCall<'_>) -> HandlerResult {
        let (user, _) = self.authenticated_user(call.request)?;
        self.users.record_sign_in(&user.username, call.request.source.ip());
        Ok(self.signed_in(&user))
    }

    fn authenticated_user(&self, request: &Request) -> Result<(User, Claims), HttpError> {
        let token = request_token(request, true)?;
        self.users.authenticate_user(token.reveal()).map_err(to_http_error)
    }

    fn signed_in(&self, user: &User) -> Response {
        let (token, _) = self.users.issue_token(&user.username, Role::User);
        success(json!({"token": token.reveal(), "user": user_json(user)}))
    }
}

fn user_json(user: &User) -> Value {
    let mut user_json = json!({
        "username": user.username, "display_name": user.display_name, "created_at": user.created_at.to_iso(),
    });
    if let Some(at) = user.last_login {
        user_json["last_login"] = at.to_iso().into();
    }
    user_json
}
