//! The permissions of a caller.

use std::fmt;

/// One permission. Its name is the one used in the callers file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Hand in credentials, and report events that change them.
    Collect,
    /// Read the stock of credentials, and broadcasts.
    Read,
    /// Delete all stored data of a user.
    Erase,
    /// Send single messages.
    Send,
    /// Create, control and watch broadcasts to lists of users.
    Broadcast,
    /// Create broadcasts to every reachable user. Has no effect without [`Permission::Broadcast`].
    BroadcastAll,
    /// List and lift stops of an app.
    Operate,
}

impl Permission {
    /// All permissions, in the order of the documentation.
    pub const ALL: [Self; 7] =
        [Self::Collect, Self::Read, Self::Erase, Self::Send, Self::Broadcast, Self::BroadcastAll, Self::Operate];

    pub fn name(self) -> &'static str {
        match self {
            Self::Collect => "collect",
            Self::Read => "read",
            Self::Erase => "erase",
            Self::Send => "send",
            Self::Broadcast => "broadcast",
            Self::BroadcastAll => "broadcast_all",
            Self::Operate => "operate",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.name() == name)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}
