//! What a caller can be permitted to do.

use std::fmt;

/// One permission, by the name it has in the callers file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Hand in credentials, and events that change them.
    Collect,
    /// Look at what is in stock and at broadcasts.
    Read,
    /// Delete all that is stored of a user.
    Erase,
    /// Send single messages.
    Send,
    /// Begin, change and watch broadcasts to lists.
    Broadcast,
    /// Begin broadcasts to every reachable user; of no use without [`Permission::Broadcast`].
    BroadcastAll,
}

impl Permission {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::Collect, Self::Read, Self::Erase, Self::Send, Self::Broadcast, Self::BroadcastAll];

    /// As it is written in the callers file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Collect => "collect",
            Self::Read => "read",
            Self::Erase => "erase",
            Self::Send => "send",
            Self::Broadcast => "broadcast",
            Self::BroadcastAll => "broadcast_all",
        }
    }

    /// The permission of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.name() == name)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}
