//! `byred`: the node's services in one static program, so that they share its pages. `byred <service>` is one of them.
//!
//! PID 1 starts each as a workload of its own, with its own uid, limits and Landlock rules; here only the name is looked up. A service
//! takes its descriptors, seals itself and serves; when it ends, PID 1 starts it anew, so a failure is a line on stderr and exit code 1.
//! Nothing here parses outside input. The helpers at the end of the table run inside a container, as its user, and are no services.

mod api;
mod copy;
mod fetch;
mod image;
mod init;
mod pull;

use std::error::Error;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

/// What a name stands for: arguments behind the name in, exit code out.
type Run = fn(&[OsString]) -> Result<ExitCode, Box<dyn Error>>;

/// The services and helpers, by name.
const TABLE: [(&str, Run); 15] = [
    ("api", |_| ended(api::run())),
    ("config", |_| ended(byre_config::run())),
    ("image", |_| ended(image::run())),
    ("log", |_| ended(byre_log::run())),
    ("net", |_| ended(byre_net::run())),
    ("podnet", |_| ended(byre_podnet::run())),
    ("probe", |_| ended(byre_probe::run())),
    ("pull", |_| ended(pull::run())),
    ("state", |_| ended(byre_state::run())),
    ("stats", |_| ended(byre_stats::run())),
    ("time", |_| ended(byre_time::run())),
    ("update", |_| ended(byre_update::run())),
    ("cp-in", |arguments| ended(copy::into(arguments))),
    ("cp-out", |arguments| ended(copy::out_of(arguments))),
    ("init", |arguments| Ok(init::run(arguments)?)),
];

fn ended<E: Error + 'static>(result: Result<(), E>) -> Result<ExitCode, Box<dyn Error>> {
    Ok(result.map(|()| ExitCode::SUCCESS)?)
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Some((name, run, rest)) = chosen(&arguments) else {
        eprintln!("byred: the first argument names what to run: {}", TABLE.map(|(name, _)| name).join(", "));
        return ExitCode::from(2);
    };
    match run(rest) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("byred {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The entry that the arguments name, and the arguments behind the name. A helper is executed by descriptor and has its name as the
/// first word already.
fn chosen(arguments: &[OsString]) -> Option<(&'static str, Run, &[OsString])> {
    let entry = |word: &OsString| {
        let (name, run) = TABLE.iter().find(|(name, _)| word.as_bytes() == name.as_bytes())?;
        Some((*name, *run))
    };
    let (first, rest) = arguments.split_first()?;
    if let Some((name, run)) = entry(first) {
        return Some((name, run, rest));
    }
    let (second, rest) = rest.split_first()?;
    let (name, run) = entry(second)?;
    Some((name, run, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_first_or_the_second_word() {
        let chosen_name = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            chosen(&words).map(|(name, _, rest)| (name, rest.len()))
        };
        assert_eq!(chosen_name(&["/usr/bin/byred", "log"]), Some(("log", 0)));
        assert_eq!(chosen_name(&["cp-in", "/tmp"]), Some(("cp-in", 1)));
        assert_eq!(chosen_name(&["init", "--", "log"]), Some(("init", 2)));
        assert_eq!(chosen_name(&["byred"]), None);
        assert_eq!(chosen_name(&["byred", "logs"]), None);
    }
}
