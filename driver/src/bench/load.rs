//! Many volumes at once, up and down.

use super::default_directory;
use super::figures::{Figures, micros};
use super::steps::{Step, is_asked_again, is_final, may_have_happened};
use super::target::Target;
use super::volume_path::VolumePath;
use crate::cli::BenchArgs;
use crate::client::Client;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::Status;
use uuid::Uuid;
use volume::{Error, Result};

/// Waits between two tries of a call.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

pub struct Load {
    args: Arguments,
    pub target: Target,
    controller: Client,
    node: Client,
    /// Part of each volume's name, so that no two runs share one.
    run: String,
    staging_dir: PathBuf,
    target_dir: PathBuf,
    is_stopping: AtomicBool,
    figures: Mutex<Figures>,
    /// Of this round, and those of earlier ones that could not be removed.
    volumes: Mutex<Vec<Arc<VolumePath>>>,
    directories: Mutex<Vec<String>>,
}

/// How long a call is repeated, within the timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// On the way up: until it is refused for good, or the run is stopped.
    Stopped,
    /// On the way down: until it is refused for good.
    Refused,
    /// Until it is done.
    Done,
}

/// What tasks, which outlive any borrow, need of the command's.
struct Arguments {
    bench: BenchArgs,
    patience: Duration,
}

impl Load {
    pub fn new(args: &BenchArgs, target: Target, controller: Client, node: Client) -> Result<Self> {
        let staging_dir = absolute(args.staging_dir.clone().unwrap_or_else(|| default_directory("staging")))?;
        let target_dir = absolute(args.target_dir.clone().unwrap_or_else(|| default_directory("published")))?;
        for directory in [&staging_dir, &target_dir] {
            std::fs::create_dir_all(directory)
                .map_err(|error| Error::io(format!("cannot make {}", directory.display()), error))?;
        }
        Ok(Self {
            args: Arguments { bench: args.clone(), patience: Duration::from_secs(args.timeout_s) },
            target,
            controller,
            node,
            run: Uuid::new_v4().simple().to_string().chars().take(8).collect(),
            staging_dir,
            target_dir,
            is_stopping: AtomicBool::new(false),
            figures: Mutex::default(),
            volumes: Mutex::default(),
            directories: Mutex::default(),
        })
    }

