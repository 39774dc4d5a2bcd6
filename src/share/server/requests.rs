//! The requests of a connection: each is handed to the core, and its response written.

use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::request_error::RequestError;
use super::responses::{ResponseError, ResponseWriter};
use super::{AuthMode, RegistryServerInner, STEP_SIZE};
use crate::model::{Name, Token, text};
use crate::net::connection_end::ConnectionEnd;
use crate::net::counters::Counter;
use crate::net::interfaces;
use crate::net::lines::LineLimits;
use crate::net::listener::{AfterMessage, MessageConnection, MessageFraming, MessageService, Rejection};
use crate::share::registry::{AccountProof, ConnId, HostnameClaim, HostnameStatus, RegistryError, SecretHash};
use crate::share::wire::requests::{self, REQUEST_MAX};
use crate::share::wire::responses::RegisterAnswer;
use crate::share::wire::{
    FileMap, PublishRequest, RegisterRequest, RegistryRequest, UnpublishRequest, responses as wire,
};

pub(super) struct RegistryService(pub Arc<RegistryServerInner>);

impl MessageService for RegistryService {
    type Session = ClientSession;
    const NAME: &'static str = "registry";
    const FRAMING: MessageFraming = MessageFraming::JsonLines;

    fn limits(&self) -> LineLimits {
        LineLimits::new(REQUEST_MAX)
    }

    fn rejection_message(&self, why: Rejection) -> Option<Vec<u8>> {
        let busy = if why.is_busy() { "BUSY: " } else { "" };
        Some(wire::error_response(&format!("{busy}{why}")))
    }

    fn count_rejected(&self) {
        self.0.counters.refused.add(1);
    }

    fn connections_failed(&self) -> &Counter {
        &self.0.counters.connections_failed
    }

    fn on_connect(&self, connection: &MessageConnection) -> ClientSession {
        let conn = self.0.next_conn.fetch_add(1, Ordering::Relaxed);
        ClientSession {
            conn,
            source: connection.source().ip(),
            stream: Arc::downgrade(connection.stream()),
            registration: None,
            _disconnect_guard: DisconnectGuard { inner: Arc::clone(&self.0), conn },
        }
    }

    fn handle(
        &self,
        session: &mut ClientSession,
        message: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<AfterMessage, ConnectionEnd> {
        let began_at = Instant::now();
        let request = requests::parse(&message);
        drop(message);
        // The time of a request that asks to wait says nothing about latency.
        let waits_for_change =
            matches!(&request, Ok(RegistryRequest::Changes(asked)) if asked.wait.is_some_and(|wait| wait.get() > 0.0));
        self.0.handle_request(session, request, &mut ResponseWriter::new(connection.writer()))?;
        if !waits_for_change {
            self.0.latencies.record(began_at.elapsed());
        }
        Ok(AfterMessage::Continue)
    }

    /// A connection that has not registered may be closed to make room: it loses nothing else.
    fn is_evictable(&self, session: &ClientSession) -> bool {
        session.registration.is_none()
    }
}

pub(super) struct ClientSession {
    conn: ConnId,
    source: IpAddr,
    stream: Weak<TcpStream>,
    /// Its hostname and secret, once it has registered.
    registration: Option<(Name, Token)>,
    /// Runs also when the connection's thread panics.
    _disconnect_guard: DisconnectGuard,
}

impl RegistryServerInner {
    fn handle_request(
        &self,
        session: &mut ClientSession,
        request: Result<RegistryRequest, String>,
        out: &mut ResponseWriter<'_>,
    ) -> io::Result<()> {
        self.counters.requests.add(1);
        let request = match request {
            Ok(request) => request,
            Err(reason) => {
                self.counters.refused.add(1);
                return out.line(&wire::error_response(&reason));
            }
        };
        if !request.records_activity() {
            self.registry.record_activity(session.conn);
        }
        match self.respond(session, request, out) {
            Ok(()) => Ok(()),
            Err(ResponseError::Io(error)) => Err(error),
            Err(ResponseError::Refused(failure)) => {
                self.counters.refused.add(1);
                match &failure {
                    RequestError::Refused(RegistryError::Full(_)) => self.counters.refused_full.add(1),
                    RequestError::Refused(RegistryError::ShareFull { .. }) => self.counters.refused_share.add(1),
                    _ => {}
                }
                let failure = self.explain_lost_hostname(session, failure);
                out.line(&wire::error_response(&failure.reason()))
            }
        }
    }

    fn respond(
        &self,
        session: &mut ClientSession,
        request: RegistryRequest,
        out: &mut ResponseWriter<'_>,
    ) -> Result<(), ResponseError> {
        let conn = session.conn;
        match request {
            RegistryRequest::Ping(ping) => {
                self.counters.pings.add(1);
                let is_live = self.registry.ping(conn, ping.hostname.as_str()).map_err(RequestError::from)?;
                out.line(if is_live { wire::ALIVE } else { wire::DEAD })?;
            }
            RegistryRequest::Request(wanted) => match wanted.size {
                Some(size) => self.write_similar_files(conn, &wanted, size, out)?,
                None => self.write_holders(&wanted.fname, out)?,
            },
            RegistryRequest::Discover(whom) => self.write_host(&whom.hostname, out)?,
            RegistryRequest::Changes(changes) => self.write_changes(changes, out)?,
            RegistryRequest::List(list) => self.write_list(list, out)?,
            RegistryRequest::Register(register) => out.line(&self.register(session, *register)?)?,
            RegistryRequest::Publish(publish) => {
                let PublishRequest { hostname, fname, entry } = *publish;
                self.registry.update(conn, |core, now, changes| {
                    core.evict_for_publish(now, conn, &hostname, &fname, STEP_SIZE, changes);
                    changes.extend(core.publish(now, conn, &hostname, &fname, entry)?);
                    Ok(())
                })?;
                out.line(wire::ACK)?;
            }
            RegistryRequest::Unpublish(UnpublishRequest { hostname, fname }) => {
                self.registry.update(conn, |core, now, changes| {
                    changes.extend(core.unpublish(now, conn, &hostname, &fname)?);
                    Ok(())
                })?;
                out.line(wire::ACK)?;
            }
            RegistryRequest::Unregister(whom) => {
                self.registry.update(conn, |core, now, changes| {
                    changes.extend(core.unregister(now, conn, &whom.hostname)?);
                    Ok(())
                })?;
                session.registration = None;
                self.holder_streams.lock().remove(&conn);
                out.line(wire::OK)?;
            }
        }
        Ok(())
    }

