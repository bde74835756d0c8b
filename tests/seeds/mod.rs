//! The seeds of a simulation: a fixed list, a longer one or a single one, and the seed of a failure said before it fails.

// Every test file is a crate of its own and uses its part of this one.
#![allow(dead_code)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `0..usual` and then those that `failed` before; with `SEED=7` only that one, with `TWINLOG_SEEDS=20000` so many
/// first ones, with `TWINLOG_SEEDS=20000..30000` those and not the failed ones. Returns how many ran.
pub fn each(usual: u64, failed: &[u64], mut run: impl FnMut(u64)) -> usize {
    let asked = |name| std::env::var(name).ok();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let with_failed = |count| (0..count).chain(failed.iter().copied()).collect();
    let seeds: Vec<u64> = match (asked("SEED"), asked("TWINLOG_SEEDS")) {
        (Some(seed), _) => vec![number(&seed)],
        (None, None) => with_failed(usual),
        (None, Some(asked)) => match asked.split_once("..") {
            Some((from, to)) => (number(from)..number(to)).collect(),
            None => with_failed(number(&asked)),
        },
    };
    for seed in &seeds {
        or_say(|| format!("SEED={seed}"), || run(*seed));
    }
    seeds.len()
}

/// Runs it, and says what failed if it does.
pub fn or_say(what: impl FnOnce() -> String, run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        eprintln!("failed with {}", what());
        resume_unwind(panic);
    }
}

/// Checks that each of the first seeds gives the same trace twice, and not an empty one.
pub fn same_trace(seeds: u64, run: impl Fn(u64) -> String) {
    for seed in 0..seeds {
        let [first, second] = [0; 2].map(|_| run(seed));
        assert!(!first.is_empty() && first == second, "SEED={seed}");
    }
}
