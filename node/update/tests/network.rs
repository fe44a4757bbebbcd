//! What a bad network, a bad server and a bad disk may do to an update: it ends, says by name why, and goes on later with what is there.

mod world;

use std::fs::File;
use std::time::Duration;

use byre_boots::trial::Outcome;
use byre_protocol::control::Allow;
use byre_protocol::update::{UpdateEventKind, UpdateState};
use byre_update::engine::Engine;
use byre_update::error::UpdateError;
use byre_update::http::HttpError;
use byre_update::metadata::MetadataError;
use byre_update::slot::{Part, Slot, SlotError};
use world::server::What;
use world::{Asked, ROOT_BLOCKS, Suite, UKI_BYTES, World, apply, apply_with};

const ROOT_BYTES: u64 = ROOT_BLOCKS * 4096;

fn interrupted(updater: &Engine) -> bool {
    matches!(updater.status().state, UpdateState::Interrupted { .. })
}

/// Everything is there, armed once, with no byte fetched twice but what was in flight.
fn goes_on(world: &World, updater: &Engine, release: &world::Release) {
    world.server.heal();
    apply(updater).unwrap();
    assert!(world.slot_holds(release));
    assert_eq!(world.armed(), [release.signed.to_vec()]);
    assert!(matches!(updater.status().state, UpdateState::Armed { .. }));
}

fn drop_at(part: &'static str, bytes: u64, percent: u64) {
    let world = World::new();
    let release = world.publish_new(2);
    world.server.fault(part, What::Drop(bytes * percent / 100), 1);
    apply(&world.updater()).unwrap();
    assert!(world.slot_holds(&release));
    // Two requests, the second from where the first ended: at most one piece of the writer was not whole.
    let served: Vec<_> = world.server.served().into_iter().filter(|served| served.path.contains(part)).collect();
    let [first, second] = served.as_slice() else { panic!("{served:?}") };
    assert!(first.bytes.saturating_sub(second.from) <= 2 << 20, "{served:?}");
}

fn drops(suite: &mut Suite) {
    let percents: Vec<u64> = if Suite::is_full() { (0..100).collect() } else { vec![0, 37, 99] };
    for percent in percents {
        suite.case(&format!("root_drops_at_{percent}_percent"), || drop_at("byre-2.root", ROOT_BYTES, percent));
        suite.case(&format!("kernel_image_drops_at_{percent}_percent"), || {
            drop_at("byre-2.uki", UKI_BYTES as u64, percent)
        });
    }
    suite.case("every_connection_drops_after_a_tenth", || {
        let world = World::new();
        let release = world.publish_new(2);
        world.server.fault("byre-2.root", What::Drop(ROOT_BYTES / 10), 100);
        world.server.fault("byre-2.uki", What::Drop(UKI_BYTES as u64 / 10), 100);
        apply(&world.updater()).unwrap();
        assert!(world.slot_holds(&release));
    });
    suite.case("a_server_that_brings_nothing_ends_the_patience", || {
        let world = World::new();
        let release = world.publish_new(2);
        world.server.fault("byre-2.root", What::Drop(0), 100);
        let updater = world.updater();
        assert!(matches!(apply(&updater), Err(UpdateError::Http(HttpError::Broken { .. }))));
        assert!(interrupted(&updater));
        goes_on(&world, &updater, &release);
    });
}

fn stalls(suite: &mut Suite) {
    for (part, bytes) in [("byre-2.root", ROOT_BYTES / 2), ("byre-2.uki", UKI_BYTES as u64 / 2), ("byre-2.verity", 100)]
    {
        suite.case(&format!("a_stall_of_{part}_ends"), || {
            let world = World::impatient();
            let release = world.publish_new(2);
            world.server.fault(part, What::Stall(bytes), 1);
            world.server.fault(part, What::Stall(0), 100);
            let mut updater = world.updater();
            let ended = apply(&updater);
            assert!(matches!(ended, Err(UpdateError::Http(HttpError::Stalled { .. }))), "{ended:?}");
            assert!(interrupted(&updater));
            // And over a restart of the process.
            drop(updater);
            updater = world.updater();
            assert!(interrupted(&updater));
            world.server.forget();
            goes_on(&world, &updater, &release);
            if part == "byre-2.root" {
                let again = world.server.bytes_of(part);
                assert!(again < ROOT_BYTES * 3 / 4, "{again} bytes were fetched again");
            }
        });
    }
    suite.case("metadata_that_stalls_ends", || {
        let world = World::impatient();
        world.publish_new(2);
        world.server.fault("timestamp", What::Stall(10), 100);
        let ended = apply(&world.updater());
        let stalled = matches!(ended, Err(UpdateError::Metadata(MetadataError::Http(HttpError::Stalled { .. }))));
        assert!(stalled, "{ended:?}");
        assert!(world.slot_is_untouched());
    });
}

