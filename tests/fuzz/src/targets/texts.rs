//! Short texts and JSON from outside: answers to probes, names of images, users and signals, image configurations.

use byre_plan::{Digest, Name, WorkloadId};

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "texts",
    about: "HTTP status lines, gRPC health answers, image references and configurations, names, identities, users, signals, capabilities: what is accepted is \
            written and read again without change, and judged the same however it arrives",
    sources: &[
        "node/probe/src/attempt.rs",
        "node/probe/src/grpc.rs",
        "image/src/reference.rs",
        "image/src/config.rs",
        "runtime/plan/src/name.rs",
        "runtime/spec/src/capability.rs",
        "runtime/spec/src/image.rs",
        "runtime/spec/src/signal.rs",
        "runtime/spec/src/user.rs",
    ],
    longest: 4096,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, 4) else { return Verdict::Refused };
    match decoder {
        0 => status_line(input),
        1 => Verdict::of(byre_image::fuzz::fuzz_reference(input)),
        2 => image_config(input),
        _ => words(input),
    }
}

/// However an answer is cut into packets, the verdict is the same, and it is never taken back.
fn status_line(input: &[u8]) -> Verdict {
    let whole = byre_probe::fuzz_status_line(input);
    let mut first = None;
    for length in 0..=input.len().min(64) {
        let now = byre_probe::fuzz_status_line(&input[..length]);
        assert!(first.is_none() || now == first, "a verdict is taken back at byte {length}");
        first = first.or(now);
    }
    assert!(first.is_none() || first == whole);
    if whole == Some(true) {
        assert!(input.starts_with(b"HTTP/1.") && matches!(input[9], b'2' | b'3'));
    }
    assert!(whole.is_some() || input.len() < 1024, "an endless line has a verdict");
    assert_eq!(health_answer(input), byre_probe::fuzz_health_answer(input));
    Verdict::of(whole.is_some())
}

/// The same for the answer of a gRPC health service: byte by byte it is judged as it is at once.
fn health_answer(input: &[u8]) -> Option<bool> {
    (0..=input.len()).find_map(|length| byre_probe::fuzz_health_answer(&input[..length]))
}

/// Two readers of one format: the store's, and the lenient one of the API.
fn image_config(input: &[u8]) -> Verdict {
    let stored = byre_image::config::ImageConfig::parse(input);
    let Ok(text) = std::str::from_utf8(input) else {
        assert!(stored.is_err(), "JSON is Unicode");
        return Verdict::Refused;
    };
    let Ok(config) = byre_spec::read_image_config(text) else { return Verdict::Refused };
    assert!(config.working_dir.starts_with('/'));
    assert!(config.env.iter().all(|entry| entry.find('=').is_some_and(|at| at > 0)));
    assert!(config.stop_signal.as_deref() != Some(""));
    let merged = byre_spec::merge_environment(config.env.iter().map(String::as_str));
    assert!(merged.len() <= config.env.len());
    if let Ok(stored) = stored {
        assert_eq!(
            (&stored.entrypoint, &stored.cmd),
            (&config.entrypoint, &config.cmd),
            "both readers run the same program"
        );
        assert_eq!(stored.user.trim(), config.user);
    }
    let _ = byre_spec::parse_user(&config.user);
    Verdict::Accepted
}

fn words(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
    let mut accepted = false;
    if let Ok(name) = Name::try_from(text) {
        assert!(!text.contains('/') && text != "." && text != ".." && name.as_str() == text);
        accepted = true;
    }
    if let Ok(id) = text.parse::<WorkloadId>() {
        assert_eq!(id.to_string(), text);
        accepted = true;
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert!(text.ends_with(&digest.to_string()));
        accepted = true;
    }
    if let Ok(number) = byre_spec::signal_number(text) {
        assert!((1..=64).contains(&number));
        // 32 and 33 belong to C libraries and have no name of their own.
        let name = byre_spec::signal_name(number);
        assert!(matches!(number, 32 | 33) || byre_spec::signal_number(&name) == Ok(number), "{name}");
        accepted = true;
    }
    if let Ok(mask) = byre_spec::capability(text) {
        assert!(mask & !byre_spec::ALL_CAPABILITIES == 0 && mask != 0);
        accepted = true;
    }
    if byre_spec::parse_user(text).is_ok() {
        accepted = true;
    }
    Verdict::of(accepted)
}

fn seeds() -> Vec<Vec<u8>> {
    let digest = "ab".repeat(32);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin","A=b"],"Entrypoint":["/entry"],"Cmd":["nginx"],"User":"web:33","WorkingDir":"/srv","Volumes":{{"/data":{{}}}},"StopSignal":"SIGQUIT","ExposedPorts":{{"80/tcp":{{}}}},"Labels":{{"a":"b"}}}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    vec![
        super::seed(0, "HTTP/1.1 200 OK\r\nServer: x\r\n"),
        super::seed(0, "HTTP/1.0 503\n"),
        super::seed(1, format!("registry.example:5000/team/web:1.2@sha256:{digest}")),
        super::seed(1, "nginx"),
        super::seed(2, config),
        super::seed(3, "00000000000000ab"),
        super::seed(3, format!("sha256:{digest}")),
        super::seed(3, "SIGRTMIN+3"),
        super::seed(3, "CAP_NET_ADMIN"),
        super::seed(3, "www-data:33"),
    ]
}
