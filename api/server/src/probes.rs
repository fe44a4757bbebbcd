//! Probes as clients ask for them, in the protocol's words. Pure.

use byre_api::proto;
use byre_protocol::definition::{Readiness, ReadyWhen};
use byre_protocol::probe::{Aim, Check, Probe};
use tonic::Status;

use crate::convert;

/// One probe, if the client gave it.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the field and the remedy.
pub(crate) fn probe(asked: Option<&proto::Probe>, aim: Aim) -> Result<Option<Probe>, Status> {
    let Some(asked) = asked else { return Ok(None) };
    let invalid = |text: String| Status::invalid_argument(text);
    let port = |port: u32| {
        u16::try_from(port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| invalid(format!("port {port} of the {aim} probe is not 1 to 65535")))
    };
    let check = match &asked.check {
        Some(proto::probe::Check::TcpPort(number)) => Check::Tcp { port: port(*number)? },
        Some(proto::probe::Check::Http(http)) => {
            let path = if http.path.is_empty() { "/".to_owned() } else { http.path.clone() };
            Check::Http { port: port(http.port)?, path }
        }
        Some(proto::probe::Check::Grpc(grpc)) => Check::Grpc { port: port(grpc.port)?, service: grpc.service.clone() },
        Some(proto::probe::Check::Exec(exec)) => Check::Exec { args: exec.args.clone() },
        None => return Err(invalid(format!("the {aim} probe asks nothing: give tcp_port, http, grpc or exec"))),
    };
    let usual = Probe::of(check);
    let duration = |asked: Option<&prost_types::Duration>, what: &str, usual: u32| {
        let asked = asked.map(|duration| convert::duration_ms(duration, &format!("{what} of the {aim} probe")));
        Ok::<_, Status>(asked.transpose()?.filter(|ms| *ms != 0).unwrap_or(usual))
    };
    let times = |asked: u32, usual: u16| if asked == 0 { usual } else { u16::try_from(asked).unwrap_or(u16::MAX) };
    let probe = Probe {
        initial_delay_ms: duration(asked.initial_delay.as_ref(), "initial_delay", 0)?,
        interval_ms: duration(asked.interval.as_ref(), "interval", usual.interval_ms)?,
        timeout_ms: duration(asked.timeout.as_ref(), "timeout", usual.timeout_ms)?,
        failures: times(asked.failures, usual.failures),
        successes: times(asked.successes, usual.successes),
        ..usual
    };
    match probe.refusal(aim) {
        None => Ok(Some(probe)),
        Some(refusal) => Err(invalid(refusal)),
    }
}

/// When it counts as ready.
///
/// # Errors
/// As for [`probe`].
pub(crate) fn readiness(asked: Option<&proto::Probe>) -> Result<Readiness, Status> {
    let when = probe(asked, Aim::Readiness)?.map_or(ReadyWhen::Started, ReadyWhen::Probe);
    Ok(Readiness { when, ..Readiness::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_as_usual_and_mistakes_are_named() {
        let asked = |check| proto::Probe { check: Some(check), failures: 5, ..proto::Probe::default() };
        let good = asked(proto::probe::Check::TcpPort(80));
        let made = probe(Some(&good), Aim::Liveness).unwrap().unwrap();
        assert_eq!(made, Probe { failures: 5, ..Probe::of(Check::Tcp { port: 80 }) });
        let says = |asked: &proto::Probe| probe(Some(asked), Aim::Liveness).unwrap_err().message().to_owned();
        assert!(says(&asked(proto::probe::Check::TcpPort(0))).contains("1 to 65535"));
        assert!(says(&proto::Probe::default()).contains("asks nothing"));
        assert!(says(&proto::Probe { failures: 5000, ..good }).contains("failures"));
        assert_eq!(readiness(None).unwrap(), Readiness::default());
    }
}
