//! Processes and sockets of a node that has no shell.

use byre_api::proto::{ListProcessesRequest, ListSocketsRequest};
use serde_json::{Value, json};

use crate::args_see::LookArgs;
use crate::connect::Node;
use crate::error::Failure;
use crate::output::{Output, complain};
use crate::text::{printable, size};

pub(super) async fn processes(node: &Node, output: &Output, args: &LookArgs) -> Result<(), Failure> {
    let request = ListProcessesRequest { workload: args.name.clone() };
    let answer = node.debugging().list_processes(request).await?.into_inner();
    let row = |it: &byre_api::proto::Process| {
        // As ps(1) has it: a thread of the kernel has no command, and its name stands in brackets.
        let command = if it.command.is_empty() { format!("[{}]", it.name) } else { it.command.clone() };
        vec![
            it.pid.to_string(),
            it.inside_pid.to_string(),
            it.parent.to_string(),
            it.user.to_string(),
            printable(&it.state),
            it.threads.to_string(),
            size(it.memory_bytes),
            format!("{}.{:02}", it.cpu_ms / 1000, it.cpu_ms % 1000 / 10),
            printable(&command),
        ]
    };
    let rows: Vec<Vec<String>> = answer.processes.iter().map(row).collect();
    let document = |it: &byre_api::proto::Process| -> Value {
        json!({
            "pid": it.pid, "inside_pid": it.inside_pid, "parent": it.parent, "user": it.user, "state": it.state, "threads": it.threads,
            "memory_bytes": it.memory_bytes, "cpu_ms": it.cpu_ms, "name": it.name, "command": it.command, "cgroup": it.cgroup,
        })
    };
    let header = ["PID", "INSIDE", "PARENT", "USER", "STATE", "THREADS", "MEMORY", "CPU S", "COMMAND"];
    output.rows(&header, &rows, answer.processes.iter().map(document).collect())?;
    say_if_cut(answer.cut);
    Ok(())
}

pub(super) async fn sockets(node: &Node, output: &Output, args: &LookArgs) -> Result<(), Failure> {
    let request = ListSocketsRequest { workload: args.name.clone() };
    let answer = node.debugging().list_sockets(request).await?.into_inner();
    let row = |it: &byre_api::proto::Socket| {
        let user = it.user.to_string();
        [&it.protocol, &it.state, &it.local, &it.remote, &user].map(|text| printable(text)).to_vec()
    };
    let rows: Vec<Vec<String>> = answer.sockets.iter().map(row).collect();
    let document = |it: &byre_api::proto::Socket| -> Value {
        json!({"protocol": it.protocol, "state": it.state, "local": it.local, "remote": it.remote, "user": it.user})
    };
    let header = ["PROTOCOL", "STATE", "LOCAL", "REMOTE", "USER"];
    output.rows(&header, &rows, answer.sockets.iter().map(document).collect())?;
    say_if_cut(answer.cut);
    Ok(())
}

fn say_if_cut(cut: bool) {
    if cut {
        complain("there are more than the node tells at once; name a workload to see all of its own");
    }
}
