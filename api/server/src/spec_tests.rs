//! Specifications and images as clients and builders really write them.

use byre_plan::{Digest, Principal};

use super::*;

fn image(config: &str) -> ImageRecord {
    ImageRecord {
        id: "sha256:aa".into(),
        names: vec!["web:latest".into()],
        manifest_digest: None,
        layers: vec![Digest([1; 32]), Digest([2; 32])],
        size_bytes: 1,
        created_wall_ms: 0,
        config_json: config.into(),
        origins: Vec::new(),
        accepted: true,
        verdict: String::new(),
    }
}

const NGINX: &str = r#"{"architecture":"amd64","config":{"User":"","Env":["PATH=/bin","NGINX=1"],"Entrypoint":["/entry"],
    "Cmd":["nginx","-g"],"WorkingDir":"srv","Volumes":{"/data/":{}},"StopSignal":"SIGQUIT","Labels":null},"rootfs":{}}"#;

fn made(spec: &ContainerSpec, config: &str) -> Result<Definition, Status> {
    let image = image(config);
    let name = Name::try_from("web").unwrap();
    let around = Surroundings { image: &image, name, resolv_conf: "nameserver 10.0.2.3\n" };
    definition(spec, &around).map(|(definition, _)| definition)
}

fn spec() -> ContainerSpec {
    ContainerSpec { image: "web".into(), ..ContainerSpec::default() }
}

#[test]
fn an_image_is_run_as_its_configuration_says() {
    let made = made(&spec(), NGINX).unwrap();
    let process = &made.launch.process;
    assert_eq!(process.args, ["/entry", "nginx", "-g"]);
    assert_eq!(process.env, ["PATH=/bin", "HOSTNAME=web", "NGINX=1"]);
    assert_eq!(process.cwd, "/srv");
    assert_eq!(made.stop.signal, 3);
    let volume = made.launch.mounts.iter().find(|mount| mount.target == "/data").unwrap();
    assert!(matches!(&volume.source, MountSource::OwnVolume(0)));
    assert!(matches!(&made.launch.root, Root::Layers { layers, read_only: false } if layers.len() == 2));
    assert!(process.no_new_privileges && made.launch.hostname.as_deref() == Some("web"));
}

#[test]
fn a_specification_goes_over_the_image() {
    let spec = ContainerSpec {
        command: vec!["sh".into()],
        env: vec!["NGINX=2".into(), "A=b=c".into()],
        user: "www:33".into(),
        working_dir: "/tmp".into(),
        stop_signal: "USR1".into(),
        terminal: true,
        init: true,
        ..spec()
    };
    let made = made(&spec, NGINX).unwrap();
    let process = made.launch.process;
    assert_eq!(process.args, ["init", "--", "/entry", "sh"]);
    assert_eq!(process.program, Program::Helper);
    assert_eq!(process.env, ["PATH=/bin", "HOSTNAME=web", "TERM=xterm", "NGINX=2", "A=b=c"]);
    assert_eq!((process.user.user, process.user.group), (Principal::Name("www".into()), Some(Principal::Id(33))));
    assert_eq!(process.terminal, Some(TerminalSize { rows: 24, columns: 80 }));
    assert_eq!((made.stop.signal, process.cwd.as_str()), (10, "/tmp"));
}

#[test]
fn a_replaced_entrypoint_drops_the_command_of_the_image() {
    let replaced = ContainerSpec { entrypoint: vec!["/other".into()], ..spec() };
    assert_eq!(made(&replaced, NGINX).unwrap().launch.process.args, ["/other"]);
    let cleared = ContainerSpec { clear_entrypoint: true, command: vec!["ls".into()], ..spec() };
    assert_eq!(made(&cleared, NGINX).unwrap().launch.process.args, ["ls"]);
}

#[test]
fn what_is_wrong_is_named() {
    let cases: [(ContainerSpec, &str, &str); 12] = [
        (spec(), "{}", "nothing to run"),
        (spec(), "no json", "malformed"),
        (ContainerSpec { env: vec!["=x".into()], ..spec() }, NGINX, "NAME=value"),
        (ContainerSpec { user: "a:".into(), ..spec() }, NGINX, "user:group"),
        (ContainerSpec { working_dir: "tmp".into(), ..spec() }, NGINX, "not absolute"),
        (ContainerSpec { stop_signal: "NO".into(), ..spec() }, NGINX, "signal"),
        (ContainerSpec { network: 9, ..spec() }, NGINX, "network"),
        (ContainerSpec { add_capabilities: vec!["FLY".into()], ..spec() }, NGINX, "FLY"),
        (
            ContainerSpec { limits: Some(proto::Limits { memory_bytes: Some(0), ..Default::default() }), ..spec() },
            NGINX,
            "limits.memory_bytes",
        ),
        (ContainerSpec { labels: [("byre.x".to_owned(), String::new())].into(), ..spec() }, NGINX, "byre.x"),
        (ContainerSpec { env: vec![format!("A={}", "x".repeat(60_000))], ..spec() }, NGINX, "48 KiB"),
        (
            ContainerSpec { volumes: vec![proto::VolumeMount { target: "x".into(), ..Default::default() }], ..spec() },
            NGINX,
            "absolute",
        ),
    ];
    for (spec, config, text) in cases {
        let error = made(&spec, config).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.message().contains(text), "{} does not name {text}", error.message());
    }
    let both = ContainerSpec {
        remove_on_exit: true,
        restart: Some(proto::Restart { policy: proto::RestartPolicy::Always.into(), maximum_retries: 0 }),
        ..spec()
    };
    assert!(made(&both, NGINX).unwrap_err().message().contains("remove_on_exit"));
}

