//! A seccomp profile as data: groups of calls, each with the reason why a service needs them.
//!
//! What no group names kills the process: a call that its profile does not know is a fault or an attack, and PID 1 starts the
//! service anew.

/// The calls that one service may make once it is sealed.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    /// The service.
    pub name: &'static str,
    /// What it may do.
    pub groups: &'static [&'static Group],
}

/// Calls that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Why they are needed.
    pub reason: &'static str,
    /// The calls.
    pub rules: &'static [Rule],
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Its number, `SYS_*`.
    pub call: i64,
    /// All of these must hold; a call may have several rules, of which one must fit.
    pub conditions: &'static [Condition],
    /// What happens then.
    pub verdict: Verdict,
}

/// What a filter does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Lets it through.
    Allow,
    /// Fails it with this error number: for calls that libraries try and can do without.
    Fail(u16),
}

/// A condition on an argument: `argument & mask == value`.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// Which, 0 to 5.
    pub argument: u8,
    /// Bits that are looked at.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

impl Rule {
    /// Lets a call through.
    #[must_use]
    pub const fn allow(call: i64) -> Self {
        Self { call, conditions: &[], verdict: Verdict::Allow }
    }

    /// Lets a call through under conditions.
    #[must_use]
    pub const fn allow_if(call: i64, conditions: &'static [Condition]) -> Self {
        Self { call, conditions, verdict: Verdict::Allow }
    }

    /// Fails a call.
    #[must_use]
    pub const fn fail(call: i64, error_number: u16) -> Self {
        Self { call, conditions: &[], verdict: Verdict::Fail(error_number) }
    }
}

impl Condition {
    /// The argument, as 32 bits, is this.
    #[must_use]
    pub const fn is(argument: u8, value: u32) -> Self {
        Self { argument, mask: 0xffff_ffff, value: value as u64 }
    }

    /// None of these bits is set.
    #[must_use]
    pub const fn lacks(argument: u8, bits: u32) -> Self {
        Self { argument, mask: bits as u64, value: 0 }
    }
}
