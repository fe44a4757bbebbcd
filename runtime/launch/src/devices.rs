//! The device program of a workload's cgroup: what it may open and make. Written for the kernel's verifier by hand, so that no C library
//! and no copy of the caller's limits is involved.
//!
//! Order is the protection: the system disk is denied first, whatever follows allows.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{DeviceRule, LaunchRequest, Root};
use rustix::io::Errno;

use crate::report::{Failure, Step};
use crate::sys::{self, BpfInstruction};

/// BPF_DEVCG_DEV_BLOCK and _CHAR of linux/bpf.h.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
/// BPF_DEVCG_ACC_*.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// Devices that every workload has, as character (major, minor): null, zero, full, random, urandom, tty, ptmx; and the 1024 pts.
const DEFAULT: [(u32, Option<u32>); 8] =
    [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

/// Loads the program of every workload that has no device rules of its own. The kernel checks and translates it once and not for each start.
///
/// # Errors
/// The kernel's.
pub fn load_default_device_program(denied: &[(u32, u32)]) -> Result<OwnedFd, Errno> {
    sys::load_device_program(&program(&[], denied))
}

/// Attaches the program to the workload's outer cgroup. Services on the host's root have none: they come from the verified root, and
/// those that mount the system's disk are among them.
pub(crate) fn confine(
    cgroup: BorrowedFd<'_>,
    request: &LaunchRequest,
    default: BorrowedFd<'_>,
    denied: &[(u32, u32)],
) -> Result<(), Failure> {
    let attach = |program| sys::attach_device_program(cgroup, program).step("attach device program", "");
    match request.root {
        Root::Host => Ok(()),
        Root::Layers { .. } | Root::Directory { .. } if request.devices.is_empty() => attach(default),
        Root::Layers { .. } | Root::Directory { .. } => {
            let own = sys::load_device_program(&program(&request.devices, denied)).step("load device program", "")?;
            attach(own.as_fd())
        }
    }
}

fn program(rules: &[DeviceRule], denied: &[(u32, u32)]) -> Vec<BpfInstruction> {
    let mut code = vec![
        // Context in register 1: access << 16 | type, major, minor.
        instruction(0x61, 2, 1, 0, 0),
        instruction(0xbf, 3, 2, 0, 0),
        instruction(0x57, 3, 0, 0, 0xffff),
        instruction(0x77, 2, 0, 0, 16),
        instruction(0x61, 4, 1, 4, 0),
        instruction(0x61, 5, 1, 8, 0),
    ];
    for (major, minor) in denied {
        let minor = if *minor == u32::MAX { None } else { Some(*minor) };
        let checks = vec![is_equal(3, BLOCK), is_equal(4, number(*major))];
        rule(&mut code, checks, minor, 0);
    }
    for (major, minor) in DEFAULT {
        rule(&mut code, vec![is_equal(3, CHARACTER), is_equal(4, number(major))], minor, 1);
    }
    // The first one that matches decides, so the last rule comes first.
    for one in rules.iter().rev() {
        let bit = |wanted: bool, bit: i32| if wanted { bit } else { 0 };
        let access = bit(one.read, READ) | bit(one.write, WRITE) | bit(one.mknod, MKNOD);
        // A rule allows no more than its access, and denies whatever asks for any of it.
        let asked = if one.deny { Check::AnyOf(access) } else { Check::NothingBeside(access) };
        let mut checks = vec![is_equal(3, if one.block { BLOCK } else { CHARACTER }), asked];
        if let Some(major) = one.major {
            checks.push(is_equal(4, number(major)));
        }
        rule(&mut code, checks, one.minor, if one.deny { 0 } else { 1 });
    }
    code.extend([instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)]);
    code
}

enum Check {
    /// The register has this value.
    Equal(u8, i32),
    /// The access asked for has no bit beside these.
    NothingBeside(i32),
    /// The access asked for has one of these bits.
    AnyOf(i32),
}

fn is_equal(register: u8, value: i32) -> Check {
    Check::Equal(register, value)
}

/// Appends: if every check holds, return `verdict`.
fn rule(code: &mut Vec<BpfInstruction>, mut checks: Vec<Check>, minor: Option<u32>, verdict: i32) {
    if let Some(minor) = minor {
        checks.push(Check::Equal(5, number(minor)));
    }
    let mut body = Vec::new();
    // Built from the end, so that each jump knows how much it skips.
    let mut after = vec![instruction(0xb7, 0, 0, 0, verdict), instruction(0x95, 0, 0, 0, 0)];
    for check in checks.iter().rev() {
        let skip = i16::try_from(after.len()).unwrap_or(i16::MAX);
        let mut part = match check {
            Check::Equal(register, value) => vec![instruction(0x56, *register, 0, skip, *value)],
            Check::NothingBeside(access) => vec![
                instruction(0xbf, 6, 2, 0, 0),
                instruction(0x57, 6, 0, 0, (READ | WRITE | MKNOD) & !access),
                instruction(0x56, 6, 0, skip, 0),
            ],
            Check::AnyOf(access) => vec![
                instruction(0xbf, 6, 2, 0, 0),
                instruction(0x57, 6, 0, 0, *access),
                instruction(0x16, 6, 0, skip, 0),
            ],
        };
        part.append(&mut after);
        after = part;
    }
    body.append(&mut after);
    code.append(&mut body);
}

