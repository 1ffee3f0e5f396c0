//! Settings that would cause a panic or an overflow later.

use clap::{CommandFactory as _, Parser as _};
use collector::settings::{Args, Settings};

use crate::fixture::APP;

#[test]
fn overlong_durations_are_refused() {
    let command = Args::command();
    let flags = testing::duration_flags(&command);
    assert!(flags.len() > 8, "{flags:?}");
    for flag in flags {
        let given = ["collector", "--apps", APP, &flag, "584542046090y"];
        let refused = Settings::read(&Args::parse_from(given)).err().map(|error| error.to_string());
        assert!(refused.as_ref().is_some_and(|told| told.contains(&flag)), "{flag}: {refused:?}");
    }
}