#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn lies(suite: &mut Suite) {
    suite.case("a_server_without_ranges_is_gone_on_with", || {
        let world = World::new();
        let release = world.publish_new(2);
        for part in ["byre-2.root", "byre-2.uki"] {
            world.server.fault(part, What::Drop(2_500_000), 1);
            world.server.fault(part, What::IgnoreRange, 100);
        }
        apply(&world.updater()).unwrap();
        assert!(world.slot_holds(&release));
    });
    suite.case("another_range_than_asked_for_is_refused", || {
        let world = World::new();
        let release = world.publish_new(2);
        world.server.fault("byre-2.root", What::Drop(2_500_000), 1);
        world.server.fault("byre-2.root", What::WrongRange, 100);
        let updater = world.updater();
        let ended = apply(&updater);
        assert!(matches!(ended, Err(UpdateError::Http(HttpError::Range { .. }))), "{ended:?}");
        goes_on(&world, &updater, &release);
    });
    for (name, what) in [("longer", What::Longer(10)), ("shorter", What::Shorter(10))] {
        for part in ["byre-2.root", "byre-2.uki"] {
            suite.case(&format!("a_file_that_is_{name}_than_signed_is_refused_{part}"), || {
                let world = World::new();
                let release = world.publish_new(2);
                world.server.fault(part, what.clone(), 100);
                let updater = world.updater();
                let ended = apply(&updater);
                assert!(matches!(ended, Err(UpdateError::Length { .. })), "{ended:?}");
                goes_on(&world, &updater, &release);
            });
        }
    }
    suite.case("a_root_that_changes_in_the_middle_is_refused_by_its_block", || {
        let world = World::new();
        let release = world.publish_new(2);
        world.server.fault("byre-2.root", What::Change(ROOT_BYTES / 2), 100);
        let updater = world.updater();
        let ended = apply(&updater);
        let refused = matches!(ended, Err(UpdateError::Slot(SlotError::Block { block })) if block == ROOT_BLOCKS / 2);
        assert!(refused, "{ended:?}");
        goes_on(&world, &updater, &release);
    });
    suite.case("a_hash_tree_of_another_root_is_refused", || {
        let world = World::new();
        let release = world.publish_new(2);
        world.server.fault("byre-2.verity", What::Change(9000), 1);
        let updater = world.updater();
        let ended = apply(&updater);
        assert!(matches!(ended, Err(UpdateError::Slot(SlotError::Tree(_)))), "{ended:?}");
        assert!(world.slot_is_untouched());
        goes_on(&world, &updater, &release);
    });
    suite.case("a_kernel_image_that_changes_is_refused_and_never_armed", || {
        let world = World::new();
        let release = world.publish_new(2);
        world.server.fault("byre-2.uki", What::Change(1000), 100);
        let updater = world.updater();
        let ended = apply(&updater);
        assert!(matches!(ended, Err(UpdateError::Slot(SlotError::Uki))), "{ended:?}");
        assert!(world.armed().is_empty());
        goes_on(&world, &updater, &release);
    });
    suite.case("errors_of_the_server_pass", || {
        let world = World::new();
        let release = world.publish_new(2);
        world.server.fault("byre-2.root", What::Status(503), 2);
        apply(&world.updater()).unwrap();
        assert!(world.slot_holds(&release));
    });
    suite.case("a_part_that_is_not_there_is_named", || {
        let world = World::new();
        world.publish_new(2);
        world.server.fault("byre-2.root", What::Status(404), 100);
        let ended = apply(&world.updater());
        assert!(matches!(ended, Err(UpdateError::Http(HttpError::NotFound(_)))), "{ended:?}");
    });
    suite.case("redirects_end", || {
        let world = World::new();
        world.publish_new(2);
        world.server.fault("byre-2.root", What::Redirect, 100);
        let ended = apply(&world.updater());
        assert!(matches!(ended, Err(UpdateError::Http(HttpError::Redirect(_)))), "{ended:?}");
    });
    suite.case("endless_metadata_ends", || {
        let world = World::new();
        world.publish_new(2);
        world.server.fault("timestamp", What::Endless, 100);
        let ended = apply(&world.updater());
        let too_long = matches!(ended, Err(UpdateError::Metadata(MetadataError::Http(HttpError::TooLong { .. }))));
        assert!(too_long, "{ended:?}");
    });
    suite.case("nobody_at_the_address_is_named", || {
        let world = World::new();
        world.publish_new(2);
        let nobody = serde_json::json!({"repository": "http://127.0.0.1:1/", "channel": "stable"});
        std::fs::write(world.path("update.json"), nobody.to_string()).unwrap();
        let ended = apply(&world.updater());
        let connect = matches!(ended, Err(UpdateError::Metadata(MetadataError::Http(HttpError::Connect { .. }))));
        assert!(connect, "{ended:?}");
    });
}

