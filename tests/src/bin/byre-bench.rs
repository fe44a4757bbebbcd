//! Runs inside a guest and measures starts of containers there, from the caller's call to the container's first instruction, on one clock.
//!
//! That first instruction is `byre-stamp`, which prints the time. `command` starts it by a program such as crun, `api` through the node's API.
//! Nothing here ships on a node.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use byre_api::client::{Endpoint, TcpEndpoint, connect};
use byre_api::pki::ClientIdentity;
use byre_api::proto::workloads_client::WorkloadsClient;
use byre_api::proto::{ContainerSpec, CreateRequest, LogsRequest, RemoveRequest, WaitRequest};
use byre_tests::STAMP;
use tonic::transport::Channel;

/// Where the image of `api` keeps what a client needs.
const CREDENTIALS: &str = "/credentials";

/// Nanoseconds of the clock that containers share with their host.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match measure(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("bench: failed {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(words: &[String]) -> Result<()> {
    match words {
        [which, label, count, program, arguments @ ..] if which == "command" => {
            command(label, count.parse()?, program, arguments)
        }
        [which, label, count, program, arguments @ ..] if which == "time" => {
            time(label, count.parse()?, program, arguments)
        }
        [which, address, count] if which == "api" => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(api(address, count.parse()?))
        }
        [which, address, from, to] if which == "fill" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(fill(address, from.parse()?, to.parse()?))
        }
        _ => bail!(
            "usage: byre-bench command|time LABEL COUNT PROGRAM ARGUMENT... | api ADDRESS COUNT | fill ADDRESS FROM TO"
        ),
    }
}

/// The time in what a container printed.
fn stamp(output: &str) -> Result<u64> {
    let found = output.lines().find_map(|line| line.strip_prefix(STAMP)?.trim().parse().ok());
    found.with_context(|| format!("no stamp in {output:?}"))
}

/// One line per start, read by the other side: microseconds to the first instruction.
fn tell(label: &str, begun: u64, stamped: u64) {
    println!("bench: start {label} {}", stamped.saturating_sub(begun) / 1000);
}

/// Starts `program` so many times; `%` among its arguments becomes a name of its own.
fn command(label: &str, count: u32, program: &str, arguments: &[String]) -> Result<()> {
    for number in 0..count {
        let name = format!("{label}-{number}");
        let arguments = arguments.iter().map(|word| if word == "%" { &name } else { word });
        let (begun, used) = (now(), processor_time());
        let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
        tell(label, begun, stamp(&text)?);
        tell(&format!("cpu-{label}"), used, processor_time());
    }
    Ok(())
}

/// Nanoseconds of processor time of all programs that were run and waited for, and of those that they waited for.
fn processor_time() -> u64 {
    // SAFETY: a structure of zeros is one that getrusage may fill, and it lives through the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let nanoseconds = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_usec).unwrap_or(0) * 1000
    };
    nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime)
}

/// Runs `program` so many times, each to its end.
fn time(label: &str, count: u32, program: &str, arguments: &[String]) -> Result<()> {
    for _ in 0..count {
        let begun = now();
        let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
        tell(label, begun, now());
    }
    Ok(())
}

/// A client of the node at `address`, with the certificates in the image.
async fn client(address: &str) -> Result<WorkloadsClient<Channel>> {
    let read = |name: &str| {
        std::fs::read_to_string(format!("{CREDENTIALS}/{name}")).with_context(|| format!("cannot read {name}"))
    };
    let endpoint = TcpEndpoint {
        address: address.to_owned(),
        server_name: None,
        authority_pem: read("ca.pem")?,
        identity: ClientIdentity { certificate_pem: read("client.pem")?, key_pem: read("client.key")? },
    };
    Ok(WorkloadsClient::new(connect(&Endpoint::Tcp(endpoint)).await?))
}

/// Starts containers that stay, at rest, and tells how long it took until the last was told to be started.
async fn fill(address: &str, from: u32, to: u32) -> Result<()> {
    let mut client = client(address).await?;
    let begun = now();
    for number in from..to {
        let spec = ContainerSpec {
            name: format!("idle-{number}"),
            image: "byre-stamp".to_owned(),
            command: vec!["stay".to_owned()],
            ..ContainerSpec::default()
        };
        client
            .create(CreateRequest { spec: Some(spec), start: true })
            .await
            .with_context(|| format!("number {number}"))?;
    }
    tell("fill", begun, now());
    println!("bench: done");
    Ok(())
}

/// Starts containers of the stamp's image through the API, over one connection, one after the other.
async fn api(address: &str, count: u32) -> Result<()> {
    let mut client = client(address).await?;
    for number in 0..count {
        let name = format!("start-{number}");
        let spec = ContainerSpec { name: name.clone(), image: "byre-stamp".to_owned(), ..ContainerSpec::default() };
        let begun = now();
        client.create(CreateRequest { spec: Some(spec), start: true }).await?;
        let answered = now();
        client.wait(WaitRequest { workload: name.clone() }).await?;
        let request = LogsRequest { workload: name.clone(), ..LogsRequest::default() };
        let mut pieces = client.logs(request).await?.into_inner();
        let mut output = Vec::new();
        while let Some(piece) = pieces.message().await? {
            output.extend(piece.data);
        }
        client.remove(RemoveRequest { workload: name, force: true }).await?;
        tell("api", begun, stamp(&String::from_utf8_lossy(&output))?);
        tell("answer", begun, answered);
    }
    println!("bench: done");
    Ok(())
}
