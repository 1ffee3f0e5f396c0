//! The packed format of a user's field. The Lua twins describe it byte by byte: `lua/head/records.lua`, `touched.lua`
//! for the last-messaged record (the touch), `mark.lua` for the send lock (the mark), and `rest.lua` for credentials that
//! rest. Property tests check that both sides agree.

use crate::retention::KEEP_TOUCH;
use domain::{Credential, CredentialId, Grant, GrantUses, Kind, MAX_GRANT, TemplateId};

/// Maximum number of uses of one record (five bits).
pub const MAX_USES: u8 = 31;

/// The expiry of a record that does not expire.
pub const NEVER: u32 = u32::MAX;

const SUSPECT: u8 = 1 << 5;
const KIND_SHIFT: u8 = 6;
const HEX: u8 = 1 << 7;
/// Expiry, flags, and the length byte.
const OVERHEAD: usize = 6;
/// The flags and the tail of a last-messaged record: kind 3, no uses, and an id that no credential has.
const TOUCH: (u8, &[u8]) = (3 << KIND_SHIFT, &[0, 0]);
/// The flags of a send lock and the last byte of its tail. Its id is the owner of a lease.
const MARK: (u8, u8) = (3 << KIND_SHIFT, 15);
/// The flags of the record that marks a resting prepay id, and how its id begins. A hash of the prepay id's tail follows.
const REST: (u8, &[u8]) = ((Kind::PrepayId as u8) << KIND_SHIFT, b"resting:");
/// The difference between the expiry of a grant's record and the end of its rest, in seconds.
const REST_SPAN: u32 = 1 << 30;
/// The last byte of the id of a long-term subscription. Other grants have higher values.
const LONG_TERM: u8 = 127;

/// A record as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The credential, with its remaining uses.
    pub credential: Credential,
    /// The credential was leased for a message that is gone, and that message may have used it.
    pub suspect: bool,
    /// A grant that is not used up by a message.
    pub long_term: bool,
    /// When the rest of the credential ends, in seconds since 1970. A grant keeps this time after its rest, until the
    /// next answer of WeChat or the next accept.
    pub rest: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    #[error("a record is truncated")]
    CutOff,
    #[error("a record of unknown kind {0}")]
    UnknownKind(u8),
    #[error("an id that is not text")]
    BadId,
}

/// Packs one form id or prepay id into `out`.
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

/// How the collect script recognizes a grant that was collected before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// By the stored record: it is a long-term subscription.
    Itself = 0,
    /// By the caller's dedup key, which is kept for a day.
    Key = SUSPECT as isize,
    /// By a key made for one call, which is kept while that call may be resent.
    Call = SUSPECT as isize + 1,
    /// By the dedup key of an event of WeChat, see [`pack_accept`].
    Event = SUSPECT as isize + 2,
}

/// Packs a grant in the form that the collect script takes. It has the count in place of the expiry, unlike a stored
/// record.
pub fn pack_grant(grant: &Grant, known: Known) -> Vec<u8> {
    let count = match grant.uses {
        // A count of 0 would be read as a long-term subscription.
        GrantUses::Count(count) => u32::from(count.clamp(1, MAX_GRANT)),
        GrantUses::LongTerm => 0,
    };
    pack_item(count, known, &grant.template)
}

/// Packs one use that the user accepted at this time, in seconds since 1970, in the form that the collect script takes.
/// It has the time in place of the count.
pub fn pack_accept(template: &TemplateId, at: u32) -> Vec<u8> {
    pack_item(at, Known::Event, template)
}

fn pack_item(number: u32, known: Known, template: &TemplateId) -> Vec<u8> {
    let template = template.as_str().as_bytes();
    let mut item = Vec::with_capacity(OVERHEAD + template.len());
    item.extend_from_slice(&number.to_be_bytes());
    item.push(((Kind::Grant as u8) << KIND_SHIFT) | known as u8);
    item.extend_from_slice(template);
    item.push((template.len() - 1) as u8);
    item
}

