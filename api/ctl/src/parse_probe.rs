//! A probe as one flag: `interval=2s,failures=5,http=80/healthz`. The check stands last; a command is split at spaces.

use byre_api::proto::probe::Check;
use byre_api::proto::{ExecCheck, GrpcCheck, HttpCheck, Probe};

use crate::parse;

const HELP: &str = "a probe is tcp=PORT, http=PORT/PATH, grpc=PORT[/SERVICE] or exec=COMMAND, with delay=, interval=, timeout=, \
                    failures= or successes= before it, as in interval=2s,tcp=80";

/// One probe.
pub(crate) fn probe(text: &str) -> Result<Probe, String> {
    let mut probe = Probe::default();
    let mut rest = text;
    loop {
        let (name, behind) = rest.split_once('=').ok_or(HELP)?;
        if let Some(check) = check(name, behind)? {
            probe.check = Some(check);
            return Ok(probe);
        }
        let (value, behind) = behind.split_once(',').ok_or(HELP)?;
        let duration = || parse::duration(value).map(|duration| prost_types::Duration::try_from(duration).ok());
        let number = || value.parse::<u32>().map_err(|_| format!("{name} is a number"));
        match name {
            "delay" => probe.initial_delay = duration()?,
            "interval" => probe.interval = duration()?,
            "timeout" => probe.timeout = duration()?,
            "failures" => probe.failures = number()?,
            "successes" => probe.successes = number()?,
            _ => return Err(HELP.into()),
        }
        rest = behind;
    }
}

fn check(name: &str, value: &str) -> Result<Option<Check>, String> {
    let port = |text: &str| text.parse::<u32>().map_err(|_| format!("{text:?} is no port"));
    let (number, behind) = value.split_once('/').unwrap_or((value, ""));
    Ok(Some(match name {
        "tcp" => Check::TcpPort(port(value)?),
        "http" => Check::Http(HttpCheck { port: port(number)?, path: format!("/{behind}") }),
        "grpc" => Check::Grpc(GrpcCheck { port: port(number)?, service: behind.to_owned() }),
        "exec" => Check::Exec(ExecCheck { args: value.split_whitespace().map(str::to_owned).collect() }),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_stands_last_and_the_rest_before_it() {
        let made = probe("interval=500ms,failures=2,delay=3s,http=8080/healthz?a=b,c").unwrap();
        assert_eq!(made.check, Some(Check::Http(HttpCheck { port: 8080, path: "/healthz?a=b,c".into() })));
        assert_eq!(
            (made.failures, made.interval.unwrap().nanos, made.initial_delay.unwrap().seconds),
            (2, 500_000_000, 3)
        );
        let exec = probe("exec=test -f /alive").unwrap().check;
        assert_eq!(exec, Some(Check::Exec(ExecCheck { args: vec!["test".into(), "-f".into(), "/alive".into()] })));
        assert_eq!(probe("grpc=9/a.b").unwrap().check, Some(Check::Grpc(GrpcCheck { port: 9, service: "a.b".into() })));
        for bad in ["", "tcp", "tcp=x", "interval=5s", "interval=5s,", "patience=1,tcp=1", "failures=x,tcp=1"] {
            assert!(probe(bad).is_err(), "{bad:?}");
        }
    }
}