    /// Gives the actual reason instead of "not registered".
    fn explain_lost_hostname(&self, session: &ClientSession, failure: RequestError) -> RequestError {
        let Some((held, _)) = &session.registration else { return failure };
        match failure {
            RequestError::Refused(RegistryError::NotRegistered) if self.context.accounts.is_account(held.as_str()) => {
                RegistryError::NeedsToken.into()
            }
            RequestError::Refused(RegistryError::NotRegistered) => {
                let lost = format!("hostname: {held} is not this connection's any more; REGISTER again");
                RequestError::HostnameLost(lost)
            }
            failure => failure,
        }
    }

    fn register(&self, session: &mut ClientSession, register: RegisterRequest) -> Result<Vec<u8>, RequestError> {
        let hostname = register.hostname.clone();
        let status = self.hostname_status(&hostname, register.token.as_ref(), session.source);
        // Accounts of an earlier version keep names that would not be valid now.
        if status == HostnameStatus::Free {
            text::check_visible(hostname.as_str())
                .map_err(|wrong| RequestError::InvalidField(format!("hostname: {wrong}")))?;
        }
        let fresh = Token::random();
        // On the same connection the secret stays the same.
        let own = session.registration.as_ref().filter(|(held, _)| *held == hostname).map(|(_, secret)| secret);
        let shown = register.resume.as_ref().or(own);
        let claim = HostnameClaim {
            display_name: register.display_name.as_ref().unwrap_or(&hostname).as_str().into(),
            port: register.port,
            ip: register.ip,
            source: session.source,
            status,
            resume_secret: shown.map(SecretHash::of),
            new_secret: SecretHash::of(&fresh),
            keeps_files: register.files.is_none() && register.resume.is_some(),
            file_count: register.files.as_ref().map_or(0, published_count),
            is_local_ip: session.source.is_loopback() && register.ip.is_some_and(is_local_address),
            hostname,
        };
        let granted = self.registry.register(session.conn, &claim, &register.files.unwrap_or_default())?;
        if let Some(replaced) = granted.replaced_conn {
            self.counters.replaced.add(1);
            self.close_replaced(replaced);
        }
        self.holder_streams.lock().insert(session.conn, session.stream.clone());
        let secret = if granted.is_resumed { shown.cloned().unwrap_or(fresh) } else { fresh };
        session.registration = Some((claim.hostname.clone(), secret.clone()));
        // The account may have been created in the meantime.
        if claim.status == HostnameStatus::Free && self.context.accounts.is_account(claim.hostname.as_str()) {
            self.registry.account_created(claim.hostname.as_str())?;
            return Err(RegistryError::NeedsToken.into());
        }
        self.counters.registered.add(1);
        Ok(wire::ok_response(&RegisterAnswer { resume: Some(secret), ip: Some(granted.ip) }))
    }

    fn hostname_status(&self, hostname: &Name, token: Option<&Token>, source: IpAddr) -> HostnameStatus {
        let accounts = &self.context.accounts;
        if !accounts.is_account(hostname.as_str()) {
            return HostnameStatus::Free;
        }
        let owner = token.and_then(|token| accounts.owner_of(token.reveal()));
        HostnameStatus::Account(
            if owner.and_then(|owner| Name::from_stored(&owner).ok()).is_some_and(|owner| owner == *hostname) {
                AccountProof::Token
            } else if self.config.auth == AuthMode::Address && accounts.signed_in_from(hostname.as_str(), source) {
                AccountProof::Address
            } else {
                AccountProof::None
            },
        )
    }

    fn close_replaced(&self, conn: ConnId) {
        let stream = self.holder_streams.lock().remove(&conn).and_then(|stream| stream.upgrade());
        if let Some(stream) = stream
            && let Err(error) = stream.shutdown(std::net::Shutdown::Both)
        {
            // It has closed by itself in the meantime.
            log::debug!("registry: closing a connection that was replaced: {error}");
        }
    }
}

fn is_local_address(ip: IpAddr) -> bool {
    interfaces::is_local_address(ip).unwrap_or_else(|error| {
        log::warn!("registry: this host's addresses cannot be read: {error}");
        false
    })
}

fn published_count(files: &FileMap) -> usize {
    files.values().filter(|file| file.is_published).count()
}

/// Reports the end of the connection when dropped.
struct DisconnectGuard {
    inner: Arc<RegistryServerInner>,
    conn: ConnId,
}

impl Drop for DisconnectGuard {
    fn drop(&mut self) {
        self.inner.registry.connection_closed(self.conn);
        self.inner.holder_streams.lock().remove(&self.conn);
    }
}
