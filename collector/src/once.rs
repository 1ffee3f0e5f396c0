//! What the repetition of something is known by, where it must count once.

use sha1_smol::Sha1;
use shared::store::credentials::OnceKey;

/// The first 16 bytes of the SHA-1 of the parts, each after its length in bytes as a big-endian u32. This is part of the
/// stored format: another version of this program must find what this one stored. The first part says what it is the
/// repetition of.
pub fn key(parts: &[&str]) -> OnceKey {
    let [key @ .., _, _, _, _] = Sha1::from(join(parts)).digest().bytes();
    OnceKey(key)
}

/// Joins parts so that no two lists of parts are joined to the same bytes.
fn join(parts: &[&str]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(parts.iter().map(|part| 4 + part.len()).sum());
    for part in parts {
        // A part comes from a request of a bounded length: it is far from 4 GiB.
        joined.extend((part.len() as u32).to_be_bytes());
        joined.extend(part.as_bytes());
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What was joined, taken apart.
    fn parts(mut joined: &[u8]) -> Vec<&[u8]> {
        let mut parts = Vec::new();
        while let Some((length, rest)) = joined.split_first_chunk() {
            let (part, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
            parts.push(part);
            joined = rest;
        }
        parts
    }

    proptest! {
        #[test]
        fn what_was_joined_can_be_taken_apart_again(strings in vec("\\PC{0,8}", 0..6)) {
            let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
            let joined = join(&strings);
            prop_assert_eq!(parts(&joined), strings.iter().map(|part| part.as_bytes()).collect::<Vec<_>>());
        }
    }
}