/// Cancels as soon as the state is as wanted; the update must then have ended as cancelled.
fn cancel_when(world: &World, wanted: impl Fn(&UpdateState) -> bool + Sync) {
    let release = world.publish_new(2);
    let updater = world.updater();
    let ended = std::thread::scope(|scope| {
        let running = scope.spawn(|| apply(&updater));
        let mut seen = 0;
        while !running.is_finished() {
            if wanted(&updater.status().state) {
                let _ = updater.cancel();
            }
            seen = updater.wait_for_change(seen, Duration::from_millis(20));
        }
        running.join().unwrap()
    });
    assert!(matches!(ended, Err(UpdateError::Cancelled)), "{ended:?}");
    assert!(world.armed().is_empty());
    goes_on(world, &updater, &release);
}

fn cancels(suite: &mut Suite) {
    suite.case("cancel_while_checking", || {
        let world = World::impatient();
        world.server.fault("timestamp", What::Stall(10), 1);
        cancel_when(&world, |state| matches!(state, UpdateState::Checking));
    });
    let shares: &[u64] = if Suite::is_full() { &[0, 10, 20, 30, 40, 50, 60] } else { &[0, 50] };
    for share in shares {
        suite.case(&format!("cancel_at_{share}_percent"), || {
            let world = World::impatient();
            // It stands still behind the last share that is looked for.
            world.server.fault("byre-2.uki", What::Stall(3_000_000), 1);
            cancel_when(&world, |state| {
                matches!(state, UpdateState::Writing { done_bytes, total_bytes, .. } if done_bytes * 100 >= total_bytes * share)
            });
        });
    }
    suite.case("cancel_while_reading_back", || {
        // Long enough that there is a middle.
        let world = World { uki_bytes: 60 << 20, ..World::new() };
        cancel_when(&world, |state| matches!(state, UpdateState::Verifying { .. }));
    });
    suite.case("nothing_to_cancel_is_said", || {
        let world = World::new();
        assert!(matches!(world.updater().cancel(), Err(UpdateError::NothingToCancel)));
    });
    suite.case("one_update_at_a_time", || {
        let world = World::new();
        let updater = world.updater();
        let _job = updater.begin().unwrap();
        assert!(matches!(apply(&updater), Err(UpdateError::Busy)));
    });
}

/// A file system of one MiB in memory; none where that may not be mounted.
fn small_file_system(at: &std::path::Path) -> bool {
    use rustix::mount::{MountFlags, mount};
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(c"size=1m")).is_ok()
}

