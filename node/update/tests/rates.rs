//! Measures an update: its time and bytes from a server on this machine, and how fast a slot is written beside `dd` with the same flush. Only for
//! `cargo xtask bench updates`, which names the file for the figures; otherwise it says so and ends.

mod world;

use std::fs::File;
use std::process::Command;
use std::time::Instant;

use byre_update::slot::Slot;
use world::{World, apply};

/// Bytes of the kernel image of the measured release, as a shipped one has about.
const UKI_BYTES: usize = 13 << 20;
/// Runs of each.
const RUNS: usize = 5;

#[test]
fn rates() {
    let Some(report) = std::env::var_os("BYRE_RATES_REPORT") else {
        println!("not measured: run cargo xtask bench updates");
        return;
    };
    let (mut seconds, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let world = World { uki_bytes: UKI_BYTES, ..World::new() };
        world.publish_new(2);
        let updater = world.updater();
        let begun = Instant::now();
        apply(&updater).unwrap();
        seconds.push(begun.elapsed().as_secs_f64());
        bytes.push(world.server.served().iter().map(|served| served.bytes).sum::<u64>());
    }
    let (mut ours, mut dd) = (Vec::new(), Vec::new());
    let world = World { uki_bytes: 48 << 20, ..World::new() };
    let release = world.release(2);
    let source = world.path("source");
    std::fs::write(&source, &release.uki).unwrap();
    for _ in 0..RUNS {
        let open = |part: &str| File::options().read(true).write(true).open(world.slot_file(part)).unwrap();
        let slot = Slot::new(open("root"), open("verity"), open("uki"));
        let begun = Instant::now();
        let mut writer = slot.uki_writer(0).unwrap();
        release.uki.chunks(128 * 1024).for_each(|piece| writer.take(piece, release.statement.uki_bytes).unwrap());
        writer.finish(&release.statement).unwrap();
        ours.push(release.uki.len() as f64 / begun.elapsed().as_secs_f64());
        let (from, to) = (format!("if={}", source.display()), format!("of={}", world.slot_file("uki").display()));
        let begun = Instant::now();
        let copied = Command::new("dd").args([&from, &to, "bs=1M", "conv=notrunc,fdatasync", "status=none"]).status();
        assert!(copied.unwrap().success());
        dd.push(release.uki.len() as f64 / begun.elapsed().as_secs_f64());
    }
    let figures = serde_json::json!({"seconds": seconds, "bytes": bytes, "ours": ours, "dd": dd});
    std::fs::write(report, figures.to_string()).unwrap();
}
