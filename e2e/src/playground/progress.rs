//! Lines for steps that take long.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How often a line that can be rewritten is.
const SPIN: Duration = Duration::from_millis(120);

/// How often a log is told that a step still goes on.
const REMIND: Duration = Duration::from_secs(10);

/// Runs a step and shows that it runs, how long it has been, and how it ended.
///
/// `live`: the output is a terminal, whose last line may be rewritten. The step itself must print nothing then.
pub(super) async fn step<T>(live: bool, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    let mut work = std::pin::pin!(work);
    let mut turn = 0;
    if !live {
        println!("{what} ...");
    }
    let result = loop {
        let wait = if live { SPIN } else { REMIND };
        match tokio::time::timeout(wait, &mut work).await {
            Ok(result) => break result,
            Err(_) if live => {
                turn += 1;
                let sign = ['|', '/', '-', '\\'][turn % 4];
                print!("\r\x1b[K{sign} {what} ({:.0} s)", started.elapsed().as_secs_f64());
                // A terminal that is gone is noticed by its signal.
                let _ = std::io::stdout().flush();
            }
            Err(_) => println!("{what} ... {:.0} s so far", started.elapsed().as_secs_f64()),
        }
    };
    let (sign, end) = if result.is_ok() { ("ok", "") } else { ("!!", ": failed") };
    let clear = if live { "\r\x1b[K" } else { "" };
    println!("{clear}{sign} {what}{end} ({:.1} s)", started.elapsed().as_secs_f64());
    result
}
