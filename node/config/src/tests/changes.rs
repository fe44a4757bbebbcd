//! What becomes of a change: on a machine made of files, with a clock of the test's own.

use byre_protocol::settings::{ConfigAnswer, ConfigCall, Generation, Standing};

use super::*;
use crate::keeper::{Denied, Now};
use crate::service::carry_out;

impl Machine {
    fn keeper(&self) -> Keeper {
        start(&self.paths, || Ok::<(), String>(())).expect("the configuration is handed out")
    }

    /// What the next boot finds: /run is empty.
    fn reboot(&self) -> Keeper {
        for entry in std::fs::read_dir(self.paths.run.join("config")).expect("a directory") {
            std::fs::remove_file(entry.expect("an entry").path()).expect("removed");
        }
        self.keeper()
    }

    fn files(&self) -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
        let readers = output::outputs(&Instance::default(), &Configuration::default());
        let read = |name: &str| std::fs::read(self.paths.run.join("config").join(name)).expect("handed out");
        readers.into_iter().map(|output| (output.name, read(output.name), output.readers)).collect()
    }
}

fn at(boot_ms: u64) -> Now {
    Now { boot_ms, wall_ms: 1_700_000_000_000 + boot_ms }
}

fn apply(
    keeper: &mut Keeper,
    document: &str,
    confirm_ms: u32,
    boot_ms: u64,
) -> Result<(Generation, Vec<String>), Denied> {
    let call = ConfigCall::Apply { document: document.into(), who: "erika".into(), confirm_ms };
    let answer = carry_out(keeper, call, at(boot_ms))?;
    let ConfigAnswer::Applied { generation, plan } = answer else { panic!("{answer:?}") };
    Ok((generation, plan.restarts))
}

/// As `byred api` does.
fn restart_all(keeper: &mut Keeper, boot_ms: u64) -> Vec<String> {
    let restarts = keeper.restarts().to_vec();
    for (service, revision) in &restarts {
        let call = ConfigCall::Restarted { service: service.clone(), revision: *revision };
        carry_out(keeper, call, at(boot_ms)).expect("acknowledged");
    }
    restarts.into_iter().map(|(service, _)| service).collect()
}

#[test]
fn a_change_stays_once_a_newer_connection_confirms_it() {
    let machine = Machine::new();
    machine.user_data(&named("first"));
    let mut keeper = machine.keeper();
    let (pending, restarts) = apply(&mut keeper, &named("second"), 10_000, 1_000).expect("applied");
    assert_eq!((pending.number, pending.standing), (2, Standing::Pending { left_ms: 10_000 }));
    assert_eq!(restarts, ["hostname", "net", "api"]);
    assert_eq!(machine.read("run/config/hostname"), "second\n");
    assert!(matches!(keeper.confirm(2, 1_500, at(1_500)), Err(Denied::Restarting(_))));
    restart_all(&mut keeper, 2_000);
    assert!(matches!(keeper.confirm(2, 2_000, at(2_500)), Err(Denied::OldConnection(2))));
    assert!(matches!(keeper.confirm(3, 3_000, at(3_000)), Err(Denied::NotWaiting(3))));
    assert_eq!(keeper.confirm(2, 2_001, at(3_000)).expect("confirmed").standing, Standing::Confirmed);
    keeper.expire(at(100_000));
    machine.reboot();
    assert_eq!(machine.read("run/config/hostname"), "second\n");
    let history = machine.reboot().history(at(0));
    let seen: Vec<_> = history.iter().map(|one| (one.number, one.standing, one.origin.as_str())).collect();
    let disk = machine.paths.run.join("nocloud/user-data").display().to_string();
    assert_eq!(seen, [(2, Standing::Confirmed, "erika"), (1, Standing::Past, disk.as_str())]);
}

#[test]
fn a_change_that_nobody_confirms_is_undone_in_time() {
    let machine = Machine::new();
    machine.user_data(&named("first"));
    let mut keeper = machine.keeper();
    let before = machine.files();
    apply(&mut keeper, &named("second"), 10_000, 1_000).expect("applied");
    restart_all(&mut keeper, 1_100);
    assert_eq!(keeper.deadline_in_ms(at(2_000)), Some(9_000));
    keeper.expire(at(10_999));
    assert_eq!(machine.read("run/config/hostname"), "second\n");
    keeper.expire(at(11_000));
    assert_eq!(machine.files(), before);
    assert_eq!(restart_all(&mut keeper, 11_100), ["hostname", "net", "api"]);
    assert!(keeper.deadline_in_ms(at(12_000)).is_none());
    assert_eq!(keeper.history(at(12_000)).first().map(|one| (one.number, one.standing)), Some((2, Standing::Undone)));
    let (third, _) = apply(&mut keeper, &named("third"), 0, 12_000).expect("applied");
    assert_eq!((third.number, third.standing), (3, Standing::Confirmed), "a number is given once");
}

