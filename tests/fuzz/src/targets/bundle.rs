//! Bundles of the OCI runtime-spec: config.json, process.json and the resources of an update, as engines hand them to byre-oci.

use byre_plan::{Origin, Plan, Policy, Refusal, Root, limits};
use byre_spec::oci::fields::{FIELDS, Verdict as Fate};
use byre_spec::oci::{Around, read_bundle, read_process, read_resources};
use serde_json::Value;

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "bundle",
    about: "config.json, process.json, resources: a field that is to be refused is never let through, what is refused is a short line with a \
            field and a remedy, what is accepted is the same when it is read again, and within the bounds of a plan once that is checked",
    sources: &[
        "runtime/spec/src/oci",
        "runtime/spec/src/oci.rs",
        "runtime/plan/src/check",
        "runtime/plan/src/check.rs",
    ],
    longest: 16 * 1024,
    run,
    seeds,
};

const AROUND: Around<'_> =
    Around { bundle: "/bundle", capabilities: 0xa804_25fb, oom_score_adj: 0, open_files: (1024, 4096) };

fn run(input: &[u8]) -> Verdict {
    let Some((reader, json)) = super::pick(input, 3) else { return Verdict::Refused };
    match reader {
        0 => bundle(json),
        1 => judged(json, "process", &read_process(json, &AROUND)),
        _ => judged(json, "linux.resources", &read_resources(json)),
    }
}

fn bundle(json: &[u8]) -> Verdict {
    let read = read_bundle(json, &AROUND);
    if let Ok(bundle) = &read {
        assert!(matches!(&bundle.request.root, Root::Directory { path, .. } if path.starts_with('/')));
        assert!(bundle.warnings.len() <= 512 && bundle.annotations.len() <= 1024);
        assert_eq!(read_bundle(json, &AROUND).as_ref(), Ok(bundle));
        match Plan::check(bundle.request.clone(), &Policy::default(), Origin::VerifiedRoot) {
            Ok(plan) => {
                assert!(plan.request().mounts.len() <= limits::MOUNTS && !plan.request().process.args.is_empty())
            }
            Err(refusal) => is_a_line(&refusal),
        }
        let client = Plan::check(bundle.request.clone(), &Policy::default(), Origin::Client);
        assert!(client.is_err(), "a node's client brings no directory as root");
    }
    judged(json, "", &read)
}

fn is_a_line(refusal: &Refusal) {
    assert!(!refusal.field.is_empty() && !refusal.remedy.is_empty());
    assert!(refusal.to_string().len() < 16 * 1024, "{} bytes of refusal", refusal.to_string().len());
}

/// Looks for fields that must not have been let through, with a walk of its own.
fn judged<T>(json: &[u8], prefix: &str, read: &Result<T, Refusal>) -> Verdict {
    if let Err(refusal) = read {
        is_a_line(refusal);
        return Verdict::Refused;
    }
    let value: Value = serde_json::from_slice(json).expect("it was read");
    for (path, fate) in FIELDS {
        let below = match prefix {
            "" => Some(*path),
            prefix => path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')),
        };
        if let (Fate::Refused(_), Some(below)) = (fate, below)
            && !below.contains("[]")
        {
            let pointer = format!("/{}", below.replace('.', "/"));
            let asked = value.pointer(&pointer).and_then(Value::as_object).is_some_and(|object| !object.is_empty());
            assert!(!asked, "{path} was let through");
        }
    }
    Verdict::Accepted
}

fn seeds() -> Vec<Vec<u8>> {
    let process = r#"{"terminal":true,"consoleSize":{"height":3,"width":4},"cwd":"/c","env":["A=b"],"args":["x"],"rlimits":[{"type":"RLIMIT_CORE",
        "soft":1,"hard":2}],"capabilities":{"bounding":["CAP_KILL"],"permitted":["CAP_KILL"]},"noNewPrivileges":true,"oomScoreAdj":100,
        "scheduler":{"policy":"SCHED_FIFO","priority":4,"flags":["SCHED_FLAG_RECLAIM"]},"ioPriority":{"class":"IOPRIO_CLASS_BE","priority":3},
        "user":{"uid":1,"gid":2,"umask":63,"additionalGids":[3]}}"#;
    let resources = r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":2,"access":"r"}],
        "memory":{"limit":4194304,"reservation":2048,"swap":8388608},"cpu":{"shares":512,"quota":2000,"burst":5,"period":10000,"cpus":"0",
        "mems":"0","idle":1},"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":1,"weight":20}],"throttleReadBpsDevice":[{"major":8,
        "minor":1,"rate":600}]},"hugepageLimits":[{"pageSize":"2MB","limit":9}],"pids":{"limit":8},"rdma":{"mlx5_1":{"hcaHandles":3}},
        "unified":{"memory.high":"1"}}"#;
    let hook = r#"[{"path":"/bin/a","args":["a"],"env":["A=b"],"timeout":5}]"#;
    let config = format!(
        r#"{{"ociVersion":"1.3.0","root":{{"path":"rootfs"}},"mounts":[{{"destination":"/proc","type":"proc"}},{{"destination":"/a","source":"a",
        "options":["rbind","rslave","rro"]}},{{"destination":"/b","type":"tmpfs","options":["nosuid","size=1k","tmpcopyup"]}}],
        "process":{process},"hostname":"host","domainname":"domain","hooks":{{"createRuntime":{hook},"poststop":{hook}}},
        "annotations":{{"key":"value"}},"linux":{{"namespaces":[{{"type":"mount"}},{{"type":"uts"}},{{"type":"time"}},{{"type":"network",
        "path":"/proc/1/ns/net"}}],"timeOffsets":{{"monotonic":{{"secs":1,"nanosecs":2}}}},"devices":[{{"type":"c","path":"/dev/x","major":1,
        "minor":5,"fileMode":384}}],"cgroupsPath":"/a/b","resources":{resources},"sysctl":{{"kernel.domainname":"x"}},"seccomp":{{
        "defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64"],"syscalls":[{{"names":["read","strange"],
        "action":"SCMP_ACT_ALLOW","args":[{{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}}]}}]}},"rootfsPropagation":"slave",
        "maskedPaths":["/proc/kcore"],"readonlyPaths":["/proc/sys"],"personality":{{"domain":"LINUX32"}}}}}}"#
    );
    vec![super::seed(0, config), super::seed(1, process), super::seed(2, resources)]
}
