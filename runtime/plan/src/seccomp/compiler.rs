//! From a profile to classic BPF.
//!
//! ```text
//! architecture? -> number? -> balanced search over ranges of numbers that are decided alike -> that range's decision
//! ```
//! A call costs about log2 of the number of ranges, not their count; a decision with argument tests stands where the search ends.

use std::collections::BTreeMap;

use super::{Action, ArgumentTest, Comparison, Instruction, Profile};
use crate::limits::SECCOMP_INSTRUCTIONS;

/// Why a profile cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The filter would be longer than the kernel takes.
    #[error("the filter has {0} instructions: use fewer rules, at most {SECCOMP_INSTRUCTIONS} instructions")]
    TooLong(usize),
    /// A test of an argument that system calls do not have.
    #[error("argument {0} does not exist: use 0 to 5")]
    NoSuchArgument(u8),
    /// One rule's tests are so many that a jump cannot pass over them.
    #[error("a rule for system call {0} has too many tests: use at most one or two for each argument")]
    TooManyTests(u32),
}

/// AUDIT_ARCH_X86_64 of linux/audit.h.
const X86_64: u32 = 0xc000_003e;
/// Numbers from here on are those of the x32 ABI, which the node's kernels need not have.
const X32_BIT: u32 = 0x4000_0000;
/// ENOSYS: a program falls back as it would on an older kernel.
const ENOSYS: u16 = 38;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Operations of linux/bpf_common.h.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// What is done with a call: alternatives in order, then what happens otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decision<'a> {
    alternatives: Vec<(&'a [ArgumentTest], Action)>,
    otherwise: Action,
}

/// Compiles a profile for x86-64. Calls of another architecture kill the process, calls of the x32 ABI fail with ENOSYS.
///
/// # Errors
/// The profile tests an argument that does not exist, or does not fit into a filter.
pub fn compile(profile: &Profile) -> Result<Vec<Instruction>, CompileError> {
    let decisions = decisions(profile)?;
    let ranges = ranges(&decisions, profile.default);
    let mut code = vec![
        load(ARCHITECTURE),
        jump_if(JUMP_EQUAL, X86_64, 1, 0),
        give(Action::KillProcess),
        load(NUMBER),
        jump_if(JUMP_GREATER_OR_EQUAL, X32_BIT, 0, 1),
        give(Action::Errno(ENOSYS)),
    ];
    code.extend(search(&ranges)?);
    if code.len() > SECCOMP_INSTRUCTIONS { Err(CompileError::TooLong(code.len())) } else { Ok(code) }
}

/// What each named call is decided by. Rules after one without tests can never be reached.
fn decisions(profile: &Profile) -> Result<BTreeMap<u32, Decision<'_>>, CompileError> {
    let mut open: BTreeMap<u32, Decision<'_>> = BTreeMap::new();
    let mut closed: BTreeMap<u32, Decision<'_>> = BTreeMap::new();
    for rule in &profile.rules {
        if let Some(test) = rule.tests.iter().find(|test| test.index > 5) {
            return Err(CompileError::NoSuchArgument(test.index));
        }
        for syscall in &rule.syscalls {
            if closed.contains_key(syscall) {
                continue;
            }
            let empty = || Decision { alternatives: Vec::new(), otherwise: profile.default };
            if rule.tests.is_empty() {
                let mut decision = open.remove(syscall).unwrap_or_else(empty);
                decision.otherwise = rule.action;
                closed.insert(*syscall, decision);
            } else {
                open.entry(*syscall).or_insert_with(empty).alternatives.push((&rule.tests, rule.action));
            }
        }
    }
    closed.append(&mut open);
    Ok(closed)
}

/// A decision and the first number that it is for; it holds up to the next one's.
type Range<'a> = (u32, Decision<'a>);

/// Covers every number from 0 on. Neighbours that are decided alike become one range.
fn ranges<'a>(decisions: &BTreeMap<u32, Decision<'a>>, default: Action) -> Vec<Range<'a>> {
    let unnamed = Decision { alternatives: Vec::new(), otherwise: default };
    let mut ranges: Vec<Range<'a>> = vec![(0, unnamed.clone())];
    let mut add = |first: u32, decision: Decision<'a>| {
        if let Some(last) = ranges.last_mut() {
            if last.1 == decision {
                return;
            }
            if last.0 == first {
                last.1 = decision;
                return;
            }
        }
        ranges.push((first, decision));
    };
    let mut next = 0;
    for (syscall, decision) in decisions {
        if *syscall >= X32_BIT {
            break;
        }
        if *syscall > next {
            add(next, unnamed.clone());
        }
        add(*syscall, decision.clone());
        next = syscall.saturating_add(1);
    }
    add(next, unnamed);
    ranges
}

