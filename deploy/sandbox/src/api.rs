//! The two endpoints that send: one for form ids and prepay ids, one for grants. Each has its own limits and counters.

use crate::rules::Endpoint;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// `template/send`, for form ids and prepay ids.
    Template,
    /// `subscribe/send`, for grants.
    Subscribe,
}

impl Api {
    pub(crate) const ALL: [Self; 2] = [Self::Template, Self::Subscribe];

    /// Path of the endpoint. `openapi/quota/get` names the endpoint by it too.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Template => "/cgi-bin/message/wxopen/template/send",
            Self::Subscribe => "/cgi-bin/message/subscribe/send",
        }
    }

    pub(crate) fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|api| api.path() == path)
    }

    /// The endpoint as fault rules name it.
    pub(crate) fn endpoint(self) -> Endpoint {
        match self {
            Self::Template => Endpoint::Send,
            Self::Subscribe => Endpoint::Subscribe,
        }
    }

    /// The daily limit that WeChat publishes. It is answered where the settings have no limit. It never refuses a send:
    /// only the settings do.
    pub(crate) fn published_limit(self) -> u64 {
        match self {
            Self::Template => 1_000_000,
            Self::Subscribe => 10_000_000,
        }
    }
}