/// Reads the credentials of a field, soonest expiry first.
pub fn unpack(field: &[u8]) -> impl Iterator<Item = Result<Record, Corrupt>> {
    let rests: Vec<_> = parts(field).flatten().filter(|part| part.is_rest()).collect();
    let other = |part: Part<'_>| part.is_touch() || part.is_mark() || part.is_rest();
    parts(field).filter(move |part| !part.is_ok_and(other)).map(move |part| {
        let Part { flags, expiry, tail } = part?;
        let mut record = read(flags, expiry, tail)?;
        if record.credential.kind == Kind::PrepayId && !rests.is_empty() {
            let (_, begin) = REST;
            let hash = format!("{:08x}", hash(tail));
            let mark = rests.iter().find(|rest| rest.tail[begin.len()..].starts_with(hash.as_bytes()));
            record.rest = mark.map(|mark| mark.expiry);
        }
        Ok(record)
    })
}

/// Identifies a prepay id among those of its user, by the tail of its record.
fn hash(tail: &[u8]) -> u32 {
    tail.iter().fold(0, |hash: u32, byte| hash.wrapping_mul(31).wrapping_add((*byte).into()))
}

/// When the user of a field was last sent a message, in seconds since 1970; `None` if that is no longer known.
pub fn touched(field: &[u8]) -> Result<Option<u32>, Corrupt> {
    for part in parts(field) {
        let part = part?;
        if part.is_touch() {
            return Ok(Some(part.expiry.saturating_sub(KEEP_TOUCH.as_secs() as u32)));
        }
    }
    Ok(None)
}

