//! Extracts the names in a client's certificate, which the TLS handshake has verified. They identify the caller.
//!
//! URI names (as in SPIFFE) and DNS names of the subject alternative name are used as they are written. The common name
//! is used only if a certificate has neither, because certificate authorities treat the common name as a mere label.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The DER tags on the path to a common name.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// UTF8String, PrintableString and IA5String: the string types whose bytes are ASCII or UTF-8.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// The DER encoding of the object identifier 2.5.4.3 (common name).
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// Returns the names in a certificate. Returns none if the certificate cannot be parsed.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let names: Vec<String> =
        certificate.valid_uri_names().chain(certificate.valid_dns_names()).map(String::from).collect();
    if names.is_empty() { common_name(certificate.subject()).map(String::from).into_iter().collect() } else { names }
}

/// Returns the single common name of a subject (without its outer tag). Returns `None` if there are several, because
/// none of them takes precedence.
fn common_name(mut subject: &[u8]) -> Option<&str> {
    let mut found = None;
    while !subject.is_empty() {
        let mut relative = take(&mut subject, SET)?;
        while !relative.is_empty() {
            let mut attribute = take(&mut relative, SEQUENCE)?;
            if take(&mut attribute, OBJECT_IDENTIFIER)? == COMMON_NAME {
                let tag = TEXTS.into_iter().find(|tag| attribute.first() == Some(tag))?;
                let name = std::str::from_utf8(take(&mut attribute, tag)?).ok()?;
                if found.replace(name).is_some() {
                    return None;
                }
            }
        }
    }
    found.filter(|name| !name.is_empty())
}

/// Takes the element at the front of `bytes` and returns its content if it has this tag. `bytes` keeps what follows it.
fn take<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&[found, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        0x82 => rest.split_first_chunk::<2>().map(|(length, rest)| (usize::from(u16::from_be_bytes(*length)), rest))?,
        // A name is never longer, and DER does not allow the indefinite form.
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    (found == tag).then_some(content)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;

    fn certificate(common_names: &[&str], alternatives: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "a team");
        for name in common_names {
            params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String((*name).to_owned()));
        }
        params.subject_alt_names = alternatives;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn common_name_is_ignored_beside_uri_and_dns_names() {
        let alternatives = vec![
            SanType::URI("spiffe://prod/orders".try_into().unwrap()),
            SanType::DnsName("orders.internal".try_into().unwrap()),
            SanType::IpAddress([10, 0, 0, 7].into()),
        ];
        assert_eq!(names(&certificate(&["admin"], alternatives)), ["spiffe://prod/orders", "orders.internal"]);
    }

    #[test]
    fn common_name_is_used_if_there_is_no_other_name() {
        assert_eq!(names(&certificate(&["订单"], Vec::new())), ["订单"]);
        assert_eq!(names(&certificate(&[&"x".repeat(200)], Vec::new())), ["x".repeat(200)]);
        assert!(names(&certificate(&[], Vec::new())).is_empty());
        assert!(names(&certificate(&[""], Vec::new())).is_empty());
    }

    #[test]
    fn two_common_names_are_both_ignored() {
        let cn = |name: &str| {
            let text = [&[0x0c, name.len() as u8], name.as_bytes()].concat();
            let pair = [&[0x06, 3][..], &COMMON_NAME, &text].concat();
            let sequence = [&[SEQUENCE, pair.len() as u8][..], &pair].concat();
            [&[SET, sequence.len() as u8][..], &sequence].concat()
        };
        assert_eq!(common_name(&cn("a")), Some("a"));
        assert_eq!(common_name(&[cn("a"), cn("b")].concat()), None);
        assert_eq!(common_name(&[cn("a"), vec![0x31, 0x80]].concat()), None);
    }

    proptest! {
        #[test]
        fn garbage_gives_no_name_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = common_name(&bytes);
            prop_assert!(names(&CertificateDer::from(bytes)).is_empty());
        }
    }
}
