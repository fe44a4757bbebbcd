//! What clients are told, for every state there is.

use byre_plan::{Name, WorkloadId};
use proptest::prelude::*;

use super::*;

fn moment() -> impl Strategy<Value = Moment> {
    (0..u64::MAX / 4, 0..u64::MAX / 4).prop_map(|(boot_ms, wall_ms)| Moment { boot_ms, wall_ms })
}

fn cause() -> impl Strategy<Value = Cause> {
    prop_oneof![
        any::<u8>().prop_map(Cause::Code),
        any::<u8>().prop_map(Cause::Signal),
        Just(Cause::OutOfMemory),
        (".{0,20}", ".{0,20}", -200..200_i32)
            .prop_map(|(step, subject, errno)| { Cause::StartFailed(StartFailure { step, subject, errno }) }),
        Just(Cause::NotReady),
        Just(Cause::Dependency(Name::try_from("net").unwrap())),
        Just(Cause::Interrupted),
        Just(Cause::Deadline),
    ]
}

fn why() -> impl Strategy<Value = Why> {
    prop_oneof![
        Just(Why::Created),
        Just(Why::Stopped),
        cause().prop_map(Why::Ended),
        Just(Why::Waiting(Name::try_from("net").unwrap())),
        cause().prop_map(Why::GaveUp),
        Just(Why::Shutdown),
        Just(Why::Disabled),
        any::<u64>().prop_map(|at| Why::Scheduled(Due::Wall(at))),
    ]
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        why().prop_map(|why| State::Down { why }),
        moment().prop_map(|since| State::Starting { since }),
        (moment(), any::<bool>(), any::<u32>()).prop_map(|(since, ready, pid)| State::Up { since, ready, pid }),
        (prop_oneof![Just(Rung::Signal), Just(Rung::Kill)], any::<u64>())
            .prop_map(|(rung, deadline_boot_ms)| State::Stopping { rung, deadline_boot_ms }),
        cause().prop_map(|cause| State::Draining { cause }),
        (any::<u64>(), any::<u32>()).prop_map(|(until_boot_ms, streak)| State::Backoff { until_boot_ms, streak }),
    ]
}

fn summary(state: State, last_run: Option<Run>) -> Summary {
    Summary {
        id: WorkloadId(1),
        name: Name::try_from("web").unwrap(),
        kind: Kind::Container,
        built_in: false,
        state,
        wanted_up: true,
        created: Moment::default(),
        restarts: 0,
        last_run,
        labels: vec![("byre.image".into(), "nginx".into()), ("tier".into(), "front".into())],
    }
}

proptest! {
    #[test]
    fn every_state_has_a_status_and_what_is_not_running_has_a_reason(
        state in state(), last in proptest::option::of((moment(), moment(), cause())), now in moment(),
    ) {
        let last_run = last.map(|(started, ended, cause)| Run { started, ended, cause });
        let shown = workload(&summary(state.clone(), last_run), now);
        prop_assert!(!shown.status.is_empty());
        prop_assert_eq!(shown.why.is_empty(), matches!(state, State::Up { .. } | State::Stopping { .. }));
        prop_assert_eq!(shown.image.as_str(), "nginx");
        prop_assert_eq!(shown.labels.len(), 1);
        prop_assert_ne!(shown.phase, 0);
    }

    #[test]
    fn every_end_has_a_shell_code_and_says_why_unless_it_exited(cause in cause()) {
        let exit = exit(&cause);
        prop_assert!(exit.code <= 128 + 255);
        prop_assert_eq!(exit.reason.is_empty(), matches!(cause, Cause::Code(_)));
    }

    #[test]
    fn times_survive_the_way_to_the_client_and_back(time in 0..u64::MAX / 2) {
        prop_assert_eq!(wall_ms(&timestamp(time)), time);
    }

    #[test]
    fn a_duration_is_taken_as_milliseconds_or_refused(seconds in any::<i64>(), nanos in any::<i32>()) {
        let taken = duration_ms(&prost_types::Duration { seconds, nanos }, "timeout");
        prop_assert_eq!(taken.is_err(), seconds < 0 || nanos < 0);
    }
}

#[test]
fn ages_are_told_in_their_largest_unit() {
    let told = |seconds| about(Duration::from_secs(seconds));
    assert_eq!((told(1).as_str(), told(59).as_str(), told(60).as_str()), ("1 second", "59 seconds", "1 minute"));
    assert_eq!((told(7200).as_str(), told(200_000).as_str()), ("2 hours", "2 days"));
}

#[test]
fn a_status_reads_as_with_docker() {
    let now = Moment { boot_ms: 1_000_000, wall_ms: 1_700_001_000_000 };
    let then = Moment { boot_ms: 1_000_000 - 120_000, wall_ms: 1_700_001_000_000 - 120_000 };
    let up = State::Up { since: then, ready: true, pid: 9 };
    assert_eq!(workload(&summary(up, None), now).status, "Up 2 minutes");
    let run = Run { started: then, ended: then, cause: Cause::Code(3) };
    let down = State::Down { why: Why::Ended(Cause::Code(3)) };
    assert_eq!(workload(&summary(down, Some(run)), now).status, "Exited (3) 2 minutes ago");
    let earlier_boot = Moment { boot_ms: 5_000_000, wall_ms: now.wall_ms - 7_200_000 };
    let run = Run { started: earlier_boot, ended: earlier_boot, cause: Cause::Interrupted };
    let down = State::Down { why: Why::Stopped };
    assert_eq!(workload(&summary(down, Some(run)), now).status, "Exited (137) 2 hours ago");
}

#[test]
fn a_program_that_is_not_there_is_127_and_not_executable_126() {
    let failed = |step: &str, errno| {
        exit(&Cause::StartFailed(StartFailure { step: step.into(), subject: "/bin/x".into(), errno })).code
    };
    assert_eq!(failed("execute", libc::ENOENT), 127);
    assert_eq!(failed("execute", libc::EACCES), 126);
    assert_eq!(failed("mount_root", libc::ENOENT), 125);
}

#[test]
fn every_refusal_has_its_own_class() {
    use tonic::Code;
    let code = |code| refused(&Refused { code, text: "web: no".into() }).code();
    let cases = [
        (RefusedCode::NotFound, Code::NotFound),
        (RefusedCode::NameTaken, Code::AlreadyExists),
        (RefusedCode::Invalid, Code::InvalidArgument),
        (RefusedCode::WrongState, Code::FailedPrecondition),
        (RefusedCode::Full, Code::ResourceExhausted),
        (RefusedCode::StartFailed, Code::FailedPrecondition),
        (RefusedCode::NotDurable, Code::ResourceExhausted),
        (RefusedCode::NotAllowed, Code::PermissionDenied),
        (RefusedCode::ShuttingDown, Code::Unavailable),
    ];
    for (ours, theirs) in cases {
        assert_eq!(code(ours), theirs, "{ours:?}");
    }
}
