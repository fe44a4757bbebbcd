//! Capabilities by name and number, capabilities(7).

use byre_plan::CAPABILITY_NAMES;

/// Every capability, as a mask.
pub const ALL_CAPABILITIES: u64 = (1 << CAPABILITY_NAMES.len()) - 1;

/// The usual 14 that images expect of their root: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE,
/// NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// A name that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("capability {0:?} is not known: use a name of capabilities(7) such as NET_ADMIN, or ALL")]
pub struct UnknownCapability(pub String);

/// The mask of a capability given as `NET_ADMIN`, `cap_net_admin` or `ALL`.
///
/// # Errors
/// The name is not known.
pub fn capability(name: &str) -> Result<u64, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" {
        return Ok(ALL_CAPABILITIES);
    }
    let number = CAPABILITY_NAMES.iter().position(|known| *known == short);
    number.map(|number| 1 << number).ok_or_else(|| UnknownCapability(name.chars().take(40).collect()))
}

/// The name of a capability's number, without `CAP_`.
#[must_use]
pub fn capability_name(number: u32) -> Option<&'static str> {
    CAPABILITY_NAMES.get(usize::try_from(number).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_mask_is_the_usual_fourteen() {
        let usual = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP";
        let mask = usual.split(' ').map(|name| capability(name).unwrap()).fold(0, |all, one| all | one);
        assert_eq!(mask, DEFAULT_CAPABILITIES);
        assert_eq!(mask.count_ones(), 14);
    }

    #[test]
    fn names_are_taken_in_any_spelling_and_read_back() {
        assert_eq!(capability("cap_net_admin"), capability("NET_ADMIN"));
        assert_eq!(capability("all"), Ok(ALL_CAPABILITIES));
        assert!(capability("CAP_FLY").is_err());
        for number in 0..41 {
            assert_eq!(capability(capability_name(number).unwrap()), Ok(1 << number));
        }
        assert_eq!(capability_name(41), None);
    }
}