    /// No call of a volume on its way up is begun any more.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    pub fn figures(&self) -> Figures {
        locked(&self.figures).clone()
    }

    pub fn begin_round(&self, round: u32) {
        let new = |number| {
            let name = format!("bench-{}-{round}-{number}", self.run);
            Arc::new(VolumePath::new(name, &self.staging_dir, &self.target_dir))
        };
        let mut volumes = locked(&self.volumes);
        // What earlier rounds left is tried again, and reported if it stays.
        volumes.retain(|volume| volume.progress().begun > 0);
        volumes.extend((0..self.args.bench.volumes).map(new));
    }

    pub async fn bring_all_up(self: &Arc<Self>) {
        let mut volumes: Vec<_> = locked(&self.volumes).iter().filter(|v| v.progress().begun == 0).cloned().collect();
        // Before and after the calls, which wait for no disk of ours.
        volumes.retain(|volume| self.make_directories(volume));
        let began = Instant::now();
        self.for_each(volumes, |load, volume| async move { load.bring_up(&volume).await }).await;
        locked(&self.figures).up_in_all += began.elapsed();
    }

    /// Whatever was begun. What is refused is asked for again, whatever the refusal, when all others are gone: a device
    /// may be in use for a moment longer.
    pub async fn take_all_down(self: &Arc<Self>) {
        let volumes = locked(&self.volumes).clone();
        let began = Instant::now();
        self.for_each(volumes.clone(), |load, volume| async move { load.take_down(&volume, Until::Refused).await })
            .await;
        locked(&self.figures).down_in_all += began.elapsed();
        let left = volumes.iter().filter(|volume| volume.progress().begun > 0).cloned().collect();
        self.for_each(left, |load, volume| async move { load.take_down(&volume, Until::Done).await }).await;
        for volume in volumes.iter().filter(|volume| volume.progress().begun == 0) {
            locked(&self.directories).extend(volume.remove_directories().err());
        }
    }

    /// Ends early when the run is stopped.
    pub async fn hold(&self, duration: Duration) {
        let end = Instant::now() + duration;
        while Instant::now() < end && !self.is_stopping() {
            let rest = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(rest.min(Duration::from_millis(100))).await;
        }
    }

    /// The directories that all volumes were below, when they are empty and nobody else's.
    pub fn remove_directories(&self) {
        for (directory, is_given) in [
            (&self.staging_dir, self.args.bench.staging_dir.is_some()),
            (&self.target_dir, self.args.bench.target_dir.is_some()),
        ] {
            if !is_given {
                let _ = std::fs::remove_dir(directory);
                let _ = directory.parent().map(std::fs::remove_dir);
            }
        }
    }

    /// One line for everything that this run made and could not remove.
    pub fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        for volume in locked(&self.volumes).iter() {
            let progress = volume.progress();
            if progress.begun == 0 {
                continue;
            }
            let id = progress.id.clone().unwrap_or_else(|| "id not known".to_owned());
            let why = progress.stuck.clone().unwrap_or_else(|| "not taken down".to_owned());
            let (staging, target) = (volume.staging.display(), volume.target.display());
            left.push(format!("volume {} ({id}) at {staging} and {target}: {why}", volume.name));
        }
        left.extend(locked(&self.directories).iter().cloned());
        left
    }

    /// `work` on each, as many at a time as asked for.
    async fn for_each<F>(self: &Arc<Self>, volumes: Vec<Arc<VolumePath>>, work: fn(Arc<Self>, Arc<VolumePath>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (volumes, next) = (Arc::new(volumes), Arc::new(AtomicUsize::new(0)));
        let mut workers = JoinSet::new();
        for _ in 0..self.args.bench.concurrency {
            let (load, volumes, next) = (self.clone(), volumes.clone(), next.clone());
            workers.spawn(async move {
                while let Some(volume) = volumes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(load.clone(), volume.clone()).await;
                }
            });
        }
        while workers.join_next().await.is_some() {}
    }

    fn make_directories(&self, volume: &VolumePath) -> bool {
        let made = volume.make_directories();
        if let Err(error) = &made {
            locked(&self.directories).push(format!("{} could not be made: {error}", volume.staging.display()));
            self.fail();
        }
        made.is_ok()
    }

    async fn bring_up(&self, volume: &VolumePath) {
        if self.is_stopping() {
            return;
        }
        let began = Instant::now();
        for &step in &self.target.up {
            if self.is_stopping() {
                return;
            }
            volume.progress().begun += 1;
            if let Err(status) = self.call(volume, step, Until::Stopped).await {
                if step == Step::Create && !may_have_happened(status.code()) {
                    volume.progress().begun = 0;
                }
                // A call that was not repeated because of the end of the run failed for no fault of the driver.
                if !self.is_stopping() {
                    self.fail();
                }
                return;
            }
        }
        locked(&self.figures).up.push(micros(began.elapsed()));
    }

    async fn take_down(&self, volume: &VolumePath, until: Until) {
        let whole = until == Until::Refused && volume.progress().begun == self.target.up.len();
        let began = Instant::now();
        loop {
            let begun = volume.progress().begun;
            let Some(&step) = begun.checked_sub(1).and_then(|last| self.target.up.get(last)) else { break };
            if let Err(why) = self.undo(volume, step, until).await {
                volume.progress().stuck = Some(why);
                return;
            }
            volume.progress().begun = begun - 1;
        }
        if whole {
            locked(&self.figures).down.push(micros(began.elapsed()));
        }
    }

    async fn undo(&self, volume: &VolumePath, step: Step, until: Until) -> Result<(), String> {
        let said =
            |of: Step, status: Status| format!("{} answers {:?}: {}", of.as_str(), status.code(), status.message());
        if step == Step::Create && volume.progress().id.is_none() {
            // Its answer was lost: asking again gives the id of what it made (CSI, CreateVolume is idempotent).
            self.call(volume, step, until).await.map_err(|status| said(step, status))?;
        }
        let undo = step.undone_by();
        match self.call(volume, undo, until).await {
            // Nothing of that name is there: the step up had not got so far. It is counted among the refusals.
            Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
            undone => undone.map_err(|status| said(undo, status)),
        }
    }

    /// Asks again as an orchestrator does while the driver is busy or away.
    async fn call(&self, volume: &VolumePath, step: Step, until: Until) -> std::result::Result<(), Status> {
        let end = Instant::now() + self.args.patience;
        let mut wait = FIRST_WAIT;
        loop {
            let began = Instant::now();
            let answer = volume.call(step, &self.args.bench, &self.target, &self.controller, &self.node).await;
            let took = began.elapsed();
            let Err(status) = answer else {
                locked(&self.figures).answered(step, took);
                return Ok(());
            };
            locked(&self.figures).refused(step, &status);
            let goes_on = match until {
                Until::Stopped => is_asked_again(status.code()) && !self.is_stopping(),
                Until::Refused => is_asked_again(status.code()),
                Until::Done => !is_final(status.code()),
            };
            if !goes_on || Instant::now() + wait > end {
                return Err(status);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn fail(&self) {
        locked(&self.figures).failed += 1;
        if !self.args.bench.keep_going {
            self.stop();
        }
    }
}

/// The driver has another working directory.
fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).map_err(|error| Error::io(format!("no absolute path of {}", path.display()), error))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
