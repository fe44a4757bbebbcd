//! What flags accept and refuse. Hostile values are refused here already: a typing mistake must never reach a node as something else.

use proptest::prelude::*;

use super::*;

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", 0),
        ("4096", 4096),
        ("128M", 128 << 20),
        ("128m", 128 << 20),
        ("128MiB", 128 << 20),
        ("1.5g", 3 << 29),
        ("0.5k", 512),
        ("2T", 2 << 40),
        ("7b", 7),
    ] {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
    for text in [
        "",
        "M",
        "-1",
        "+1",
        "1e3",
        "1.",
        ".5",
        "1.5.5",
        "12X",
        "1 M",
        "0x10",
        "99999999t",
        "1.0000000001",
        "９",
        "1µ",
        "1_0",
    ] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn processors() {
    assert_eq!(cpus("1.5"), Ok(1500));
    assert_eq!(cpus("0.001"), Ok(1));
    assert_eq!(cpus("16"), Ok(16_000));
    for text in ["0", "0.0001", "-1", "1e9", "10001", "NaN", "inf", "", "1,5"] {
        assert!(cpus(text).is_err(), "{text}");
    }
}

#[test]
fn durations() {
    for (text, ms) in [
        ("10", 10_000),
        ("10s", 10_000),
        ("1m30s", 90_000),
        ("500ms", 500),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("0", 0),
    ] {
        assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
    }
    for text in
        ["", "s", "10x", "1m30", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615d", "400d", "10 s"]
    {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn moments() {
    let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
    assert_eq!(since("10m", now).unwrap().unix_timestamp(), 1_800_000_000 - 600);
    assert_eq!(since("1700000000", now).unwrap().unix_timestamp(), 1_700_000_000);
    assert_eq!(since("1970-01-02", now).unwrap().unix_timestamp(), 86_400);
    assert_eq!(since("1970-01-01T00:01:00Z", now).unwrap().unix_timestamp(), 60);
    assert_eq!(since("1970-01-01T00:01:00", now).unwrap().unix_timestamp(), 60);
    assert_eq!(since("1970-01-01T02:00:00+02:00", now).unwrap().unix_timestamp(), 0);
    for text in ["", "yesterday", "2026-13-01", "10m ago", "99999999999999999999"] {
        assert!(since(text, now).is_err(), "{text}");
    }
}

#[test]
fn restart_policies() {
    assert_eq!(restart("on-failure:5"), Ok(Restart { policy: RestartPolicy::OnFailure.into(), maximum_retries: 5 }));
    assert_eq!(restart("no").unwrap().policy(), RestartPolicy::Never);
    assert_eq!(restart("always").unwrap().policy(), RestartPolicy::Always);
    assert_eq!(restart("unless-stopped").unwrap().policy(), RestartPolicy::UnlessStopped);
    for text in ["", "on-failure:", "on-failure:x", "on-failure:-1", "always:3", "sometimes"] {
        assert!(restart(text).is_err(), "{text}");
    }
}

#[test]
fn volumes() {
    let plain = VolumeMount { source: "data".into(), target: "/var/lib".into(), ..VolumeMount::default() };
    assert_eq!(volume("data:/var/lib"), Ok(plain.clone()));
    assert_eq!(volume("data:/var/lib/:rw"), Ok(plain.clone()));
    assert_eq!(volume("data:/var/lib:ro"), Ok(VolumeMount { read_only: true, ..plain }));
    assert_eq!(volume("/cache").unwrap().source, "");
    assert_eq!(volume("/srv/www:/www").unwrap().source, "/srv/www");
    for text in [
        "",
        ":",
        ":/x",
        "data",
        "data:",
        "data:relative",
        "./here:/x",
        "../up:/x",
        "data:/",
        "data:/a/../etc",
        "/a/../b:/x",
        "data:/x:exec",
        "data:/x:ro:z",
        "-data:/x",
        "da ta:/x",
        "data:/x\n",
        "data:/x\0y",
        "//etc:/x",
    ] {
        assert!(volume(text).is_err(), "{text:?}");
    }
    assert!(volume(&format!("data:/{}", "a".repeat(5000))).is_err());
}

#[test]
fn mounts() {
    let tmp = mount("type=tmpfs,target=/tmp,size=64M,readonly").unwrap();
    assert!(tmp.tmpfs && tmp.read_only && tmp.source.is_empty());
    assert_eq!((tmp.target.as_str(), tmp.tmpfs_size_bytes), ("/tmp", 64 << 20));
    assert_eq!(mount("type=volume,source=data,dst=/d").unwrap(), volume("data:/d").unwrap());
    assert_eq!(mount("type=bind,src=/srv,target=/d,ro").unwrap(), volume("/srv:/d:ro").unwrap());
    for text in [
        "",
        "type=tmpfs",
        "type=tmpfs,target=tmp",
        "type=tmpfs,target=/t,source=x",
        "type=nfs,target=/t",
        "type=bind,source=data,target=/t",
        "type=volume,source=/srv,target=/t",
        "type=volume,source=d,target=/t,size=1M",
        "type=tmpfs,target=/t,exec",
        "type=tmpfs,target=/t,readonly=maybe",
    ] {
        assert!(mount(text).is_err(), "{text}");
    }
    assert_eq!(tmpfs("/run:size=1M,ro").unwrap().tmpfs_size_bytes, 1 << 20);
    assert!(tmpfs("/run:exec").is_err() && tmpfs("run").is_err());
}

#[test]
fn environment_labels_and_capabilities() {
    assert_eq!(env("A=b=c"), Ok("A=b=c".into()));
    assert_eq!(env("A"), Ok("A".into()));
    assert!(env("").is_err() && env("=b").is_err() && env("A B=c").is_err() && env("A=\0").is_err());
    assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
    assert_eq!(label("a"), Ok(("a".into(), String::new())));
    assert!(label("=b").is_err());
    assert_eq!(capability("cap_net_admin"), Ok("NET_ADMIN".into()));
    assert!(capability("").is_err() && capability("NET-ADMIN").is_err());
}

proptest! {
    #[test]
    fn no_text_breaks_a_parser(text in "\\PC*|[0-9.]{0,40}[a-zA-Z]{0,4}|[a-z0-9:/.=,-]{0,40}") {
        let _ = (size(&text), cpus(&text), duration(&text), restart(&text), mount(&text), tmpfs(&text), env(&text));
        let _ = (label(&text), capability(&text), since(&text, OffsetDateTime::UNIX_EPOCH));
        if let Ok(mount) = volume(&text) {
            prop_assert!(mount.target.starts_with('/') && !mount.target.split('/').any(|part| part == ".."));
        }
    }

    #[test]
    fn a_size_is_its_number_times_its_unit(number in 0_u64..1 << 20, unit in 0_usize..5) {
        let text = format!("{number}{}", ["", "k", "m", "g", "t"][unit]);
        prop_assert_eq!(size(&text), Ok(number << (10 * unit)));
    }

    #[test]
    fn a_fraction_never_exceeds_the_next_whole(whole in 0_u64..1 << 20, fraction in 0_u32..1000) {
        let bytes = size(&format!("{whole}.{fraction:03}g")).unwrap();
        prop_assert!(bytes >= whole << 30 && bytes < (whole + 1) << 30);
    }

    #[test]
    fn durations_add_up(h in 0_u64..24, m in 0_u64..60, s in 0_u64..60) {
        prop_assert_eq!(duration(&format!("{h}h{m}m{s}s")), Ok(Duration::from_secs(h * 3600 + m * 60 + s)));
    }
}
