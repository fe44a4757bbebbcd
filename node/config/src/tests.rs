//! The properties of reading, deciding, storing and handing out, each on a machine made of files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const CA: &str = include_str!("test-ca.pem");

/// A machine whose files lie below a temporary directory.
struct Machine {
    directory: tempfile::TempDir,
    paths: Paths,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        let paths = Paths {
            sys: root.join("sys"),
            run: root.join("run"),
            state: root.join("state"),
            machine_id: root.join("machine-id"),
            api_group: None,
            pull_group: None,
        };
        for path in ["state", "run/config", "run/nocloud", "sys/class/dmi/id", "sys/firmware/dmi/tables"] {
            std::fs::create_dir_all(root.join(path)).expect("a directory");
        }
        let this = Self { directory, paths };
        this.write("machine-id", b"0123456789abcdef0123456789abcdef\n");
        this.write("sys/class/dmi/id/product_uuid", b"6C1B2D8E-0000-4000-8000-000000000001\n");
        this
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        std::fs::write(self.directory.path().join(path), bytes).expect("a file");
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(path)).expect(path)
    }

    fn user_data(&self, text: &str) {
        self.write("run/nocloud/user-data", text.as_bytes());
    }

    fn smbios(&self, text: &str) {
        let mut bytes = vec![11, 5, 0, 11, 1];
        bytes.extend_from_slice(b"io.byre.config=");
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend_from_slice(&[0, 0]);
        self.write("sys/firmware/dmi/tables/DMI", &bytes);
    }

    fn boot(&self) -> String {
        run_with(&self.paths, || Ok::<(), String>(())).expect("the configuration is handed out");
        self.read("run/config/hostname").trim().to_owned()
    }
}

fn named(name: &str) -> String {
    format!("version = 1\n[identity]\nhostname = \"{name}\"\n")
}

#[test]
fn without_any_source_the_defaults_hold() {
    let machine = Machine::new();
    assert_eq!(machine.boot(), "byre-01234567");
    assert_eq!(machine.read("run/config/net.json"), "{}");
    let api: ApiFile = serde_json::from_str(&machine.read("run/config/api.json")).expect("JSON");
    assert!(api.ca_pem.is_none() && api.join_token.is_none());
    assert!(!machine.paths.state.join("current.toml").exists(), "defaults are not a configuration that was accepted");
}

#[test]
fn the_first_source_in_order_wins_and_stays() {
    let machine = Machine::new();
    machine.user_data(&named("from-disk"));
    machine.smbios(&named("from-firmware"));
    assert_eq!(machine.boot(), "from-firmware");
    machine.smbios(&named("another"));
    assert_eq!(machine.boot(), "from-firmware", "the state partition wins once something was accepted");
}

#[test]
fn another_instance_reads_the_sources_again() {
    let machine = Machine::new();
    machine.smbios(&named("one"));
    assert_eq!(machine.boot(), "one");
    machine.write("sys/class/dmi/id/product_uuid", b"6C1B2D8E-0000-4000-8000-000000000002\n");
    machine.smbios(&named("two"));
    assert_eq!(machine.boot(), "two");
}

#[test]
fn a_bad_configuration_replaces_nothing() {
    let machine = Machine::new();
    machine.smbios(&named("good"));
    machine.boot();
    let before = machine.read("state/current.toml");
    machine.write("machine-id", b"ffffffffffffffffffffffffffffffff\n");
    machine.smbios("version = 1\nunknown = 2\n");
    assert_eq!(machine.boot(), "good");
    assert_eq!(machine.read("state/current.toml"), before);
}

#[test]
fn a_bad_first_source_does_not_hide_a_good_second_one() {
    let machine = Machine::new();
    machine.smbios("version = 99\n");
    machine.user_data(&named("second"));
    assert_eq!(machine.boot(), "second");
}

#[test]
fn a_torn_stored_file_does_not_stop_the_node() {
    let machine = Machine::new();
    for torn in ["", "# byre-accepted-1 {", "# byre-accepted-1 {}\nversion = 1", "version = 1"] {
        machine.write("state/current.toml", torn.as_bytes());
        assert_eq!(machine.boot(), "byre-01234567");
    }
    machine.smbios(&named("fresh"));
    assert_eq!(machine.boot(), "fresh");
}

#[test]
fn only_the_secret_file_is_closed_to_others() {
    let machine = Machine::new();
    machine.user_data(&format!("version = 1\n[api]\njoin_token = \"0123456789abcdef0123\"\nca_pem = '''\n{CA}'''\n"));
    machine.boot();
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o7777;
    let config = machine.paths.run.join("config");
    assert_eq!(mode(&config.join("api.json")), 0o640);
    assert_eq!(mode(&config.join("registries.json")), 0o640);
    assert_eq!(mode(&config.join("net.json")), 0o644);
    assert_eq!(mode(&config.join("hostname")), 0o644);
    assert_eq!(mode(&machine.paths.state.join("current.toml")), 0o600);
    let api: ApiFile = serde_json::from_str(&machine.read("run/config/api.json")).expect("JSON");
    assert_eq!(api.join_token.as_deref(), Some("0123456789abcdef0123"));
    assert!(api.ca_pem.expect("kept").contains("BEGIN CERTIFICATE"));
}

