//! What a bundle's fields do to a running program.

use serde_json::{Value, json};

use super::bench::Bench;

/// What a script sees in a container whose configuration was changed.
fn seen(name: &'static str, script: &str, change: impl FnOnce(&mut Value)) -> String {
    let bench = Bench::new(name);
    bench.script(script, change);
    bench.run().ok()
}

fn namespace(config: &mut Value, entry: Value) {
    let all = config["linux"]["namespaces"].as_array_mut().unwrap();
    all.retain(|one| one["type"] != entry["type"]);
    all.push(entry);
}

#[test]
#[ignore = "needs root"]
fn namespaces_are_new_the_hosts_or_joined() {
    let kinds = ["pid", "net", "ipc", "uts", "mnt", "cgroup"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind};")).concat();
    let host: Vec<String> = kinds
        .iter()
        .map(|kind| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string())
        .collect();
    let new = seen("ns-new", &script, |_| {});
    assert!(new.lines().zip(&host).all(|(new, host)| new != host), "{new} {host:?}");
    let shared = seen("ns-host", &script, |config| {
        config["linux"]["namespaces"] = json!([{ "type": "mount" }]);
        config["hostname"] = json!("");
    });
    let same: Vec<bool> = shared.lines().zip(&host).map(|(one, host)| one == host).collect();
    assert_eq!(same, [true, true, true, true, false, true], "{shared}");
    let mut owner = std::process::Command::new("unshare").args(["--net", "sleep", "100"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", owner.id());
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    while std::fs::read_link(&path).is_ok_and(|other| other == own) {
        std::thread::yield_now();
    }
    let expected = std::fs::read_link(&path).unwrap().display().to_string();
    let joined = seen("ns-joined", "readlink /proc/self/ns/net", |config| {
        namespace(config, json!({ "type": "network", "path": path }));
    });
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_eq!(joined.trim(), expected);
}

#[test]
#[ignore = "needs root"]
fn a_user_namespace_has_its_maps_and_working_devices() {
    let bench = Bench::new("users");
    let rootfs = bench.bundle().join("rootfs");
    // Mount points are made by the container's root.
    std::os::unix::fs::chown(&rootfs, Some(100_000), Some(100_000)).unwrap();
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    let script =
        "id -u; cat /proc/self/uid_map | tr -s ' '; echo x > /dev/null && echo null; cat /proc/self/gid_map | wc -l";
    bench.script(script, |config| {
        namespace(config, json!({ "type": "user" }));
        config["linux"]["uidMappings"] = maps.clone();
        config["linux"]["gidMappings"] = maps;
    });
    assert_eq!(bench.run().ok(), "0\n 0 100000 1000\nnull\n1\n");
}

#[test]
#[ignore = "needs root"]
fn clocks_differ_by_the_offsets() {
    let output = seen("clocks", "cut -d. -f1 /proc/uptime", |config| {
        namespace(config, json!({ "type": "time" }));
        config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000 }, "monotonic": { "secs": 5 } });
    });
    assert!(output.trim().parse::<u64>().unwrap() >= 1_000_000, "{output}");
}

#[test]
#[ignore = "needs root"]
fn mounts_have_their_options() {
    let bench = Bench::new("mounts");
    let shared = bench.path("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "from outside\n").unwrap();
    std::os::unix::fs::symlink(&shared, bench.path("link")).unwrap();
    std::fs::create_dir_all(bench.bundle().join("rootfs/data")).unwrap();
    std::fs::write(bench.bundle().join("rootfs/data/image"), "from image\n").unwrap();
    let script = "cat /bound/file; touch /bound/x 2>/dev/null || echo ro; cat /data/image; touch /data/new && echo rw; \
        grep -E ' (/bound|/data|/small) ' /proc/mounts | cut -d' ' -f2-4; stat -c %a /small";
    bench.script(script, |config| {
        config["mounts"].as_array_mut().unwrap().extend([
            json!({ "destination": "/bound", "source": bench.path("link"), "options": ["rbind", "ro", "nosuid", "noatime"] }),
            json!({ "destination": "/data", "type": "tmpfs", "options": ["tmpcopyup", "nodev"] }),
            json!({ "destination": "small", "type": "tmpfs", "source": "x", "options": ["size=8k", "mode=711", "noexec"] }),
        ]);
    });
    let output = bench.run().ok();
    let (seen, mounts) = output.split_at(output.find("/bound").unwrap());
    assert_eq!(seen, "from outside\nro\nfrom image\nrw\n");
    let mounts: Vec<&str> = mounts.lines().collect();
    assert!(mounts[0].contains("ro,nosuid,") && mounts[0].contains("noatime"), "{mounts:?}");
    assert!(mounts[1].contains("tmpfs rw,nodev"), "{mounts:?}");
    assert!(mounts[2].contains("noexec") && mounts[2].contains("size=8k"), "{mounts:?}");
    assert_eq!(mounts[3], "711");
    assert_eq!(std::fs::read_dir(bench.bundle().join("rootfs/data")).unwrap().count(), 1);
}

#[test]
#[ignore = "needs root"]
fn the_process_is_what_the_bundle_says() {
    let script = "id -u; id -g; id -G; umask; pwd; cat /proc/self/oom_score_adj; ulimit -c; cat /proc/sys/net/ipv4/ip_forward; \
        uname -m; cat /proc/sys/kernel/domainname; cut -d' ' -f19 /proc/self/stat; grep Seccomp: /proc/self/status; mkdir /tmp/x 2>&1; sync";
    let output = seen("process", script, |config| {
        config["process"]["user"] = json!({ "uid": 11, "gid": 12, "umask": 0o077, "additionalGids": [13, 14] });
        config["process"]["cwd"] = json!("/made/here");
        config["process"]["oomScoreAdj"] = json!(77);
        config["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
        config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 4 });
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
        config["linux"]["personality"] = json!({ "domain": "LINUX32" });
        config["domainname"] = json!("domain");
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 },
                { "names": ["no_such_call"], "action": "SCMP_ACT_KILL" },
            ],
        });
    });
    let expected = "11\n12\n12 13 14\n0077\n/made/here\n77\n0\n1\ni686\ndomain\n4\nSeccomp:\t2\n\
        mkdir: can't create directory '/tmp/x': No space left on device\n";
    assert_eq!(output, expected);
}