#[test]
fn a_reboot_undoes_what_nobody_confirmed_and_a_restart_of_the_service_does_not() {
    let machine = Machine::new();
    machine.user_data(&named("first"));
    apply(&mut machine.keeper(), &named("second"), 60_000, 1_000).expect("applied");
    let again = machine.keeper();
    assert_eq!(machine.read("run/config/hostname"), "second\n");
    assert_eq!(again.deadline_in_ms(at(31_000)), Some(30_000));
    assert_eq!(again.restarts().len(), 3, "what was not restarted is told again");
    let rebooted = machine.reboot();
    assert_eq!(machine.read("run/config/hostname"), "first\n");
    assert!(rebooted.restarts().is_empty());
    assert_eq!(rebooted.history(at(0)).first().map(|one| one.standing), Some(Standing::Undone));
}

#[test]
fn a_second_apply_of_the_same_changes_nothing() {
    let machine = Machine::new();
    let mut keeper = machine.keeper();
    let (first, restarts) = apply(&mut keeper, "version = 1\n", 0, 1).expect("applied");
    assert_eq!((first.number, restarts.len()), (1, 0), "accepting the defaults is a generation, and restarts nothing");
    let before = machine.read("state/current.toml");
    let (second, _) = apply(&mut keeper, "# the same\nversion = 1 # in other words\n", 5_000, 2).expect("applied");
    assert_eq!((second.number, second.standing), (1, Standing::Confirmed));
    assert_eq!(machine.read("state/current.toml"), before);
}

#[test]
fn one_change_at_a_time_and_within_bounds() {
    let machine = Machine::new();
    let mut keeper = machine.keeper();
    assert!(matches!(apply(&mut keeper, &named("a"), 4_999, 1), Err(Denied::ConfirmTime)));
    apply(&mut keeper, &named("a"), 5_000, 1).expect("applied");
    let (same, _) = apply(&mut keeper, &named("a"), 5_000, 2).expect("the same again");
    assert_eq!(same.standing, Standing::Pending { left_ms: 4_999 });
    assert!(matches!(apply(&mut keeper, &named("b"), 5_000, 2), Err(Denied::Waiting(1))));
    let refused = apply(&mut keeper, "version = 1\n\nnew = 2\n", 0, 3).expect_err("unknown").to_string();
    assert!(refused.starts_with("the document, line 3: unknown field `new`"), "{refused}");
}

#[test]
fn what_an_update_kept_is_restored_as_a_new_generation() {
    let machine = Machine::new();
    let mut keeper = machine.keeper();
    apply(&mut keeper, &named("good"), 0, 1).expect("applied");
    let state = &machine.paths.state;
    std::fs::hard_link(state.join("current.toml"), state.join("before-trial.toml")).expect("kept");
    apply(&mut keeper, &named("trial"), 0, 2).expect("applied");
    std::fs::rename(state.join("before-trial.toml"), state.join("restore.toml")).expect("restored");
    let keeper = machine.reboot();
    assert_eq!(machine.read("run/config/hostname"), "good\n");
    let (now, _) = keeper.get(None, at(0)).expect("in force");
    assert_eq!((now.number, now.origin.as_str()), (3, "generation 1, restored"));
    assert!(!state.join("restore.toml").exists());
}

#[test]
fn an_older_system_takes_the_newest_generation_that_it_can_read() {
    let machine = Machine::new();
    let mut keeper = machine.keeper();
    apply(&mut keeper, &named("old"), 0, 1).expect("applied");
    apply(&mut keeper, &named("newer"), 0, 2).expect("applied");
    let newer = machine.read("state/current.toml");
    machine.write("state/current.toml", newer.replace("version = 1", "version = 2").as_bytes());
    machine.write("state/generation-2.toml", newer.replace("version = 1", "version = 2").as_bytes());
    machine.reboot();
    assert_eq!(machine.read("run/config/hostname"), "old\n");
    assert!(machine.read("state/current.toml").contains("version = 2"), "the newer system finds its own again");
}

