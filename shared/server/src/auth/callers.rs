//! Maps tokens and certificates to callers. The callers file is reloaded while the service runs. An invalid new version
//! is rejected with an error in the log, and the previous version stays in use.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tokio::sync::watch;

use super::caller_config::{CallerConfig, TokenHash};
use super::{file, file::FILE};
use crate::reload::{Contents, Watched};
use crate::telemetry::metrics::IntGauge;
use crate::telemetry::outage::Outages;
use domain::config_errors::{ConfigErrors, SettingsError};

/// The identity that a call presents.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    Token(TokenHash),
    /// The names in its client certificate, which the TLS handshake has verified.
    Certificate(Arc<[String]>),
}

impl Identity {
    /// Returns the identity that a call presents. A token takes precedence over the client certificate of the
    /// connection, even if the token is invalid.
    pub(super) fn of(headers: &HeaderMap, names: Option<&Arc<[String]>>) -> Option<Self> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let Some(header) = given.next() else {
            return names.filter(|names| !names.is_empty()).map(|names| Self::Certificate(Arc::clone(names)));
        };
        let (scheme, token) = header.as_bytes().split_at_checked(7)?;
        let sound = scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty() && given.next().is_none();
        sound.then(|| Self::Token(TokenHash::of(token)))
    }
}

/// The content of one version of the callers file.
#[derive(Debug, Default)]
pub(super) struct Directory {
    entries: Vec<Arc<CallerConfig>>,
    tokens: Vec<(TokenHash, u32)>,
    names: HashMap<Box<str>, u32>,
}

impl Directory {
    fn read(text: &[u8], before: Option<&Self>) -> Result<Self, SettingsError> {
        let mut problems = ConfigErrors::default();
        let entries = match std::str::from_utf8(text) {
            Ok(text) => file::parse(text, &mut problems),
            Err(_) => {
                problems.add(format!("{FILE} is not UTF-8"));
                Vec::new()
            }
        };
        let mut entries = problems.finish(Some(entries))?;
        for entry in &mut entries {
            // A reload does not reset a caller's rate limit, as long as its `calls_per_second` stays the same.
            let earlier = before.and_then(|before| before.entries.iter().find(|other| other.name == entry.name));
            if let (Some(rate), Some(earlier)) = (&mut entry.rate, earlier.and_then(|earlier| earlier.rate.as_ref()))
                && rate.per_second() == earlier.per_second()
            {
                *rate = Arc::clone(earlier);
            }
        }
        let mut book = Self::default();
        for (entry, place) in entries.into_iter().zip(0..) {
            book.tokens.extend(entry.tokens.iter().map(|token| (*token, place)));
            book.names.extend(entry.certificate_names.iter().map(|name| (name.clone(), place)));
            book.entries.push(Arc::new(entry));
        }
        Ok(book)
    }

    /// Finds the caller of an identity. Compares every token in constant time, so that the duration reveals nothing.
    pub(super) fn find(&self, proof: &Identity) -> Option<&Arc<CallerConfig>> {
        let place = match proof {
            Identity::Token(presented) => {
                let mut found = u32::MAX;
                for (token, place) in &self.tokens {
                    found.conditional_assign(place, token.0.ct_eq(&presented.0));
                }
                found
            }
            Identity::Certificate(names) => {
                let mut found = names.iter().filter_map(|name| self.names.get(name.as_str()).copied());
                let first = found.next()?;
                // A certificate with names of two different callers is rejected.
                if found.any(|other| other != first) {
                    return None;
                }
                first
            }
        };
        self.entries.get(place as usize)
    }
}

/// The callers of the current version of the callers file.
pub struct Callers {
    file: Watched,
    book: RwLock<Arc<Directory>>,
    changed: watch::Sender<()>,
}

impl fmt::Debug for Callers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Callers({})", self.book().entries.len())
    }
}

impl Callers {
    /// Reads the callers file. Returns `None` if it is invalid; `problems` then lists every error.
    pub fn read(path: &Path, problems: &mut ConfigErrors) -> Option<Self> {
        let (file, contents) =
            Watched::read([path.to_owned()]).map_err(|error| problems.add(format!("{FILE} {error}"))).ok()?;
        match Directory::read(contents.first()?, None) {
            Ok(book) => Some(Self { file, book: RwLock::new(Arc::new(book)), changed: watch::Sender::new(()) }),
            Err(SettingsError(found)) => {
                found.into_iter().for_each(|problem| problems.add(problem));
                None
            }
        }
    }

    /// The names of the callers that have no token, only certificate names.
    pub fn without_token(&self) -> Vec<String> {
        let book = self.book();
        book.entries.iter().filter(|entry| entry.tokens.is_empty()).map(|entry| entry.name.to_string()).collect()
    }

    /// Watches the file forever and reloads it. Sets `in_use` to whether the latest content of the file is in use.
    pub async fn follow(self: Arc<Self>, in_use: IntGauge, outages: Outages) {
        let change = |contents: Contents| {
            let text = contents.first().map(Vec::as_slice).unwrap_or_default();
            let book = Directory::read(text, Some(&self.book()))?;
            // Code that holds the lock does not panic.
            *self.book.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(book);
            self.changed.send_replace(());
            Ok::<_, SettingsError>(())
        };
        self.file.clone().follow(FILE, &in_use, &outages, change).await;
    }

    /// Notifies of each new version of the file that is in use.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn book(&self) -> Arc<Directory> {
        Arc::clone(&self.book.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests;
