//! One caller as configured in the callers file.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::permission::Permission;
use super::rate::Rate;
use domain::AppId;

/// The SHA-256 of a token. `Debug` hides it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(pub(super) [u8; SHA256_OUTPUT_LEN]);

impl TokenHash {
    /// Parses 64 hex digits.
    pub fn parse(hex: &str) -> Option<Self> {
        let digits: Option<Vec<u8>> = hex.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
        let digits = digits.filter(|digits| digits.len() == 2 * SHA256_OUTPUT_LEN)?;
        let mut hash = [0; SHA256_OUTPUT_LEN];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Some(Self(hash))
    }

    pub fn of(token: &[u8]) -> Self {
        let mut hash = [0; SHA256_OUTPUT_LEN];
        hash.copy_from_slice(digest(&SHA256, token).as_ref());
        Self(hash)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("TokenHash(..)")
    }
}

/// The apps a caller may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Apps {
    /// All apps that the service is configured for.
    All,
    These(BTreeSet<AppId>),
}

impl Apps {
    pub fn contain(&self, app: &AppId) -> bool {
        match self {
            Self::All => true,
            Self::These(apps) => apps.contains(app),
        }
    }
}

/// One caller of the callers file.
#[derive(Debug)]
pub struct CallerConfig {
    /// The name, for logs.
    pub name: Box<str>,
    pub(super) tokens: Vec<TokenHash>,
    pub(super) certificate_names: Vec<Box<str>>,
    pub(super) apps: Apps,
    permissions: BTreeSet<Permission>,
    pub(super) rate: Option<Arc<Rate>>,
}

impl CallerConfig {
    pub(super) fn new(
        name: Box<str>,
        tokens: Vec<TokenHash>,
        certificate_names: Vec<Box<str>>,
        apps: Apps,
        permissions: BTreeSet<Permission>,
        per_second: Option<f64>,
    ) -> Self {
        let rate = per_second.map(|per_second| Arc::new(Rate::new(per_second)));
        Self { name, tokens, certificate_names, apps, permissions, rate }
    }

    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.contains(&permission)
    }
}