fn disks(suite: &mut Suite) {
    suite.case("a_release_that_does_not_fit_is_refused_before_a_byte", || {
        let world = World::new();
        world.publish_new(2);
        File::options().write(true).open(world.slot_file("root")).unwrap().set_len(ROOT_BYTES - 1).unwrap();
        let ended = apply(&world.updater());
        assert!(matches!(ended, Err(UpdateError::Slot(SlotError::Room { part: Part::Root, .. }))), "{ended:?}");
        assert!(world.slot_is_untouched());
    });
    let place = tempfile::tempdir().unwrap();
    if small_file_system(place.path()) {
        suite.case("a_target_that_is_full_in_the_middle_is_named", || {
            let world = World::new();
            let release = world.publish_new(2);
            let open = |part: &str| File::options().read(true).write(true).open(world.slot_file(part)).unwrap();
            let small =
                File::options().read(true).write(true).create_new(true).open(place.path().join("root")).unwrap();
            small.set_len(8 << 20).unwrap();
            let updater = world.updater_with(1, 0, Slot::new(small, open("verity"), open("uki")));
            let ended = apply(&updater);
            assert!(matches!(ended, Err(UpdateError::Slot(SlotError::Disk { part: Part::Root, .. }))), "{ended:?}");
            drop(updater);
            goes_on(&world, &world.updater(), &release);
        });
        rustix::mount::unmount(place.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    } else {
        println!("skipped: a_target_that_is_full_in_the_middle_is_named (nothing may be mounted here)");
    }
    suite.case("what_lies_there_already_is_not_fetched", || {
        let world = World::new();
        let release = world.publish_new(2);
        std::fs::write(world.slot_file("verity"), padded(&release.verity)).unwrap();
        std::fs::write(world.slot_file("root"), padded(&release.root)).unwrap();
        apply(&world.updater()).unwrap();
        assert!(world.slot_holds(&release));
        assert_eq!(world.server.bytes_of("byre-2.root") + world.server.bytes_of("byre-2.verity"), 0);
    });
    suite.case("what_a_later_writer_broke_is_mended", || {
        let world = World::new();
        let release = world.publish_new(2);
        let mut root = padded(&release.root);
        root[1_000_000] ^= 1;
        std::fs::write(world.slot_file("root"), root).unwrap();
        apply(&world.updater()).unwrap();
        assert!(world.slot_holds(&release));
    });
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(8 << 20, 0);
    bytes
}

#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn rules(suite: &mut Suite) {
    suite.case("nothing_is_written_before_the_running_slot_is_blessed", || {
        let world = World::new();
        world.publish_new(2);
        std::fs::remove_file(world.path("blessed")).unwrap();
        assert!(matches!(apply(&world.updater()), Err(UpdateError::NotBlessed)));
        assert!(world.slot_is_untouched());
    });
    suite.case("without_the_time_an_update_waits", || {
        let world = World::new();
        let release = world.publish_new(2);
        std::fs::remove_file(world.path("time")).unwrap();
        let updater = world.updater();
        assert!(matches!(apply(&updater), Err(UpdateError::NoTime)));
        assert!(matches!(updater.check(), Err(UpdateError::NoTime)));
        // An offline bundle does not need it.
        let bundle = world.bundle(2);
        updater.apply_bundle(bundle.as_slice(), Allow::default(), false, true).unwrap();
        assert!(world.slot_holds(&release));
    });
    suite.case("the_newest_release_needs_no_update", || {
        let world = World::new();
        world.publish_new(2);
        let said = apply(&world.updater_of(2, 0)).unwrap();
        assert!(said.contains("is the newest"), "{said}");
        assert!(world.slot_is_untouched());
    });
    suite.case("an_older_release_needs_a_word_and_never_goes_below_the_floor", || {
        let world = World::new();
        let release = world.publish_new(3);
        let updater = world.updater_of(5, 0);
        assert!(matches!(apply(&updater), Err(UpdateError::Downgrade { .. })));
        let allow = Allow { downgrade: true, retry: false };
        apply_with(&updater, allow).unwrap();
        assert!(world.slot_holds(&release));
        assert_eq!(*world.pid1.asked.lock().unwrap(), [Asked::Arm(release.signed.to_vec(), allow)]);
        let other = World::new();
        other.publish_new(3);
        let below = apply_with(&other.updater_of(5, 4), allow);
        assert!(matches!(below, Err(UpdateError::BelowFloor { floor: 4, .. })), "{below:?}");
    });
    suite.case("a_floor_that_was_in_use_stays", || {
        let world = World::new();
        world.publish_new(3);
        drop(world.updater_of(6, 5));
        // The machine went back to a release that knows no floor.
        let below = apply_with(&world.updater_of(4, 0), Allow { downgrade: true, retry: true });
        assert!(matches!(below, Err(UpdateError::BelowFloor { floor: 5, .. })), "{below:?}");
    });
    suite.case("a_release_that_fell_back_is_tried_again_only_when_asked", || {
        let world = World::new();
        let release = world.publish_new(2);
        apply(&world.updater()).unwrap();
        world.next_boot();
        world.judged(&release, Outcome::Failed { why: "web is failing".to_owned(), confirmed: true });
        let updater = world.updater();
        let history = updater.history();
        assert_eq!(history[0].what, UpdateEventKind::FellBack);
        assert!(history[0].text.contains("web is failing"), "{history:?}");
        assert!(matches!(apply(&updater), Err(UpdateError::Failed(_))));
        apply_with(&updater, Allow { downgrade: false, retry: true }).unwrap();
        assert!(world.slot_holds(&release));
    });
    suite.case("a_release_that_runs_and_is_blessed_is_good_and_can_be_rolled_back", || {
        let world = World::new();
        world.publish_new(2);
        apply(&world.updater()).unwrap();
        world.next_boot();
        let updater = world.updater_of(2, 0);
        assert_eq!(updater.history()[0].what, UpdateEventKind::Good);
        assert!(matches!(updater.status().state, UpdateState::Idle));
        updater.roll_back(true).unwrap();
        assert_eq!(world.asked_last(2), [Asked::RollBack, Asked::Reboot]);
        // And forward again.
        world.next_boot();
        let said = world.updater().roll_back(false).unwrap();
        assert!(said.contains("1.2"), "{said}");
        assert_eq!(world.asked_last(1), [Asked::RollBack]);
    });
    suite.case("nobody_rolls_back_below_the_floor", || {
        let world = World::new();
        world.publish_new(2);
        apply(&world.updater()).unwrap();
        world.next_boot();
        let below = world.updater_of(2, 2).roll_back(false);
        assert!(matches!(below, Err(UpdateError::BelowFloor { floor: 2, .. })), "{below:?}");
        assert!(!world.asked_last(1).contains(&Asked::RollBack));
    });
    trials(suite);
    suite.case("an_armed_release_is_not_written_over", || {
        let world = World::new();
        let release = world.publish_new(2);
        let updater = world.updater();
        apply(&updater).unwrap();
        world.publish_new(3);
        assert!(matches!(apply(&updater), Err(UpdateError::Armed(_))));
        assert!(world.slot_holds(&release));
    });
    suite.case("what_pid_1_refuses_is_said_in_its_words", || {
        let world = World::new();
        let release = world.publish_new(2);
        *world.pid1.refusal.lock().unwrap() = Some("the boot partition is full".to_owned());
        let updater = world.updater();
        let ended = apply(&updater);
        assert!(matches!(&ended, Err(UpdateError::Init(text)) if text == "the boot partition is full"), "{ended:?}");
        assert!(matches!(updater.status().state, UpdateState::Written { .. }));
        *world.pid1.refusal.lock().unwrap() = None;
        goes_on(&world, &updater, &release);
    });
}

