//! The clock by the word of NTP servers, and what waits for it.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::{On, Scenario, contains, eventually};
use crate::node::{Lab, Node};

pub(super) const ALL: &[Scenario] =
    &[Scenario { name: "time::servers_that_agree_set_the_clock_and_one_that_lies_does_not", on: On::Own(agreement) }];

/// The host, as a guest of QEMU's user network sees it.
const HOST: &str = "10.0.2.2";
/// From 1900 to 1970.
const NTP_EPOCH_S: u64 = 2_208_988_800;
/// How far the two that agree are ahead of this machine, and the one that lies.
const AHEAD_S: u64 = 3_600;
const LIE_S: u64 = 90_000_000;

/// An NTP server (RFC 5905) on this machine whose clock is some seconds ahead of it.
struct Server {
    port: u16,
    ended: Arc<AtomicBool>,
}

impl Server {
    fn start(ahead_s: u64) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let (port, ended) = (socket.local_addr()?.port(), Arc::new(AtomicBool::new(false)));
        let until = Arc::clone(&ended);
        std::thread::spawn(move || {
            let mut question = [0; 128];
            while !until.load(Ordering::Acquire) {
                // Nobody asked for a while.
                let Ok((length, client)) = socket.recv_from(&mut question) else { continue };
                if let Some(answer) = question.get(..length).and_then(|question| answer(question, ahead_s)) {
                    // One that is gone needs no answer.
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Ok(Self { port, ended })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

fn answer(question: &[u8], ahead_s: u64) -> Option<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let seconds = u32::try_from((now.as_secs() + ahead_s + NTP_EPOCH_S) & 0xffff_ffff).ok()?.to_be_bytes();
    let fraction = u32::try_from((u64::from(now.subsec_nanos()) << 32) / 1_000_000_000).ok()?.to_be_bytes();
    // Version 4, mode server, stratum 2; a millisecond from its own source.
    let mut answer = vec![0x24, 2, 6, 0xe9, 0, 0, 0, 64, 0, 0, 0, 64, 10, 0, 0, 1];
    answer.extend([0; 8]);
    answer.extend(question.get(40..48)?);
    for _ in 0..2 {
        answer.extend(seconds);
        answer.extend(fraction);
    }
    Some(answer)
}

fn agreement(lab: &Lab, folder: &Path) -> Result<()> {
    let servers = [Server::start(AHEAD_S)?, Server::start(LIE_S)?, Server::start(AHEAD_S)?];
    let node = Node::boot(lab, folder)?;
    let known = |node: &Node| Ok(node.ctl().json(&["node"])?["facts"]["clock"]["known"] == true);
    ensure!(!known(&node)?, "the time is known without a server");
    let names: Vec<String> = servers.iter().map(|server| format!("\"{HOST}:{}\"", server.port)).collect();
    let repository = "[update]\nrepository = \"http://10.0.2.2:9/\"\n";
    let document = node.ctl().ok(&["config", "get"])?;
    let settings = format!("{document}\n{repository}\n[time]\nservers = [{}]\n", names.join(", "));
    let apply = |document: &str| node.ctl().run_with(&["config", "apply", "-"], document.as_bytes());
    contains(
        "the plan",
        &node.ctl().run_with(&["config", "apply", "--plan", "-"], settings.as_bytes())?.ok()?,
        &["time"],
    )?;
    node.ctl().run(&["update", "check"])?.refused(&["repository"])?;
    apply(&settings)?.ok()?;
    eventually("the time is known", || known(&node))?;
    let facts = node.ctl().json(&["node"])?;
    let agreed = facts["facts"]["clock"]["agreed_wall_s"].as_u64().context("no time of the agreement")?;
    let ours = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(agreed.abs_diff(ours + AHEAD_S) < 120, "the clock stands at {agreed}, here it is {ours}");
    // What waited for the time goes on, as far as there is a repository.
    let check = node.ctl().run(&["update", "check"])?;
    ensure!(check.code != 0 && !check.stderr.contains("time"), "the check still waits for the time: {}", check.stderr);

    // Switched off and on with a clock that fell back: it begins where servers agreed last.
    let mut machine = node.power_cut()?;
    machine.config.extra.extend(["-rtc".into(), "base=1999-01-01T00:00:00".into()]);
    drop(servers);
    let node = machine.switch_on()?;
    let booted = node.ctl().json(&["node"])?["facts"]["booted_wall_ms"].as_u64().context("no time of the boot")? / 1000;
    ensure!(booted + 120 >= agreed, "the clock began at {booted}, before {agreed}");
    ensure!(!known(&node)?, "the time is known though no server answers");
    node.power_cut().map(drop)
}
