//! Dedup keys, for grants and events that must count once.

use sha1_smol::Sha1;
use store::credentials::OnceKey;

/// The first 16 bytes of the SHA-1 of the parts, each preceded by its length in bytes as a big-endian u32. This is part
/// of the stored format: other versions of this program must compute the same key. The first part names the purpose of
/// the key.
pub fn key(parts: &[&str]) -> OnceKey {
    let [key @ .., _, _, _, _] = Sha1::from(join(parts)).digest().bytes();
    OnceKey(key)
}

/// Joins parts so that different lists of parts never give the same bytes.
fn join(parts: &[&str]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(parts.iter().map(|part| 4 + part.len()).sum());
    for part in parts {
        // A part comes from a request of bounded length, so its length is far below 4 GiB.
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

    /// Splits joined parts again.
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
        fn joined_parts_can_be_split_again(strings in vec("\\PC{0,8}", 0..6)) {
            let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
            let joined = join(&strings);
            prop_assert_eq!(parts(&joined), strings.iter().map(|part| part.as_bytes()).collect::<Vec<_>>());
        }
    }
}
