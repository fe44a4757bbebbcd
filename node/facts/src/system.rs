//! The machine, the operating system on it, and what protects it.

use std::io::Read;
use std::os::linux::fs::MetadataExt;

use serde::Deserialize;

use crate::read::{Root, assigned, attribute, file, number};
use crate::types::{Clock, Machine, OperatingSystem, Security};

/// UEFI's global variables (UEFI 2.10, section 3.3).
const SECURE_BOOT: &str = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// How device-mapper's name of a verity device begins (libcryptsetup's and ours).
const VERITY_UUID: &str = "CRYPT-VERITY-";

/// What the early stage left of the boot; absent on other systems.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Boot {
    slot: Option<String>,
    root_hash: Option<String>,
    disk: Option<String>,
}

/// What `byred config`, which may read more, left of the machine's identity.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Identity {
    product_uuid: Option<String>,
}

/// Measures the machine.
pub(crate) fn machine(root: &Root, virtual_machine: bool) -> Machine {
    let dmi = |name: &str| attribute(root.sys.join("class/dmi/id").join(name));
    let identity: Identity = serde_json::from_str(&file(root.run.join("config/machine.json"))).unwrap_or_default();
    Machine {
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        // Only root may read it itself.
        uuid: identity.product_uuid.or_else(|| dmi("product_uuid")).map(|uuid| uuid.to_ascii_lowercase()),
        firmware_vendor: dmi("bios_vendor"),
        firmware_version: dmi("bios_version"),
        efi: root.sys.join("firmware/efi").exists(),
        virtual_machine,
        architecture: std::env::consts::ARCH.to_owned(),
    }
}

/// Reads what the operating system is.
pub(crate) fn operating_system(root: &Root) -> OperatingSystem {
    let release = file(root.etc.join("os-release"));
    let boot: Boot = serde_json::from_str(&file(root.run.join("boot.json"))).unwrap_or_default();
    OperatingSystem {
        id: assigned(&release, "ID"),
        version: assigned(&release, "VERSION_ID"),
        name: assigned(&release, "PRETTY_NAME"),
        slot: known(boot.slot),
        root_hash: known(boot.root_hash),
        disk: known(boot.disk),
        state_found: attribute(root.run.join("state-found")),
    }
}

/// The record has empty texts for what a boot without slots does not have.
fn known(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Measures what protects the node.
pub(crate) fn security(root: &Root, seccomp_actions: &[String]) -> Security {
    Security {
        verity: verity(root).unwrap_or(false),
        lockdown: attribute(root.sys.join("kernel/security/lockdown")).and_then(|text| chosen(&text)),
        secure_boot: secure_boot(root),
        tpm: tpm(root),
        seccomp: seccomp_actions.iter().any(|action| action == "kill_process"),
        module_signatures_enforced: attribute(root.sys.join("module/module/parameters/sig_enforce")).as_deref()
            == Some("Y"),
    }
}

/// Whether the device that the root file system lies on is a verity device.
fn verity(root: &Root) -> Option<bool> {
    let device = std::fs::metadata(&root.root).ok()?.st_dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let uuid = attribute(root.sys.join(format!("dev/block/{major}:{minor}/dm/uuid")))?;
    Some(uuid.starts_with(VERITY_UUID))
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// Four bytes of attributes, then the value.
fn secure_boot(root: &Root) -> Option<bool> {
    let mut bytes = [0; 5];
    std::fs::File::open(root.sys.join(SECURE_BOOT)).ok()?.read_exact(&mut bytes).ok()?;
    Some(bytes[4] == 1)
}

fn tpm(root: &Root) -> Option<u32> {
    let device = root.sys.join("class/tpm/tpm0");
    let version = number(device.join("tpm_version_major")).and_then(|version| u32::try_from(version).ok());
    // Only version 1 devices of old kernels say no version.
    device.exists().then(|| version.unwrap_or(1))
}

/// What `byred time` says of the clock; nothing is known if it says nothing.
pub(crate) fn clock(root: &Root) -> Clock {
    serde_json::from_str(&file(root.run.join("time/state.json"))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_record_and_its_absence() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root { run: directory.path().into(), etc: directory.path().into(), ..Root::default() };
        assert_eq!(operating_system(&root), OperatingSystem::default());
        std::fs::write(directory.path().join("os-release"), "NAME=x\nID=byre\nVERSION_ID=\"0.1.0\"\n").expect("a file");
        for broken in ["", "{", "[]", "{\"slot\":3}"] {
            std::fs::write(directory.path().join("boot.json"), broken).expect("a file");
            assert_eq!(operating_system(&root).slot, None);
        }
        let record = r#"{"slot":"a","root_hash":"00ff","disk":"vda","new":true}"#;
        std::fs::write(directory.path().join("boot.json"), record).expect("a file");
        let os = operating_system(&root);
        assert_eq!((os.slot.as_deref(), os.version.as_deref(), os.state_found), (Some("a"), Some("0.1.0"), None));
        std::fs::write(directory.path().join("state-found"), "whole\n").expect("a file");
        assert_eq!(operating_system(&root).state_found.as_deref(), Some("whole"));
    }

    #[test]
    fn the_chosen_lockdown_is_the_one_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality").as_deref(), Some("integrity"));
        assert_eq!(chosen("none"), None);
    }
}