/// A device number as an operand. Comparisons are of 32 bits, so the sign does not matter.
fn number(value: u32) -> i32 {
    i32::from_ne_bytes(value.to_ne_bytes())
}

fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> BpfInstruction {
    BpfInstruction { code, registers: (source << 4) | (target & 0xf), offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the few operations that the program has.
    fn run(program: &[BpfInstruction], kind: i32, access: i32, major: u32, minor: u32) -> i64 {
        let context = [i64::from(access << 16 | kind), i64::from(major), i64::from(minor)];
        let mut registers = [0_i64; 16];
        let mut at = 0_usize;
        loop {
            let one = program[at];
            let (target, source) = (usize::from(one.registers & 0xf), usize::from(one.registers >> 4));
            let immediate = i64::from(one.immediate);
            at += 1;
            match one.code {
                0x61 => registers[target] = context[usize::try_from(one.offset).unwrap() / 4],
                0xbf => registers[target] = registers[source],
                0x57 => registers[target] &= immediate,
                0x77 => registers[target] >>= immediate,
                0xb7 => registers[target] = immediate,
                0x56 if registers[target] as u32 != immediate as u32 => at += usize::try_from(one.offset).unwrap(),
                0x56 => {}
                0x16 if registers[target] as u32 == immediate as u32 => at += usize::try_from(one.offset).unwrap(),
                0x16 => {}
                0x95 => return registers[0],
                other => panic!("{other:#x}"),
            }
        }
    }

    fn everything(block: bool) -> DeviceRule {
        DeviceRule { block, major: None, minor: None, read: true, write: true, mknod: true, path: None, deny: false }
    }

    #[test]
    fn only_the_default_devices_are_allowed_by_default() {
        let program = program(&[], &[]);
        assert_eq!(run(&program, CHARACTER, READ | WRITE, 1, 3), 1);
        assert_eq!(run(&program, CHARACTER, READ, 136, 77), 1);
        assert_eq!(run(&program, CHARACTER, READ, 1, 1), 0);
        assert_eq!(run(&program, CHARACTER, MKNOD, 10, 200), 0);
        assert_eq!(run(&program, BLOCK, READ, 1, 3), 0);
    }

    #[test]
    fn the_system_disk_is_denied_before_anything_is_allowed() {
        let program = program(&[everything(true), everything(false)], &[(254, u32::MAX), (8, 1)]);
        for minor in [0, 1, 15] {
            assert_eq!(run(&program, BLOCK, READ, 254, minor), 0);
        }
        assert_eq!(run(&program, BLOCK, MKNOD, 8, 1), 0);
        assert_eq!(run(&program, BLOCK, READ | WRITE, 8, 2), 1);
        assert_eq!(run(&program, CHARACTER, READ, 10, 200), 1);
    }

    #[test]
    fn a_later_rule_counts_over_an_earlier_one() {
        let fuse = DeviceRule { major: Some(10), minor: Some(229), ..everything(false) };
        let no_writing = DeviceRule { deny: true, read: false, mknod: false, ..fuse.clone() };
        let program = program(&[everything(false), no_writing.clone()], &[]);
        assert_eq!(run(&program, CHARACTER, READ, 10, 229), 1);
        assert_eq!(run(&program, CHARACTER, READ | WRITE, 10, 229), 0);
        assert_eq!(run(&program, CHARACTER, READ | WRITE, 10, 228), 1);
        let program = super::program(&[no_writing, fuse], &[]);
        assert_eq!(run(&program, CHARACTER, READ | WRITE, 10, 229), 1);
    }

    #[test]
    fn a_rule_allows_no_more_than_its_access() {
        let fuse = DeviceRule { major: Some(10), minor: Some(229), mknod: false, write: false, ..everything(false) };
        let program = program(&[fuse], &[]);
        assert_eq!(run(&program, CHARACTER, READ, 10, 229), 1);
        assert_eq!(run(&program, CHARACTER, READ | WRITE, 10, 229), 0);
        assert_eq!(run(&program, CHARACTER, MKNOD, 10, 229), 0);
        assert_eq!(run(&program, CHARACTER, READ, 10, 228), 0);
    }
}
