//! Launch requests: decoding, the check that makes them plans, and users and groups as an image's files have them.

use byre_plan::{
    ExecPlan, LaunchRequest, MountSource, Origin, Plan, Policy, Principal, Process, Refusal, Root, Seccomp, User,
    UserNamespace, limits,
};
use byre_protocol::frame;

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "launch",
    about: "launch and exec requests: what is checked is within every bound, a wider policy allows no less, nothing is altered; \
            passwd and group files: no id that means `unchanged`",
    sources: &["runtime/plan/src", "runtime/launch/src/users.rs"],
    longest: 16 * 1024,
    run,
    seeds,
};

/// Groups that a process can have at most, the plan's and the files' together.
const GROUPS: usize = 1024;

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, 3) else { return Verdict::Refused };
    match decoder {
        0 => frame::decode(input).map_or(Verdict::Refused, |request| Verdict::of(checked(&request).is_some())),
        1 => exec(input),
        _ => users(input),
    }
}

/// What no client may pass.
pub(super) fn strict() -> Policy {
    Policy {
        host_network: false,
        host_namespaces: false,
        host_users: false,
        capabilities: byre_spec::DEFAULT_CAPABILITIES,
        bind_sources: Vec::new(),
        no_seccomp: false,
        helpers: vec!["init".into()],
        devices: false,
    }
}

fn wide() -> Policy {
    Policy {
        host_network: true,
        host_namespaces: true,
        host_users: true,
        capabilities: byre_spec::ALL_CAPABILITIES,
        bind_sources: vec!["/data/shared".into()],
        no_seccomp: true,
        helpers: vec!["init".into(), "cp-in".into()],
        devices: true,
    }
}

/// The plan under the widest rules that allow it.
fn checked(request: &LaunchRequest) -> Option<Plan> {
    let try_with = |policy: &Policy, origin| sound(Plan::check(request.clone(), policy, origin));
    let by_strict = try_with(&strict(), Origin::Client);
    let by_wide = try_with(&wide(), Origin::Client);
    let by_root = try_with(&strict(), Origin::VerifiedRoot);
    assert!(by_strict.is_none() || by_wide.is_some(), "a wider policy allows no less");
    assert!(by_wide.is_none() || by_root.is_some(), "what a client may ask for is well formed");
    if let Some(plan) = &by_strict {
        let user = &plan.request().namespaces.user;
        let has_filter =
            plan.request().seccomp == Seccomp::Default || plan.request().process.program == byre_plan::Program::None;
        assert!(*user != UserNamespace::Host && has_filter);
        let sets = plan.request().process.capabilities;
        assert!(
            (sets.bounding | sets.effective | sets.permitted | sets.inheritable | sets.ambient)
                & !strict().capabilities
                == 0
        );
        assert!(!plan.request().mounts.iter().any(|mount| matches!(mount.source, MountSource::Bind { .. })));
        assert!(plan.request().devices.is_empty() && plan.request().nodes.is_empty());
        let is_pod = plan.request().process.program == byre_plan::Program::None;
        assert!(is_pod != matches!(plan.request().root, Root::Layers { .. }));
    }
    let plan = by_root?;
    assert_eq!(plan.request(), request, "a check alters nothing");
    within_bounds(request);
    Some(plan)
}

/// A refusal is a line for a log and names a remedy.
fn sound<T>(result: Result<T, Refusal>) -> Option<T> {
    match result {
        Ok(checked) => Some(checked),
        Err(refusal) => {
            assert!(!refusal.field.is_empty() && !refusal.remedy.is_empty());
            assert!(refusal.to_string().len() < 16 * 1024, "{} bytes of refusal", refusal.to_string().len());
            None
        }
    }
}

fn is_plain_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() < limits::PATH_BYTES
        && !path.contains('\0')
        && !path.split('/').any(|part| part == "..")
}