/// What an armed release may come to.
fn trials(suite: &mut Suite) {
    suite.case("an_attempt_that_says_nothing_of_the_release_is_repeated", || {
        let world = World::new();
        let release = world.publish_new(2);
        apply(&world.updater()).unwrap();
        world.next_boot();
        world.judged(&release, Outcome::Inconclusive { why: "the power went during its trial".to_owned() });
        let updater = world.updater();
        assert_eq!(updater.history()[0].what, UpdateEventKind::FellBack);
        apply(&updater).unwrap();
        assert_eq!(world.armed().len(), 2);
    });
    suite.case("nothing_is_said_before_the_trial_is_judged", || {
        let world = World::new();
        world.publish_new(2);
        apply(&world.updater()).unwrap();
        world.next_boot();
        std::fs::remove_file(world.path("blessed")).unwrap();
        let updater = world.updater();
        assert_eq!(updater.history()[0].what, UpdateEventKind::Armed);
        assert!(matches!(updater.status().state, UpdateState::Armed { .. }));
    });
    suite.case("a_release_that_became_good_in_this_boot_can_be_followed", || {
        let world = World::new();
        world.publish_new(2);
        apply(&world.updater()).unwrap();
        world.next_boot();
        std::fs::remove_file(world.path("blessed")).unwrap();
        let updater = world.updater_of(2, 0);
        let release = world.publish_new(3);
        assert!(matches!(apply(&updater), Err(UpdateError::NotBlessed)));
        std::fs::write(world.path("blessed"), "").unwrap();
        apply(&updater).unwrap();
        assert!(world.slot_holds(&release));
    });
    suite.case("what_was_armed_and_not_tried_is_taken_back", || {
        let world = World::new();
        world.publish_new(2);
        let updater = world.updater();
        apply(&updater).unwrap();
        let said = updater.roll_back(false).unwrap();
        assert!(said.contains("1.1") && said.ends_with("boots next"), "{said}");
        assert_eq!(world.asked_last(1), [Asked::Disarm]);
        let release = world.publish_new(3);
        apply(&updater).unwrap();
        assert!(world.slot_holds(&release));
    });
    suite.case("a_cut_while_pid_1_arms_is_made_good_whatever_came_of_it", || {
        let world = World::new();
        let release = world.publish_new(2);
        apply(&world.updater()).unwrap();
        world.cut_while_arming();
        // In the same boot: taken back before anything is written.
        let updater = world.updater();
        assert!(matches!(updater.status().state, UpdateState::Written { .. }));
        apply(&updater).unwrap();
        assert_eq!(world.asked_last(2), [Asked::Disarm, Asked::Arm(release.signed.to_vec(), Allow::default())]);
        // After a reboot into it.
        world.cut_while_arming();
        world.next_boot();
        let updater = world.updater_of(2, 0);
        assert_eq!(updater.history()[0].what, UpdateEventKind::Good);
        // After a reboot into the old one, which it never left.
        let other = World::new();
        other.publish_new(2);
        apply(&other.updater()).unwrap();
        other.cut_while_arming();
        other.next_boot();
        let updater = other.updater();
        apply(&updater).unwrap();
        assert!(updater.history().iter().all(|event| event.what != UpdateEventKind::FellBack));
    });
}

