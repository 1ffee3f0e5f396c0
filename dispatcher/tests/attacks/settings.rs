//! Settings that would panic or overflow later.

use clap::{CommandFactory as _, Parser as _};
use dispatcher::settings::{Args, Settings};

/// The error for these settings, if there is one.
fn refused(app: &str, flags: &[&str]) -> Option<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("[apps.wx1]\nsecret = 's'\n{app}")).unwrap();
    let given = ["dispatcher", "--apps-file", file.path().to_str().unwrap()];
    Settings::read(&Args::parse_from(given.iter().chain(flags))).err().map(|error| error.to_string())
}

#[test]
fn durations_that_could_overflow_are_refused() {
    let command = Args::command();
    let flags = testing::duration_flags(&command);
    assert!(flags.len() > 10, "{flags:?}");
    for flag in flags {
        let told = refused("", &[&flag, "584542046090y"]);
        assert!(told.as_ref().is_some_and(|told| told.contains(&flag)), "{flag}: {told:?}");
    }
    // A third of the lease is the period of a timer, which must not be zero.
    let told = refused("timeout = '1ns'\nconnect_timeout = '1ns'", &["--lease", "2ns"]);
    assert!(told.as_ref().is_some_and(|told| told.contains("--lease")), "{told:?}");
}

#[test]
fn extreme_numbers_of_an_app_are_refused() {
    for (key, values) in [
        ("connect_timeout", &["'584542046090y'", "'0s'"][..]),
        ("timeout", &["'584542046090y'", "'0s'"]),
        ("daily_quota", &["-1", "1e300", "nan"]),
        ("messages_per_second", &["-1", "1_000_001", "1e-300", "1e300", "nan"]),
        ("reserved_for_sends", &["-1e-300", "1.0", "1e300", "nan", "inf"]),
    ] {
        for value in values {
            let told = refused(&format!("{key} = {value}"), &[]);
            assert!(told.as_ref().is_some_and(|told| told.contains(key)), "{key} = {value}: {told:?}");
        }
    }
}