#[test]
#[ignore = "needs root"]
fn devices_are_made_and_what_is_not_allowed_is_denied() {
    let script = "stat -c '%F %t:%T %a %u:%g' /dev/mine /dev/pipe; echo x > /dev/mine && echo written; \
        cat /dev/denied 2>/dev/null || echo denied; readlink /dev/fd; echo n > /dev/full 2>/dev/null || echo full";
    let output = seen("devices", script, |config| {
        config["linux"]["devices"] = json!([
            { "type": "c", "path": "/dev/mine", "major": 1, "minor": 3, "fileMode": 0o620, "uid": 0, "gid": 4 },
            { "type": "p", "path": "/dev/pipe", "fileMode": 0o600 },
            { "type": "c", "path": "/dev/denied", "major": 1, "minor": 11 },
        ]);
        config["linux"]["resources"]["devices"] = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw" },
            { "allow": false, "type": "c", "major": 1, "minor": 11, "access": "r" },
        ]);
    });
    let expected = "character special file 1:3 620 0:4\nfifo 0:0 600 0:0\nwritten\ndenied\n/proc/self/fd\nfull\n";
    assert_eq!(output, expected);
}

#[test]
#[ignore = "needs root"]
fn paths_are_masked_and_read_only() {
    let output = seen(
        "masked",
        "cat /secret | wc -c; ls /hidden | wc -l; touch /fixed/x 2>/dev/null || echo ro; touch /x 2>/dev/null || echo ro",
        |config| {
            config["linux"]["maskedPaths"] = json!(["/secret", "/hidden", "/not/there"]);
            config["linux"]["readonlyPaths"] = json!(["/fixed"]);
            config["root"]["readonly"] = json!(true);
            config["mounts"].as_array_mut().unwrap().extend([
                json!({ "destination": "/secret", "source": "config.json", "options": ["bind"] }),
                json!({ "destination": "/hidden", "source": "/etc", "options": ["bind", "ro"] }),
                json!({ "destination": "/fixed", "type": "tmpfs" }),
            ]);
        },
    );
    assert_eq!(output, "0\n0\nro\nro\n");
}

#[test]
#[ignore = "needs root"]
fn limits_are_set_or_the_missing_controller_is_named() {
    let bench = Bench::new("limits");
    bench.script("sleep 100", |config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 64 });
    });
    let root = bench.cgroup().unwrap();
    let available =
        std::fs::read_to_string(root.parent().unwrap().parent().unwrap().join("cgroup.controllers")).unwrap();
    let answer = bench.create(&[]);
    if available.split_whitespace().any(|name| name == "pids") {
        answer.ok();
        assert_eq!(std::fs::read_to_string(root.join("pids.max")).unwrap(), "64\n");
        bench.call(["update", "--pids-limit", "32", bench.id()]).ok();
        assert_eq!(std::fs::read_to_string(root.join("pids.max")).unwrap(), "32\n");
    } else {
        let said = answer.failed();
        assert!(
            said.contains("controller `pids` is not available") && said.contains("unified_cgroup_hierarchy"),
            "{said}"
        );
        assert!(bench.is_gone());
        // No limit needs no controller.
        bench.script("sleep 100", |config| {
            config["linux"]["resources"]["pids"] = json!({ "limit": -1 });
            config["linux"]["resources"]["cpu"] = json!({ "quota": -1, "period": 100_000 });
        });
        bench.create(&[]).ok();
        let said = bench.call(["update", "--pids-limit", "32", bench.id()]).failed();
        assert!(said.contains("is not available"), "{said}");
    }
    assert!(bench.call(["update", bench.id()]).failed().contains("nothing to change"));
}

#[test]
#[ignore = "needs root"]
fn a_cgroup_has_the_bundles_path() {
    let bench = Bench::new("cgroup-path");
    let place = |path: &str| {
        bench.script("sleep 100", |config| config["linux"]["cgroupsPath"] = json!(path));
        bench.create(&[]).ok();
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", bench.state()["pid"])).unwrap();
        bench.call(["delete", bench.id()]).ok();
        own.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned)).unwrap()
    };
    assert_eq!(place("/byre-oci/nested/one"), "/byre-oci/nested/one/leaf");
    assert_eq!(place("a-b.slice:byre:two"), "/a.slice/a-b.slice/byre-two.scope/leaf");
    bench.script("true", |config| config["linux"]["cgroupsPath"] = json!("../../x"));
    assert!(bench.create(&[]).failed().contains("cgroupsPath"));
    assert!(bench.is_gone());
}
