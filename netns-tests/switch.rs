//! The lab itself: its cables, its programs, its accounts.

use std::net::IpAddr;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::lab::traffic::{Account, Counter, Generator};
use super::lab::{Host, Switch, wait_until};

/// Sends until `counter` has had some more.
fn reaches(from: &Host, to: IpAddr, counter: &Counter) {
    let before = counter.taken();
    let traffic = Generator::start(from, to, 1000);
    wait_until("datagrams arrive", || counter.taken() > before);
    traffic.stop();
}

/// Whether anything arrives of what is sent while something else arrives elsewhere.
fn is_cut_off(from: &Host, to: IpAddr, counter: &Counter) -> bool {
    let before = counter.taken();
    let traffic = Generator::start(from, to, 1000);
    traffic.wait_for(300);
    traffic.stop();
    counter.taken() == before
}

#[test]
fn cables_are_cut_and_hosts_parted() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let counter = Counter::start(&a);
    let to: IpAddr = a.v4().into();
    reaches(&b, to, &counter);

    switch.pull_cable(&a);
    wait_until("the host sees it", || !a.eth0().has_carrier);
    assert!(is_cut_off(&b, to, &counter));
    switch.plug_cable(&a);
    wait_until("the host sees it", || a.eth0().has_carrier);
    reaches(&b, to, &counter);

    switch.disable_port(&a);
    assert!(a.eth0().has_carrier);
    assert!(is_cut_off(&b, to, &counter));
    switch.enable_port(&a);
    reaches(&b, to, &counter);

    switch.part([&a, &b]);
    reaches(&client, to, &counter);
    assert!(is_cut_off(&b, to, &counter));
    switch.heal([&a, &b]);
    reaches(&b, to, &counter);
}

#[test]
fn a_program_runs_in_its_host_until_it_is_killed() {
    let switch = Switch::new();
    let a = switch.host("a");
    let program = a.start("ip", ["-o", "address", "show", "dev", "eth0"]);
    wait_until("it has written", || program.output().contains(&a.v4().to_string()));

    // A shell that starts another process, so that there is one which only the lab can find.
    let program = a.start("sh", ["-c", "trap 'echo asked; exit' USR1; sleep 1000 & while :; do wait; done"]);
    wait_until("it has started the other", || program.processes().len() == 2);
    let processes = program.processes();
    assert_eq!(processes[0], program.pid());
    program.pause();
    wait_until("both are stopped", || processes.iter().all(|process| state(*process) == Some('T')));
    program.resume();
    wait_until("both go on", || processes.iter().all(|process| state(*process) == Some('S')));
    program.signal(Signal::SIGUSR1);
    wait_until("the signal reaches it", || program.output() == "asked\n");
    wait_until("the other dies with it", || processes.iter().all(|process| state(*process).is_none()));

    let program = a.start("sh", ["-c", "sleep 1000 & while :; do wait; done"]);
    wait_until("it has started the other", || program.processes().len() == 2);
    let processes = program.processes();
    program.kill();
    assert!(processes.iter().all(|process| state(*process).is_none()));
}

/// The state letter of a process (proc(5)); `None` if it is gone.
fn state(process: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

#[test]
fn the_real_daemon_runs_in_a_host() {
    let switch = Switch::new();
    let (a, client) = (switch.host("a"), switch.host("client"));
    let directory = tempfile::TempDir::with_prefix("twinlog-").unwrap();
    let configuration = format!(
        "data_dir = {0:?}\ncontrol_socket = {1:?}\n[[input.syslog]]\nname = \"net\"\nlisten = \"udp://{2}:5514\"\n\
         [[output.file]]\nname = \"all\"\npath = {3:?}\n",
        directory.path().join("data"),
        directory.path().join("control.sock"),
        a.v4(),
        directory.path().join("all.log"),
    );
    let file = directory.path().join("twinlog.toml");
    std::fs::write(&file, configuration).unwrap();
    let _daemon = a.start(env!("CARGO_BIN_EXE_twinlog"), ["run", "--config", file.to_str().unwrap()]);
    let traffic = Generator::start(&client, a.v4().into(), 100);
    wait_until("the daemon delivers", || {
        std::fs::metadata(directory.path().join("all.log")).is_ok_and(|file| file.len() > 0)
    });
    traffic.stop();
}

#[test]
fn an_account_tells_what_was_lost_and_doubled() {
    let account = Account::of(10, &[vec![0, 1, 2, 9], vec![2, 5, 6]]);
    let expected = Account { sent: 10, by_receiver: vec![4, 3], lost: 4, doubled: 1, longest_gap: 2 };
    assert_eq!(account, expected);
}