fn bundles(suite: &mut Suite) {
    suite.case("a_bundle_is_taken_whole", || {
        let world = World::new();
        let release = world.publish_new(2);
        let bundle = world.bundle(2);
        world.updater().apply_bundle(bundle.as_slice(), Allow::default(), false, false).unwrap();
        assert!(world.slot_holds(&release));
        assert_eq!(world.armed(), [release.signed.to_vec()]);
    });
    suite.case("a_bundle_that_is_cut_off_is_gone_on_with", || {
        let world = World::new();
        let release = world.publish_new(2);
        let bundle = world.bundle(2);
        let updater = world.updater();
        for share in [1, 30, 50, 80] {
            let cut = &bundle[..bundle.len() * share / 100];
            assert!(updater.apply_bundle(cut, Allow::default(), false, false).is_err(), "{share}");
            assert!(world.armed().is_empty());
        }
        updater.apply_bundle(bundle.as_slice(), Allow::default(), false, false).unwrap();
        assert!(world.slot_holds(&release));
    });
    suite.case("a_flipped_byte_anywhere_in_a_bundle_is_refused", || {
        let world = World::new();
        world.publish_new(2);
        let bundle = world.bundle(2);
        for share in [2, 10, 30, 60, 95] {
            let mut changed = bundle.clone();
            let at = bundle.len() * share / 100;
            changed[at] ^= 1;
            let ended = world.updater().apply_bundle(changed.as_slice(), Allow::default(), false, true);
            assert!(ended.is_err(), "{share}");
        }
        assert!(world.armed().is_empty());
    });
    suite.case("an_expired_bundle_needs_the_word_offline", || {
        let world = World::new();
        let release = world.release(2);
        let days = |days: i64| 86_400 * days;
        world.publish_at(&release, byre_tuf::now() - days(60));
        let bundle = world.bundle(2);
        let updater = world.updater();
        let online = updater.apply_bundle(bundle.as_slice(), Allow::default(), false, false);
        assert!(matches!(online, Err(UpdateError::Metadata(MetadataError::Expired(_)))), "{online:?}");
        updater.apply_bundle(bundle.as_slice(), Allow::default(), false, true).unwrap();
        assert!(world.slot_holds(&release));
        // Root and targets always hold.
        let other = World::new();
        let release = other.release(2);
        other.publish_at(&release, byre_tuf::now() - days(500));
        let bundle = other.bundle(2);
        let offline = other.updater().apply_bundle(bundle.as_slice(), Allow::default(), false, true);
        assert!(matches!(offline, Err(UpdateError::Metadata(MetadataError::Expired(_)))), "{offline:?}");
    });
}

#[test]
fn updates_survive_bad_networks_servers_and_disks() {
    let mut suite = Suite::new("net");
    drops(&mut suite);
    stalls(&mut suite);
    lies(&mut suite);
    cancels(&mut suite);
    disks(&mut suite);
    rules(&mut suite);
    bundles(&mut suite);
    suite.end();
}
