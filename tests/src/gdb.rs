//! A debugger's end of QEMU's gdb stub (the "GDB Remote Serial Protocol" of GDB's manual): enough to stop the machine, look at a
//! processor, and make the program that runs on it fail. The shipped image needs nothing for it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::qmp::Qmp;

/// How long QEMU may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Number of the instruction pointer among the registers of x86-64, and of the code segment.
const RIP: &str = "10";
/// See [`RIP`].
const CS: &str = "12";
/// A page: what address randomisation leaves alone lies below it. A whole one says which program runs: programs that are linked
/// with the same libraries have single functions in common, also at equal places in a page.
const PAGE: usize = 4096;
/// Bytes asked for at once: in hexadecimal they fill QEMU's longest packet by half.
const PART: usize = PAGE / 4;

/// A connection; the machine goes on when it is dropped.
pub struct Gdb {
    stream: UnixStream,
}

impl Gdb {
    /// Opens the stub of a running machine and connects. The machine stands still afterwards.
    ///
    /// # Errors
    /// If QEMU has no stub, or does not answer.
    pub fn attach(qmp: &mut Qmp, socket: &Path) -> Result<Self> {
        let line = format!("gdbserver unix:{},server=on,wait=off", socket.display());
        qmp.execute("human-monitor-command", &json!({ "command-line": line }))?;
        let stream = UnixStream::connect(socket).with_context(|| format!("no stub at {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut gdb = Self { stream };
        // QEMU stops the machine for a debugger and says so unasked; behind this answer nothing of that is left.
        gdb.ask("qSupported")?;
        // Only to who has read what registers there are does QEMU tell single ones.
        gdb.ask("qXfer:features:read:target.xml:0,fff")?;
        Ok(gdb)
    }

    /// Lets the machine run for a while, then stops it.
    ///
    /// # Errors
    /// If it does not stop.
    pub fn run_for(&mut self, time: Duration) -> Result<()> {
        self.send("c")?;
        std::thread::sleep(time);
        self.stream.write_all(&[3])?;
        while !is_stop(&self.receive()?) {}
        Ok(())
    }

    /// Whether one of the processors is in this program, outside the kernel; that one is chosen for [`Self::crash`].
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub fn find(&mut self, program: &[u8]) -> Result<bool> {
        for thread in self.threads()? {
            self.ask(&format!("Hg{thread}"))?;
            if self.register(CS)? & 3 != 3 {
                continue;
            }
            let page = usize::try_from(self.register(RIP)?)? / PAGE * PAGE;
            let mut code = Vec::with_capacity(PAGE);
            for part in (page..page + PAGE).step_by(PART) {
                code.extend(bytes(&self.ask(&format!("m{part:x},{PART:x}"))?));
            }
            if code.len() == PAGE && program.chunks_exact(PAGE).any(|page| page == code) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes the program on the chosen processor jump to address 0.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn crash(&mut self) -> Result<()> {
        let answer = self.ask(&format!("P{RIP}=0000000000000000"))?;
        ensure!(answer == "OK", "QEMU does not set the instruction pointer: {answer}");
        Ok(())
    }

    /// Lets the machine go.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub fn detach(mut self) -> Result<()> {
        self.ask("D").map(drop)
    }

    fn threads(&mut self) -> Result<Vec<String>> {
        let mut threads = Vec::new();
        let mut answer = self.ask("qfThreadInfo")?;
        while let Some(list) = answer.strip_prefix('m') {
            threads.extend(list.split(',').map(str::to_owned));
            answer = self.ask("qsThreadInfo")?;
        }
        Ok(threads)
    }

    fn register(&mut self, number: &str) -> Result<u64> {
        let answer = self.ask(&format!("p{number}"))?;
        let mut value = bytes(&answer);
        ensure!(matches!(value.len(), 4 | 8), "register {number} is {answer:?}");
        value.resize(8, 0);
        Ok(u64::from_le_bytes(value.try_into().unwrap_or_default()))
    }

    fn ask(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        loop {
            let answer = self.receive()?;
            if !is_stop(&answer) {
                return Ok(answer);
            }
        }
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        self.stream.write_all(format!("${packet}#{sum:02x}").as_bytes())?;
        Ok(())
    }

    /// The next packet; acknowledgements before it are passed over.
    fn receive(&mut self) -> Result<String> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let mut packet: Option<Vec<u8>> = None;
        loop {
            ensure!(Instant::now() < deadline, "the stub sends no whole packet");
            let mut byte = [0];
            self.stream.read_exact(&mut byte).context("the stub does not answer")?;
            match (byte[0], &mut packet) {
                (b'$', _) => packet = Some(Vec::new()),
                (b'#', Some(packet)) => {
                    self.stream.read_exact(&mut [0; 2])?;
                    self.stream.write_all(b"+")?;
                    return Ok(String::from_utf8_lossy(packet).into_owned());
                }
                (byte, Some(packet)) => packet.push(byte),
                (b'+', None) => {}
                (byte, None) => bail!("the stub sends {byte:#x} between packets"),
            }
        }
    }
}

/// Whether a packet tells that the machine stands still. No answer begins with these letters.
fn is_stop(packet: &str) -> bool {
    packet.starts_with(['T', 'S'])
}

fn bytes(hex: &str) -> Vec<u8> {
    let pair = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    // An error is the letter E and two digits.
    if hex.len() % 2 == 1 {
        return Vec::new();
    }
    (0..hex.len() / 2).map_while(|index| pair(index * 2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_answers_are_bytes() {
        assert_eq!(bytes("00ff7f"), [0, 255, 127]);
        assert!(bytes("E01").is_empty());
    }

    #[test]
    fn a_packet_has_its_sum() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"$T02thread:01;#04+$OK#9a").unwrap();
        assert_eq!(Gdb { stream: ours }.ask("P10=0").unwrap(), "OK");
        let mut sent = [0; 10];
        theirs.read_exact(&mut sent).unwrap();
        assert_eq!(&sent, b"$P10=0#1e+");
    }
}
