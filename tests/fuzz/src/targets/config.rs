//! The machine's configuration and what it comes wrapped in: SMBIOS tables, credentials, the stored file's first line.

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "config",
    about: "configuration documents, SMBIOS tables, the stored file: what is accepted is written and read again without change, refusals are \
            short, candidates are bounded",
    sources: &[
        "node/config/src/schema.rs",
        "node/config/src/source.rs",
        "node/config/src/store.rs",
        "node/config/src/value.rs",
    ],
    longest: 8 * 1024,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, 3) else { return Verdict::Refused };
    Verdict::of(match decoder {
        0 => byre_config::fuzz::document(input),
        1 => byre_config::fuzz::smbios(input),
        _ => byre_config::fuzz::stored(input),
    })
}

const DOCUMENT: &str = r#"version = 1

[identity]
hostname = "node-1"

[[network.links]]
name = "eth0"
mtu = 1500

[[network.links]]
mac = "52:54:00:12:34:56"
dhcp4 = false
addresses = ["10.0.0.2/24", "fd00::2/64"]
gateway = "10.0.0.1"
dns = ["10.0.0.1"]
search = ["example.org"]
"#;

fn seeds() -> Vec<Vec<u8>> {
    // One structure of type 11 with two strings, as QEMU makes it.
    let mut table = vec![11, 5, 0, 0, 2];
    table.extend_from_slice(
        b"io.byre.config=version = 1\0io.systemd.credential.binary:byre.config=dmVyc2lvbiA9IDE=\0\0",
    );
    let stored = format!(
        "# byre-accepted-1 {{\"instance\":{{\"product_uuid\":null,\"machine_id\":\"ab\"}},\"origin\":\"DMI\"}}\n{DOCUMENT}"
    );
    vec![super::seed(0, DOCUMENT), super::seed(1, table), super::seed(2, stored)]
}
