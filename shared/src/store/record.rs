//! The packed format of a user's field. `scripts/head/records.lua` and, for the touch, `touch.lua` are its twins and
//! describe it byte by byte; property tests in `shared/tests` hold them against each other.

use std::time::Duration;

use crate::credential::{Credential, CredentialId, Kind};

/// The most uses one record can hold: five bits.
pub const MAX_USES: u8 = 31;

/// How long it is known when a user was last sent a message.
pub const KEEP_TOUCH: Duration = Duration::from_secs(7 * 24 * 3600);

const SUSPECT: u8 = 1 << 5;
const KIND_SHIFT: u8 = 6;
const HEX: u8 = 1 << 7;
/// Expiry, flags, and the length byte.
const OVERHEAD: usize = 6;
/// The flags and the tail of a touch: of kind 3, without uses, and with an id that no credential has.
const TOUCH: (u8, &[u8]) = (3 << KIND_SHIFT, &[0, 0]);

/// A record as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The right to send, with the uses that are left.
    pub credential: Credential,
    /// It was leased once for a message that is gone and may have used it.
    pub suspect: bool,
}

/// What of a stored record can not be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// The field ends in the middle of a record.
    #[error("a record is cut off")]
    CutOff,
    /// The kind is none that this release knows.
    #[error("a record of unknown kind {0}")]
    UnknownKind(u8),
    /// The id is not text.
    #[error("an id that is not text")]
    BadId,
}

/// Packs one credential into `out`.
pub fn pack(credential: &Credential, out: &mut Vec<u8>) {
    let id = credential.id.as_str();
    let hex = is_lowercase_hex(id);
    out.reserve_exact(OVERHEAD + if hex { id.len() / 2 } else { id.len() });
    out.extend_from_slice(&credential.expiry.to_be_bytes());
    out.push(((credential.kind as u8) << KIND_SHIFT) | credential.uses.min(MAX_USES));
    if hex {
        out.extend(id.as_bytes().chunks_exact(2).map(|pair| (nibble(pair[0]) << 4) | nibble(pair[1])));
        out.push((id.len() / 2 - 1) as u8 | HEX);
    } else {
        out.extend_from_slice(id.as_bytes());
        out.push((id.len() - 1) as u8);
    }
}

/// Reads the credentials of a field, the soonest to expire first.
pub fn unpack(field: &[u8]) -> impl Iterator<Item = Result<Record, Corrupt>> {
    parts(field).filter(|part| !part.is_ok_and(|part| part.is_touch())).map(|part| {
        let Part { flags, expiry, tail } = part?;
        read(flags, expiry, tail)
    })
}

/// When the user of a field was last sent a message, in seconds since 1970; nothing if that is not known any more.
pub fn touched(field: &[u8]) -> Result<Option<u32>, Corrupt> {
    for part in parts(field) {
        let part = part?;
        if part.is_touch() {
            return Ok(Some(part.expiry.saturating_sub(KEEP_TOUCH.as_secs() as u32)));
        }
    }
    Ok(None)
}

/// A record as it lies in a field: a credential, or the touch.
#[derive(Clone, Copy)]
struct Part<'a> {
    flags: u8,
    expiry: u32,
    tail: &'a [u8],
}

impl Part<'_> {
    fn is_touch(self) -> bool {
        (self.flags, self.tail) == TOUCH
    }
}

fn parts(mut field: &[u8]) -> impl Iterator<Item = Result<Part<'_>, Corrupt>> {
    std::iter::from_fn(move || {
        let length = *field.last()?;
        let size = usize::from(length & !HEX) + 1 + OVERHEAD;
        let Some(start) = field.len().checked_sub(size) else {
            field = &[];
            return Some(Err(Corrupt::CutOff));
        };
        let (rest, record) = field.split_at(start);
        field = rest;
        let expiry = u32::from_be_bytes([record[0], record[1], record[2], record[3]]);
        Some(Ok(Part { flags: record[4], expiry, tail: &record[5..] }))
    })
}