/// A balanced search over ranges, the number being in the accumulator.
fn search(ranges: &[Range<'_>]) -> Result<Vec<Instruction>, CompileError> {
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let Some((middle, _)) = right.first() else { return Ok(Vec::new()) };
    if left.is_empty() {
        return right.first().map_or(Ok(Vec::new()), decide);
    }
    let (below, mut above) = (search(left)?, search(right)?);
    let mut code = match u8::try_from(below.len()) {
        Ok(distance) => vec![jump_if(JUMP_GREATER_OR_EQUAL, *middle, distance, 0)],
        // Conditional jumps reach 255 instructions; an unconditional one reaches all.
        Err(_) => {
            let distance = u32::try_from(below.len()).map_err(|_| CompileError::TooLong(below.len()))?;
            vec![jump_if(JUMP_GREATER_OR_EQUAL, *middle, 0, 1), instruction(JUMP, 0, 0, distance)]
        }
    };
    code.extend(below);
    code.append(&mut above);
    Ok(code)
}

/// The code of one decision.
fn decide((syscall, decision): &Range<'_>) -> Result<Vec<Instruction>, CompileError> {
    let mut code = Vec::new();
    for (tests, action) in &decision.alternatives {
        // From the end, so that each test knows how far it is to the next alternative.
        let mut rest = vec![give(*action)];
        for test in tests.iter().rev() {
            let to_next = u8::try_from(rest.len()).map_err(|_| CompileError::TooManyTests(*syscall))?;
            let mut part = compare(test, to_next).ok_or(CompileError::TooManyTests(*syscall))?;
            part.append(&mut rest);
            rest = part;
        }
        code.append(&mut rest);
    }
    code.push(give(decision.otherwise));
    Ok(code)
}

/// The code of one test, behind which stand `after` instructions up to where a failed test goes on. A test that holds goes on directly
/// behind. Arguments have two words; the high one decides first. `None` if a jump would be too far.
fn compare(test: &ArgumentTest, after: u8) -> Option<Vec<Instruction>> {
    let offset = ARGUMENTS.checked_add(u32::from(test.index).checked_mul(8)?)?;
    let (low, high) = (load(offset), load(offset.checked_add(4)?));
    let (value_low, value_high) = halves(test.value);
    // How far it is to the failed end from the Nth instruction before the end of this test.
    let fail = |before_end: u8| after.checked_add(before_end);
    let code = match test.comparison {
        Comparison::Equal => {
            vec![high, jump_if(JUMP_EQUAL, value_high, 0, fail(2)?), low, jump_if(JUMP_EQUAL, value_low, 0, fail(0)?)]
        }
        Comparison::NotEqual => {
            vec![high, jump_if(JUMP_EQUAL, value_high, 0, 2), low, jump_if(JUMP_EQUAL, value_low, fail(0)?, 0)]
        }
        Comparison::Greater | Comparison::GreaterOrEqual => {
            let last = if test.comparison == Comparison::Greater { JUMP_GREATER } else { JUMP_GREATER_OR_EQUAL };
            vec![
                high,
                jump_if(JUMP_GREATER, value_high, 3, 0),
                jump_if(JUMP_EQUAL, value_high, 0, fail(2)?),
                low,
                jump_if(last, value_low, 0, fail(0)?),
            ]
        }
        Comparison::Less | Comparison::LessOrEqual => {
            let last = if test.comparison == Comparison::Less { JUMP_GREATER_OR_EQUAL } else { JUMP_GREATER };
            vec![
                high,
                jump_if(JUMP_GREATER, value_high, fail(3)?, 0),
                jump_if(JUMP_EQUAL, value_high, 0, 2),
                low,
                jump_if(last, value_low, fail(0)?, 0),
            ]
        }
        Comparison::MaskedEqual(mask) => {
            let (mask_low, mask_high) = halves(mask);
            vec![
                high,
                instruction(AND, 0, 0, mask_high),
                jump_if(JUMP_EQUAL, value_high & mask_high, 0, fail(3)?),
                low,
                instruction(AND, 0, 0, mask_low),
                jump_if(JUMP_EQUAL, value_low & mask_low, 0, fail(0)?),
            ]
        }
    };
    Some(code)
}

/// The low and the high word.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

fn load(offset: u32) -> Instruction {
    instruction(LOAD, 0, 0, offset)
}

fn give(action: Action) -> Instruction {
    instruction(RETURN, 0, 0, action.value())
}

fn jump_if(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    instruction(code, jump_true, jump_false, operand)
}

fn instruction(code: u16, jump_true: u8, jump_false: u8, operand: u32) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}