/// A record within a field: a credential, the last-messaged record, the send lock, or the mark of a resting prepay id.
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

    fn is_mark(self) -> bool {
        self.tail.last().is_some_and(|last| (self.flags, *last) == MARK)
    }

    fn is_rest(self) -> bool {
        let (flags, begin) = REST;
        self.flags == flags && self.tail.starts_with(begin) && self.tail.last() == Some(&15)
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

/// Reads one record from its flags, its expiry, and its tail (id and length byte), as the scripts return them.
pub fn read(flags: u8, expiry: u32, tail: &[u8]) -> Result<Record, Corrupt> {
    let (length, id) = tail.split_last().ok_or(Corrupt::CutOff)?;
    let kind = *Kind::ALL.get(usize::from(flags >> KIND_SHIFT)).ok_or(Corrupt::UnknownKind(flags >> KIND_SHIFT))?;
    let (id, long_term) = match (kind, id.split_last()) {
        (Kind::Grant, Some((slot, template))) => (template_of(template)?.into(), *slot == LONG_TERM),
        _ => (id_of(id, length & HEX != 0)?, false),
    };
    let flagged = flags & SUSPECT != 0;
    let (suspect, rest, expiry) = match kind {
        Kind::Grant => (false, flagged.then(|| expiry.saturating_sub(REST_SPAN)), NEVER),
        Kind::FormId | Kind::PrepayId => (flagged, None, expiry),
    };
    let credential = Credential { kind, id, uses: flags & MAX_USES, expiry };
    Ok(Record { credential, suspect, long_term, rest })
}

fn template_of(bytes: &[u8]) -> Result<TemplateId, Corrupt> {
    let text = std::str::from_utf8(bytes).map_err(|_| Corrupt::BadId)?;
    TemplateId::existing(text).map_err(|_| Corrupt::BadId)
}

fn id_of(bytes: &[u8], hex: bool) -> Result<CredentialId, Corrupt> {
    let text = if hex {
        bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    } else {
        String::from_utf8(bytes.to_vec()).map_err(|_| Corrupt::BadId)?
    };
    CredentialId::existing(text).map_err(|_| Corrupt::BadId)
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
    fn form_id_of_32_hex_digits_takes_22_bytes() {
        let mut field = Vec::new();
        pack(&credential(Kind::FormId, "0123456789abcdef0123456789abcdef", 1, 1_800_000_000), &mut field);
        assert_eq!(field.len(), 22);
    }

    #[test]
    fn truncated_field_is_an_error_and_not_a_panic() {
        let mut field = Vec::new();
        pack(&credential(Kind::FormId, "1519876543210", 1, 1), &mut field);
        for cut in 1..field.len() {
            assert!(unpack(&field[cut..]).any(|record| record.is_err()), "cut at {cut}");
        }
    }

    #[test]
    fn last_messaged_record_is_not_confused_with_credentials() {
        let mut field = Vec::new();
        pack(&credential(Kind::FormId, "1519876543210", 1, 2_000_000_000), &mut field);
        assert_eq!(touched(&field), Ok(None));
        field.extend([&1_800_604_800_u32.to_be_bytes()[..], &[192, 0, 0]].concat());
        pack(&credential(Kind::PrepayId, "00", 3, 1_700_000_000), &mut field);
        assert_eq!(touched(&field), Ok(Some(1_800_000_000)));
        assert_eq!(unpack(&field).map(|record| record.unwrap().credential.uses).collect::<Vec<_>>(), [3, 1]);
        let unknown = Corrupt::UnknownKind(3);
        for (flags, tail, corrupt) in [(193, [0, 0], unknown), (192, [1, 0], unknown), (128, [0, 0], Corrupt::BadId)] {
            let other = [&[0; 4][..], &[flags], &tail].concat();
            assert_eq!(touched(&other), Ok(None));
            assert_eq!(unpack(&other).collect::<Vec<_>>(), [Err(corrupt)]);
        }
    }

    #[test]
    fn send_lock_is_neither_a_credential_nor_last_messaged() {
        let mark = [&1_800_000_000_u32.to_be_bytes()[..], &[192], &[7; 16], &[15]].concat();
        assert_eq!((unpack(&mark).count(), touched(&mark)), (0, Ok(None)));
        let other = [&1_800_000_000_u32.to_be_bytes()[..], &[193], &[7; 16], &[15]].concat();
        assert_eq!(unpack(&other).collect::<Vec<_>>(), [Err(Corrupt::UnknownKind(3))]);
    }

    #[test]
    fn resting_grant_does_not_expire_and_is_not_suspect() {
        let read = |flags, expiry| read(flags, expiry, b"t1\x80\x02").unwrap();
        let resting = read(128 + 32 + 3, 1_800_000_000 + (1 << 30));
        assert_eq!((resting.rest, resting.suspect), (Some(1_800_000_000), false));
        assert_eq!((resting.credential.expiry, resting.credential.uses), (NEVER, 3));
        assert_eq!(read(128 + 3, NEVER).rest, None);
    }

    #[test]
    fn grant_reads_back_with_its_template_for_any_template_id() {
        for (id, slot, long_term) in [("t1", 128, false), ("abc", 247, false), ("requestFormId:fail", 127, true)] {
            let tail = [id.as_bytes(), &[slot, id.len() as u8]].concat();
            let record = read(128 + 5, NEVER, &tail).unwrap();
            assert_eq!((record.credential.id.as_str(), record.long_term), (id, long_term));
            assert_eq!((record.credential.kind, record.credential.uses), (Kind::Grant, 5));
        }
        assert_eq!(read(128 + 5, NEVER, b"t\xff\x80\x02"), Err(Corrupt::BadId));
    }

    #[test]
    fn out_of_range_count_never_reads_as_a_long_term_grant() {
        let template = TemplateId::parse("t1").unwrap();
        let item = |uses, known| pack_grant(&Grant { template: template.clone(), uses }, known);
        for (uses, count) in [(0, 1_u32), (1, 1), (1000, 1000), (u16::MAX, 1000)] {
            assert_eq!(item(GrantUses::Count(uses), Known::Call), [&count.to_be_bytes()[..], b"\xa1t1\x01"].concat());
        }
        assert_eq!(item(GrantUses::LongTerm, Known::Key), [&[0; 4][..], b"\xa0t1\x01"].concat());
        assert_eq!(pack_accept(&template, 7), [&7_u32.to_be_bytes()[..], b"\xa2t1\x01"].concat());
    }

    #[test]
    fn id_that_an_older_release_accepted_is_read_back() {
        for id in ["undefined", "null", "NaN", "requestFormId:fail", "prepay_id=wx1"] {
            let mut field = Vec::new();
            let id = CredentialId::existing(id).unwrap();
            pack(&Credential { kind: Kind::PrepayId, id: id.clone(), uses: 1, expiry: 1 }, &mut field);
            field.extend([&[255; 4][..], b"\x81undefined\x80\x09"].concat());
            let ids: Vec<_> = unpack(&field).map(|record| record.unwrap().credential.id).collect();
            assert_eq!(ids, [CredentialId::existing("undefined").unwrap(), id]);
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
        fn parsing_arbitrary_bytes_never_panics(field: Vec<u8>) {
            let _ = unpack(&field).count();
            let _ = touched(&field);
        }
    }
}
