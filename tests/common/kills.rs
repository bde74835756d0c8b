//! Rounds of `kill -9` at random moments, under clients that note what they were promised.
//!
//! `SEED` repeats a run, `TWINLOG_ROUNDS` asks for more than the three rounds of the normal test run.

use std::time::Duration;

use super::Lab;

/// Clients of a round.
pub const CLIENTS: usize = 6;

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Starts the daemon with `input` and an output that nobody listens to, so that nothing is delivered and nothing trimmed,
/// lets every client `send`, from what it was promised on until its connection breaks, and kills. Then `judge` gets what
/// each client was promised, from which number on it is to be looked at, and gives how many stand in the journal, and how
/// many again.
///
/// # Panics
/// If nothing was ever promised.
pub fn kill_at_random(
    input: &str,
    send: impl Fn(usize, usize) -> usize + Copy + Send + 'static,
    judge: impl Fn(&Lab, &[usize], &[usize], u64) -> (usize, usize),
) {
    let seed = number_from("SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = number_from("TWINLOG_ROUNDS").unwrap_or(3);
    println!("SEED={seed} TWINLOG_ROUNDS={rounds}");
    let mut random = fastrand::Rng::with_seed(seed);
    let lab = Lab::new();
    let nobody = super::free_port();
    let config =
        format!("[journal]\nsegment_size = \"16MiB\"\n{input}\n[[output.syslog]]\nto = \"tcp://127.0.0.1:{nobody}\"\n");
    let mut promised = vec![0; CLIENTS];
    let mut judged = promised.clone();
    let (mut total, mut again) = (0, 0);
    for round in 0..rounds {
        let daemon = lab.start(&config);
        let clients = promised.iter().copied().enumerate();
        let clients: Vec<_> = clients.map(|(client, from)| std::thread::spawn(move || send(client, from))).collect();
        // The moment is what is random.
        std::thread::sleep(Duration::from_millis(random.u64(50..700)));
        daemon.kill();
        for (client, thread) in clients.into_iter().enumerate() {
            promised[client] = thread.join().unwrap();
        }
        // All of them once more at the end.
        let from = if round + 1 == rounds { vec![0; CLIENTS] } else { judged };
        (total, again) = judge(&lab, &from, &promised, round);
        judged = promised.clone();
    }
    let sum: usize = promised.iter().sum();
    println!("kills: {rounds}; promised: {sum}, lost: 0; journaled: {total}, again: {again}");
    assert!(sum > 0, "something must have been promised");
}
