//! A mini program that this service sends for.

use std::fmt;
use std::time::Duration;

use domain::AppId;
use reqwest::Url;
use store::broadcast::permits::Bounds;
use store::eligibility::Kinds;

use crate::wechat::message::Delivery;

/// An app's secret, which WeChat exchanges for access tokens. `Debug` hides it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Trims the text. `None` if it is empty or has characters other than visible ASCII.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.into()))
    }

    /// The secret itself, for the one call that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(..)")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenEndpoint {
    /// `stable_token`: another call returns the same token, so no token becomes invalid.
    Stable,
    /// `token`: another call invalidates the earlier token within minutes, for all its users.
    Plain,
}

#[derive(Debug, Clone)]
pub struct App {
    pub id: AppId,
    pub secret: Secret,
    /// Base URL of the API: http or https, with a host, without user info, query and fragment.
    pub base_url: Url,
    /// Timeout of opening a connection, including TLS.
    pub connect_timeout: Duration,
    /// Timeout of a whole call; not less than `connect_timeout`.
    pub timeout: Duration,
    pub token_endpoint: TokenEndpoint,
    /// Generation of its messages unless a call overrides it.
    pub delivery: Delivery,
    pub bounds: Bounds,
    /// How long a user's grants of a template rest after WeChat refused one with 43101 for the first time. Zero: they are
    /// revoked at once.
    pub refused_rest: Duration,
    /// Kinds of credentials that its broadcasts of template messages may spend; at least one.
    pub broadcast_kinds: Kinds,
}

impl App {
    /// Limits of a generation. The configured `daily_quota` applies to the app's default generation.
    pub fn bounds(&self, delivery: Delivery) -> Bounds {
        let daily_quota = if delivery == self.delivery { self.bounds.daily_quota } else { delivery.published_quota() };
        Bounds { daily_quota, ..self.bounds }
    }
}
