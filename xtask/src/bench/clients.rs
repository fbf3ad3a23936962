//! Many clients at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::sample::Sample;

/// Makes one request.
pub(super) type Client<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// Runs clients without pause. Returns the duration of every request, and the requests a second.
/// `client` prepares the client of that number, and warms it up.
pub(super) fn throughput<'a>(
    clients: usize,
    seconds: u64,
    client: impl Fn(usize) -> Result<Client<'a>> + Sync,
) -> Result<(Sample, f64)> {
    let (over, client) = (AtomicBool::new(false), &client);
    let begun = Instant::now();
    let durations: Result<Vec<Vec<Duration>>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|number| {
                let over = &over;
                scope.spawn(move || {
                    let mut request = client(number)?;
                    let mut durations = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        request()?;
                        durations.push(begun.elapsed());
                    }
                    Ok(durations)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(seconds));
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?).collect()
    });
    let elapsed = begun.elapsed().as_secs_f64();
    let sample = Sample::new(durations?.into_iter().flatten().collect());
    #[expect(clippy::cast_precision_loss, reason = "a few thousand requests")]
    let rate = sample.len() as f64 / elapsed;
    Ok((sample, rate))
}