#[test]
fn secrets_are_shown_to_who_may_see_them_and_in_no_plan() {
    let machine = Machine::new();
    let mut keeper = machine.keeper();
    let document = format!("version = 1\n[api]\njoin_token = \"0123456789abcdef0123\"\nca_pem = '''\n{CA}'''\n");
    let call = ConfigCall::Plan { document: document.clone().into() };
    let plan = format!("{:?}", carry_out(&mut keeper, call, at(1)).expect("planned"));
    assert!(plan.contains("(secret)") && !plan.contains("0123456789abcdef0123"), "{plan}");
    apply(&mut keeper, &document, 0, 1).expect("applied");
    let shown = |keeper: &mut Keeper, secrets| {
        let answer = carry_out(keeper, ConfigCall::Get { generation: None, secrets }, at(1)).expect("shown");
        let ConfigAnswer::Document { document, .. } = answer else { panic!("{answer:?}") };
        document
    };
    assert_eq!(shown(&mut keeper, true), document);
    let open = shown(&mut keeper, false);
    assert!(!open.contains("0123456789abcdef0123") && open.contains("BEGIN CERTIFICATE"), "{open}");
    parse(open.as_bytes(), "x").expect("what is shown can be read");
}

/// Documents that differ in some tables.
fn documents() -> impl Strategy<Value = String> {
    let hostname =
        prop_oneof![Just(""), Just("[identity]\nhostname = \"a\"\n"), Just("[identity]\nhostname = \"b\"\n")];
    let api = prop_oneof![Just(0), Just(1), Just(2)];
    let network = prop_oneof![
        Just(""),
        Just("[network]\nlinks = []\n"),
        Just("[[network.links]]\nname = \"eth0\"\n"),
        Just("[[network.links]]\nname = \"eth0\"\nmtu = 1400\n"),
        Just("[[network.links]]\nname = \"eth0\"\nmtu = 1400\n[[network.links]]\nmac = \"52:54:00:12:34:56\"\n"),
    ];
    (hostname, api, network).prop_map(|(hostname, api, network)| {
        let api = match api {
            0 => String::new(),
            1 => format!("[api]\nca_pem = '''\n{CA}'''\n"),
            _ => format!("[api]\njoin_token = \"0123456789abcdef0123\"\nca_pem = '''\n{CA}'''\n"),
        };
        format!("version = 1\n{hostname}{api}{network}")
    })
}

/// What has to start anew, said without looking at the files: by table.
fn expected(before: &Configuration, after: &Configuration) -> Vec<&'static str> {
    let name = before.identity != after.identity;
    let all = [
        ("hostname", name),
        ("net", name || before.network != after.network),
        ("api", name || before.api != after.api),
    ];
    all.into_iter().filter(|(_, wanted)| *wanted).map(|(service, _)| service).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_a_plan_says_is_what_happens(steps in proptest::collection::vec((documents(), any::<bool>()), 1..6)) {
        let machine = Machine::new();
        let mut keeper = machine.keeper();
        let mut clock = 1_000;
        for (document, confirmed) in steps {
            clock += 100_000;
            let before = keeper.get(None, at(clock)).expect("in force").1.configuration;
            let after = parse(document.as_bytes(), "x").expect("a good document");
            let files = machine.files();
            let planned = keeper.plan(document.as_bytes()).expect("planned");
            prop_assert_eq!(&machine.files(), &files, "a plan changes nothing");
            let (generation, restarts) = apply(&mut keeper, &document, 10_000, clock).expect("applied");
            prop_assert_eq!(&planned.restarts, &restarts);
            prop_assert_eq!(&restarts, &expected(&before, &after));
            prop_assert_eq!(planned.changes.is_empty(), before == after);
            let told = restart_all(&mut keeper, clock + 10);
            prop_assert_eq!(&told, &restarts, "who is told to start anew is who was named");
            for ((name, was, readers), (_, is, _)) in files.iter().zip(machine.files()) {
                let named = readers.iter().all(|reader| restarts.iter().any(|restart| restart == reader));
                prop_assert!(*was == is || named, "{} changed and {:?} were not named", name, readers);
            }
            if matches!(generation.standing, Standing::Pending { .. }) {
                if confirmed {
                    keeper.confirm(generation.number, clock + 20, at(clock + 30)).expect("confirmed");
                } else {
                    keeper.expire(at(clock + 10_000));
                    prop_assert_eq!(&machine.files(), &files, "undone is as it was");
                    prop_assert_eq!(&restart_all(&mut keeper, clock + 10_010), &restarts);
                }
            }
        }
    }
}
