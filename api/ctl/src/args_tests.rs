//! What can be typed, and that docs/cli.md says so.

use clap::{CommandFactory as _, Parser as _};

use super::*;
use crate::error::Failure;
use byre_api::proto::{ContainerSpec, NetworkMode, RestartPolicy, TerminalSize, UserNamespaceMode};

const REFERENCE: &str = include_str!("../../../docs/cli.md");

fn spec(line: &str) -> Result<ContainerSpec, Failure> {
    let words = ["byrectl", "run"].into_iter().chain(line.split_whitespace());
    let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else { panic!("run is run") };
    let ours = |name: &str| (name == "OURS").then(|| "here".to_owned());
    run.container.spec(Some(TerminalSize { rows: 24, columns: 80 }), ours)
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_and_flag_is_in_the_reference() {
    fn walk(command: &clap::Command, path: &str) {
        for subcommand in command.get_subcommands() {
            let path = format!("{path} {}", subcommand.get_name());
            assert!(REFERENCE.contains(&format!("`{}", path.trim_start())), "docs/cli.md lacks {path}");
            walk(subcommand, &path);
        }
        for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
            assert!(REFERENCE.contains(&format!("--{flag}")), "docs/cli.md lacks --{flag} of {path}");
        }
    }
    walk(&Cli::command(), "byrectl");
    for line in EXIT_CODES.lines().skip(1) {
        let code = line.trim().split("  ").next().unwrap();
        assert!(REFERENCE.contains(&format!("| {code} |")), "docs/cli.md lacks exit code {code}");
    }
}

#[test]
fn what_follows_the_image_is_the_command_whatever_it_looks_like() {
    let spec = spec("--rm alpine ls -l --output json --rm").unwrap();
    assert_eq!(spec.command, ["ls", "-l", "--output", "json", "--rm"]);
    assert!(spec.remove_on_exit);
    let words = ["byrectl", "exec", "-it", "web", "sh", "-c", "exit 3"];
    let Command::Exec(exec) = Cli::try_parse_from(words).unwrap().command else { panic!("exec is exec") };
    assert_eq!((exec.interactive, exec.tty, exec.command.len()), (true, true, 3));
}

#[test]
fn flags_become_the_specification() {
    let spec = spec(
        "-it --name web -e A=1 -e OURS -e NOT_OURS -e A=2 -v data:/d --mount type=tmpfs,target=/t -u 1:2 -w /w --read-only --init \
         --restart on-failure:3 --network host --userns host -m 128M --memory-swap 192M --cpus 1.5 --pids-limit 64 --cpuset-cpus 0-1 \
         --cpu-weight 50 --hostname h -l a=b --cap-add net_admin --cap-drop ALL --stop-signal INT --stop-timeout 5 nginx",
    )
    .unwrap();
    assert_eq!(spec.env, ["OURS=here", "A=2"]);
    assert_eq!((spec.terminal, spec.open_stdin, spec.terminal_size.unwrap().columns), (true, true, 80));
    assert_eq!((spec.network(), spec.user_namespace()), (NetworkMode::Host, UserNamespaceMode::Host));
    assert_eq!(spec.restart.unwrap().policy(), RestartPolicy::OnFailure);
    let limits = spec.limits.unwrap();
    assert_eq!((limits.memory_bytes, limits.memory_swap_bytes), (Some(128 << 20), Some(64 << 20)));
    assert_eq!((limits.cpu_millis, limits.pids, limits.cpu_weight), (Some(1500), Some(64), Some(50)));
    assert_eq!((spec.add_capabilities, spec.drop_capabilities), (vec!["NET_ADMIN".into()], vec!["ALL".into()]));
    assert_eq!(spec.volumes.len(), 2);
    assert_eq!(spec.stop_timeout.unwrap().seconds, 5);
}

#[test]
fn what_was_not_said_is_left_to_the_image_and_the_node() {
    let spec = spec("nginx").unwrap();
    assert!(spec.entrypoint.is_empty() && !spec.clear_entrypoint && spec.command.is_empty() && spec.user.is_empty());
    assert!(spec.stop_timeout.is_none() && spec.terminal_size.is_none());
    assert_eq!((spec.network(), spec.user_namespace()), (NetworkMode::None, UserNamespaceMode::Automatic));
    assert_eq!(spec.limits.unwrap(), byre_api::proto::Limits::default());
}

#[test]
fn an_empty_entrypoint_clears_it() {
    let words = ["byrectl", "run", "--entrypoint", "", "nginx", "sh"];
    let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else { panic!("run is run") };
    let spec = run.container.spec(None, |_| None).unwrap();
    assert!(spec.clear_entrypoint && spec.entrypoint.is_empty());
    assert_eq!(self::spec("--entrypoint /bin/x nginx").unwrap().entrypoint, ["/bin/x"]);
}

#[test]
fn contradictions_are_usage_errors() {
    for line in ["--rm --restart always x", "-v a:/d -v b:/d x", "-m 2M --memory-swap 1M x"] {
        assert_eq!(spec(line).unwrap_err().code(), 2, "{line}");
    }
    for line in [
        "run",
        "run --memory 12X x",
        "run --cpus 0 x",
        "run -p 80:80/icmp x",
        "run --pod p -p 80 x",
        "run --pids 0 x",
        "run --cpu-weight 10001 x",
        "run --memory-swap 1M x",
        "run -v ../x:/y x",
        "run --cpuset a x",
        "nonsense",
        "ps --filter status=asleep",
        "logs --tail x web",
        "start -i web",
        "context add a --server b:1",
    ] {
        let words = std::iter::once("byrectl").chain(line.split_whitespace());
        assert_eq!(Cli::try_parse_from(words).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn environment_files_come_first_and_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("env");
    std::fs::write(&path, "# comment\n\nA=1\n  B=two words\nOURS\n").unwrap();
    let ours = |name: &str| (name == "OURS").then(|| "here".to_owned());
    let read = crate::args_container::environment(std::slice::from_ref(&path), &["A=3".into()], ours).unwrap();
    assert_eq!(read, ["B=two words", "OURS=here", "A=3"]);
    std::fs::write(&path, "A=1\n=bad\n").unwrap();
    let error = crate::args_container::environment(&[path], &[], |_| None).unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
}
