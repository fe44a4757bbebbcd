//! Seccomp filters as data: the instruction form that crosses processes, profiles, and their compilation to classic BPF.
//!
//! A [`Profile`] says what is meant; [`compile`] turns it into instructions once, and the same result serves every workload. No C library is
//! involved, and what the compiled program does is tested to be what the profile says.

mod compiler;
mod default;
mod syscalls;
#[cfg(test)]
mod tests;

pub use compiler::{CompileError, compile};
pub use default::default_profile;

use serde::{Deserialize, Serialize};

/// One classic BPF instruction, `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump if true.
    pub jump_true: u8,
    /// Jump if false.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The whole process is killed with SIGSYS.
    KillProcess,
    /// The thread is killed.
    KillThread,
    /// SIGSYS, which a handler may take.
    Trap,
    /// The call fails with this error number (at most 4095).
    Errno(u16),
    /// A tracer is told; without one the call fails with ENOSYS.
    Trace(u16),
    /// Whoever listens decides; without a listener the call fails with ENOSYS.
    Notify,
    /// Allowed, and logged.
    Log,
    /// Allowed.
    Allow,
}

impl Action {
    /// The filter's return value, SECCOMP_RET_* of linux/seccomp.h.
    #[must_use]
    pub fn value(self) -> u32 {
        match self {
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Errno(number) => 0x0005_0000 | u32::from(number.min(4095)),
            Self::Trace(data) => 0x7ff0_0000 | u32::from(data),
            Self::Notify => 0x7fc0_0000,
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }
}

/// How an argument is compared, as an unsigned number of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Less.
    Less,
    /// Less or equal.
    LessOrEqual,
    /// Greater.
    Greater,
    /// Greater or equal.
    GreaterOrEqual,
    /// Equal in the bits of this mask; the others are ignored.
    MaskedEqual(u64),
}

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArgumentTest {
    /// Which argument, 0 to 5.
    pub index: u8,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what.
    pub value: u64,
}

impl ArgumentTest {
    /// Whether the test holds for these arguments; false for an argument that does not exist.
    #[must_use]
    pub fn holds(&self, arguments: &[u64; 6]) -> bool {
        let Some(argument) = arguments.get(usize::from(self.index)).copied() else { return false };
        match self.comparison {
            Comparison::Equal => argument == self.value,
            Comparison::NotEqual => argument != self.value,
            Comparison::Less => argument < self.value,
            Comparison::LessOrEqual => argument <= self.value,
            Comparison::Greater => argument > self.value,
            Comparison::GreaterOrEqual => argument >= self.value,
            Comparison::MaskedEqual(mask) => argument & mask == self.value & mask,
        }
    }
}

/// What happens to some system calls under some conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Numbers of the system calls.
    pub syscalls: Vec<u32>,
    /// What happens.
    pub action: Action,
    /// All of these must hold; none is always.
    pub tests: Vec<ArgumentTest>,
}

/// A filter as data: the first rule that names the call and whose tests hold decides; if there is none, the default does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// For calls that no rule decides.
    pub default: Action,
    /// In order.
    pub rules: Vec<Rule>,
}

impl Profile {
    /// What the profile says of one call on x86-64 itself.
    #[must_use]
    pub fn decide(&self, syscall: u32, arguments: &[u64; 6]) -> Action {
        let mut rules = self.rules.iter();
        rules
            .find(|rule| rule.syscalls.contains(&syscall) && rule.tests.iter().all(|test| test.holds(arguments)))
            .map_or(self.default, |rule| rule.action)
    }
}

/// The number of a system call of x86-64, by its name.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    let found = syscalls::TABLE.binary_search_by_key(&name, |(name, _)| name).ok()?;
    syscalls::TABLE.get(found).map(|(_, number)| *number)
}

/// The name of a system call of x86-64, by its number: for saying a profile to other programs.
#[must_use]
pub fn name(number: u32) -> Option<&'static str> {
    syscalls::TABLE.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}
