//! Terminals: `run -it`, `exec -it` and `attach`, typed as a person types.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Container, On, Scenario, WAIT, eventually, same};
use crate::node::Node;
use crate::terminal::Terminal;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "interactive::run_with_a_terminal", on: On::Shared(run) },
    Scenario { name: "interactive::exec_with_a_terminal", on: On::Shared(exec) },
    Scenario { name: "interactive::attach_detach_attach", on: On::Shared(attach) },
    Scenario { name: "interactive::a_lost_terminal_ends_the_exec", on: On::Shared(hang_up) },
    Scenario { name: "interactive::terminals_work_for_any_user", on: On::Shared(any_user) },
];

/// Ctrl-C.
const INTERRUPT: &str = "\u{3}";
/// Ctrl-P Ctrl-Q, which detaches.
const DETACH: &str = "\u{10}\u{11}";

fn terminal(node: &Node, arguments: &[&str]) -> Result<Terminal> {
    Terminal::start(node.ctl().command(arguments), 33, 101)
}

/// What a shell on the terminal must do, whoever opened it.
fn try_shell(terminal: &mut Terminal) -> Result<()> {
    terminal.send("tty; stty size; echo mark$((40+2))\n")?;
    terminal.expect("/dev/pts/", WAIT)?;
    terminal.expect("33 101", WAIT)?;
    terminal.expect("mark42", WAIT)?;
    terminal.resize(44, 122)?;
    // The size arrives by itself; the shell is asked until it has.
    for _ in 0..10 {
        terminal.send("stty size\n")?;
        if terminal.expect("44 122", Duration::from_secs(5)).is_ok() {
            break;
        }
    }
    terminal.send("sleep 1000; echo woken$((1+1))\n")?;
    terminal.expect("sleep 1000", WAIT)?;
    std::thread::sleep(Duration::from_secs(1)); // for the sleep to be in the foreground, which nothing tells of
    terminal.send(INTERRUPT)?;
    terminal.send("echo alive$((3+4))\n")?;
    terminal.expect("alive7", WAIT)
}

fn run(node: &Node) -> Result<()> {
    let mut terminal = terminal(node, &["run", "-it", "--rm", "busybox", "sh"])?;
    try_shell(&mut terminal)?;
    terminal.send("exit 6\n")?;
    same("exit code", terminal.ended(WAIT)?, 6)
}

fn exec(node: &Node) -> Result<()> {
    let container = Container::run(node, "entered", &["busybox", "sleep", "1000"])?;
    container.wait_for("running")?;
    let mut terminal = terminal(node, &["exec", "-it", "entered", "sh"])?;
    try_shell(&mut terminal)?;
    terminal.send("exit 4\n")?;
    same("exit code", terminal.ended(WAIT)?, 4)
}

fn attach(node: &Node) -> Result<()> {
    let container = Container::run(node, "shell", &["-it", "busybox", "sh"])?;
    container.wait_for("running")?;
    let mut first = terminal(node, &["attach", "shell"])?;
    first.send("echo first$((1+0))\n")?;
    first.expect("first1", WAIT)?;
    first.send(DETACH)?;
    same("exit code of a detached one", first.ended(WAIT)?, 0)?;
    same("it goes on", container.state()?.as_str(), "running")?;
    let mut second = terminal(node, &["attach", "shell"])?;
    second.send("echo second$((1+1))\n")?;
    second.expect("second2", WAIT)?;
    second.send("exit 8\n")?;
    same("exit code", second.ended(WAIT)?, 8)
}

fn hang_up(node: &Node) -> Result<()> {
    let container = Container::run(node, "left", &["busybox", "sleep", "1000"])?;
    container.wait_for("running")?;
    let mut terminal = terminal(node, &["exec", "-it", "left", "sh", "-c", "echo here; sleep 4321"])?;
    terminal.expect("here", WAIT)?;
    drop(terminal);
    eventually("the program of the lost terminal is gone", || {
        Ok(container.sh("pgrep -f 4321 | grep -v $$ || true")?.is_empty())
    })
}

fn any_user(node: &Node) -> Result<()> {
    let line = "test -t 0 && echo x >/dev/tty && echo user$(id -u) && echo y >/dev/stdout";
    let mut terminal = terminal(node, &["run", "-it", "--rm", "-u", "nobody", "busybox", "sh", "-c", line])?;
    terminal.expect("user65534", WAIT)?;
    let code = terminal.ended(WAIT)?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}
