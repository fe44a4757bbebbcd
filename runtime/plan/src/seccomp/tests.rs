//! The compiled filter does what the profile says: an interpreter of classic BPF runs both side by side.

use proptest::prelude::*;

use super::*;

const X86_64: u32 = 0xc000_003e;

/// Runs a filter as the kernel does; panics on what the kernel's verifier would refuse.
fn run(program: &[Instruction], architecture: u32, syscall: u32, arguments: &[u64; 6]) -> u32 {
    let mut data = Vec::from(syscall.to_le_bytes());
    data.extend(architecture.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    arguments.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let one = program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { one.jump_true } else { one.jump_false });
        match one.code {
            0x20 => {
                let offset = usize::try_from(one.operand).unwrap();
                assert_eq!(offset % 4, 0);
                accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            0x05 => at += usize::try_from(one.operand).unwrap(),
            0x15 => at += jump(accumulator == one.operand),
            0x25 => at += jump(accumulator > one.operand),
            0x35 => at += jump(accumulator >= one.operand),
            0x54 => accumulator &= one.operand,
            0x06 => return one.operand,
            other => panic!("{other:#x}"),
        }
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::KillProcess),
        Just(Action::KillThread),
        Just(Action::Trap),
        (0_u16..4096).prop_map(Action::Errno),
        any::<u16>().prop_map(Action::Trace),
        Just(Action::Log),
        Just(Action::Notify),
        Just(Action::Allow),
    ]
}

/// Values whose words are equal, next to each other, or far apart: where comparisons of two words go wrong.
fn value() -> impl Strategy<Value = u64> {
    let word = prop_oneof![
        0_u64..4,
        Just(0x7fff_ffff),
        Just(0x8000_0000),
        Just(0xffff_ffff),
        any::<u32>().prop_map(u64::from)
    ];
    (word.clone(), word).prop_map(|(high, low)| high << 32 | low)
}

fn argument_test() -> impl Strategy<Value = ArgumentTest> {
    let comparison = prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessOrEqual),
        Just(Comparison::Greater),
        Just(Comparison::GreaterOrEqual),
        value().prop_map(Comparison::MaskedEqual),
    ];
    (0_u8..6, comparison, value()).prop_map(|(index, comparison, value)| ArgumentTest { index, comparison, value })
}

fn profile() -> impl Strategy<Value = Profile> {
    let rule = (
        prop::collection::vec(prop_oneof![0_u32..40, 0_u32..500], 1..12),
        action(),
        prop::collection::vec(argument_test(), 0..4),
    )
        .prop_map(|(syscalls, action, tests)| Rule { syscalls, action, tests });
    (action(), prop::collection::vec(rule, 0..24)).prop_map(|(default, rules)| Profile { default, rules })
}

proptest! {
    // Each case compares dozens of calls.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_filter_decides_as_the_profile(
        profile in profile(),
        calls in prop::collection::vec((prop_oneof![0_u32..40, 0_u32..600], prop::array::uniform6(value())), 1..64),
    ) {
        let program = compile(&profile).unwrap();
        for (syscall, arguments) in calls {
            let expected = profile.decide(syscall, &arguments).value();
            prop_assert_eq!(run(&program, X86_64, syscall, &arguments), expected, "{} {:?}", syscall, arguments);
        }
    }

    #[test]
    fn arguments_near_a_tests_value_are_decided_right(test in argument_test(), offset in -1_i64..=1) {
        let rule = Rule { syscalls: vec![7], action: Action::Allow, tests: vec![test] };
        let profile = Profile { default: Action::Errno(1), rules: vec![rule] };
        let program = compile(&profile).unwrap();
        let arguments = [test.value.wrapping_add_signed(offset); 6];
        prop_assert_eq!(run(&program, X86_64, 7, &arguments), profile.decide(7, &arguments).value());
    }

    #[test]
    fn other_architectures_are_killed_and_x32_is_no_call(profile in profile(), architecture in any::<u32>(), call in 0_u32..1000) {
        let program = compile(&profile).unwrap();
        if architecture != X86_64 {
            prop_assert_eq!(run(&program, architecture, call, &[0; 6]), Action::KillProcess.value());
        }
        prop_assert_eq!(run(&program, X86_64, 0x4000_0000 | call, &[0; 6]), Action::Errno(38).value());
        prop_assert_eq!(run(&program, X86_64, u32::MAX - call, &[0; 6]), Action::Errno(38).value());
    }
}

#[test]
fn every_call_of_the_default_profile_is_known_and_in_order() {
    assert!(syscalls::TABLE.is_sorted_by(|one, next| one.0 < next.0));
    for name in default::names() {
        assert!(number(name).is_some(), "{name}");
    }
}

#[test]
fn the_default_filter_is_fast_and_decides_as_its_profile() {
    let profile = default_profile();
    let program = compile(&profile).unwrap();
    assert!(program.len() < 400, "{}", program.len());
    for syscall in 0..700 {
        for arguments in [[0; 6], [40; 6], [0x1000_0000; 6], [u64::MAX; 6], [8; 6]] {
            assert_eq!(
                run(&program, X86_64, syscall, &arguments),
                profile.decide(syscall, &arguments).value(),
                "{syscall}"
            );
        }
    }
}

#[test]
fn the_default_profile_refuses_what_reaches_out_of_a_container() {
    let profile = default_profile();
    let decide = |name: &str, first: u64| profile.decide(number(name).unwrap(), &[first, 0, 0, 0, 0, 0]);
    let refused = "acct add_key bpf clock_settime delete_module fanotify_init finit_module fsopen get_mempolicy init_module io_uring_setup \
        io_uring_enter io_uring_register ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind mount mount_setattr \
        move_mount move_pages open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root quotactl reboot request_key \
        set_mempolicy setdomainname sethostname setns settimeofday swapoff swapon syslog umount2 unshare userfaultfd vhangup";
    for name in refused.split_ascii_whitespace() {
        assert_eq!(decide(name, 0), Action::Errno(1), "{name}");
    }
    assert_eq!(decide("clone3", 0), Action::Errno(38));
    assert_eq!(decide("clone", 0x1200_0000), Action::Errno(1));
    assert_eq!(decide("clone", 0x0120_0011), Action::Allow);
    assert_eq!(decide("socket", 40), Action::Errno(1));
    assert_eq!(decide("socket", 2), Action::Allow);
    assert_eq!(decide("personality", 0x0040_0000), Action::Errno(1));
    assert_eq!(decide("personality", 0xffff_ffff), Action::Allow);
}

#[test]
fn profiles_that_cannot_be_compiled_are_errors() {
    let with = |tests| Profile {
        default: Action::Allow,
        rules: vec![Rule { syscalls: vec![1], action: Action::Allow, tests }],
    };
    let test = ArgumentTest { index: 6, comparison: Comparison::Equal, value: 0 };
    assert_eq!(compile(&with(vec![test])), Err(CompileError::NoSuchArgument(6)));
    assert_eq!(compile(&with(vec![ArgumentTest { index: 0, ..test }; 100])), Err(CompileError::TooManyTests(1)));
    let rules = (0..5000_u32).map(|number| Rule { syscalls: vec![number * 2], action: Action::Log, tests: Vec::new() });
    let huge = Profile { default: Action::Allow, rules: rules.collect() };
    assert!(matches!(compile(&huge), Err(CompileError::TooLong(_))));
}
