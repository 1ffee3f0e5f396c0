//! The two endpoints that send, one for each generation of rights. Each has limits and counts of its own.

use crate::rules::Endpoint;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// `template/send`, for form ids and prepay ids.
    Template,
    /// `subscribe/send`, for what users accepted.
    Subscribe,
}

impl Api {
    pub(crate) const ALL: [Self; 2] = [Self::Template, Self::Subscribe];

    /// Also the name by which `openapi/quota/get` is asked about it.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Template => "/cgi-bin/message/wxopen/template/send",
            Self::Subscribe => "/cgi-bin/message/subscribe/send",
        }
    }

    pub(crate) fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|api| api.path() == path)
    }

    /// How fault rules name it.
    pub(crate) fn endpoint(self) -> Endpoint {
        match self {
            Self::Template => Endpoint::Send,
            Self::Subscribe => Endpoint::Subscribe,
        }
    }

    /// Sends a day that WeChat publishes as an app's limit: what is told where the settings set none. Only the settings
    /// ever refuse a send.
    pub(crate) fn published_limit(self) -> u64 {
        match self {
            Self::Template => 1_000_000,
            Self::Subscribe => 10_000_000,
        }
    }
}