#[test]
fn a_directory_of_the_wrong_group_gets_no_secret() {
    let mut machine = Machine::new();
    machine.paths.api_group = Some(u32::MAX - 1);
    let error = run_with(&machine.paths, || Ok::<(), String>(())).expect_err("refused");
    assert!(error.to_string().contains("mode 2755"), "{error}");
    assert!(!machine.paths.run.join("config/api.json").exists());
}

#[test]
fn a_refusal_names_line_and_remedy() {
    for (document, line, part) in [
        ("version = 1\nhostname = \"x\"\n", 2, "unknown field `hostname`, expected one of `version`, `identity`"),
        ("version = 1\n[identity]\nhostname = \"a_b\"\n", 3, "write it like"),
        ("[identity]\nhostname = \"a\"\n", 1, "begin the configuration with"),
        ("version = 1\n\n[[network.links]]\ndhcp4 = true\n", 3, "add `name`, `mac` or `driver`"),
        (
            "version = 1\n[[network.links]]\nname = \"eth0\"\ndhcp4 = true\ngateway = \"10.0.0.1\"\n",
            2,
            "remove `gateway`",
        ),
        ("version = 1\n[[network.links]]\nname = \"eth0\"\naddresses = [\"10.0.0.0/24\"]\n", 4, "one host"),
        ("version = 1\n[[network.links]]\nname = \"eth0\"\nmtu = 100\n", 2, "out of range"),
        ("version = 1\n[api]\njoin_token = \"short\"\n", 3, "openssl rand"),
        ("version = 1\n[api]\njoin_token = \"0123456789abcdef\"\n", 3, "needs `ca_pem`"),
        ("version = 1\n[api]\nca_pem = \"none\"\n", 3, "BEGIN CERTIFICATE"),
        ("version = 1\n[identity\n", 2, ""),
    ] {
        match parse(document.as_bytes(), "user-data") {
            Err(Refused::At { origin, line: found, message }) => {
                assert_eq!((origin.as_str(), found), ("user-data", line), "{document}: {message}");
                assert!(message.contains(part), "{message}");
            }
            other => panic!("{document}: {other:?}"),
        }
    }
}

#[test]
fn other_formats_and_versions_are_named() {
    assert!(matches!(parse(b"#cloud-config\nusers: []\n", "x"), Err(Refused::CloudInit { .. })));
    assert!(matches!(parse(b"version = 2\nnew = true\n", "x"), Err(Refused::Version { found: 2, .. })));
    assert!(matches!(parse(&[0xff, 0xfe], "x"), Err(Refused::NotText { .. })));
    assert!(matches!(parse(&vec![b'#'; DOCUMENT_BYTES + 1], "x"), Err(Refused::TooLarge { .. })));
    let deep = format!("version = 1\nx = {}{}", "[".repeat(20_000), "]".repeat(20_000));
    assert!(parse(deep.as_bytes(), "x").is_err(), "deep nesting is refused, not followed");
}

#[test]
fn the_example_of_the_manual_is_accepted() {
    let manual = include_str!("../../../docs/configuration.md");
    let examples: Vec<&str> = manual.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 2);
    for example in examples {
        let example = example.replace(
            "MIIB…",
            CA.lines().skip(1).take_while(|l| !l.starts_with('-')).collect::<Vec<_>>().join("\n").as_str(),
        );
        parse(example.as_bytes(), "docs/configuration.md").expect("the manual's example is valid");
    }
}

#[test]
fn the_schema_in_the_manual_is_the_one_of_the_types() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.schema.json");
    if std::env::var_os("BYRE_WRITE_SCHEMAS").is_some() {
        std::fs::write(path, json_schema()).expect("the schema is written");
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        stored,
        json_schema(),
        "run this test with BYRE_WRITE_SCHEMAS=1 and commit docs/configuration.schema.json"
    );
}

/// Names the machine's directory to the process that is the service.
const MACHINE: &str = "BYRE_CONFIG_TEST_MACHINE";

/// The group that must own the secret, for the same process.
const GROUP: &str = "BYRE_CONFIG_TEST_GROUP";

