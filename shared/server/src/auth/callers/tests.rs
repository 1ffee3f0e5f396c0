use http::HeaderValue;

use super::*;
use crate::auth::caller::{self, Caller};
use crate::auth::permission::Permission;
use crate::rpc::status::Failure;
use domain::AppId;

const FILE_TEXT: &str = "[callers.a]\ntoken_sha256 = ['TOKEN_A', 'TOKEN_A2']\napps = ['wx1']\npermissions = ['send']\n\
    [callers.b]\ntoken_sha256 = ['TOKEN_B']\ncertificate_names = ['spiffe://b', 'b.internal']\napps = ['*']\n\
    permissions = ['read']\ncalls_per_second = 0.01\n[callers.c]\ncertificate_names = ['c']\napps = ['*']\npermissions = ['send']";

fn hex(token: &str) -> String {
    TokenHash::of(token.as_bytes()).0.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text() -> String {
    FILE_TEXT.replace("TOKEN_A2", &hex("a2")).replace("TOKEN_A", &hex("a")).replace("TOKEN_B", &hex("b"))
}

fn callers() -> (tempfile::NamedTempFile, Arc<Callers>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text()).unwrap();
    let callers = Callers::read(file.path(), &mut ConfigErrors::default()).unwrap();
    (file, Arc::new(callers))
}

fn headers(authorization: &[&str]) -> HeaderMap {
    authorization.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap())).collect()
}

fn names(names: &[&str]) -> Arc<[String]> {
    names.iter().map(ToString::to_string).collect()
}

fn outcome(admitted: Result<Caller, Failure>) -> String {
    match admitted {
        Ok(caller) => caller.name().to_owned(),
        Err(failure) => failure.reason().to_owned(),
    }
}

#[test]
fn token_hash_is_64_hex_digits_in_either_case() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert!(TokenHash::parse(empty) == Some(TokenHash::of(b"")));
    assert!(TokenHash::parse(&empty.to_uppercase()) == Some(TokenHash::of(b"")));
    for bad in ["", &empty[1..], &format!("{empty}0"), &empty.replace('e', "g"), &empty.replace('e', "é")] {
        assert!(TokenHash::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn only_a_well_formed_bearer_token_identifies_its_caller() {
    let (_file, callers) = callers();
    let admit = |authorization: &[&str]| outcome(callers.admit(&headers(authorization), None, &[]));
    assert_eq!([admit(&["Bearer a"]), admit(&["bearer a2"]), admit(&["Bearer b"])], ["a", "a", "b"]);
    for bad in [
        &[][..],
        &["Bearer"],
        &["Bearer "],
        &["Bearer x"],
        &["Bearer  a"],
        &["Basic a"],
        &["a"],
        &["Bearer a", "Bearer a"],
        &[&format!("Bearer {}", hex("a"))],
    ] {
        assert_eq!(admit(bad), "UNAUTHENTICATED", "{bad:?}");
    }
}

#[test]
fn certificate_is_rejected_for_two_callers_and_ignored_with_token() {
    let (_file, callers) = callers();
    let admit = |authorization: &[&str], given: &[&str]| {
        outcome(callers.admit(&headers(authorization), Some(&names(given)), &[]))
    };
    assert_eq!(admit(&[], &["spiffe://b", "b.internal", "other"]), "b");
    assert_eq!(admit(&[], &["c"]), "c");
    for bad in [&[][..], &["B.internal"], &["other"], &["c", "spiffe://b"]] {
        assert_eq!(admit(&[], bad), "UNAUTHENTICATED", "{bad:?}");
    }
    assert_eq!(admit(&["Bearer a"], &["c"]), "a");
    assert_eq!(admit(&["Bearer x"], &["c"]), "UNAUTHENTICATED");
    assert_eq!(callers.without_token(), ["c"]);
}

#[test]
fn any_needed_permission_is_enough_and_the_error_names_the_first() {
    let (_file, callers) = callers();
    let admit = |needs| callers.admit(&headers(&["Bearer a"]), None, needs);
    assert!(admit(&[Permission::Read, Permission::Send]).is_ok());
    let refused = admit(&[Permission::Read, Permission::Broadcast]).unwrap_err();
    assert_eq!(refused, caller::not_permitted(Permission::Read));
    let caller = admit(&[]).unwrap();
    assert!(caller.needs(Permission::Send).is_ok() && caller.needs(Permission::BroadcastAll).is_err());
    assert!(caller.may_use(&AppId::parse("wx1").unwrap()) && !caller.may_use(&AppId::parse("wx2").unwrap()));
    assert!(Caller::anonymous().needs(Permission::BroadcastAll).is_ok());
}

#[test]
fn rate_limit_is_not_reset_when_the_callers_file_changes() {
    let (_file, callers) = callers();
    let admit = |callers: &Arc<Callers>| outcome(callers.admit(&headers(&["Bearer b"]), None, &[Permission::Read]));
    assert_eq!([admit(&callers), admit(&callers)], ["b", "RATE_LIMITED"]);
    let changed = format!("{}\n[callers.d]\ncertificate_names = ['d']\napps = ['*']\npermissions = ['send']", text());
    let book = Directory::read(changed.as_bytes(), Some(&callers.book())).unwrap();
    *callers.book.write().unwrap() = Arc::new(book);
    assert_eq!(admit(&callers), "RATE_LIMITED");
}

#[test]
fn renewed_fails_after_the_caller_is_removed_from_the_file() {
    let (_file, callers) = callers();
    let caller = callers.admit(&headers(&["Bearer a2"]), None, &[Permission::Send]).unwrap();
    let replace =
        |text: String| *callers.book.write().unwrap() = Arc::new(Directory::read(text.as_bytes(), None).unwrap());
    assert_eq!(outcome(caller.renewed()), "a");
    replace(text().replace("permissions = ['send']", "permissions = ['erase']"));
    assert_eq!(outcome(caller.renewed()), "NOT_PERMITTED");
    replace(text().replace("wx1", "wx2"));
    assert!(caller.renewed().unwrap().may_use(&AppId::parse("wx2").unwrap()));
    replace(text().replace(&hex("a2"), &hex("a3")));
    assert_eq!(outcome(caller.renewed()), "UNAUTHENTICATED");
}
