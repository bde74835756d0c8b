use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::config;

/// Hooks that run a script of the test.
struct World {
    directory: TempDir,
    config: watch::Sender<Arc<Config>>,
    metrics: Arc<Metrics>,
    hooks: Hooks,
    runner: Runner,
}

impl World {
    /// With a script, and what follows `command` in its `[[hook]]`; `DIR` in either is the test's directory.
    fn new(script: &str, rest: &str) -> World {
        let directory = TempDir::new().unwrap();
        let here = directory.path().to_str().unwrap();
        let program = directory.path().join("hook.sh");
        fs::write(&program, format!("#!/bin/sh\n{}\n", script.replace("DIR", here))).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let text = format!(
            "[[input.syslog]]\nlisten = \":514\"\n[[output.stdout]]\n[[hook]]\ncommand = [\"{here}/hook.sh\", \"own\"]\n{rest}\n"
        );
        let config = watch::Sender::new(Arc::new(config::parse(&text, "t.toml").unwrap().config));
        let metrics = Arc::new(Metrics::default());
        let (hooks, runner) = Hooks::start(config.subscribe(), metrics.clone()).unwrap();
        World { directory, config, metrics, hooks, runner }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Waits for what was told to be run; the counts.
    async fn finish(self) -> (TempDir, Vec<(&'static str, &'static str, u64)>) {
        drop(self.hooks);
        self.runner.finish(Duration::from_secs(60)).await;
        let runs = self.metrics.hook_runs().into_iter();
        (self.directory, runs.map(|((event, result), count)| (event, result, count)).collect())
    }
}

#[tokio::test]
async fn a_command_reads_json_and_runs_only_for_its_events() {
    let world = World::new("cat > DIR/got; echo \"$# $1\" >> DIR/got", "on = [\"fault\", \"gap\"]");
    world.hooks.tell(Event::now(HookEvent::Reload, "not asked for"));
    world.hooks.tell(Event::now(HookEvent::Fault, "the journal waits: \"full\""));
    let (directory, runs) = world.finish().await;
    assert_eq!(runs, [("fault", "ok", 1)]);
    let got = fs::read_to_string(directory.path().join("got")).unwrap();
    let (message, arguments) = got.split_once('\n').unwrap();
    assert_eq!(arguments, "1 own\n");
    let message: serde_json::Value = serde_json::from_str(message).unwrap();
    assert_eq!((&message["v"], &message["event"], &message["node"]), (&1.into(), &"fault".into(), &"localhost".into()));
    assert_eq!(message["cause"], "the journal waits: \"full\"");
    assert!(message["time"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn keepalived_style_adds_its_four_arguments() {
    let rest = "on = [\"active\", \"stop\"]\nstyle = \"keepalived\"\ninstance = \"VI_1\"";
    let world = World::new("echo \"$*\" >> DIR/got", rest);
    world.hooks.tell(Event { priority: 150, ..Event::now(HookEvent::Active, "") });
    world.hooks.tell(Event { priority: 150, ..Event::now(HookEvent::Stop, "") });
    let (directory, _) = world.finish().await;
    let got = fs::read_to_string(directory.path().join("got")).unwrap();
    assert_eq!(got, "own INSTANCE VI_1 MASTER 150\nown INSTANCE VI_1 STOP 150\n");
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_all_that_it_started() {
    let script = "sleep 600 & echo $! > DIR/child; wait";
    let world = World::new(script, "on = \"gap\"\ntimeout = \"300ms\"");
    world.hooks.tell(Event::now(HookEvent::Gap, ""));
    let (directory, runs) = world.finish().await;
    assert_eq!(runs, [("gap", "timeout", 1)]);
    let child: i32 = fs::read_to_string(directory.path().join("child")).unwrap().trim().parse().unwrap();
    // Killed, it takes a moment to die, and stays a zombie until whoever inherits it collects it.
    let state = || fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    let is_gone = |state: &str| state.is_empty() || state.contains(") Z") || state.contains(") X");
    while !is_gone(&state()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_cannot_run_or_fails_is_counted_and_the_next_one_runs() {
    let world = World::new("cat > /dev/null; exit 3", "on = [\"fault\", \"gap\"]");
    let told = |kind| world.hooks.tell(Event::now(kind, ""));
    told(HookEvent::Fault);
    let failed = ("fault", "failed");
    while !world.metrics.hook_runs().contains_key(&failed) {
        tokio::task::yield_now().await;
    }
    fs::set_permissions(world.path("hook.sh"), Permissions::from_mode(0o757)).unwrap();
    told(HookEvent::Gap);
    assert_eq!(world.finish().await.1, [("fault", "failed", 1), ("gap", "refused", 1)]);
}

#[tokio::test]
async fn telling_never_waits_and_what_does_not_fit_is_counted() {
    let world = World::new("exec sleep 600", "on = \"gap\"\ntimeout = \"1h\"");
    for _ in 0..QUEUE_EVENTS + 10 {
        world.hooks.tell(Event::now(HookEvent::Gap, ""));
    }
    let dropped = world.metrics.hook_runs()[&("gap", "dropped")];
    // One or none was taken out of the queue meanwhile.
    assert!((9..=10).contains(&dropped), "{dropped}");
    // Nobody has to wait for the hour.
    let World { hooks, runner, .. } = world;
    drop(hooks);
    runner.finish(Duration::ZERO).await;
}

#[tokio::test]
async fn a_hook_of_a_new_configuration_runs() {
    let world = World::new("echo >> DIR/got", "on = \"gap\"");
    let mut config = Config::clone(&world.config.borrow());
    config.hooks[0].on = vec![HookEvent::Drained];
    world.config.send_replace(Arc::new(config));
    world.hooks.tell(Event::now(HookEvent::Gap, ""));
    world.hooks.tell(Event::now(HookEvent::Drained, ""));
    assert_eq!(world.finish().await.1, [("drained", "ok", 1)]);
}

#[tokio::test]
async fn commands_get_no_ambient_capability() {
    let world = World::new("grep CapAmb /proc/self/status > DIR/got", "on = \"gap\"");
    world.hooks.tell(Event::now(HookEvent::Gap, ""));
    let (directory, _) = world.finish().await;
    assert_eq!(fs::read_to_string(directory.path().join("got")).unwrap(), "CapAmb:\t0000000000000000\n");
}

#[test]
fn a_fault_is_told_once_and_so_is_its_end() {
    let none = [(0, "dropped"), (0, "abandoned"), (0, "damaged")];
    let mut seen = Seen { faults: BTreeSet::new(), losses: none };
    let silent = |seconds: u32| vec![format!("the journal has not moved for {seconds} s")];
    let kinds = |events: Vec<Event>| events.into_iter().map(|event| event.kind).collect::<Vec<_>>();
    assert_eq!(kinds(seen.look(&[], none)), []);
    assert_eq!(kinds(seen.look(&silent(6), none)), [HookEvent::Fault]);
    assert_eq!(kinds(seen.look(&silent(7), none)), [], "the same fault, a second later");
    let more = [(0, "dropped"), (0, "abandoned"), (2, "damaged")];
    let events = seen.look(&[], more);
    assert_eq!(events[1].cause, "2 × damaged");
    assert_eq!(kinds(events), [HookEvent::Recovered, HookEvent::Gap]);
    assert_eq!(kinds(seen.look(&[], more)), []);
}
