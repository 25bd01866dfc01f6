#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, mpsc};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Runs `queue` with a work that reports each key and ends as `outcome` says.
fn run(
    queue: &WorkQueue<&'static str>,
    stop: &CancellationToken,
    outcome: impl Fn(&str) -> Outcome + Send + Sync + 'static,
) -> mpsc::UnboundedReceiver<(&'static str, Instant)> {
    let (report, seen) = mpsc::unbounded_channel();
    let (queue, stop, outcome) = (queue.clone(), stop.clone(), Arc::new(outcome));
    tokio::spawn(async move {
        queue
            .run(4, stop, move |key| {
                let (report, outcome) = (report.clone(), outcome.clone());
                async move {
                    report.send((key, Instant::now())).unwrap();
                    outcome(key)
                }
            })
            .await;
    });
    seen
}

#[tokio::test(start_paused = true)]
async fn a_key_added_many_times_is_worked_on_once() {
    let queue = WorkQueue::new("q");
    for _ in 0..5 {
        queue.add("a");
    }
    queue.add("b");
    assert_eq!(queue.len(), 2);
    let mut seen = run(&queue, &CancellationToken::new(), |_| Outcome::Done);
    let mut keys = [seen.recv().await.unwrap().0, seen.recv().await.unwrap().0];
    keys.sort_unstable();
    assert_eq!(keys, ["a", "b"]);
    assert!(tokio::time::timeout(SECOND, seen.recv()).await.is_err(), "worked on once more");
    assert!(queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_key_added_while_it_is_worked_on_runs_again_and_never_at_once() {
    let queue = WorkQueue::new("q");
    let (gate, at_once, runs) =
        (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (queue, gate, at_once, runs, stop) =
            (queue.clone(), gate.clone(), at_once.clone(), runs.clone(), stop.clone());
        async move {
            queue
                .run(8, stop, move |_key: &'static str| {
                    let (gate, at_once, runs) = (gate.clone(), at_once.clone(), runs.clone());
                    async move {
                        assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "two runs of one key at once");
                        gate.acquire().await.unwrap().forget();
                        at_once.fetch_sub(1, Ordering::SeqCst);
                        runs.fetch_add(1, Ordering::SeqCst);
                        Outcome::Done
                    }
                })
                .await;
        }
    });
    queue.add("a");
    tokio::time::sleep(SECOND).await;
    for _ in 0..3 {
        queue.add("a");
    }
    gate.add_permits(10);
    tokio::time::sleep(SECOND).await;
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_earliest_of_several_delays_counts() {
    let queue = WorkQueue::new("q");
    let mut seen = run(&queue, &CancellationToken::new(), |_| Outcome::Done);
    let start = Instant::now();
    queue.add_after("a", 10 * SECOND);
    queue.add_after("a", 3 * SECOND);
    queue.add_after("a", 20 * SECOND);
    assert_eq!((seen.recv().await.unwrap().1 - start).as_secs(), 3);
    assert!(tokio::time::timeout(60 * SECOND, seen.recv()).await.is_err(), "the later delays fired too");
}

#[tokio::test(start_paused = true)]
async fn a_key_added_now_does_not_wait_for_its_delay() {
    let queue = WorkQueue::new("q");
    let mut seen = run(&queue, &CancellationToken::new(), |_| Outcome::Done);
    let start = Instant::now();
    queue.add_after("a", 10 * SECOND);
    queue.add("a");
    assert_eq!((seen.recv().await.unwrap().1 - start).as_secs(), 0);
    assert_eq!((seen.recv().await.unwrap().1 - start).as_secs(), 10, "its delayed run was lost");
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_wait_longer_and_success_forgets_them() {
    let queue = WorkQueue::with("q", SECOND, &QueueMetrics::default());
    let waits: Vec<Duration> = (0..12).map(|_| queue.retry("a")).collect();
    for (failures, wait) in waits.iter().enumerate() {
        let full = Duration::from_millis(5 << failures).min(SECOND);
        assert!(*wait <= full && *wait >= full / 2, "wait {failures} was {wait:?}, of {full:?}");
    }
    queue.forget(&"a");
    assert!(queue.retry("a") <= Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn a_failed_run_comes_back_and_a_requeue_comes_at_its_time() {
    let queue = WorkQueue::new("q");
    let runs = AtomicUsize::new(0);
    let mut seen = run(&queue, &CancellationToken::new(), move |_| match runs.fetch_add(1, Ordering::SeqCst) {
        0..=1 => Outcome::Retry,
        2 => Outcome::Requeue(7 * SECOND),
        _ => Outcome::Done,
    });
    let start = Instant::now();
    queue.add("a");
    for _ in 0..3 {
        seen.recv().await.unwrap();
    }
    assert!(start.elapsed() < SECOND);
    assert_eq!((seen.recv().await.unwrap().1 - start).as_secs(), 7);
    assert!(tokio::time::timeout(60 * SECOND, seen.recv()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_given_number_run_at_once() {
    let queue = WorkQueue::new("q");
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for key in 0..100 {
        queue.add(key);
    }
    let (stop, running, highest) = (CancellationToken::new(), now.clone(), most.clone());
    let watched = queue.clone();
    let task = tokio::spawn({
        let stop = stop.clone();
        async move {
            queue
                .run(7, stop, move |_| {
                    let (running, highest) = (running.clone(), highest.clone());
                    async move {
                        highest.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        tokio::time::sleep(SECOND).await;
                        running.fetch_sub(1, Ordering::SeqCst);
                        Outcome::Done
                    }
                })
                .await;
        }
    });
    tokio::time::sleep(20 * SECOND).await;
    assert!(watched.is_idle());
    assert_eq!(most.load(Ordering::SeqCst), 7);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn shutdown_finishes_what_was_begun_and_leaves_the_rest() {
    let queue = WorkQueue::new("q");
    let finished = Arc::new(AtomicUsize::new(0));
    queue.add("a");
    queue.add("b");
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (queue, stop, finished) = (queue.clone(), stop.clone(), finished.clone());
        async move {
            queue
                .run(1, stop, move |_| {
                    let finished = finished.clone();
                    async move {
                        tokio::time::sleep(SECOND).await;
                        finished.fetch_add(1, Ordering::SeqCst);
                        Outcome::Done
                    }
                })
                .await;
        }
    });
    tokio::time::sleep(SECOND / 2).await;
    stop.cancel();
    task.await.unwrap();
    assert_eq!((finished.load(Ordering::SeqCst), queue.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_passed_on() {
    let queue = WorkQueue::new("q");
    queue.add("a");
    let running = queue.clone();
    let task = tokio::spawn(async move {
        running.run(2, CancellationToken::new(), |_| async { panic!("broken reconcile") }).await;
    });
    assert!(task.await.unwrap_err().is_panic());
}
