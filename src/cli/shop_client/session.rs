//! A shop client's connection, its user and its output.

use anyhow::bail;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::show;
use crate::cli::output::sanitize;
use crate::cli::repl::Screen;
use crate::cli::session_store::SessionStore;
use crate::cli::{prompt, server_discovery};
use crate::net::conn::ConnError;
use crate::shop::client::{Client, ClientError};
use crate::shop::ops::ErrorCode;

/// Kept for completion.
const SEEN_ITEMS_MAX: usize = 1_000;

pub(in crate::cli) struct ShopSession {
    pub(super) role: &'static str,
    pub(in crate::cli) screen: Screen,
    pub(super) client: Mutex<Client>,
    pub(super) user: Mutex<Option<String>>,
    /// Between one-shot commands; `None` in the interactive loop.
    pub(super) session_store: Option<SessionStore>,
    /// They come from earlier responses, for completion.
    pub(super) seen_item_ids: Mutex<Vec<String>>,
    /// The server, if `--server auto` chose it.
    pub(super) discovered_server: Option<server_discovery::FoundServer>,
}

impl ShopSession {
    /// See [`server_discovery::FoundServer::check_payment`].
    pub(in crate::cli) fn check_payment(&self) -> anyhow::Result<()> {
        self.discovered_server.as_ref().map_or(Ok(()), |chosen| chosen.check_payment(""))
    }

    /// The payload of the response. An expired session is forgotten.
    pub(in crate::cli) fn call(&self, api: &str, payload: Value) -> anyhow::Result<Value> {
        let mut client = self.client.lock();
        let response = client.call(api, payload);
        if let Err(error) = &response
            && error.code() == Some(ErrorCode::SessionExpired)
        {
            client.set_session_id(None);
            self.forget_session()?;
        }
        let response = response?;
        self.remember_item_ids(&response);
        Ok(response)
    }

    /// Calls an API and prints the result.
    pub(in crate::cli) fn run(
        &self,
        command: &str,
        api: &str,
        payload: Value,
        text: impl FnOnce(&Value) -> String,
    ) -> anyhow::Result<()> {
        self.screen.print_ok(command, self.call(api, payload)?, text);
        Ok(())
    }

    pub(in crate::cli) fn run_item(&self, item: String) -> anyhow::Result<()> {
        self.run("item", "GetItem", json!({ "item_id": item }), |item| show::item_table(std::slice::from_ref(item)))
    }

    pub(in crate::cli) fn user(&self) -> Option<String> {
        self.user.lock().clone()
    }

    pub(super) fn create_account(&self, username: &str, name: Option<&str>) -> anyhow::Result<()> {
        let mut payload = json!({"username": username, "password": prompt::password(true)?});
        if let Some(name) = name {
            payload["name"] = name.into();
        }
        let response = self.call("CreateAccount", payload)?;
        self.screen.print_ok("create-account", response, |_| {
            format!("{username} has an account; {} opens a session", self.login_command(username))
        });
        Ok(())
    }

    pub(super) fn login(&self, username: Option<&str>) -> anyhow::Result<()> {
        let username = match (username.map(str::to_owned).or(self.user()), prompt::is_interactive()) {
            (Some(username), _) => username,
            (None, true) => prompt::line("User name: ")?,
            (None, false) => bail!("a user name is missing: login USERNAME (or --user NAME)"),
        };
        let password = prompt::password(false)?;
        let mut client = self.client.lock();
        let id = client.login(&username, &password)?;
        *self.user.lock() = Some(username.clone());
        if let (Some(session_store), Some(session_id)) = (&self.session_store, client.session_id()) {
            session_store.save_session(&username, session_id)?;
        }
        let fields = json!({"username": username, format!("{}_id", self.role): id});
        self.screen.print_ok("login", fields, |_| format!("logged in as {username} ({} {id})", self.role));
        Ok(())
    }

    pub(super) fn logout(&self) -> anyhow::Result<()> {
        let done = self.client.lock().logout();
        // If the connection was lost, the session may still exist and can be ended later.
        if matches!(done, Ok(()) | Err(ClientError::Refused(_))) {
            self.forget_session()?;
        }
        done?;
        self.screen.print_ok("logout", json!({}), |_| "logged out".to_owned());
        Ok(())
    }

    fn forget_session(&self) -> anyhow::Result<()> {
        match (&self.session_store, self.user()) {
            (Some(session_store), Some(user)) => session_store.remove_session(&user),
            _ => Ok(()),
        }
    }

    fn remember_item_ids(&self, response: &Value) {
        let lists = ["items", "cart"].into_iter().filter_map(|field| response[field].as_array()).flatten();
        let mut seen_item_ids = self.seen_item_ids.lock();
        for id in lists.chain([response]).filter_map(|item| item["item_id"].as_str()) {
            if seen_item_ids.len() < SEEN_ITEMS_MAX && !seen_item_ids.iter().any(|known| known == id) {
                seen_item_ids.push(id.to_owned());
            }
        }
    }

    /// The command that opens a session, as it must be entered here.
    pub(in crate::cli) fn login_command(&self, username: &str) -> String {
        if self.session_store.is_some() {
            format!("`p2s2 {} login {username}`", self.role)
        } else {
            format!("`login {username}`")
        }
    }

    /// The error with advice, and its code. Session ids are never mentioned to the user.
    pub(super) fn explain(&self, error: &anyhow::Error) -> (String, Option<ErrorCode>) {
        let code = error.downcast_ref::<ClientError>().and_then(ClientError::code);
        let user = self.user().unwrap_or_else(|| "NAME".to_owned());
        let text = match code {
            Some(ErrorCode::SessionExpired) => {
                format!("the session has ended; {} opens another", self.login_command(&user))
            }
            Some(ErrorCode::NotLoggedIn) => {
                format!("nobody is logged in here; {} opens a session", self.login_command(&user))
            }
            _ => match error.downcast_ref::<ClientError>() {
                Some(ClientError::Unreachable { error: ConnError::Io(_), .. }) => format!(
                    "{error:#}; is a shop running there? `p2s2 server` starts one, --server HOST:PORT names another"
                ),
                Some(ClientError::ForeignResponse { .. }) => {
                    format!("{error:#}: is that a shop of p2s2's? --server HOST:PORT names another")
                }
                _ => format!("{error:#}"),
            },
        };
        (text, code)
    }

    pub(super) fn json_error(&self, text: &str, code: Option<ErrorCode>) {
        self.screen.print_json(&json!({"error": sanitize(text), "code": code}));
    }
}
