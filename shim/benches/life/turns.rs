//! Contenders that take turns, so that what disturbs one disturbs all.
use anyhow::{Context, Result};
use std::time::Duration;

/// Times `life`, which is told whose turn it is and which round, and prints a line for each contender. The first is what the
/// others are compared with.
pub fn take_turns(rounds: usize, contenders: &[&str], life: impl Fn(usize, usize) -> Result<Duration>) -> Result<()> {
    let mut times = vec![Vec::new(); contenders.len()];
    // The first round warms caches, precompiled code among them, and is not counted.
    for round in 0..=rounds {
        for (index, contender) in contenders.iter().enumerate() {
            let time = life(index, round).with_context(|| format!("{contender}, round {round}"))?;
            if round > 0 {
                times[index].push(time);
            }
        }
    }
    let base = median(times[0].clone()).as_secs_f64();
    for (contender, mut times) in contenders.iter().zip(times) {
        times.sort_unstable();
        let (ninth, median) = (times[times.len() * 9 / 10], median(times));
        println!(
            "  {contender:<20} {:8.2} ms   p90 {:8.2} ms   {:.3} of runc's",
            median.as_secs_f64() * 1e3,
            ninth.as_secs_f64() * 1e3,
            median.as_secs_f64() / base
        );
    }
    Ok(())
}

/// The upper median of at least one.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
