//! Signals by name and number, signal(7), as x86-64 and arm64 have them.

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// SIGRTMIN as programs see it: C libraries keep 32 and 33 for themselves.
const REAL_TIME_FIRST: u8 = 34;
const REAL_TIME_LAST: u8 = 64;

/// A text that is no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("signal {0:?} is not known: use a name such as TERM or RTMIN+3, or a number from 1 to 64")]
pub struct UnknownSignal(pub String);

/// The number of a signal given as `TERM`, `SIGTERM`, `15`, `RTMIN+3` or `RTMAX-1`.
///
/// # Errors
/// There is no such signal.
pub fn signal_number(text: &str) -> Result<u8, UnknownSignal> {
    let unknown = || UnknownSignal(text.chars().take(40).collect());
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (1..=REAL_TIME_LAST).contains(number)).ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|name| *name == short) {
        return u8::try_from(index + 1).map_err(|_| unknown());
    }
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign).and_then(|digits| digits.parse::<u8>().ok()),
    };
    let number = match short {
        "CLD" => Some(17),
        "POLL" => Some(29),
        "IOT" => Some(6),
        other => {
            let from_first =
                other.strip_prefix("RTMIN").and_then(|rest| REAL_TIME_FIRST.checked_add(offset(rest, '+')?));
            let from_last =
                || other.strip_prefix("RTMAX").and_then(|rest| REAL_TIME_LAST.checked_sub(offset(rest, '-')?));
            from_first.or_else(from_last).filter(|number| (REAL_TIME_FIRST..=REAL_TIME_LAST).contains(number))
        }
    };
    number.ok_or_else(unknown)
}

/// A signal's name, such as `SIGTERM` or `SIGRTMIN+3`.
#[must_use]
pub fn signal_name(number: u8) -> String {
    match (usize::from(number).checked_sub(1).and_then(|index| NAMES.get(index)), number.checked_sub(REAL_TIME_FIRST)) {
        (Some(name), _) => format!("SIG{name}"),
        (None, Some(0)) => "SIGRTMIN".to_owned(),
        (None, Some(more)) if number <= REAL_TIME_LAST => format!("SIGRTMIN+{more}"),
        (None, Some(_) | None) => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_reads_back_from_its_name() {
        for number in (1..=31).chain(34..=64) {
            assert_eq!(signal_number(&signal_name(number)), Ok(number));
            assert_eq!(signal_number(&number.to_string()), Ok(number));
        }
        assert_eq!(signal_number("quit"), Ok(3));
        assert_eq!(signal_number("SIGRTMAX-1"), Ok(63));
        for bad in ["", "0", "65", "999", "SIG", "TERMINATE", "RTMIN+31", "RTMAX-40", "+9", "-9", "RTMIN-1"] {
            assert!(signal_number(bad).is_err(), "{bad}");
        }
    }
}
