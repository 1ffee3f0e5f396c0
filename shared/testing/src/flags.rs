//! Compares the tables of settings in the READMEs with the flags of the services.

use crate::readme;

/// The differences between the flags of a service and the tables of settings: those of both services in
/// `deploy/README.md`, those of one service in its own README. A row is missing, or has another variable or default.
pub fn flags_amiss(command: &clap::Command) -> Vec<String> {
    let own = readme::text(&format!("{}/README.md", command.get_name()));
    let readmes = readme::text("deploy/README.md") + &own;
    let rows: Vec<Vec<&str>> =
        readmes.lines().filter(|line| line.starts_with("| `--")).map(|line| line.split('|').collect()).collect();
    let mut amiss = Vec::new();
    for argument in command.get_arguments() {
        let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else { continue };
        let (flag, variable) = (format!("`--{flag}`"), format!("`{}`", variable.display()));
        let Some([_, _, variables, default, ..]) =
            rows.iter().find(|row| row[1].contains(&flag) && row[2].contains(&variable)).map(Vec::as_slice)
        else {
            amiss.push(format!("{flag} has no row that names {variable}"));
            continue;
        };
        // The README describes an empty default in words, and a switch is off by default.
        let values: Vec<_> = argument.get_default_values().iter().filter_map(|value| value.to_str()).collect();
        let value = values.concat();
        if !value.is_empty() && value != "false" && !default.split([' ', ',', '`']).any(|word| word == value) {
            amiss.push(format!("{variables} is {value} by default, and not {default}"));
        }
    }
    amiss
}

/// The flags of a service that take a duration, according to their help.
pub fn duration_flags(command: &clap::Command) -> Vec<String> {
    let takes_one =
        |argument: &&clap::Arg| argument.get_help().is_some_and(|help| help.to_string().contains("(duration"));
    let flags = command.get_arguments().filter(takes_one).filter_map(clap::Arg::get_long);
    flags.map(|flag| format!("--{flag}")).collect()
}
