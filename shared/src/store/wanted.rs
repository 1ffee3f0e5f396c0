//! What may be leased for a message.

use crate::credential::{Kind, TemplateId};

/// Kinds of credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// What template messages spend.
    pub const IDS: Self = Self::NONE.with(Kind::FormId).with(Kind::PrepayId);
    /// What subscription messages spend.
    pub const GRANTS: Self = Self::NONE.with(Kind::Grant);

    /// These and `kind`.
    #[must_use]
    pub const fn with(self, kind: Kind) -> Self {
        Self(self.0 | 1 << kind as u8)
    }

    /// A bit each, as the scripts have them.
    pub(super) fn bits(self) -> u8 {
        self.0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.0 & (1 << *kind as u8) != 0)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

/// What may be leased: any of some kinds, and grants only of one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The kinds.
    pub kinds: Kinds,
    /// The template of the message where grants are among them.
    pub template: Option<TemplateId>,
}

impl Wanted {
    /// Form ids and prepay ids, or one of them.
    pub fn ids(kinds: Kinds) -> Self {
        Self { kinds, template: None }
    }

    /// Grants of a template.
    pub fn grants(template: TemplateId) -> Self {
        Self { kinds: Kinds::GRANTS, template: Some(template) }
    }

    /// Of these, only some kinds.
    #[must_use]
    pub fn only(&self, kinds: Kinds) -> Self {
        Self { kinds, ..self.clone() }
    }

    /// The template as the scripts have it: empty where there is none.
    pub(super) fn template(&self) -> &str {
        self.template.as_ref().map_or("", TemplateId::as_str)
    }
}
