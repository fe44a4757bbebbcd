//! Signals by name and number, as signal(7) has them for x86-64 and arm64.

use tonic::Status;

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// SIGRTMIN as programs see it: the C library keeps the first two real-time signals for itself.
const REAL_TIME_MINIMUM: u8 = 34;
const REAL_TIME_MAXIMUM: u8 = 64;

/// A signal's name, such as `SIGTERM`.
#[must_use]
pub(crate) fn name(signal: u8) -> String {
    let index = usize::from(signal).checked_sub(1);
    match index.and_then(|index| NAMES.get(index)) {
        Some(name) => format!("SIG{name}"),
        None => format!("signal {signal}"),
    }
}

/// The number of a signal that is given as `TERM`, `SIGTERM`, `15` or `RTMIN+3`.
///
/// # Errors
/// `INVALID_ARGUMENT` if there is no such signal.
pub(crate) fn number(text: &str) -> Result<u8, Status> {
    let unknown = || {
        Status::invalid_argument(format!(
            "signal {text:?} is not known: use a name such as TERM or a number from 1 to 64"
        ))
    };
    if let Ok(number) = text.parse::<u8>() {
        return if (1..=REAL_TIME_MAXIMUM).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|name| *name == short) {
        return u8::try_from(index + 1).map_err(|_| unknown());
    }
    let offset = |rest: &str, sign: char| -> Option<u8> {
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse().ok() }
    };
    let real_time = if let Some(rest) = short.strip_prefix("RTMIN") {
        offset(rest, '+').and_then(|offset| REAL_TIME_MINIMUM.checked_add(offset))
    } else if let Some(rest) = short.strip_prefix("RTMAX") {
        offset(rest, '-').and_then(|offset| REAL_TIME_MAXIMUM.checked_sub(offset))
    } else {
        None
    };
    real_time.filter(|number| (REAL_TIME_MINIMUM..=REAL_TIME_MAXIMUM).contains(number)).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_found_by_its_name_and_number() {
        for signal in 1..=31 {
            assert_eq!(number(&name(signal)).unwrap(), signal);
            assert_eq!(number(&signal.to_string()).unwrap(), signal);
        }
        assert_eq!((number("term").unwrap(), number("SIGKILL").unwrap()), (15, 9));
        assert_eq!((number("RTMIN").unwrap(), number("SIGRTMIN+3").unwrap(), number("RTMAX").unwrap()), (34, 37, 64));
        for bad in ["", "0", "65", "256", "SIG", "RTMIN+31", "RTMAX-99", "TERM ", "-9"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }
}
