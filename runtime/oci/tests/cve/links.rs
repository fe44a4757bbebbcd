//! Images whose links lead where something of the host's, or something protected, lies.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::bench::Bench;

fn rootfs(bench: &Bench) -> PathBuf {
    bench.bundle().join("rootfs")
}

/// A directory of the host that an image has no business in.
fn outside(bench: &Bench) -> PathBuf {
    let outside = bench.path("outside");
    fs::create_dir_all(&outside).unwrap();
    outside
}

fn is_empty(directory: &PathBuf) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

fn mount(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

fn without(config: &mut Value, below: &str) {
    let inside = |target: &str| target == below || target.starts_with(&format!("{below}/"));
    config["mounts"].as_array_mut().unwrap().retain(|one| !inside(one["destination"].as_str().unwrap()));
}

/// With `/proc` or the like a link to another directory of the image, a container does not start.
fn refuses_link(name: &'static str, at: &str, change: impl FnOnce(&mut Value)) {
    let bench = Bench::new(name);
    fs::create_dir_all(rootfs(&bench).join("elsewhere/below")).unwrap();
    symlink("/elsewhere", rootfs(&bench).join(at)).unwrap();
    bench.script("echo started", change);
    let said = bench.run().failed();
    assert!(said.contains("must be mounted on ordinary directory"), "{said}");
    assert!(bench.is_gone());
}

/// A volume over /proc: what is masked and made read-only there is another file.
#[test]
#[ignore = "needs root"]
fn cve_2019_16884() {
    refuses_link("cve-2019-16884", "proc", |_| {});
}

/// The same race won through a directory above the mount point.
#[test]
#[ignore = "needs root"]
fn cve_2019_19921() {
    refuses_link("cve-2019-19921", "linked", |config| {
        mount(config, json!({ "destination": "/linked/below", "type": "proc", "source": "proc" }));
    });
}

/// The same again, when the mount is made in another way: here a procfs with a setting.
#[test]
#[ignore = "needs root"]
fn cve_2023_27561() {
    refuses_link("cve-2023-27561", "proc", |config| {
        without(config, "/proc");
        mount(config, json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["hidepid=2"] }));
    });
}

/// youki: a linked /sys.
#[test]
#[ignore = "needs root"]
fn cve_2025_54867() {
    refuses_link("cve-2025-54867", "sys", |config| without(config, "/sys/fs"));
}

/// A mount point exchanged for a link: the mount must be made where the link leads inside.
#[test]
#[ignore = "needs root"]
fn cve_2021_30465() {
    let bench = Bench::new("cve-2021-30465");
    let outside = outside(&bench);
    fs::create_dir(outside.join("target")).unwrap();
    fs::create_dir_all(rootfs(&bench).join(outside.strip_prefix("/").unwrap())).unwrap();
    symlink(&outside, rootfs(&bench).join("volume")).unwrap();
    bench.script("mount | grep -c volume-of-it; ls -d /volume/target && echo inside", |config| {
        mount(config, json!({ "destination": "/volume/target", "type": "tmpfs", "source": "volume-of-it" }));
    });
    assert!(bench.run().ok().ends_with("inside\n"));
    // The mount point was made where the link leads inside.
    let inside = rootfs(&bench).join(outside.strip_prefix("/").unwrap()).join("target");
    assert!(inside.is_dir(), "{}", inside.display());
}

/// Mount points that are missing must not be made on the host.
#[test]
#[ignore = "needs root"]
fn cve_2024_45310() {
    let bench = Bench::new("cve-2024-45310");
    let outside = outside(&bench);
    fs::create_dir_all(rootfs(&bench).join("a")).unwrap();
    symlink(&outside, rootfs(&bench).join("a/link")).unwrap();
    fs::create_dir_all(rootfs(&bench).join(outside.strip_prefix("/").unwrap())).unwrap();
    bench.script("true", |config| {
        mount(config, json!({ "destination": "/a/link/made/here", "type": "tmpfs", "source": "tmpfs" }));
    });
    bench.run().ok();
    assert!(is_empty(&outside), "{:?}", fs::read_dir(&outside).unwrap().collect::<Vec<_>>());
}

/// crun: a file mounted where the image has a link.
#[test]
#[ignore = "needs root"]
fn cve_2019_18837() {
    let bench = Bench::new("cve-2019-18837");
    let outside = outside(&bench);
    fs::create_dir_all(rootfs(&bench).join("etc")).unwrap();
    symlink(outside.join("hosts"), rootfs(&bench).join("etc/hosts")).unwrap();
    fs::write(bench.path("hosts"), "content").unwrap();
    let source = bench.path("hosts").to_str().unwrap().to_owned();
    bench.script("cat /etc/hosts", |config| {
        mount(config, json!({ "destination": "/etc/hosts", "source": source, "options": ["bind"] }));
    });
    // A dangling link at the mount point itself is refused; a file on the host is not made.
    let _ = bench.run();
    assert!(is_empty(&outside));
}