/// The bounds again, written by somebody else than the check.
fn within_bounds(request: &LaunchRequest) {
    let process = &request.process;
    process_within_bounds(process);
    match &request.root {
        Root::Layers { layers, .. } => assert!((1..=limits::LAYERS).contains(&layers.len())),
        Root::Directory { path, .. } => assert!(is_plain_path(path)),
        Root::Host => {}
    }
    assert!(request.mounts.len() <= limits::MOUNTS);
    for mount in &request.mounts {
        assert!(is_plain_path(&mount.target) && mount.target.split('/').any(|part| !matches!(part, "" | ".")));
        match &mount.source {
            MountSource::Bind { path, .. } => assert!(is_plain_path(path)),
            MountSource::GeneratedFile(content) => assert!(content.len() <= limits::GENERATED_FILE_BYTES),
            MountSource::Proc
            | MountSource::Sysfs
            | MountSource::Cgroup
            | MountSource::Mqueue
            | MountSource::Devpts
            | MountSource::Devices
            | MountSource::Tmpfs { .. }
            | MountSource::Volume(_)
            | MountSource::OwnVolume(_) => {}
            MountSource::FileSystem { kind, settings, .. } => {
                assert!(!kind.is_empty() && !kind.contains('/') && settings.len() <= limits::FILE_SYSTEM_SETTINGS);
            }
        }
    }
    assert!(request.nodes.len() <= limits::NODES && request.nodes.iter().all(|node| is_plain_path(&node.path)));
    for path in request.masked_paths.iter().chain(&request.read_only_paths) {
        assert!(is_plain_path(path));
    }
    assert!(request.devices.len() <= limits::DEVICES && request.sysctls.len() <= limits::SYSCTLS);
    assert!(request.landlock.len() <= limits::LANDLOCK_RULES && request.resources.unified.len() <= limits::UNIFIED);
    for (file, value) in &request.resources.unified {
        assert!(!file.contains('/') && !file.contains('\0') && !value.contains('\0'), "{file:?}");
    }
    for (key, value) in &request.sysctls {
        assert!(
            !key.split(['.', '/']).any(|part| part == "..") && !key.contains('\0') && !value.contains('\0'),
            "{key:?}"
        );
    }
    if let Seccomp::Filter { instructions, .. } = &request.seccomp {
        assert!((1..=limits::SECCOMP_INSTRUCTIONS).contains(&instructions.len()));
    }
    if let UserNamespace::Mapped { uids, gids } = &request.namespaces.user {
        for map in uids.iter().chain(gids) {
            assert!(map.inside.checked_add(map.count).is_some() && map.outside.checked_add(map.count).is_some());
        }
    }
}

fn process_within_bounds(process: &Process) {
    let least = usize::from(process.program != byre_plan::Program::None);
    assert!((least..=limits::ARGUMENTS).contains(&process.args.len()) && process.env.len() <= limits::ENVIRONMENT);
    assert!(
        process
            .args
            .iter()
            .chain(&process.env)
            .all(|text| text.len() <= limits::ARGUMENT_BYTES && !text.contains('\0'))
    );
    assert!(process.env.iter().all(|entry| entry.find('=').is_some_and(|at| at > 0)));
    assert!(is_plain_path(&process.cwd) && process.rlimits.len() <= limits::RLIMITS);
    assert!(process.user.user != Principal::Id(u32::MAX) && process.user.group != Some(Principal::Id(u32::MAX)));
}

fn exec(input: &[u8]) -> Verdict {
    let Ok((process, request)) = frame::decode::<(Process, LaunchRequest)>(input) else { return Verdict::Refused };
    let Some(workload) = checked(&request) else { return Verdict::Refused };
    let try_with = |policy: &Policy, origin| sound(Plan::check_exec(process.clone(), &workload, policy, origin));
    let by_strict = try_with(&strict(), Origin::Client);
    let by_wide = try_with(&wide(), Origin::Client);
    let by_root: Option<ExecPlan> = try_with(&strict(), Origin::VerifiedRoot);
    assert!(by_strict.is_none() || by_wide.is_some(), "a wider policy allows no less");
    assert!(by_wide.is_none() || by_root.is_some(), "what a client may ask for is well formed");
    if let Some(plan) = &by_root {
        assert_eq!(plan.process(), &process, "a check alters nothing");
        process_within_bounds(&process);
    }
    Verdict::of(by_root.is_some())
}

/// `user[:group]`, and the two files it is looked up in.
fn users(input: &[u8]) -> Verdict {
    let [user, passwd, group] = super::pieces(input, 3)[..] else { return Verdict::Refused };
    let (Ok(text), passwd, group) =
        (std::str::from_utf8(user), String::from_utf8_lossy(passwd), String::from_utf8_lossy(group))
    else {
        return Verdict::Refused;
    };
    let Ok(user) = byre_spec::parse_user(text) else { return Verdict::Refused };
    let Some((uid, gid, groups)) = byre_launch::ids_of(&user, &passwd, &group) else {
        assert!(is_named(&user), "ids need no file");
        return Verdict::Refused;
    };
    assert!(uid != u32::MAX && gid != u32::MAX && !groups.contains(&u32::MAX));
    assert!(groups.len() <= GROUPS);
    if let Principal::Id(id) = user.user {
        assert_eq!(id, uid, "a number is never a name");
    }
    Verdict::Accepted
}

fn is_named(user: &User) -> bool {
    matches!(user.user, Principal::Name(_)) || matches!(user.group, Some(Principal::Name(_)))
}

fn seeds() -> Vec<Vec<u8>> {
    let container = super::control::definition().launch;
    let mut service = container.clone();
    service.root = Root::Host;
    service.namespaces.user = UserNamespace::Host;
    service.resources.unified = vec![("memory.low".into(), "1048576".into())];
    service.mounts.clear();
    service.masked_paths.clear();
    service.read_only_paths.clear();
    let encoded = |request: &LaunchRequest| frame::encode(request).expect("an example is short");
    let exec = frame::encode(&(container.process.clone(), container.clone())).expect("an example is short");
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv/web:/bin/false\n";
    let group = b"root:x:0:\nweb:x:102:\nlogs:x:4:other,web\n";
    vec![
        super::seed(0, encoded(&container)),
        super::seed(1, exec),
        super::seed(2, super::joined(&[b"web", passwd, group])),
        super::seed(2, super::joined(&[b"101:logs", passwd, group])),
    ]
}
