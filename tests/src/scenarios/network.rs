//! Containers in the node's own network: each other, the outside, published ports, and what a killed network service changes for them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context as _, Result, ensure};

use super::{Container, On, Scenario, WAIT, contains, eventually, inspect, same};
use crate::node::Node;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "network::containers_reach_each_other_and_the_outside", on: On::Shared(reach) },
    Scenario { name: "network::a_published_port_outlives_its_service", on: On::Shared(published) },
];

/// A web server in the node's network.
const SERVER: &str = "mkdir -p /www && echo served >/www/index.html && exec httpd -f -p 80 -h /www";
/// Where a guest's user-mode network has the machine that runs the test.
const OUTSIDE: &str = "10.0.2.2";

/// The IPv4 address of a container.
fn address(container: &Container<'_>) -> Result<String> {
    let inspected = container.inspect()?;
    let addresses = inspected["addresses"].as_array().context("no addresses")?;
    let found = addresses.iter().filter_map(|one| one["address"].as_str()).find(|text| text.contains('.'));
    Ok(found.with_context(|| format!("no IPv4 address in {addresses:?}"))?.to_owned())
}

fn reach(node: &Node) -> Result<()> {
    let server = Container::run(node, "server", &["--network", "byre", "busybox", "sh", "-c", SERVER])?;
    server.wait_for("running")?;
    let address = address(&server)?;
    // Not wget: a static one looks the name `http` up, for which it would need what is not in its image.
    let get = |host: &str, port: u16| {
        let line = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {host} {port}");
        node.ctl().ok(&["run", "--rm", "--network", "byre", "busybox", "sh", "-c", &line])
    };
    eventually("another container gets its page", || Ok(get(&address, 80)?.contains("served")))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let outside = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(WAIT))?;
        let mut request = [0; 4096];
        let _ = stream.read(&mut request)?;
        stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\noutside")
    });
    contains("what lies outside", &get(OUTSIDE, port)?, &["outside"])?;
    ensure!(outside.join().is_ok_and(|served| served.is_ok()), "the outside was not asked");
    let refused = node.ctl().run(&["run", "--rm", "--network", "elsewhere", "busybox", "true"])?;
    ensure!(refused.code != 0, "a network that there is not");
    contains("why", &refused.stderr, &["elsewhere"])
}

fn published(node: &Node) -> Result<()> {
    let server = Container::run(node, "server", &["-p", "8080:80", "busybox", "sh", "-c", SERVER])?;
    server.wait_for("running")?;
    let is_served = || Ok(node.http_get("/index.html").is_ok_and(|page| page.contains("served")));
    eventually("it answers through its published port", is_served)?;
    let before = address(&server)?;
    let restarts = |name: &str| inspect(node, name)?["workload"]["restarts"].as_u64().context("no count of restarts");
    let count = restarts("podnet")?;
    node.ctl().ok(&["kill", "-s", "KILL", "podnet"])?;
    ensure!(is_served()?, "nobody answers while the network service is away");
    eventually("podnet is back", || {
        Ok(restarts("podnet")? > count && inspect(node, "podnet")?["workload"]["ready"] == true)
    })?;
    eventually("it answers still", is_served)?;
    node.ctl().ok(&["system", "reexec"])?;
    ensure!(is_served()?, "nobody answers after PID 1 was replaced");
    same("its address after that", address(&server)?, before.clone())?;
    node.ctl().ok(&["restart", "-t", "0", "server"])?;
    server.wait_for("running")?;
    same("its address after its restart", address(&server)?, before)?;
    eventually("it answers again", is_served)
}
