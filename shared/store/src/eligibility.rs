//! Which credentials may be leased for a message.

use domain::{Kind, TemplateId};

/// A set of kinds of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    pub const NONE: Self = Self(0);
    /// The kinds that template messages spend.
    pub const IDS: Self = Self::NONE.with(Kind::FormId).with(Kind::PrepayId);
    /// The kind that subscription messages spend.
    pub const GRANTS: Self = Self::NONE.with(Kind::Grant);

    #[must_use]
    pub const fn with(self, kind: Kind) -> Self {
        Self(self.0 | 1 << kind as u8)
    }

    /// One bit for each kind, as the scripts take it.
    pub(super) fn bits(self) -> u8 {
        self.0
    }

    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.0 & (1 << *kind as u8) != 0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

/// Which credentials may be leased: any of some kinds, and grants only of one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eligibility {
    pub kinds: Kinds,
    /// The template of the message, if grants are allowed.
    pub template: Option<TemplateId>,
}

impl Eligibility {
    /// Form ids, prepay ids, or both.
    pub fn ids(kinds: Kinds) -> Self {
        Self { kinds, template: None }
    }

    pub fn grants(template: TemplateId) -> Self {
        Self { kinds: Kinds::GRANTS, template: Some(template) }
    }

    #[must_use]
    pub fn only(&self, kinds: Kinds) -> Self {
        Self { kinds, ..self.clone() }
    }

    /// The template as the scripts take it: empty if there is none.
    pub(super) fn template(&self) -> &str {
        self.template.as_ref().map_or("", TemplateId::as_str)
    }
}
