//! The same work on each of many volumes, a few at a time, such that some that hang do not keep the others waiting.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use volume::VolumeId;

/// More at once only wait for the same disk, and each takes a stack.
const WORKERS: usize = 8;
/// When no volume was done for so long, those at work may hang: others take their place.
const PATIENCE: Duration = Duration::from_millis(200);

/// Runs `work` for each volume; what it gave, in the order in which it ended. A panic is an error of its volume.
pub(crate) fn run<T: Send + 'static>(
    volumes: impl IntoIterator<Item = VolumeId>,
    work: impl Fn(&VolumeId) -> Result<T, String> + Clone + Send + 'static,
) -> Vec<Result<T, String>> {
    let queue: VecDeque<VolumeId> = volumes.into_iter().collect();
    let wanted = queue.len();
    let queue = Arc::new(Mutex::new(queue));
    let (sender, receiver) = channel();
    let mut done = Vec::with_capacity(wanted);
    let mut hire = wanted.min(WORKERS);
    while done.len() < wanted {
        for _ in 0..hire {
            if let Err(error) = start(queue.clone(), sender.clone(), work.clone()) {
                // A process may be allowed fewer threads than this.
                tracing::warn!(%error, "no thread for more work at once");
                if let Some(id) = take(&queue) {
                    done.push(work(&id));
                }
            }
        }
        hire = 0;
        match receiver.recv_timeout(PATIENCE) {
            Ok(one) => done.push(one),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => hire = WORKERS.min(lock(&queue).len()),
        }
    }
    done
}

type Done<T> = Sender<Result<T, String>>;

fn start<T: Send + 'static>(
    queue: Arc<Mutex<VecDeque<VolumeId>>>,
    done: Done<T>,
    work: impl Fn(&VolumeId) -> Result<T, String> + Send + 'static,
) -> std::io::Result<()> {
    let work = move || {
        loop {
            let Some(id) = take(&queue) else { return };
            let answer = Answer { id, done: Some(done.clone()) };
            let result = work(&answer.id);
            answer.give(result);
        }
    };
    thread::Builder::new().name("hawser-crew".to_owned()).spawn(work).map(drop)
}

/// Answers for its volume also when the work panics.
struct Answer<T> {
    id: VolumeId,
    done: Option<Done<T>>,
}

impl<T> Answer<T> {
    fn give(mut self, result: Result<T, String>) {
        if let Some(done) = self.done.take() {
            // Whoever asked waits until all have answered.
            let _ = done.send(result);
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            let _ = done.send(Err(format!("volume {}: the thread that worked on it panicked", self.id)));
        }
    }
}

fn take(queue: &Mutex<VecDeque<VolumeId>>) -> Option<VolumeId> {
    lock(queue).pop_front()
}

fn lock(queue: &Mutex<VecDeque<VolumeId>>) -> MutexGuard<'_, VecDeque<VolumeId>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use volume::{BackendName, VolumeName};

    fn ids(count: usize) -> Vec<VolumeId> {
        let pool = BackendName::parse("pool").unwrap();
        (0..count).map(|n| VolumeId::of_name(&pool, &VolumeName::parse(&n.to_string()).unwrap())).collect()
    }

    #[test]
    fn each_volume_once() {
        assert!(run(ids(0), |id| Ok(id.clone())).is_empty());
        let mut done: Vec<_> = run(ids(100), |id| Ok(id.clone())).into_iter().map(Result::unwrap).collect();
        done.sort();
        let mut all = ids(100);
        all.sort();
        assert_eq!(done, all);
    }

    /// More hang than there are workers, and let go only when all the others are done.
    #[test]
    fn those_that_hang_hold_nobody_up() {
        let ids = ids(WORKERS + 5);
        let hung = ids[..=WORKERS].to_vec();
        let gate = Arc::new(Barrier::new(ids.len()));
        let done = run(ids, move |id| {
            gate.wait();
            Ok(hung.contains(id))
        });
        assert_eq!(done.iter().filter(|one| **one == Ok(true)).count(), WORKERS + 1);
    }

    #[test]
    fn a_panic_is_an_error_of_its_volume() {
        let ids = ids(20);
        let bad = ids[3].clone();
        let done = run(ids, move |id| if *id == bad { std::panic::resume_unwind(Box::new(())) } else { Ok(()) });
        let errors: Vec<_> = done.into_iter().filter_map(Result::err).collect();
        assert!(matches!(&errors[..], [one] if one.contains("panicked")), "{errors:?}");
    }
}