/// What a mount begins with is copied from the image, not from where its links lead on the host.
#[test]
#[ignore = "needs root"]
fn cve_2022_23648() {
    let bench = Bench::new("cve-2022-23648");
    let outside = outside(&bench);
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, rootfs(&bench).join("data")).unwrap();
    fs::create_dir_all(rootfs(&bench).join(outside.strip_prefix("/").unwrap())).unwrap();
    bench.script("ls /data", |config| {
        mount(config, json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    });
    assert_eq!(bench.run().ok(), "");
}

/// CRI-O: what is made below a linked directory of the image must be made inside.
#[test]
#[ignore = "needs root"]
fn cve_2024_5154() {
    let bench = Bench::new("cve-2024-5154");
    let outside = outside(&bench);
    fs::create_dir_all(rootfs(&bench).join(outside.strip_prefix("/").unwrap())).unwrap();
    symlink(&outside, rootfs(&bench).join("dev")).unwrap();
    bench.script("ls -l /dev/null", |config| without(config, "/dev"));
    assert!(bench.run().ok().contains("1,   3"));
    assert!(is_empty(&outside), "{:?}", fs::read_dir(&outside).unwrap().collect::<Vec<_>>());
}

/// Masked files are hidden by an empty file of the runtime's, whatever the image calls /dev/null.
#[test]
#[ignore = "needs root"]
fn cve_2025_31133() {
    let bench = Bench::new("cve-2025-31133");
    fs::create_dir_all(rootfs(&bench).join("dev")).unwrap();
    fs::write(rootfs(&bench).join("victim"), "victim").unwrap();
    fs::write(rootfs(&bench).join("masked"), "hidden").unwrap();
    bench.script("cat /masked; wc -c < /masked; (echo x > /masked) 2>/dev/null || echo kept", |config| {
        without(config, "/dev");
        config["linux"]["maskedPaths"] = json!(["/masked"]);
    });
    assert_eq!(bench.run().ok(), "0\nkept\n");
}

/// youki: nobody writes into what hides a masked directory.
#[test]
#[ignore = "needs root"]
fn cve_2025_62161() {
    let bench = Bench::new("cve-2025-62161");
    fs::create_dir_all(rootfs(&bench).join("masked/below")).unwrap();
    bench.script("ls /masked; touch /masked/x 2>/dev/null || echo kept", |config| {
        // With it, the mode of the directory keeps nobody out.
        let all = json!(["CAP_DAC_OVERRIDE"]);
        config["process"]["capabilities"] = json!({ "bounding": all, "permitted": all, "effective": all });
        config["linux"]["maskedPaths"] = json!(["/masked"]);
    });
    assert_eq!(bench.run().ok(), "kept\n");
}

/// The console is bound over no file of the image's choice.
#[test]
#[ignore = "needs root"]
fn cve_2025_52565() {
    let bench = Bench::new("cve-2025-52565");
    let dev = bench.path("dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("console")).unwrap();
    let source = dev.to_str().unwrap().to_owned();
    bench.script("readlink /dev/console; grep -c core_pattern /proc/self/mountinfo", |config| {
        config["process"]["terminal"] = json!(true);
        without(config, "/dev");
        mount(config, json!({ "destination": "/dev", "source": source, "options": ["bind"] }));
        mount(
            config,
            json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"] }),
        );
    });
    let answer = bench.run();
    assert_ne!(answer.code, 0, "{answer:?}");
    assert!(answer.err.contains("bind console"), "{answer:?}");
}

/// What is written to procfs is written to the kernel, not to what lies on top of it.
#[test]
#[ignore = "needs root"]
fn cve_2025_52881() {
    let bench = Bench::new("cve-2025-52881");
    // All settings are covered: an entry of one namespace is not seen in another, its directory is.
    let fake = bench.path("fake").join("net/ipv4");
    fs::create_dir_all(&fake).unwrap();
    let fake = fake.join("ip_unprivileged_port_start");
    fs::write(&fake, "99").unwrap();
    bench.script("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", |config| {
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "77" });
    });
    let script = "mount --make-rprivate / && mount --bind \"$1\" /proc/sys && shift && exec \"$@\"";
    let run = bench.command(["run", "--bundle"]);
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(bench.path("fake"))
        .arg(run.get_program())
        .args(run.get_args())
        .arg(bench.bundle())
        .arg(bench.id())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "77\n", "{output:?}");
    assert_eq!(fs::read_to_string(fake).unwrap(), "99");
}
