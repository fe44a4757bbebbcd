//! Images from a registry on the host, over TLS and with credentials.

use std::path::Path;

use anyhow::{Result, ensure};
use byre_registry::testing::{Auth, Behaviour, TestRegistry};

use super::{On, Scenario, contains, same};
use crate::node::{Lab, Node};

pub(super) const ALL: &[Scenario] =
    &[Scenario { name: "pull::from_a_registry_with_tls_and_credentials", on: On::Own(with_credentials) }];

/// The host, as a guest of QEMU's user network sees it.
const HOST: &str = "10.0.2.2";

/// On a machine of its own: the shared one has this image's layers already.
fn with_credentials(lab: &Lab, folder: &Path) -> Result<()> {
    let node = Node::boot(lab, folder)?;
    let registry = TestRegistry::start(true);
    registry.want(Auth::Token(Some(("me".into(), "sesame".into()))));
    registry.add_archive("1", &std::fs::read(node.busybox())?);
    // So that the layer has to be resumed as well.
    registry.behave(Behaviour::CutAfter { bytes: 300_000, times: 2 });
    let folder = tempfile::tempdir()?;
    let authority = folder.path().join("ca.pem");
    std::fs::write(&authority, registry.ca_pem().unwrap_or_default())?;
    let authority = authority.display().to_string();
    let name = format!("{HOST}:{}/pulled/busybox:1", registry.port());
    let pull = |password: &str| {
        let arguments = ["pull", "--username", "me", "--password-stdin", "--ca-file", &authority, &name];
        node.ctl().run_with(&arguments, password.as_bytes())
    };
    pull("wrong\n")?.refused(&["token", "password"])?;
    contains("pull", &pull("sesame\n")?.ok()?, &["Pulled: ", &name, "@sha256:"])?;
    contains("a second pull", &pull("sesame\n")?.ok()?, &["Already here"])?;
    node.ctl().run(&["pull", &name])?.refused(&["certificate", "ca_pem"])?;
    let seen = registry.seen().len();
    ensure!(seen > 5, "the registry was asked {seen} times");
    contains("inspect", &node.ctl().ok(&["image", "inspect", &name])?, &["origins", &name])?;
    same("it runs", node.ctl().ok(&["run", "--rm", &name, "echo", "pulled"])?.as_str(), "pulled")?;
    node.ctl().ok(&["image", "rm", &name])?;
    node.power_cut().map(drop)
}
