//! A client of one running node: its requests with the stored session, and how results are printed.

use anyhow::{Context, bail};
use serde_json::Value;

use super::words::shell_quoted;
use crate::cli::repl::Screen;
use crate::cli::session_store::SessionStore;
use crate::model::{Name, Token};
use crate::net::shutdown::ShutdownSignal;
use crate::share::api_client::{ApiClient, ApiResponse};

/// Beginning of the node's error when the user has not joined the network yet.
const NOT_STARTED_PREFIX: &str = "not begun";

pub(super) struct NodeClient {
    pub(super) api: ApiClient,
    pub(super) session_store: SessionStore,
    pub(super) screen: Screen,
    /// The user whose node it is. No other user's token is sent to it.
    pub(super) user: Name,
    pub(super) shutdown: ShutdownSignal,
}

#[derive(Debug, thiserror::Error)]
#[error("some of it failed")]
pub(super) struct AlreadyReported;

/// The user stopped waiting; the message tells what goes on without him.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Interrupted(pub(super) String);

impl NodeClient {
    pub(super) fn get(&self, what: &str) -> anyhow::Result<Value> {
        self.call(|token| Ok(self.api.get(&api_path(what), Some(token))?))
    }

    pub(super) fn post(&self, what: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(|token| Ok(self.api.post(&api_path(what), Some(token), body)?))
    }

    pub(super) fn get_and_print(
        &self,
        command: &str,
        what: &str,
        text: impl FnOnce(&Value) -> String,
    ) -> anyhow::Result<()> {
        self.screen.print_ok(command, self.get(what)?, text);
        Ok(())
    }

    pub(super) fn post_and_print(
        &self,
        command: &str,
        what: &str,
        body: &Value,
        text: impl FnOnce(&Value) -> String,
    ) -> anyhow::Result<()> {
        self.screen.print_ok(command, self.post(what, body)?, text);
        Ok(())
    }

    /// Sends a request with the stored token. It never signs an account in at the node.
    fn call(&self, ask: impl Fn(&Token) -> anyhow::Result<ApiResponse>) -> anyhow::Result<Value> {
        let response = ask(&self.token()?)?;
        if response.status == 409 && response.error().starts_with(NOT_STARTED_PREFIX) {
            bail!("{} does not take part at this node: `p2s2 share login` begins that", self.user);
        }
        successful_body(response)
    }

    /// Of the session that is kept.
    pub(super) fn token(&self) -> anyhow::Result<Token> {
        let nobody = || {
            let (user, name) = (&self.user, shell_quoted(self.user.as_str()));
            format!("{user} is not signed in at {}: `p2s2 share login --name {name}` first", self.api.address())
        };
        let token = self.session_store.session(self.user.as_str())?.with_context(nobody)?;
        Ok(Token::from_text(token))
    }
}

/// Without the mark of success.
pub(super) fn successful_body(mut response: ApiResponse) -> anyhow::Result<Value> {
    match response.status {
        _ if response.is_ok() => {
            response.body.as_object_mut().map(|fields| fields.remove("success"));
            Ok(response.body)
        }
        // After `login` and `register` the message tells what is wrong with name or password; otherwise it is about the
        // stored token.
        401 => bail!("{}; `p2s2 share login` signs you in, `p2s2 share register` makes an account", response.error()),
        _ => bail!(response.error()),
    }
}

pub(super) fn api_path(what: &str) -> String {
    format!("/api/client/{what}")
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
