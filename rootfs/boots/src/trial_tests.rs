//! Properties of trials and their judge.

use super::*;
use proptest::prelude::*;

fn trial(outcome: Outcome) -> Trial {
    Trial {
        slot: 'b',
        version: "2.0".to_owned(),
        root_hash: "ab".repeat(32),
        install: 3,
        armed_wall_s: 1_700_000_000,
        held: Held::default(),
        generation: 0,
        outcome,
    }
}

fn seen(name: &str, service: bool, ready: bool) -> Seen {
    Seen { name: name.to_owned(), service, ready, counts: true, state: "restarting".to_owned() }
}

#[test]
fn what_was_armed_is_read_back_and_its_generation_rises() {
    let mut trials = Trials::default();
    assert_eq!(trials.arm(trial(Outcome::Armed)), 1);
    assert_eq!(trials.arm(trial(Outcome::Blessed)), 2);
    assert_eq!(trials.trials[0].outcome, Outcome::Reverted);
    assert_eq!(trials.trials[1].outcome, Outcome::Armed);
    let read = Trials::decode(&trials.encode()).unwrap();
    assert_eq!(read.trials, trials.trials);
}

#[test]
fn fields_of_a_later_release_are_read_over() {
    let mut trials = Trials::default();
    trials.arm(trial(Outcome::Armed));
    let text = String::from_utf8(trials.encode()).unwrap();
    let later = text.replace("\"format\": 1", "\"format\": 2, \"further\": [1]");
    assert_ne!(later, text);
    assert_eq!(Trials::decode(later.as_bytes()).unwrap().trials, trials.trials);
}

#[test]
fn only_so_many_are_remembered() {
    let mut trials = Trials::default();
    for _ in 0..40 {
        trials.arm(trial(Outcome::Armed));
    }
    assert_eq!(trials.trials.len(), TRIALS);
    assert_eq!(trials.last().unwrap().generation, 40);
}

#[test]
fn a_failed_release_is_refused_and_an_inconclusive_one_is_not() {
    let with = |outcome: Outcome| Trials { format: 1, trials: vec![trial(outcome)] }.refusal(&"ab".repeat(32));
    let failed = with(Outcome::Failed { why: "service api is down".to_owned(), confirmed: true }).unwrap();
    assert!(failed.contains("service api is down") && failed.contains("--retry"), "{failed}");
    assert_eq!(with(Outcome::Inconclusive { why: String::new() }), None);
    assert_eq!(with(Outcome::Blessed), None);
}

#[test]
fn the_part_of_a_boot_follows_from_the_loader_and_the_record() {
    let armed = trial(Outcome::Armed);
    assert_eq!(part(Some(&armed), 'b', true, Committed::Waits), Part::Trial);
    assert_eq!(part(Some(&armed), 'a', false, Committed::RanOut), Part::CameBack);
    assert_eq!(part(Some(&armed), 'b', false, Committed::Waits), Part::None);
    // Cut before the commit, or not rebooted yet: nothing was tried.
    assert_eq!(part(Some(&armed), 'a', false, Committed::No), Part::None);
    assert_eq!(part(Some(&armed), 'a', false, Committed::Waits), Part::None);
    let failed = trial(Outcome::Failed { why: String::new(), confirmed: false });
    assert_eq!(part(Some(&failed), 'a', false, Committed::RanOut), Part::CameBackWith);
    assert_eq!(part(None, 'a', false, Committed::No), Part::None);
    // A counted entry without a record is a trial all the same: it must not stay unjudged.
    assert_eq!(part(None, 'a', true, Committed::No), Part::Trial);
}

#[test]
fn a_workload_that_did_not_hold_before_is_not_asked_for() {
    let before = [seen("web", false, true), seen("broken", false, false), seen("api", true, true)];
    let held = held(&before);
    assert_eq!(
        (held.services.as_slice(), held.workloads.as_slice()),
        (&["api".to_owned()][..], &["web".to_owned()][..])
    );
    assert_eq!(missing(&held, &before, &["healthy"]), Vec::<String>::new());
    let after = [seen("web", false, false), seen("api", true, true), seen("healthy", true, false)];
    assert_eq!(missing(&held, &after, &["healthy"]), ["workload web is restarting"]);
    assert_eq!(missing(&held, &after[1..], &["healthy"]), ["workload web is gone"]);
}

#[test]
fn the_judge_wants_the_whole_settling_time_without_a_break() {
    let mut judge = Judge::default();
    let broken = ["service x is down".to_owned()];
    assert_eq!(judge.look(1000, &[]), Verdict::Open);
    assert_eq!(judge.look(20_000, &broken), Verdict::Open);
    assert_eq!(judge.look(21_000, &[]), Verdict::Open);
    assert_eq!(judge.look(1000 + SETTLE_MS, &[]), Verdict::Open);
    assert_eq!(judge.look(21_000 + SETTLE_MS, &[]), Verdict::Good);
    let mut judge = Judge::default();
    assert_eq!(judge.look(0, &broken), Verdict::Open);
    assert_eq!(judge.look(LIMIT_MS, &broken), Verdict::Bad(broken[0].clone()));
    // What came right just before the limit still gets its time.
    let mut judge = Judge::default();
    assert_eq!(judge.look(0, &broken), Verdict::Open);
    assert_eq!(judge.look(LIMIT_MS - 1, &[]), Verdict::Open);
    assert_eq!(judge.look(LIMIT_MS + SETTLE_MS, &[]), Verdict::Good);
}

#[test]
fn a_machine_that_takes_long_to_come_up_leaves_the_release_its_whole_time() {
    let mut judge = Judge::default();
    let broken = ["service x is starting".to_owned()];
    assert_eq!(judge.look(LIMIT_MS + 1, &broken), Verdict::Open);
    assert_eq!(judge.look(LIMIT_MS * 2, &broken), Verdict::Open);
    assert_eq!(judge.look(LIMIT_MS * 2 + 1, &broken), Verdict::Bad(broken[0].clone()));
}

#[test]
fn what_the_old_system_fails_as_well_says_nothing_of_the_update() {
    assert_eq!(after_return("x", &Verdict::Good), Outcome::Failed { why: "x".to_owned(), confirmed: true });
    assert!(
        matches!(after_return("x", &Verdict::Bad("y".to_owned())), Outcome::Inconclusive { why } if why.contains('y'))
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Trials::decode(&bytes);
    }

    #[test]
    fn the_judge_always_comes_to_a_verdict(looks in proptest::collection::vec(any::<bool>(), 700)) {
        let mut judge = Judge::default();
        let broken = ["x".to_owned()];
        let looks = (0_u64..).zip(looks).map(|(second, whole)| (second * 1000, whole));
        let mut verdicts = looks.map(|(at, whole)| (at, judge.look(at, if whole { &[] } else { &broken })));
        let verdict = verdicts.find(|(_, verdict)| *verdict != Verdict::Open);
        let (at, _) = verdict.unwrap();
        prop_assert!(at <= LIMIT_MS + SETTLE_MS);
    }
}