/// One record from its flags, its expiry, and its tail (id and length byte), as the scripts hand them out.
pub fn read(flags: u8, expiry: u32, tail: &[u8]) -> Result<Record, Corrupt> {
    let (length, id) = tail.split_last().ok_or(Corrupt::CutOff)?;
    let kind = *Kind::ALL.get(usize::from(flags >> KIND_SHIFT)).ok_or(Corrupt::UnknownKind(flags >> KIND_SHIFT))?;
    let text = if length & HEX == 0 {
        String::from_utf8(id.to_vec()).map_err(|_| Corrupt::BadId)?
    } else {
        id.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    };
    let id = CredentialId::parse(text).map_err(|_| Corrupt::BadId)?;
    let credential = Credential { kind, id, uses: flags & MAX_USES, expiry };
    Ok(Record { credential, suspect: flags & SUSPECT != 0 })
}

fn is_lowercase_hex(id: &str) -> bool {
    id.len().is_multiple_of(2) && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn nibble(digit: u8) -> u8 {
    if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 }
}

fn digit(nibble: u8) -> char {
    char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn credential(kind: Kind, id: &str, uses: u8, expiry: u32) -> Credential {
        Credential { kind, id: CredentialId::parse(id).unwrap(), uses, expiry }
    }

    #[test]
    fn a_form_id_of_32_hex_digits_takes_22_bytes() {
        let mut field = Vec::new();
        pack(&credential(Kind::FormId, "0123456789abcdef0123456789abcdef", 1, 1_800_000_000), &mut field);
        assert_eq!(field.len(), 22);
    }

    #[test]
    fn a_field_that_is_cut_off_is_an_error_and_no_panic() {
        let mut field = Vec::new();
        pack(&credential(Kind::FormId, "1519876543210", 1, 1), &mut field);
        for cut in 1..field.len() {
            assert!(unpack(&field[cut..]).any(|record| record.is_err()), "cut at {cut}");
        }
    }

    #[test]
    fn a_touch_is_no_credential_and_nothing_else_is_a_touch() {
        let mut field = Vec::new();
        pack(&credential(Kind::FormId, "1519876543210", 1, 2_000_000_000), &mut field);
        assert_eq!(touched(&field), Ok(None));
        field.extend([&1_800_604_800_u32.to_be_bytes()[..], &[192, 0, 0]].concat());
        pack(&credential(Kind::PrepayId, "00", 3, 1_700_000_000), &mut field);
        assert_eq!(touched(&field), Ok(Some(1_800_000_000)));
        assert_eq!(unpack(&field).map(|record| record.unwrap().credential.uses).collect::<Vec<_>>(), [3, 1]);
        for (flags, tail) in [(193, [0, 0]), (192, [1, 0]), (128, [0, 0])] {
            let other = [&[0; 4][..], &[flags], &tail].concat();
            assert_eq!(touched(&other), Ok(None));
            let records: Vec<_> = unpack(&other).collect();
            assert_eq!(records, [Err(Corrupt::UnknownKind(flags >> KIND_SHIFT))]);
        }
    }

    proptest! {
        #[test]
        fn every_credential_reads_back_as_it_was_packed(
            ids in prop::collection::vec("([0-9a-f]{2}){1,64}|[!-~]{1,128}", 1..10),
            uses in 0..=MAX_USES,
            expiry: u32,
            prepay: bool,
        ) {
            let kind = if prepay { Kind::PrepayId } else { Kind::FormId };
            let credentials: Vec<_> =
                ids.iter().filter_map(|id| CredentialId::parse(id.as_str()).ok())
                    .map(|id| Credential { kind, id, uses, expiry }).collect();
            let mut field = Vec::new();
            for credential in credentials.iter().rev() {
                pack(credential, &mut field);
            }
            let read: Vec<_> = unpack(&field).map(|record| record.unwrap().credential).collect();
            prop_assert_eq!(read, credentials);
        }

        #[test]
        fn no_bytes_make_it_panic(field: Vec<u8>) {
            let _ = unpack(&field).count();
            let _ = touched(&field);
        }
    }
}
