//! Whether KVM works here: a `/dev/kvm` can exist and hang, or run a boot sector and stop at the first floating-point
//! instruction, so only a guest that really came up counts.

use crate::serial::Serial;
use crate::vm;
use anyhow::Result;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// The firmware takes about one second where KVM works; a broken one is not waited for longer than this.
const DEADLINE: Duration = Duration::from_secs(8);

/// What the firmware says when it has found its devices: by then it has used long mode, SSE and both processors.
const SIGN_OF_LIFE: &str = "BdsDxe";

/// Whether QEMU can use KVM here. Asked once per process.
pub fn works() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| std::path::Path::new("/dev/kvm").exists() && probe("kvm", "host", DEADLINE).unwrap_or(false))
}

/// Boots the firmware without a disk.
fn probe(accelerator: &str, cpu: &str, deadline: Duration) -> Result<bool> {
    let (code, variables) = vm::firmware()?;
    let directory = tempfile::tempdir()?;
    let own_variables = directory.path().join("firmware.fd");
    std::fs::copy(variables, &own_variables)?;
    // One stream for the console and for what QEMU itself says when KVM gives up.
    let (output, input) = std::io::pipe()?;
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,smm=off,vmport=off"])
        .args(["-accel", accelerator, "-cpu", cpu, "-m", "256", "-smp", "2", "-serial", "stdio"])
        .args(["-drive", &format!("if=pflash,format=raw,unit=0,readonly=on,file={code}"), "-drive"])
        .arg(format!("if=pflash,format=raw,unit=1,file={}", own_variables.display()))
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        .spawn()?;
    let alive = Serial::start(output, &directory.path().join("serial.log"))
        .map(|serial| matches!(serial.wait_for_any(&[SIGN_OF_LIFE, "KVM internal error"], deadline), Ok((0, _))));
    // Already gone is as good.
    let _ = child.kill();
    child.wait()?;
    alive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_guest_comes_up_under_emulation() {
        if !std::path::Path::new("/usr/bin/qemu-system-x86_64").exists() || vm::firmware().is_err() {
            eprintln!("skipped: needs the packages qemu-system-x86 and ovmf");
            return;
        }
        assert!(probe("tcg", "max", Duration::from_secs(120)).unwrap());
    }
}