#[test]
fn the_host_network_brings_its_name_servers_and_no_network_none() {
    let content = |network: proto::NetworkMode| {
        let made = made(&ContainerSpec { network: network.into(), ..spec() }, NGINX).unwrap();
        let file = made.launch.mounts.into_iter().find(|mount| mount.target == "/etc/resolv.conf").unwrap();
        let MountSource::GeneratedFile(content) = file.source else { panic!("not generated") };
        content
    };
    assert_eq!(content(proto::NetworkMode::Host), "nameserver 10.0.2.3\n");
    assert_eq!(content(proto::NetworkMode::None), "");
}

#[test]
fn limits_become_those_of_the_cgroup() {
    let limits = proto::Limits { cpu_millis: Some(1500), cpu_weight: Some(200), pids: Some(7), ..Default::default() };
    let resources = made(&ContainerSpec { limits: Some(limits), ..spec() }, NGINX).unwrap().launch.resources;
    assert_eq!((resources.cpu_quota_us, resources.cpu_weight, resources.pids_max), (Some(150_000), Some(200), Some(7)));
    assert!(made(&spec(), NGINX).unwrap().launch.resources.pids_max.is_some());
}

#[test]
fn a_specification_is_read_back_from_the_labels_whatever_its_length() {
    for length in [0, 100, 20_000] {
        let spec = ContainerSpec { env: vec![format!("A={}", "x".repeat(length))], ..spec() };
        let definition = made(&spec, NGINX).unwrap();
        assert_eq!(from_labels(&definition.labels), Some(spec));
        assert!(definition.labels.iter().all(|(_, value)| value.len() <= LABEL_BYTES));
    }
    assert_eq!(from_labels(&[]), None);
}

#[test]
fn what_is_made_passes_the_check_of_the_strict_policy() {
    let policy = byre_plan::Policy {
        host_network: true,
        host_namespaces: false,
        host_users: false,
        capabilities: 0xa804_25fb,
        bind_sources: Vec::new(),
        no_seccomp: false,
        helpers: vec!["cp-in".into(), "cp-out".into(), "init".into()],
        devices: false,
    };
    let volume = |source: &str, target: &str, tmpfs| proto::VolumeMount {
        source: source.into(),
        target: target.into(),
        tmpfs,
        ..Default::default()
    };
    let host = proto::NetworkMode::Host.into();
    let specs = [
        spec(),
        ContainerSpec { network: host, terminal: true, init: true, read_only_root: true, ..spec() },
        ContainerSpec {
            volumes: vec![volume("data", "/srv/data", false), volume("", "/cache", false), volume("", "/tmp", true)],
            limits: Some(proto::Limits { memory_bytes: Some(64 << 20), cpu_millis: Some(500), ..Default::default() }),
            user: "www:www".into(),
            drop_capabilities: vec!["ALL".into()],
            ..spec()
        },
    ];
    for spec in specs {
        let launch = made(&spec, NGINX).unwrap().launch;
        byre_plan::Plan::check(launch, &policy, byre_plan::Origin::Client).unwrap();
    }
    let privileged = made(&ContainerSpec { privileged: true, ..spec() }, NGINX).unwrap().launch;
    assert!(byre_plan::Plan::check(privileged, &policy, byre_plan::Origin::Client).is_err());
}

#[test]
fn capabilities_are_added_and_dropped() {
    let after = |add: &[&str], drop: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let spec = ContainerSpec { add_capabilities: owned(add), drop_capabilities: owned(drop), ..spec() };
        made(&spec, NGINX).unwrap().launch.process.capabilities.bounding
    };
    let default = byre_spec::DEFAULT_CAPABILITIES;
    assert_eq!((after(&[], &[]), after(&["cap_net_admin"], &[])), (default, default | 1 << 12));
    assert_eq!((after(&[], &["ALL"]), after(&["CHOWN"], &["all"])), (0, 1));
    assert_eq!(after(&["ALL"], &["CHOWN"]), byre_spec::ALL_CAPABILITIES & !1);
}