#[test]
fn as_its_own_user_it_leaves_the_secret_to_the_group_of_the_api() {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;
    let machine = Machine::new();
    let root = machine.directory.path();
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: needs root (other users)");
        return;
    }
    for (path, gid, mode) in [("", 903, 0o755), ("state", 903, 0o700), ("run/config", 900, 0o2755)] {
        chown(root.join(path), Some(903), Some(gid)).expect("owned");
        std::fs::set_permissions(root.join(path), std::fs::Permissions::from_mode(mode)).expect("mode");
    }
    machine.user_data(&named("own-user"));
    // As firmware tables are; without CAP_DAC_READ_SEARCH it is named and passed over.
    machine.smbios(&named("firmware"));
    let table = root.join("sys/firmware/dmi/tables/DMI");
    std::fs::set_permissions(&table, std::fs::Permissions::from_mode(0o400)).expect("mode");
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "tests::the_service_itself", "--nocapture"])
        .env(MACHINE, root)
        .env(GROUP, "900")
        .uid(903)
        .gid(903)
        .output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: needs a build directory that other users can enter: {error}");
            return;
        }
        output => output.expect("the service runs"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("source not readable"), "{said}");
    assert_eq!(machine.read("run/config/hostname"), "own-user\n");
    let secret = std::fs::metadata(root.join("run/config/api.json")).expect("a file");
    assert_eq!((secret.uid(), secret.gid(), secret.mode() & 0o7777), (903, 900, 0o640));
}

/// Not a test: what [`the_sealed_service_hands_out_a_full_configuration`] runs in a process of its own.
#[test]
fn the_service_itself() {
    let Some(root) = std::env::var_os(MACHINE).map(std::path::PathBuf::from) else { return };
    let paths = Paths {
        sys: root.join("sys"),
        run: root.join("run"),
        state: root.join("state"),
        machine_id: root.join("machine-id"),
        api_group: std::env::var(GROUP).ok().and_then(|group| group.parse().ok()),
        pull_group: None,
    };
    run_with(&paths, || byre_sandbox::seal(&byre_sandbox::profiles::CONFIG)).expect("the configuration is handed out");
}

#[test]
fn the_sealed_service_hands_out_a_full_configuration() {
    let machine = Machine::new();
    let manual = include_str!("../../../docs/configuration.md");
    let fixed = manual.split("```toml\n").nth(2).and_then(|rest| rest.split("```").next()).expect("the second example");
    machine.smbios("version = 7\n");
    machine.user_data(&format!(
        "{fixed}\n[identity]\nhostname = \"sealed\"\n[api]\njoin_token = \"0123456789abcdef0123\"\nca_pem = \"\"\"\n{CA}\"\"\"\n"
    ));
    for _boot in 0..2 {
        let output = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "tests::the_service_itself", "--nocapture"])
            .env(MACHINE, machine.directory.path())
            .output()
            .expect("the service runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("config: ") && !said.contains("0123456789abcdef0123"), "{said}");
        assert_eq!(machine.read("run/config/hostname"), "sealed\n");
        assert!(machine.read("run/config/net.json").contains("192.168.10.5/24"));
    }
    assert!(machine.read("state/current.toml").starts_with("# byre-accepted-1 "));
}

mod changes;

proptest! {
    #[test]
    fn any_bytes_are_accepted_or_refused(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        crate::fuzz::document(&data);
    }

    #[test]
    fn documents_of_the_right_words_are_accepted_or_refused(lines in proptest::collection::vec(
        prop_oneof![
            Just("version = 1"), Just("[identity]"), Just("hostname = \"a\""), Just("[api]"), Just("[network]"), Just("links = []"),
            Just("[[network.links]]"), Just("name = \"eth0\""), Just("dhcp4 = true"), Just("dhcp4 = false"),
            Just("addresses = [\"10.0.0.2/24\"]"), Just("gateway = \"10.0.0.1\""), Just("mtu = 1500"), Just("x = {"), Just("'''"),
        ], 0..12)) {
        crate::fuzz::document(format!("version = 1\n{}", lines.join("\n")).as_bytes());
    }

    #[test]
    fn no_message_holds_a_secret_wherever_it_was_written(
        secret in "[A-Za-z0-9]{20,40}",
        place in prop_oneof![
            Just("version = 1\napi = \"@\""), Just("version = \"@\""), Just("version = 1\n[api]\njoin_token = [\"@\"]"),
            Just("version = 1\n[api]\njoin_token = \"@ \""), Just("version = 1\n[api]\nca_pem = \"@\""),
            Just("version = 1\n[api]\njoin_token = \"@"), Just("version = 1\n[api]\njoin_token = \"@\""),
            Just("version = 1\n[api]\njoin_token = \"@\"\nx = 1"), Just("version = 1\n[api]\njoin_token = { a = \"@\" }"),
            Just("version = 1\n[network]\nlinks = \"@\""), Just("version = 1\n[api]\njoin_token = '@' '@'"),
        ]) {
        let refused = parse(place.replace('@', &secret).as_bytes(), "x").expect_err("wrong everywhere");
        prop_assert!(!refused.to_string().contains(&secret), "{}", refused);
    }

    #[test]
    fn an_address_contains_itself_and_is_one_host(bits in any::<u32>(), prefix in 1u8..=32) {
        let text = format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(bits));
        if let Ok(address) = text.parse::<InterfaceAddress>() {
            prop_assert!(address.contains(address.address));
            prop_assert_eq!(address.to_string(), text);
        }
    }
}
